"""A bad model reaches no more than the canary wave, and is gone within two health periods."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from skerry_cloud.rollouts.lifecycle import RolloutState
from skerry_cloud.store import rollouts as kept
from skerry_edge.inference.selftest import Trials
from skerry_edge.models import Slot
from skerry_protos.errors import SkerryError

from tests.artefacts import packed
from tests.cloud.rollouts.conftest import QUICK, ended, reached, serving, states, story
from tests.fleet import SmallFleet, small_fleet
from tests.signed import Signer, begin_repository

DEVICES = [f"d{n}" for n in range(8)]


async def offer(fleet: SmallFleet, signer: Signer, folder: Path, **options: Any) -> str:
    """Import and sign a classifier; return its name with its version."""
    path = packed(folder, **options)
    version = await fleet.models.add("digits", {"model.zip": path}, lineage={}, by="test")
    await signer.sign(version, "canary")
    return f"digits@{version.version}"


async def roll(fleet: SmallFleet, name: str, **plan: Any) -> Any:
    return await fleet.rollouts.begin(
        model=name, channel="canary", plan={**QUICK, **plan}, by="test"
    )


@pytest.mark.timeout(180)
async def test_models_that_fail_their_self_test_never_serve(tmp_path: Path) -> None:
    """Wrong answers, NaN, and a file that no runtime loads, each after a good one."""
    async with small_fleet(tmp_path, devices=DEVICES, self_test=Trials()) as fleet:
        signer = await begin_repository(tmp_path / "keys", fleet.models.repository)
        good = await roll(fleet, await offer(fleet, signer, tmp_path / "good", seed=1))
        assert (await ended(fleet, good)).state is RolloutState.COMPLETED, await story(fleet, good)
        for options, why in (
            ({"golden_from": 7}, "golden set"),
            ({"broken": "nan"}, "not finite"),
            ({"broken": "file"}, "cannot load"),
        ):
            name = await offer(fleet, signer, tmp_path / why.replace(" ", "-"), **options)
            bad = await ended(fleet, await roll(fleet, name))
            assert bad.state is RolloutState.ROLLED_BACK, await story(fleet, bad)
            assert why in bad.why
            exposed = [d for d, state in (await states(fleet, bad)).items() if state != "left"]
            assert len(exposed) <= 2
            assert serving(fleet, *DEVICES) == [1] * len(DEVICES)
            version = await fleet.models.find(name)
            assert why in version.quarantined_why
            with pytest.raises(SkerryError, match="was bad on devices"):
                await roll(fleet, name)


class Served:
    """A service whose readings a test decides by version; honest about swaps."""

    def __init__(self, bad: Mapping[int, Mapping[str, float]]) -> None:
        self.bad = bad
        self.slot: Slot | None = None
        self.swaps: list[tuple[int, float]] = []

    async def swap(self, model: str, slot: Slot | None) -> None:
        self.slot = slot
        self.swaps.append((slot.release.version if slot else 0, time.monotonic()))

    def readings(self, model: str) -> Mapping[str, float] | None:
        if self.slot is None:
            return None
        return self.bad.get(self.slot.release.version, {"error_rate": 0.0, "requests": 10})


@pytest.mark.parametrize(
    ("readings", "why"),
    [
        ({"error_rate": 0.5}, "error_rate is 50 %"),
        ({"latency_p95_s": 0.9}, "latency_p95_s is 900 ms"),
        ({"crashes": 3.0}, "crashes is 3"),
        ({"latency_p95_s": float("nan")}, "is nan"),
    ],
)
async def test_a_model_that_is_unwell_in_service_is_gone_within_two_periods(
    tmp_path: Path, readings: dict[str, float], why: str
) -> None:
    services: dict[str, Served] = {}

    def service(device: str) -> Served:
        return services.setdefault(device, Served({2: readings}))

    health = {"max_latency_p95_s": 0.1}
    async with small_fleet(tmp_path, devices=DEVICES, service=service) as fleet:
        signer = await begin_repository(tmp_path / "keys", fleet.models.repository)
        good = await roll(fleet, await offer(fleet, signer, tmp_path / "one", seed=1))
        assert (await ended(fleet, good)).state is RolloutState.COMPLETED, await story(fleet, good)
        name = await offer(fleet, signer, tmp_path / "two", seed=2)
        bad = await ended(fleet, await roll(fleet, name, period_s=0.5, health=health))

        assert bad.state is RolloutState.ROLLED_BACK, await story(fleet, bad)
        assert why in bad.why
        assert serving(fleet, *DEVICES) == [1] * len(DEVICES)
        swaps = [each.swaps for each in services.values()]
        exposed = [each for each in swaps if any(version == 2 for version, _ in each)]
        assert 1 <= len(exposed) <= 2
        for each in exposed:
            began = next(at for version, at in each if version == 2)
            gone = next(at for version, at in each if version == 1 and at > began)
            assert gone - began < 2 * 0.5


async def test_a_device_takes_a_bad_release_back_without_a_network(tmp_path: Path) -> None:
    services: dict[str, Served] = {}

    def service(device: str) -> Served:
        return services.setdefault(device, Served({}))

    async with small_fleet(tmp_path, devices=["d1"], service=service) as fleet:
        signer = await begin_repository(tmp_path / "keys", fleet.models.repository)
        for seed in (1, 2):
            name = await offer(fleet, signer, tmp_path / str(seed), seed=seed)
            rollout = await roll(fleet, name)
            assert (await ended(fleet, rollout)).state is RolloutState.COMPLETED
        await fleet.fleet.__aexit__(None, None, None)  # type: ignore[attr-defined]  # no network
        services["d1"].bad = {2: {"error_rate": 1.0}}
        deadline = time.monotonic() + 10
        while serving(fleet, "d1") != [1] and time.monotonic() < deadline:
            await reached(fleet, rollout, lambda _: True)
        assert serving(fleet, "d1") == [1]
        assert [version for version, _ in services["d1"].swaps] == [1, 2, 1]


async def test_overlapping_rollouts_are_refused_or_queued(tmp_path: Path) -> None:
    async with small_fleet(tmp_path, devices=DEVICES[:4]) as fleet:
        signer = await begin_repository(tmp_path / "keys", fleet.models.repository)
        first = await roll(fleet, await offer(fleet, signer, tmp_path / "one", seed=1), soak_s=2)
        second = await offer(fleet, signer, tmp_path / "two", seed=2)
        with pytest.raises(SkerryError, match=f"rollout {first.id} .* has 4 of these devices"):
            await roll(fleet, second)
        queued = await fleet.rollouts.begin(
            model=second, channel="canary", plan=QUICK, by="test", queue=True
        )
        assert queued.behind == first.id
        assert (await ended(fleet, first)).state is RolloutState.COMPLETED
        assert (await ended(fleet, queued)).state is RolloutState.COMPLETED
        assert serving(fleet, *DEVICES[:4]) == [2] * 4


async def test_pause_resume_abort_and_undo(tmp_path: Path) -> None:
    devices = DEVICES[:4]
    async with small_fleet(tmp_path, devices=devices) as fleet:
        signer = await begin_repository(tmp_path / "keys", fleet.models.repository)
        one = await roll(fleet, await offer(fleet, signer, tmp_path / "one", seed=1))
        assert (await ended(fleet, one)).state is RolloutState.COMPLETED
        name = await offer(fleet, signer, tmp_path / "two", seed=2)

        two = await roll(fleet, name, soak_s=30)
        await reached(fleet, two, lambda found: found.state is RolloutState.SOAKING)
        paused = await fleet.rollouts.pause(two.id, "ann")
        assert (paused.state, paused.why) == (RolloutState.PAUSED, "paused by ann")
        with pytest.raises(SkerryError, match="is paused: it cannot pause"):
            await fleet.rollouts.pause(two.id, "ann")
        await fleet.rollouts.resume(two.id, "ann")
        await reached(fleet, two, lambda found: found.state is RolloutState.SOAKING)
        aborted = await fleet.rollouts.abort(two.id, "ann")
        assert aborted.state is RolloutState.ABORTED
        assert sorted(serving(fleet, *devices)) == [1, 1, 1, 2]
        undone = await ended(fleet, await fleet.rollouts.undo(two.id, "ann"))
        assert undone.state is RolloutState.ROLLED_BACK
        assert serving(fleet, *devices) == [1] * 4

        first = await ended(fleet, await fleet.rollouts.undo(one.id, "ann"))
        assert first.state is RolloutState.ROLLED_BACK, await story(fleet, one)
        assert serving(fleet, *devices) == [0] * 4  # nothing was served before


async def test_a_device_that_is_away_takes_its_part_when_it_comes(tmp_path: Path) -> None:
    async with small_fleet(tmp_path, devices=DEVICES[:4]) as fleet:
        signer = await begin_repository(tmp_path / "keys", fleet.models.repository)
        name = await offer(fleet, signer, tmp_path / "one", seed=1)
        await fleet.stop("d0")
        rollout = await roll(fleet, name, waves=["100%"])
        await reached(
            fleet,
            rollout,
            lambda _: "waits for 1 devices: d0" in str(fleet.rollouts.waiting(rollout.id)),
        )
        fleet.start("d0")
        assert (await ended(fleet, rollout)).state is RolloutState.COMPLETED
        events = await fleet.store.read(lambda c: kept.journal(c, rollout.id))
        assert [e["device"] for e in events if e["data"].get("to") == "live"][-1] == "d0"
