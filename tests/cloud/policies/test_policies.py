"""A drift alarm begins a run by policy: once, when enough devices say so, also across restarts."""

import asyncio
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from skerry_cloud.policies.engine import NoPolicyError, Policies
from skerry_cloud.policies.policy import Policy, judge
from skerry_cloud.store import runs as kept_runs
from skerry_cloud.store.models import Report
from skerry_cloud.store.runs import Run
from skerry_cloud.store.tables import audit
from skerry_devices.apps import read_app
from skerry_protos.errors import ConfigError
from skerry_protos.messages import DeviceId, Digest, Parcel, ParcelId, ParcelKind, new_id
from skerry_protos.v1 import models_pb2

from tests.artefacts import packed
from tests.fleet import SmallFleet, small_fleet

HALVES = Path(__file__).parents[2] / "apps" / "halves"
DEVICES = ("one", "two", "three")
DAY = 86_400.0


def report(device: str, drift: float, **other: Any) -> Report:
    values: dict[str, Any] = {
        "device": DeviceId(device),
        "model": "digits",
        "sequence": 1,
        "rollout": "",
        "target": "stable/digits/1/m.zip",
        "digest": "",
        "phase": "live",
        "why": "",
        "readings": {"drift": drift},
        "serving": "",
        "serving_digest": "",
        "at": 1000.0,
    }
    return Report(**(values | other))


def verdict(reports: Iterable[Report], *, now: float = 1000.0, open_run: str = "", **table: Any):  # type: ignore[no-untyped-def]
    last_at = table.pop("last_at", None)
    made = Policy(model="digits", app="a", last_at=last_at, **table)
    return judge(made, reports, now=now, enrolled=set(DEVICES), open_run=open_run)


def test_enough_devices_that_serve_it_now_are_needed() -> None:
    both = [report("one", 0.5), report("two", 0.3)]
    assert verdict(both, min_devices=2).begin
    assert verdict(both, min_devices=2).devices == ("one", "two")
    assert "1 of 2 devices" in verdict(both[:1], min_devices=2).why
    for other in (
        report("two", 0.1),
        report("two", 0.3, phase="rolled-back"),
        report("two", 0.3, model="other"),
        report("two", 0.3, at=1000.0 - DAY - 1),
        report("revoked", 0.3),
    ):
        assert not verdict([both[0], other], min_devices=2).begin


def test_there_is_one_run_at_a_time_and_none_within_the_cooldown() -> None:
    alarm = [report("one", 0.5)]
    assert "run-7 is under way" in verdict(alarm, open_run="run-7").why
    waits = verdict(alarm, last_at=900.0, cooldown_s=200.0)
    assert (waits.begin, waits.again_at) == (False, 1100.0)
    assert verdict(alarm, last_at=900.0, cooldown_s=100.0).begin
    assert verdict(alarm, enabled=False).why == "it is off"


@pytest.mark.parametrize(
    ("table", "why"),
    [
        ({}, "needs an app"),
        ({"app": "a", "treshold": 1}, "threshold"),
        ({"app": "a", "threshold": 0}, "above 0"),
        ({"app": "a", "threshold": float("nan")}, "threshold must be"),
        ({"app": "a", "min_devices": 0}, "min_devices must be 1"),
        ({"app": "a", "cooldown_s": "1d"}, "must be a number"),
        ({"app": "a", "options": {"round": 1}}, "rounds"),
    ],
)
def test_a_policy_that_makes_no_sense_is_refused(table: dict[str, Any], why: str) -> None:
    with pytest.raises(ConfigError) as refused:
        Policy.parse("digits", table, by="ann", now=0.0)
    assert why in str(refused.value)


async def says(fleet: SmallFleet, device: str, drift: float, sequence: int) -> None:
    """Have a device's summary arrive as devices send it."""
    said = models_pb2.UpdateReport(
        model="digits",
        target="stable/digits/1/m.zip",
        digest=bytes(32),
        phase="live",
        readings={"drift": drift, "requests": 500.0},
        sequence=sequence,
        unix_time_s=time.time(),
    )
    parcel = Parcel(
        id=ParcelId(new_id("report-")),
        kind=ParcelKind.UPDATE_REPORT,
        deadline_unix_s=time.time() + 60,
        body=said.SerializeToString(),
    )
    await fleet.registry.accept(DeviceId(device), parcel)


async def policy_runs(fleet: SmallFleet, policies: Policies) -> list[Run]:
    every = await fleet.store.read(kept_runs.listed)
    return [run for run in every if run.created_by == "policy:digits"]


async def until(claim: Callable[[], Any], seconds: float = 20.0) -> None:
    async with asyncio.timeout(seconds):
        while not await claim():  # noqa: ASYNC110
            await asyncio.sleep(0.05)


async def test_drift_on_devices_begins_a_run_once_and_a_restart_changes_nothing(
    tmp_path: Path,
) -> None:
    clock = [time.time()]

    def opened(fleet: SmallFleet) -> Policies:
        made = Policies(
            store=fleet.store, runs=fleet.runs, roster=fleet.registry, now=lambda: clock[0]
        )
        fleet.updates.on_report.append(made.heard)
        return made

    async with small_fleet(tmp_path, devices=DEVICES) as fleet, opened(fleet) as policies:
        digest, _ = await fleet.runs.add_app(read_app(HALVES).bundle)
        wish = {
            "app": digest[:12],
            "threshold": 0.25,
            "min_devices": 2,
            "cooldown_s": DAY,
            "options": {"rounds": 1},
        }
        kept = await policies.keep(Policy.parse("digits", wish, by="ann", now=clock[0]))
        assert kept.app == digest
        await says(fleet, "one", 0.9, 1)
        await says(fleet, "two", 0.1, 1)
        await policies.look()
        assert await policy_runs(fleet, policies) == []
        await says(fleet, "two", 0.4, 2)
        await until(lambda: policy_runs(fleet, policies))
        (run,) = await policy_runs(fleet, policies)
        done = await fleet.ended(run)
        assert (done.state, done.rounds) == ("completed", 1)
        kept = await policies.get("digits")
        assert (kept.last_run, kept.last_at) == (run.id, clock[0])
        assert "2 devices drift by 0.25 or more, one by 0.9" in kept.last_why
        assert "begins with the app's own model: digits@1 is not in the registry" in kept.last_why
        await says(fleet, "three", 0.9, 1)
        await policies.look()
        rows = await fleet.store.read(lambda c: c.execute(sa.select(audit)).all())
        (row,) = [one for one in rows if one.action == "begin_run_by_policy"]
        assert (row.operator, row.outcome, row.detail["run"]) == ("policy:digits", "200", run.id)

    async with small_fleet(tmp_path) as fleet, opened(fleet) as policies:
        await policies.look()
        assert [one.id for one in await policy_runs(fleet, policies)] == [run.id]
        ((policy, now),) = await policies.listed()
        assert "cooldown" in now.why
        assert set(now.devices) == set(DEVICES)
        assert policy.options == {"rounds": 1}
        clock[0] += DAY / 2
        await policies.look()
        assert len(await policy_runs(fleet, policies)) == 1
        await policies.remove("digits")
        with pytest.raises(NoPolicyError):
            await policies.get("digits")
        clock[0] += DAY
        await policies.look()
        assert len(await policy_runs(fleet, policies)) == 1


async def test_a_policys_run_begins_with_the_model_in_service(tmp_path: Path) -> None:
    async with small_fleet(tmp_path, devices=["one"]) as fleet:
        policies = Policies(store=fleet.store, runs=fleet.runs, roster=fleet.registry)
        trained = await fleet.train(HALVES, rounds=2)
        digest, _ = await fleet.runs.add_app(read_app(HALVES).bundle)
        packs = {f"{seed}.zip": packed(tmp_path / str(seed), seed=seed) for seed in (1,)}
        await fleet.models.add("digits", packs, lineage={"run": trained.id}, by="test")
        wish = {"app": digest, "options": {"rounds": 1}}
        await policies.keep(Policy.parse("digits", wish, by="ann", now=time.time()))
        await says(fleet, "one", 0.9, 1)
        await policies.look()
        (run,) = await policy_runs(fleet, policies)
        assert run.options["initial"] == trained.id
        why = (await policies.get("digits")).last_why
        assert why.endswith(f"begins with the model of run {trained.id}, of which digits@1 is")
        done = await fleet.ended(run)
        assert done.state == "completed", await fleet.story(run)
        assert fleet.model(done).arrays["arrays"]["steps"].numpy() == 3


async def test_a_run_that_cannot_begin_is_said_and_tried_again_before_the_cooldown(
    tmp_path: Path,
) -> None:
    clock = [time.time()]
    async with small_fleet(tmp_path, devices=["one"]) as fleet:
        policies = Policies(
            store=fleet.store, runs=fleet.runs, roster=fleet.registry, now=lambda: clock[0]
        )
        digest, _ = await fleet.runs.add_app(read_app(HALVES).bundle)
        wish = {"app": digest, "options": {"min_devices": 2, "rounds": 1}, "cooldown_s": DAY}
        await policies.keep(Policy.parse("digits", wish, by="ann", now=clock[0]))
        await says(fleet, "one", 0.9, 1)
        await policies.look()
        kept = await policies.get("digits")
        assert "no run could begin: min_devices is 2" in kept.last_why
        await fleet.enrol("two", first_node=200)
        await policies.look()
        assert await policy_runs(fleet, policies) == []
        clock[0] += 301.0
        await policies.look()
        assert len(await policy_runs(fleet, policies)) == 1
        await policies.look()
        ((_, now),) = await policies.listed()
        assert "is under way" in now.why


async def test_a_killed_coordinator_begins_no_second_run(tmp_path: Path) -> None:
    """It is noted before: whatever happened after the note, none begins until the cooldown."""

    class Killed(Exception):
        pass

    async with small_fleet(tmp_path, devices=["one"]) as fleet:
        policies = Policies(store=fleet.store, runs=fleet.runs, roster=fleet.registry)
        digest, _ = await fleet.runs.add_app(read_app(HALVES).bundle)
        wish = {"app": digest, "options": {"rounds": 1}}
        await policies.keep(Policy.parse("digits", wish, by="ann", now=time.time()))
        await says(fleet, "one", 0.9, 1)
        begin = fleet.runs.begin

        async def killed(**asked: Any) -> Run:
            await begin(**asked)
            raise Killed

        fleet.runs.begin = killed  # type: ignore[method-assign]
        with pytest.raises(Killed):
            await policies.look()
        fleet.runs.begin = begin  # type: ignore[method-assign]
        again = Policies(store=fleet.store, runs=fleet.runs, roster=fleet.registry)
        await again.look()
        (run,) = await policy_runs(fleet, policies)
        await fleet.ended(run)
        await again.look()
        assert len(await policy_runs(fleet, policies)) == 1
        assert Digest(run.app) == digest
