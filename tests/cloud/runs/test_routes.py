"""The routes of apps and runs, from an app's bundle to its model's bytes."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy as sa
from skerry_cloud.api.app import make_app
from skerry_cloud.api.runs import BUNDLE_LIMIT, router
from skerry_cloud.store import audit, operators
from skerry_cloud.store.operators import Role
from skerry_devices.apps import read_app
from skerry_protos.records import decode

from tests.fleet import SmallFleet, small_fleet

HALVES = Path(__file__).parents[2] / "apps" / "halves"
TOKENS = {role: operators.new_token() for role in Role}


@pytest.fixture
async def fleet(tmp_path: Path) -> AsyncIterator[SmallFleet]:
    async with small_fleet(tmp_path, "memory", ("one", "two")) as made:
        yield made


@pytest.fixture
async def client(fleet: SmallFleet) -> AsyncIterator[httpx.AsyncClient]:

    def keep(connection: sa.Connection) -> None:
        for role, token in TOKENS.items():
            operators.keep(connection, name=role.value, role=role, token=token)

    await fleet.store.write(keep)
    app = make_app(
        store=fleet.store,
        authority=fleet.authority,
        registry=fleet.registry,
        url="https://here",
        links=[],
        routers=[router(fleet.runs)],
        large_bodies={"/v1/apps": BUNDLE_LIMIT},
    )
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="https://here") as opened:
        opened.headers["Authorization"] = f"Bearer {TOKENS[Role.OPERATOR]}"
        yield opened


async def wait_for_end(client: httpx.AsyncClient, run: str) -> tuple[dict[str, Any], list[str]]:
    """Follow a run by its events, as the CLI does; return it ended and the kinds of events."""
    after, kinds = 0, list[str]()
    while True:
        answer = await client.get(
            f"/v1/runs/{run}/events", params={"after": after, "wait_s": 10}, timeout=30
        )
        for event in answer.json()["items"]:
            after = event["id"]
            kinds.append(event["kind"])
            if event["data"].get("state") in {"completed", "failed"}:
                return (await client.get(f"/v1/runs/{run}")).json(), kinds


async def test_from_an_app_to_its_model(client: httpx.AsyncClient, fleet: SmallFleet) -> None:
    bundle = read_app(HALVES).bundle
    made = await client.post("/v1/apps", content=bundle)
    assert made.status_code == 201
    assert made.json()["kind"] == "native"
    assert (await client.post("/v1/apps", content=bundle)).json() == made.json()
    wish = {"app": made.json()["digest"][:12], "options": {"rounds": 2}}
    begun = await client.post("/v1/runs", json=wish)
    assert begun.status_code == 201, begun.text
    run = begun.json()["id"]
    found, kinds = await wait_for_end(client, run[:-2])
    assert found["state"] == "completed", found
    assert [kind for kind in kinds if kind in {"asked", "closed"}] == ["asked", "closed"] * 4
    assert [(row["round"], row["phase"], row["replied"]) for row in found["rounds_table"]] == [
        (1, "train", 2),
        (1, "evaluate", 2),
        (2, "train", 2),
        (2, "evaluate", 2),
    ]
    assert found["rounds_table"][3]["metrics"]["error"] > 0
    assert [row["device"] for row in found["devices"]] == ["one", "two"]
    assert found["devices"][0]["replied"] == 4
    assert int(found["number"]) > 2**32
    model = await client.get(f"/v1/runs/{run}/model")
    assert decode(model.content).arrays["arrays"]["w"].shape == (3,)
    metrics = (await client.get(f"/v1/runs/{run}/metrics")).json()["items"]
    assert {row["device"] for row in metrics} == {"", "one", "two"}
    assert (await client.get(f"/v1/runs/{run}/logs")).json() == {"items": []}
    assert (await client.get("/v1/runs")).json()["items"][0]["id"] == run
    for what in ("pause", "resume"):
        refused = await client.post(f"/v1/runs/{run}/{what}")
        assert (refused.status_code, refused.json()["error"]["code"]) == (409, "run-state")
    stopped = await client.post(f"/v1/runs/{run}/stop")
    assert stopped.json()["state"] == "completed"
    rows = await fleet.store.read(lambda c: audit.listed(c, before=2**60, limit=100))
    assert {"add_app", "begin", "stop", "pause", "resume"} <= {row["action"] for row in rows}


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code"),
    [
        ("GET", "/v1/runs/run-x", None, 404, "not-found"),
        ("POST", "/v1/runs/run-x/stop", None, 404, "not-found"),
        ("POST", "/v1/runs/run-x/pause", None, 404, "not-found"),
        ("POST", "/v1/runs", {"app": "0" * 64}, 404, "not-found"),
        ("POST", "/v1/runs", {"app": "0" * 64, "oops": 1}, 422, "invalid"),
        ("POST", "/v1/runs", {"app": "0" * 64, "options": {"quorom": 1}}, 400, "config"),
        ("GET", "/v1/runs/run-x/events?wait_s=1000", None, 422, "invalid"),
    ],
)
async def test_what_is_wrong_is_said(
    client: httpx.AsyncClient, method: str, path: str, body: Any, status: int, code: str
) -> None:
    answer = await client.request(method, path, json=body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)


async def test_a_bundle_that_is_none_is_refused(client: httpx.AsyncClient) -> None:
    answer = await client.post("/v1/apps", content=b"PK nonsense")
    assert answer.status_code == 400
    assert "the app cannot be taken" in answer.json()["error"]["message"]


async def test_a_viewer_looks_and_does_no_more(client: httpx.AsyncClient) -> None:
    client.headers["Authorization"] = f"Bearer {TOKENS[Role.VIEWER]}"
    assert (await client.get("/v1/runs")).status_code == 200
    changes = [f"/v1/runs/run-x/{what}" for what in ("stop", "pause", "resume")]
    for path in ("/v1/apps", "/v1/runs", *changes):
        assert (await client.post(path, json={"app": "123456"})).status_code == 403
    del client.headers["Authorization"]
    assert (await client.get("/v1/runs")).status_code == 401
