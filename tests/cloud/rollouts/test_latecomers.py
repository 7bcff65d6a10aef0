"""Devices that come after a rollout take what it brought to their kind, and no more than that."""

from pathlib import Path
from typing import Any

from skerry_cloud.rollouts.lifecycle import RolloutState
from skerry_cloud.store import rollouts as kept
from skerry_cloud.store.rollouts import Rollout

from tests.artefacts import packed
from tests.cloud.rollouts.conftest import QUICK, ended, reached, serving, states, story
from tests.fleet import SmallFleet, small_fleet, until
from tests.signed import Signer, begin_repository

SITE = {"site": "north"}
PLAN: dict[str, Any] = {**QUICK, "waves": ["100%"], "soak_s": 0, "selector": "site=north"}


async def brought(
    fleet: SmallFleet, signer: Signer, folder: Path, seed: int, channel: str = "stable", **plan: Any
) -> Rollout:
    """Have a version signed and rolled out to its end."""
    rollout = await begun(fleet, signer, folder, seed, channel, **plan)
    found = await ended(fleet, rollout)
    assert found.state is RolloutState.COMPLETED, await story(fleet, rollout)
    return found


async def begun(
    fleet: SmallFleet, signer: Signer, folder: Path, seed: int, channel: str, **plan: Any
) -> Rollout:
    path = packed(folder / f"v{seed}", seed=seed)
    version = await fleet.models.add("digits", {"model.zip": path}, lineage={}, by="test")
    await signer.sign(version, channel)
    return await fleet.rollouts.begin(
        model=f"digits@{version.version}", channel=channel, plan={**PLAN, **plan}, by="test"
    )


async def come(fleet: SmallFleet, *devices: str, labels: dict[str, str] | None = None) -> None:
    """Enrol and start devices that were not there before."""
    known = len(await fleet.registry.devices())
    await fleet.enrol(*devices, labels=labels, first_node=100 + known)
    fleet.start(*devices)
    await fleet.connected(len(fleet.agents))


async def test_a_new_device_of_the_kind_takes_the_stable_version(tmp_path: Path) -> None:
    async with small_fleet(tmp_path, devices=["d1"], labels=SITE) as fleet:
        signer = await begin_repository(tmp_path / "keys", fleet.models.repository)
        first = await brought(fleet, signer, tmp_path, 1)
        newest = await brought(fleet, signer, tmp_path, 2)
        await brought(fleet, signer, tmp_path, 3, "canary")  # not for those who come by themselves
        await come(fleet, "d2", labels=SITE)
        await come(fleet, "d3", labels={"site": "south"})
        await until(lambda: serving(fleet, "d2") == [2])
        assert serving(fleet, "d1", "d2", "d3") == [3, 2, 0]
        await reached(fleet, newest, lambda _: True)
        while (await states(fleet, newest))["d2"] != "live":
            await fleet.registry.wait_change(0.05)
        assert "d2" not in await states(fleet, first)
        # It comes again and is not asked again.
        await fleet.stop("d2")
        fleet.start("d2")
        await fleet.connected(3)
        events = await fleet.store.read(lambda c: kept.journal(c, newest.id))
        asked = [e["device"] for e in events if e["data"].get("to") == "asked"]
        assert asked.count("d2") == 1
        # An undo takes it back too.
        undone = await ended(fleet, await fleet.rollouts.undo(newest.id, "ann"))
        assert undone.state is RolloutState.ROLLED_BACK, await story(fleet, newest)
        assert serving(fleet, "d2") == [0]


async def test_who_comes_during_a_rollout_has_it_when_it_has_held(tmp_path: Path) -> None:
    async with small_fleet(tmp_path, devices=["d1"], labels=SITE) as fleet:
        signer = await begin_repository(tmp_path / "keys", fleet.models.repository)
        await brought(fleet, signer, tmp_path, 1)
        rollout = await begun(fleet, signer, tmp_path, 2, "stable", soak_s=2)
        await reached(fleet, rollout, lambda found: found.state is RolloutState.SOAKING)
        await come(fleet, "d2", labels=SITE)
        await until(lambda: serving(fleet, "d2") == [1])  # what has held, not what is on trial
        assert (await ended(fleet, rollout)).state is RolloutState.COMPLETED
        await until(lambda: serving(fleet, "d2") == [2])
        assert (await states(fleet, rollout)).keys() == {"d1", "d2"}


async def test_what_was_for_a_share_or_is_no_good_any_more_is_not_given(tmp_path: Path) -> None:
    async with small_fleet(tmp_path, devices=["d1", "d2"], labels=SITE) as fleet:
        signer = await begin_repository(tmp_path / "keys", fleet.models.repository)
        shared = await brought(fleet, signer, tmp_path, 1, waves=["1"])
        await come(fleet, "d3", labels=SITE)
        assert "d3" not in await states(fleet, shared)
        whole = await brought(fleet, signer, tmp_path, 2)
        await fleet.rollouts.undo(whole.id, "ann")
        await ended(fleet, whole)
        await come(fleet, "d4", labels=SITE)
        assert (await states(fleet, whole)).keys() == {"d1", "d2", "d3"}
        assert serving(fleet, "d4") == [0]


async def test_a_restart_still_hears_of_latecomers(tmp_path: Path) -> None:
    async with small_fleet(tmp_path, devices=["d1"], labels=SITE) as fleet:
        signer = await begin_repository(tmp_path / "keys", fleet.models.repository)
        rollout = await brought(fleet, signer, tmp_path, 1)
        await fleet.stop("d1")
        await fleet.enrol("d2", labels=SITE, first_node=200)
        await fleet.rollouts.latecomers.catch_up((await fleet.registry.devices())[-1].id)
        assert (await states(fleet, rollout))["d2"] == "asked"
    async with small_fleet(tmp_path) as fleet:
        fleet.start("d1", "d2")
        await fleet.connected(2)
        while (await states(fleet, rollout))["d2"] != "live":
            await fleet.registry.wait_change(0.05)
        assert serving(fleet, "d2") == [1]
