"""The operator API over TLS: who may call what, what is kept of it, and what is refused."""

import asyncio
import json
import ssl
import urllib.error
import urllib.request
from collections.abc import AsyncIterator
from http.client import HTTPException
from pathlib import Path

import pytest
from skerry_cloud.api.auth import Allowance
from skerry_cloud.store import FullDiskError
from skerry_cloud.store import devices as kept
from skerry_cloud.store.operators import Role
from skerry_edge.enrolment import join
from skerry_protos.messages import DeviceId, Parcel, ParcelId, ParcelKind
from skerry_protos.v1.work_pb2 import LogLine, LogLines

from tests.mainland import Mainland, mainland

pytestmark = pytest.mark.network

PUBLIC = {"/v1/ca", "/v1/enrol", "/v1/renew", "/v1/health", "/openapi.json"}
READS = {"GET", "HEAD"}
NOT_FOR_VIEWERS = {"/v1/runs/{run}/app"}
"""Read by operators only: an app's files may hold more than its run shows."""
ADMIN_ONLY = {"/v1/operators", "/v1/operators/{name}", "/v1/operators/{name}/token", "/v1/audit",
              "/v1/devices/{device}/revoke"}  # fmt: skip


@pytest.fixture
async def shore(tmp_path: Path) -> AsyncIterator[Mainland]:
    """Run a coordinator's API."""
    async with mainland(tmp_path / "coordinator") as running:
        yield running


async def enrolled(shore: Mainland, tmp_path: Path, *names: str) -> None:
    """Enrol devices with these names."""
    word = await shore.invite(uses=len(names))
    for name in names:
        await asyncio.to_thread(join, word, tmp_path / name, name)


def routes(shore: Mainland) -> list[tuple[str, str]]:
    """Return every route's method and path, as OpenAPI tells them."""
    paths = shore.app.openapi()["paths"]
    return [(method.upper(), path) for path, methods in paths.items() for method in methods]


async def test_every_route_is_open_to_exactly_the_roles_it_names(shore: Mainland) -> None:
    """Walk all routes with every role; a body is never valid, so that nothing happens."""
    walked = routes(shore)
    assert len(walked) >= 30
    for method, path in walked:
        if path in PUBLIC:
            continue
        url = (
            path.replace("{device}", "nobody")
            .replace("{name}", "nobody")
            .replace("{invite}", "nobody")
        )
        body = None if method in READS | {"DELETE"} else {"unknown": 1}
        viewed = method in READS and path not in NOT_FOR_VIEWERS
        needed = Role.ADMIN if path in ADMIN_ONLY else Role.VIEWER if viewed else Role.OPERATOR
        nobody = await shore.call(method, url, body, role=None)
        assert (nobody.status, nobody.code) == (401, "unauthorized"), (method, path)
        for role in Role:
            answer = await shore.call(method, url, body, role=role)
            if role.includes(needed):
                assert answer.status not in {401, 403}, (method, path, role, answer)
            else:
                assert (answer.status, answer.code) == (403, "forbidden"), (method, path, role)


async def slowed_down(shore: Mainland, method: str, path: str, body: object, token: str) -> bool:
    """Return whether an address that keeps being refused is soon told to wait."""
    for _ in range(200):  # 30 at once, and one a second while we ask
        answer = await shore.call(method, path, body, role=None, token=token)
        if answer.status == 429:
            assert answer.code == "too-many"
            return True
    return False


async def test_wrong_and_revoked_tokens_open_nothing_and_are_limited(shore: Mainland) -> None:
    made = await shore.call("POST", "/v1/operators", {"name": "ann", "role": "viewer"})
    token = str(made["token"])
    assert (await shore.call("GET", "/v1/whoami", token=token))["name"] == "ann"
    changed = await shore.call("POST", "/v1/operators/ann/token")
    assert (await shore.call("GET", "/v1/whoami", token=token)).status == 401
    token = str(changed["token"])
    assert (await shore.call("GET", "/v1/whoami", token=token)).status == 200
    assert (await shore.call("DELETE", "/v1/operators/ann")).status == 204
    assert (await shore.call("GET", "/v1/whoami", token=token)).status == 401
    assert await slowed_down(shore, "GET", "/v1/whoami", None, token)


async def test_the_last_admin_and_a_name_once_taken_are_kept(shore: Mainland) -> None:
    last = await shore.call("DELETE", "/v1/operators/admin")
    assert (last.status, last.code) == (409, "last-admin")
    await shore.call("DELETE", "/v1/operators/viewer")
    again = await shore.call("POST", "/v1/operators", {"name": "viewer", "role": "admin"})
    assert (again.status, again.code) == (409, "operator-taken")


async def test_whatever_changes_something_is_in_the_audit_log_and_refusals_too(
    shore: Mainland, tmp_path: Path
) -> None:
    await enrolled(shore, tmp_path, "pi-1")
    await shore.call("POST", "/v1/devices/pi-1/revoke", {"why": "no"}, role=Role.OPERATOR)
    await shore.call("POST", "/v1/devices/pi-1/revoke", {"why": "lost"})
    await shore.call("POST", "/v1/invites", {"uses": 0}, role=Role.OPERATOR)
    await shore.call("POST", "/v1/invites", {}, role=None)
    await shore.call("GET", "/v1/devices")
    rows = (await shore.call("GET", "/v1/audit"))["items"]
    assert [(row["operator"], row["action"], row["outcome"]) for row in reversed(rows)] == [
        ("admin", "create_invite", "200"),
        ("", "enrol_device", "200"),
        ("operator", "revoke_device", "403 forbidden"),
        ("admin", "revoke_device", "200"),
        ("operator", "create_invite", "422 invalid"),
        ("", "create_invite", "401 unauthorized"),
    ]
    assert rows[2]["detail"] == {"address": "127.0.0.1", "device": "pi-1", "why": "lost"}
    assert "skj1" not in json.dumps(rows)
    older = (await shore.call("GET", f"/v1/audit?before={rows[2]['id']}&limit=2"))["items"]
    assert [row["id"] for row in older] == [rows[3]["id"], rows[4]["id"]]


async def test_devices_are_listed_by_selector_and_state_and_found_by_prefix(
    shore: Mainland, tmp_path: Path
) -> None:
    await enrolled(shore, tmp_path, "pi-1", "pi-12", "gateway")
    labelled = await shore.call(
        "PATCH", "/v1/devices/gate", {"labels": {"site": "north"}}, role=Role.OPERATOR
    )
    assert (labelled["id"], labelled["labels"]) == ("gateway", {"site": "north"})

    async def listed(query: str) -> list[str]:
        answer = await shore.call("GET", f"/v1/devices?{query}", role=Role.VIEWER)
        return [device["id"] for device in answer["items"]]

    assert await listed("") == ["gateway", "pi-1", "pi-12"]
    assert await listed("selector=site%3Dnorth") == ["gateway"]
    assert await listed("selector=%21site&state=offline") == ["pi-1", "pi-12"]
    none = await shore.call("GET", "/v1/devices?selector=sit%3Dnorth")
    assert (none["items"], none["hint"]) == (
        [],
        "no device has a label 'sit'; did you mean 'site'?",
    )
    wrong = await shore.call("GET", "/v1/devices?selector=a%3D%3D%3Db")
    assert (wrong.status, wrong.code) == (400, "selector")
    assert (await shore.call("GET", "/v1/devices?state=asleep")).code == "invalid"
    assert (await shore.call("GET", "/v1/devices/pi-1"))["id"] == "pi-1"
    many = await shore.call("GET", "/v1/devices/pi")
    assert (many.status, many.code) == (409, "ambiguous")
    assert (await shore.call("GET", "/v1/devices/%25")).code == "not-found"
    taken = await shore.call("PATCH", "/v1/devices/gateway", {"labels": {"site": None}})
    assert taken["labels"] == {}


async def test_cordon_drain_and_revoke_change_the_state_and_tell_the_work(
    shore: Mainland, tmp_path: Path
) -> None:
    await enrolled(shore, tmp_path, "pi-1")

    async def do(what: str) -> str:
        return str((await shore.call("POST", f"/v1/devices/pi-1/{what}"))["state"])

    assert await do("cordon") == "cordoned"
    assert await do("uncordon") == "offline"
    assert await do("drain") == "drained"
    assert shore.labour.withdrawn == [("pi-1", "the device was drained")]
    assert await do("uncordon") == "offline"
    assert await do("revoke") == "revoked"
    assert shore.harbour.dismissed == [("pi-1", "revoked")]
    assert shore.labour.withdrawn[-1] == ("pi-1", "the device was revoked")


async def test_a_devices_log_is_read_in_pages_and_waited_for(
    shore: Mainland, tmp_path: Path
) -> None:
    await enrolled(shore, tmp_path, "pi-1")

    async def log(number: int, *texts: str) -> None:
        lines = [LogLine(unix_time_s=float(number), level="info", text=text) for text in texts]
        body = LogLines(source="app", lines=lines).SerializeToString()
        await shore.registry.accept(
            DeviceId("pi-1"), Parcel(id=ParcelId(f"p{number}"), kind=ParcelKind.LOG, body=body)
        )

    await log(1, "one", "two")
    await log(1, "one", "two")  # it came twice
    page = (await shore.call("GET", "/v1/devices/pi-1/logs"))["items"]
    assert [line["text"] for line in page] == ["one", "two"]
    waiting = asyncio.create_task(
        shore.call("GET", f"/v1/devices/pi-1/logs?after={page[-1]['id']}&wait_s=20")
    )
    done, _ = await asyncio.wait([waiting], timeout=0.3)
    assert not done
    await log(2, "three\x00\x1b[2J")
    assert [line["text"] for line in (await asyncio.wait_for(waiting, 5))["items"]] == [
        "three  [2J"
    ]


async def test_a_devices_log_keeps_its_newest_lines_only(shore: Mainland, tmp_path: Path) -> None:
    await enrolled(shore, tmp_path, "pi-1")
    lines = [{"at": 0.0, "source": "app", "level": "info", "text": str(n)} for n in range(500)]
    for number in range(5):
        await shore.store.write(
            lambda c, n=number: kept.keep_log(c, DeviceId("pi-1"), f"p{n}", lines)  # type: ignore[misc]
        )
    rows = await shore.store.read(
        lambda c: kept.log_lines(c, DeviceId("pi-1"), after=0, limit=10_000)
    )
    assert len(rows) == kept.LOGS_KEPT == 2000


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"{", 422, "invalid"),
        (b"[" * 100_000, 400, "invalid"),
        (b"{}" + b" " * 300_000, 413, "too-large"),
        (b'{"uses": "many"}', 422, "invalid"),
        (b'{"uses": 1, "admin": true}', 422, "invalid"),
        (b'{"labels": {"a b": "c"}}', 400, "selector"),
        (b"\xff\xfe", 422, "invalid"),
    ],
)
async def test_a_bad_body_is_refused_in_the_one_shape(
    shore: Mainland, body: bytes, status: int, code: str
) -> None:
    answer = await shore.call("POST", "/v1/invites", body)
    assert (answer.status, answer.code) == (status, code)
    assert set(answer["error"]) == {"code", "message", "hint"}
    assert "\n" not in answer["error"]["message"]


async def test_a_chunked_body_is_bounded_while_it_arrives(shore: Mainland) -> None:
    """Send a body without a length, larger than any route takes."""

    def send() -> bytes:
        context = ssl.create_default_context(cafile=str(shore.authority.certificate_file))
        request = urllib.request.Request(
            f"{shore.url}/v1/invites",
            data=(bytes(10_000) for _ in range(60)),
            method="POST",
            headers={
                "Authorization": f"Bearer {shore.tokens[Role.ADMIN]}",
                "Content-Type": "application/json",
                "Transfer-Encoding": "chunked",
            },
        )
        try:
            urllib.request.urlopen(request, context=context, timeout=10).close()
        except urllib.error.HTTPError as error:
            with error:
                return error.read()
        except (OSError, HTTPException) as error:  # it was cut while we were sending
            return str(error).encode()
        return b"accepted"

    assert b"accepted" not in await asyncio.to_thread(send)
    rows = (await shore.call("GET", "/v1/audit"))["items"]
    assert rows[0]["outcome"].startswith("413")
    assert (await shore.call("GET", "/v1/whoami")).status == 200


async def test_connections_that_bring_no_request_are_closed_and_harm_nobody(
    shore: Mainland, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("skerry_protos.patience.Impatient.head_s", 1.0)
    monkeypatch.setattr("skerry_cloud.api.auth.BODY_S", 1.0)
    port = int(shore.url.rsplit(":", 1)[1])
    context = ssl.create_default_context(cafile=str(shore.authority.certificate_file))
    half_a_head = b"GET /v1/health HTTP/1.1\r\nHost: x\r\n"
    half_a_body = (
        b"POST /v1/invites HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        b"Authorization: Bearer " + shore.tokens[Role.ADMIN].encode() + b"\r\n"
        b"Content-Length: 100\r\n\r\n{"
    )

    async def hang(said: bytes) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
        writer.write(said)
        try:
            async with asyncio.timeout(15):
                return await reader.readline()
        except ConnectionError:
            return b""
        finally:
            writer.close()

    hanging = [asyncio.create_task(hang(said)) for said in [b"", half_a_head, half_a_body] * 10]
    assert (await shore.call("GET", "/v1/health")).status == 200
    answers = await asyncio.gather(*hanging)
    assert answers.count(b"") == 20
    assert sum(answer.startswith(b"HTTP/1.1 408") for answer in answers) == 10


async def test_unknown_paths_and_methods_have_the_one_shape(shore: Mainland) -> None:
    assert (await shore.call("GET", "/v1/nothing")).code == "not-found"
    assert (await shore.call("PUT", "/v1/invites", {})).code == "method"


async def test_a_stranger_who_keeps_failing_to_join_is_slowed_down(shore: Mainland) -> None:
    asked = {"invite": "0" * 12, "secret": "x", "csr_pem": "nothing"}
    first = await shore.call("POST", "/v1/enrol", asked, role=None)
    assert (first.status, first.code) == (400, "csr")
    assert await slowed_down(shore, "POST", "/v1/enrol", asked, "")


async def test_a_full_disk_refuses_changes_and_reading_goes_on(
    shore: Mainland, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def full(*_: object, **__: object) -> None:
        raise FullDiskError("no space left for the database")

    monkeypatch.setattr(shore.store, "write", full)
    answer = await shore.call("POST", "/v1/invites", {})
    assert (answer.status, answer.code) == (507, "disk-full")
    assert (await shore.call("GET", "/v1/devices")).status == 200


async def test_a_failure_of_ours_is_named_by_a_number_and_told_to_nobody(
    shore: Mainland, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("a secret detail")

    monkeypatch.setattr("skerry_cloud.store.invites.create", broken)
    answer = await shore.call("POST", "/v1/invites", {})
    assert (answer.status, answer.code) == (500, "internal")
    assert "secret" not in str(answer)
    trace = str(answer["error"]["message"]).rsplit(" ", 1)[-1]
    assert trace in caplog.text
    rows = (await shore.call("GET", "/v1/audit"))["items"]
    assert rows[0]["outcome"] == "500"


async def test_health_is_open_and_the_description_covers_every_route(shore: Mainland) -> None:
    assert (await shore.call("GET", "/v1/health", role=None))["status"] == "ok"
    described = await shore.call("GET", "/openapi.json", role=None)
    for path, methods in described["paths"].items():
        for method, operation in methods.items():
            assert operation.get("description"), (method, path)
            if path not in PUBLIC:
                assert operation["security"], (method, path)


async def test_a_wait_ends_when_the_coordinator_stops(tmp_path: Path) -> None:
    async with mainland(tmp_path / "coordinator") as shore:
        await enrolled(shore, tmp_path, "pi-1")
        waiting = asyncio.create_task(shore.call("GET", "/v1/devices/pi-1/logs?wait_s=60"))
        done, _ = await asyncio.wait([waiting], timeout=0.3)
        assert not done
    answer = await asyncio.wait_for(waiting, 5)
    assert (answer.status, answer.code) == (503, "stopping")


def test_an_allowance_is_used_up_and_comes_back() -> None:
    now = 0.0
    allowance = Allowance(burst=3, each_s=2.0, clock=lambda: now)
    assert [allowance.take("a") for _ in range(4)] == [True, True, True, False]
    assert allowance.take("b")
    now = 2.0
    assert [allowance.take("a"), allowance.take("a")] == [True, False]
    now = 100.0
    assert [allowance.take("a") for _ in range(4)] == [True, True, True, False]
