"""A coordinator that stops in the middle of a rollout goes on with it when it is back."""

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


async def begin_agents(fleet: SmallFleet) -> None:
    fleet.start(*DEVICES)
    await fleet.connected(len(DEVICES))
