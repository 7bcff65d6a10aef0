"""A coordinator that stops in the middle of a rollout goes on with it when it is back."""

import asyncio
import time
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from skerry_cloud.rollouts.lifecycle import RolloutState
from skerry_cloud.store import Store, tables
from skerry_cloud.store import rollouts as kept
from skerry_protos.messages import DeviceId

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


async def test_only_who_was_meant_counts_as_told(sqlite_store: Store) -> None:
    names = [("r1", "d1", "asked"), ("r2", "d1", "asked"), ("r1", "d2", "reverting")]
    names += [("r1", "d3", "waiting"), ("r1", "d4", "trial")]

    def write(connection: sa.Connection) -> None:
        plan: dict[str, Any] = {"version": 1, "channel": "stable", "state": "rolling", "plan": {}}
        for rollout in ("r1", "r2"):
            values = {"id": rollout, "model": "m", "created_at": 1.0, "created_by": "test", **plan}
            connection.execute(tables.rollouts.insert().values(**values))
        for number, device in enumerate(("d1", "d2", "d3", "d4")):
            connection.execute(
                tables.devices.insert().values(id=device, node=number + 2, enrolled_at=1.0)
            )
            # d2 goes back to what an earlier rollout had brought
            wanted = {"rollout": "r1" if device != "d2" else "r0", "target": "t", "digest": "d"}
            connection.execute(
                tables.assignments.insert().values(device=device, model="m", size=1, at=1, **wanted)
            )
        for rollout, device, state in names:
            row = {"rollout": rollout, "device": device, "wave": 0, "state": state}
            connection.execute(tables.rollout_devices.insert().values(**row))
        kept.note_asked(connection, {DeviceId(f"d{each}"): 7.0 for each in range(1, 5)})
        kept.note_asked(connection, {DeviceId("d1"): 9.0})

    await sqlite_store.write(write)
    found = {}
    for rollout in ("r1", "r2"):
        for each in await sqlite_store.read(lambda c, one=rollout: kept.members(c, one)):  # type: ignore[misc]
            found[rollout, each.device] = each.asked_at
    assert found == {
        ("r1", "d1"): 7.0,
        ("r2", "d1"): None,
        ("r1", "d2"): 7.0,
        ("r1", "d3"): None,
        ("r1", "d4"): 7.0,
    }


async def begin_agents(fleet: SmallFleet) -> None:
    fleet.start(*DEVICES)
    await fleet.connected(len(DEVICES))
