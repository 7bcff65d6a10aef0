"""A release's variants reach the device signed, and the one that suits it best serves."""

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import pytest
from skerry_cloud.models import updates
from skerry_cloud.models.choices import read_choice
from skerry_cloud.models.director import word
from skerry_cloud.rollouts.lifecycle import RolloutState
from skerry_cloud.store import models as kept_models
from skerry_cloud.store import rollouts as kept
from skerry_cloud.store.models import Assignment
from skerry_edge.inference.selftest import Trials
from skerry_edge.models import Service
from skerry_edge.models.choice import ChoiceTable
from skerry_edge.models.variants import Variants
from skerry_protos.artefacts import VARIANTS
from skerry_protos.errors import RejectedError
from skerry_protos.messages import DeviceId, Digest, digest_of
from skerry_protos.v1 import models_pb2

from tests.artefacts import packed
from tests.cloud.rollouts.conftest import QUICK, ended, serving, slots_of, story
from tests.cloud.rollouts.test_bad_models import Served
from tests.edge.models.repositories import Repo, View
from tests.fleet import SmallFleet, small_fleet
from tests.signed import begin_repository


async def test_a_device_serves_the_variant_that_suits_it_and_the_rollout_stands(
    tmp_path: Path,
) -> None:
    behind: dict[str, Served] = {}
    home = tmp_path / "devices"

    def service(device: str) -> Service:
        behind[device] = Served({})
        return Variants(
            home / device,
            behind[device],
            Trials(),
            table=ChoiceTable(objective="latency"),
            capabilities={"onnxruntime"},
        )

    async with small_fleet(tmp_path, devices=["d1"], self_test=Trials(), service=service) as fleet:
        signer = await begin_repository(tmp_path / "keys", fleet.models.repository)
        files = {
            # The name decides between two of the same speed and size, as the coordinator sees it.
            "a-slow.zip": packed(tmp_path / "slow", depth=400, seed=1),
            "b-fast.zip": packed(tmp_path / "fast", seed=1, preprocessing=()),
            "c-unsigned.zip": packed(tmp_path / "unsigned", seed=2),
        }
        sizes = {name: path.stat().st_size for name, path in files.items()}
        version = await fleet.models.add("digits", files, lineage={}, by="test")
        await signer.sign(version, "canary", only={"a-slow.zip", "b-fast.zip"})
        await fleet.store.write(lambda c: _prefer(c, "a-slow.zip"))
        assert sizes["a-slow.zip"] > sizes["b-fast.zip"]

        rollout = await fleet.rollouts.begin(
            model="digits@1", channel="canary", plan=QUICK, by="test"
        )
        done = await ended(fleet, rollout)
        assert done.state is RolloutState.COMPLETED, await story(fleet, done)
        try:
            async with asyncio.timeout(20):
                while not _serves(behind["d1"], "b-fast.zip"):  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
        except TimeoutError:
            raise AssertionError(await story(fleet, rollout)) from None
        assert serving(fleet, "d1") == [1]  # the release is what is rolled out and gone back to
        table = json.loads((home / "d1/variants/digits/table.json").read_text())
        assert {row["target"].rpartition("/")[2] for row in table["rows"]} == {
            "a-slow.zip",
            "b-fast.zip",
        }
        choice = await _choice(fleet, "b-fast.zip")
        assert choice["why"].startswith("least latency of 2")
        rows = {row["target"].rpartition("/")[2]: row for row in choice["rows"]}
        assert rows.keys() == {"a-slow.zip", "b-fast.zip"}
        assert rows["b-fast.zip"]["latency_s"] < rows["a-slow.zip"]["latency_s"]
        assert rows["b-fast.zip"]["accuracy"] == 1.0
        members = await fleet.store.read(lambda c: kept.members(c, rollout.id))
        assert [each.state.value for each in members] == ["live"]
        assert members[0].asked_at is not None
        await fleet.stop("d1")


async def _choice(fleet: SmallFleet, serves: str) -> dict[str, Any]:
    """Wait until the coordinator knows that d1 serves a variant; return the choice."""
    async with asyncio.timeout(20):
        while True:
            for each in await fleet.store.read(lambda c: kept_models.reports(c, device="d1")):
                if str(each.choice.get("serves", "")).endswith(f"/{serves}"):
                    return dict(each.choice)
            await asyncio.sleep(0.05)


def said(*targets: str, **row: Any) -> models_pb2.Choice:
    return models_pb2.Choice(
        serves=targets[-1],
        why="least latency",
        candidates=[models_pb2.Candidate(target=each, **row) for each in targets],
    )


RELEASE, VARIANT = "stable/tiny/1/a.zip", "stable/tiny/1/b.zip"


def test_a_devices_choice_is_kept_without_what_is_no_number() -> None:
    row = {"accuracy": float("nan"), "latency_s": 1e300, "energy_j": 2.0, "memory_bytes": 3.0}
    bad = "x" * 1000 + "\x1b[31m"
    found = read_choice(
        said(RELEASE, VARIANT, bad=bad, energy_source="moonlight", **row),
        model="tiny",
        target=RELEASE,
    )
    assert (found["serves"], found["why"]) == (VARIANT, "least latency")
    (first, _) = found["rows"]
    assert first == {
        "target": RELEASE,
        "energy_j": 2.0,
        "memory_bytes": 3.0,
        "bad": "x" * 200,
        "pareto": False,
    }
    assert read_choice(models_pb2.Choice(), model="tiny", target=RELEASE) == {}
    unknown = models_pb2.Choice(serves=VARIANT, candidates=said(RELEASE).candidates)
    assert read_choice(unknown, model="tiny", target=RELEASE)["serves"] == ""


@pytest.mark.parametrize(
    "choice",
    [
        said(*[f"stable/tiny/1/{each}.zip" for each in range(10)]),
        said("stable/other/1/a.zip"),
        said("stable/tiny/2/a.zip"),
        said("../../etc/passwd"),
        said(""),
    ],
)
def test_a_choice_among_other_things_is_refused(choice: models_pb2.Choice) -> None:
    with pytest.raises(RejectedError):
        read_choice(choice, model="tiny", target=RELEASE)


async def test_a_word_without_room_for_variants_still_says_what_to_serve(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(updates, "WORD_ROOM", 100)
    async with small_fleet(tmp_path, devices=["d1"]) as fleet:
        signer = await begin_repository(tmp_path / "keys", fleet.models.repository)
        files = {f"{seed}.zip": packed(tmp_path / str(seed), seed=seed) for seed in (1, 2)}
        version = await fleet.models.add("digits", files, lineage={}, by="test")
        await signer.sign(version, "canary")
        rollout = await fleet.rollouts.begin(
            model="digits@1", channel="canary", plan=QUICK, by="test"
        )
        assert (await ended(fleet, rollout)).state is RolloutState.COMPLETED
        live = slots_of(fleet, "d1").live
        assert live is not None
        assert VARIANTS not in live.release.wish


def _prefer(connection: Any, file: str) -> None:
    """Have the coordinator think that this artefact is the fastest."""
    from skerry_cloud.store.tables import artefacts

    for row in connection.execute(artefacts.select()).all():
        figures = {"latency_s": 0.001 if row.file == file else 0.1}
        connection.execute(
            artefacts.update()
            .where(artefacts.c.file == row.file)
            .values(manifest={**row.manifest, "figures": figures})
        )


def _serves(served: Served, file: str) -> bool:
    return served.slot is not None and served.slot.release.target.endswith(file)


def test_only_what_is_signed_and_of_the_same_version_is_a_variant(tmp_path: Path) -> None:
    repo, content = Repo.new(), b"weights"
    signed = [f"stable/m/1/{name}.zip" for name in ("own", "good")]
    repo.sign("stable", *signed, "stable/m/2/newer.zip", content=content)
    digest = digest_of(content)
    offered = {
        "stable/m/1/good.zip": (digest, len(content)),
        "stable/m/1/unsigned.zip": (digest, len(content)),
        "stable/m/2/newer.zip": (digest, len(content)),
        "stable/m/1/other-bytes.zip": (digest_of(b"others"), len(content)),
    }
    assigned = Assignment(
        device=DeviceId("d1"),
        model="m",
        target="stable/m/1/own.zip",
        digest=Digest(digest),
        size=len(content),
        rollout="rollout-1",
        # A director that was taken over cannot slip a variant in by its wish.
        wish={"trial_s": 0.5, VARIANTS: [{"path": "stable/m/1/evil.zip"}]},
        at=time.time(),
    )
    said = word(
        DeviceId("d1"),
        1,
        [assigned],
        repo.online["director"],
        roots=repo.director_roots,
        variants={assigned.target: offered},
    )
    verdict = View(tmp_path).ask(repo.files(), said)
    assert verdict.refused == ""
    (found,) = verdict.assigned
    assert found.path == "stable/m/1/own.zip"
    assert [each["path"] for each in found.wish[VARIANTS]] == ["stable/m/1/good.zip"]
