"""A coordinator that stops in the middle of a rollout goes on with it when it is back."""

import asyncio
import time
from pathlib import Path
from typing import Any

from skerry_cloud.rollouts.lifecycle import RolloutState
from skerry_cloud.store import rollouts as kept

from tests.artefacts import packed
from tests.cloud.rollouts.conftest import QUICK, ended, reached, serving
from tests.fleet import SmallFleet, small_fleet
from tests.signed import begin_repository

DEVICES = ["d1", "d2", "d3", "d4"]


async def test_a_restart_between_waves_goes_on_where_it_was(tmp_path: Path) -> None:
    plan: dict[str, Any] = {**QUICK, "soak_s": 3}
    async with small_fleet(tmp_path, devices=DEVICES) as fleet:
        signer = await begin_repository(tmp_path / "keys", fleet.models.repository)
        path = packed(tmp_path / "one", seed=1)
        version = await fleet.models.add("digits", {"model.zip": path}, lineage={}, by="test")
        await signer.sign(version, "canary")
        rollout = await fleet.rollouts.begin(model="digits", channel="canary", plan=plan, by="test")
        await reached(fleet, rollout, lambda found: found.state is RolloutState.SOAKING)
    async with small_fleet(tmp_path) as fleet:  # another coordinator on the same disk
        await begin_agents(fleet)
        done = await ended(fleet, rollout)
        assert done.state is RolloutState.COMPLETED
        assert serving(fleet, *DEVICES) == [1] * 4
        events = await fleet.store.read(lambda c: kept.journal(c, rollout.id))
        asked = [e["device"] for e in events if e["data"].get("to") == "asked"]
        assert sorted(asked) == DEVICES  # nobody was asked twice


async def test_who_was_told_and_who_is_away_is_kept(tmp_path: Path) -> None:
    plan: dict[str, Any] = {**QUICK, "waves": ["100%"], "trial_s": 60}

    async def asked(fleet: SmallFleet) -> dict[str, float | None]:
        members = await fleet.store.read(lambda c: kept.members(c, rollout.id))
        return {each.device: each.asked_at for each in members}

    async with small_fleet(tmp_path, devices=["d1", "d2"]) as fleet:
        signer = await begin_repository(tmp_path / "keys", fleet.models.repository)
        path = packed(tmp_path / "one", seed=1)
        version = await fleet.models.add("digits", {"model.zip": path}, lineage={}, by="test")
        await signer.sign(version, "canary")
        await fleet.stop("d2")
        began = time.time()
        rollout = await fleet.rollouts.begin(model="digits", channel="canary", plan=plan, by="test")
        async with asyncio.timeout(20):
            while (await asked(fleet))["d1"] is None:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        told = (await asked(fleet))["d1"]
        assert told is not None
        assert began <= told <= time.time()
        assert (await asked(fleet))["d2"] is None
    async with small_fleet(tmp_path) as fleet:
        assert await asked(fleet) == {"d1": told, "d2": None}
        fleet.start("d2")
        async with asyncio.timeout(20):
            while (await asked(fleet))["d2"] is None:  # noqa: ASYNC110
                await asyncio.sleep(0.05)


async def begin_agents(fleet: SmallFleet) -> None:
    fleet.start(*DEVICES)
    await fleet.connected(len(DEVICES))
