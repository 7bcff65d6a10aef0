"""Devices that go and come back, and a coordinator that does: nothing is lost, each is named."""

import asyncio
import shutil
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from skerry_cloud.runs.engine import Runs, StoppingError
from skerry_cloud.store import runs as kept
from skerry_cloud.store import tables
from skerry_cloud.store import tasks as kept_tasks
from skerry_cloud.store.runs import Run
from skerry_protos.errors import RejectedError
from skerry_protos.messages import DeviceId, Parcel, ParcelId, RunId
from skerry_protos.session.frames import read_parcel
from skerry_protos.v1 import fleet_pb2
from skerry_protos.v1.work_pb2 import Failure, Reply

from tests.cloud.runs.test_resume import begin_again
from tests.fleet import SmallFleet, small_fleet, until

HALVES = Path(__file__).parents[2] / "apps" / "halves"
DEVICES = ("one", "two", "three")


@pytest.fixture
async def fleet(tmp_path: Path) -> AsyncIterator[SmallFleet]:
    async with small_fleet(tmp_path, "memory", DEVICES) as made:
        yield made


async def test_a_device_that_comes_back_goes_on(fleet: SmallFleet) -> None:
    run = await fleet.begin(HALVES, rounds=1, run_config={"bad": "pause"})
    conductor = fleet.runs.under_way(run.id)
    assert conductor is not None
    await until(lambda: conductor.waiting()["on"] == ["one"])
    await fleet.stop("one")
    await until(lambda: "not connected: one" in conductor.waiting()["why"])
    assert (await fleet.runs.get(run.id)).state == "running"
    fleet.start("one")
    ended = await fleet.ended(run)
    assert ended.state == "completed", await fleet.story(run)
    replies = [event["device"] for event in await fleet.events(run, "reply")]
    assert sorted(replies) == ["one", "one", "three", "three", "two", "two"]
    assert not await fleet.events(run, "late", "failure")


async def test_a_device_that_was_away_gets_its_task_when_it_is_here(fleet: SmallFleet) -> None:
    await fleet.enrol("four", first_node=200)
    run = await fleet.begin(HALVES, min_devices=4, rounds=1)
    conductor = fleet.runs.under_way(run.id)
    assert conductor is not None
    await until(lambda: conductor.waiting()["what"] == "devices")
    assert conductor.waiting()["why"] == "3 of 4 devices are ready: four is offline"
    assert conductor.waiting()["until_unix_s"] > 0
    fleet.start("four")
    ended = await fleet.ended(run)
    assert ended.state == "completed", await fleet.story(run)
    asked = (await fleet.events(run, "asked"))[0]["data"]["devices"]
    assert sorted(asked) == ["four", "one", "three", "two"]


async def test_a_drained_device_loses_its_task_and_the_round_goes_on(fleet: SmallFleet) -> None:
    run = await fleet.begin(HALVES, rounds=1, run_config={"bad": "slow"})
    conductor = fleet.runs.under_way(run.id)
    assert conductor is not None
    await until(lambda: conductor.waiting()["on"] == ["one"])
    await fleet.registry.drain(DeviceId("one"))
    ended = await fleet.ended(run)
    assert ended.state == "completed", await fleet.story(run)
    failure = (await fleet.events(run, "failure"))[0]
    assert (failure["device"], failure["data"]["why"]) == ("one", "the device was drained")


async def test_a_coordinator_that_comes_back_goes_on_with_the_replies_it_has(
    fleet: SmallFleet,
) -> None:
    run = await fleet.begin(HALVES, rounds=1, run_config={"bad": "pause"})
    conductor = fleet.runs.under_way(run.id)
    assert conductor is not None
    await until(lambda: conductor.waiting()["on"] == ["one"])
    await fleet.runs.__aexit__()
    found = await fleet.store.read(lambda c: kept.find(c, run.id))
    assert found is not None
    assert (found.state, found.why) == ("running", "")
    fleet.runs = Runs(
        store=fleet.store,
        blobs=fleet.blobs,
        fleet=fleet.fleet,
        roster=fleet.registry,
        sign=fleet.authority.sign_bundle,
        folder=fleet.home / "runs",
    )
    fleet.registry.attach(fleet=fleet.fleet, work=fleet.runs)
    async with fleet.runs:
        ended = await fleet.ended(run)
        assert ended.state == "completed", await fleet.story(run)
        resumed = await fleet.events(run, "resumed")
        assert [(e["data"]["open"], e["data"]["replied"]) for e in resumed] == [(1, 2)]
        replies = [event["device"] for event in await fleet.events(run, "reply")]
        assert sorted(replies) == ["one", "one", "three", "three", "two", "two"]
        assert len(await fleet.events(run, "asked")) == 2
        weights = fleet.model(ended).arrays["arrays"]
        assert weights["steps"].numpy() == 1


def reply_parcel(run: RunId, task: str, body: bytes, round_: int = 1) -> Parcel:
    return Parcel(id=ParcelId(f"{task}/reply"), kind="reply", run=run, round=round_, body=body)


async def unwanted(fleet: SmallFleet, run: Run) -> dict[tuple[str, str], int]:
    """Return how much was not taken, by device and reason."""
    rows = await fleet.runs.unwanted.rows(run.id)
    return {(row["device"], row["reason"]): row["times"] for row in rows}


async def taken(fleet: SmallFleet, task: str) -> Parcel:
    """Return the reply that was taken of a task."""
    row = await fleet.store.read(lambda c: kept_tasks.find_task(c, task))
    assert row is not None
    return read_parcel(fleet_pb2.Parcel.FromString(row.reply or b""))


async def test_replies_that_nobody_waits_for(fleet: SmallFleet) -> None:
    run = await fleet.begin(HALVES, rounds=1, run_config={"bad": "slow"})
    conductor = fleet.runs.under_way(run.id)
    assert conductor is not None
    await until(lambda: conductor.waiting()["on"] == ["one"])
    rows = await fleet.store.read(lambda c: kept_tasks.task_table(c, run.id))
    task = {row["device"]: row["id"] for row in rows}
    one, two = DeviceId("one"), DeviceId("two")

    async def rejected(device: DeviceId, parcel: Parcel) -> str:
        with pytest.raises(RejectedError) as refused:
            await fleet.runs.reply(device, parcel)
        return refused.value.code

    # A task of another device, of nobody, and a reply that names none.
    assert await rejected(two, reply_parcel(run.id, task["one"], b"")) == "unexpected"
    assert await rejected(one, reply_parcel(run.id, "task-x", b"")) == "unexpected"
    nameless = Parcel(id=ParcelId("x"), kind="reply", run=run.id)
    assert await rejected(one, nameless) == "malformed"
    # Said again, as after a lost acknowledgement: accepted, and nothing changes.
    replies = await fleet.events(run, "reply")
    again = await taken(fleet, task["two"])
    for _ in range(3):
        await fleet.runs.reply(two, again)
    # Another answer to a task that is answered.
    assert await rejected(two, replace(again, body=again.body + b"\0")) == "unexpected"
    assert await fleet.events(run, "reply") == replies
    assert await unwanted(fleet, run) == {
        ("one", "malformed"): 1,
        ("one", "not-asked"): 1,
        ("two", "not-asked"): 1,
        ("two", "repeated"): 3,
        ("two", "changed"): 1,
    }
    # Malformed: the device is named, and the round goes on without it.
    assert await rejected(one, reply_parcel(run.id, task["one"], b"\xff")) == "malformed"
    ended = await fleet.ended(run)
    assert ended.state == "completed"
    failure = (await fleet.events(run, "failure"))[0]
    assert failure["device"] == "one"
    assert "its reply was not taken: the reply does not parse" in failure["data"]["why"]
    # The run is over: still named, and counted on; a flood of it costs few lines of the journal.
    for number in range(500):
        assert await rejected(two, reply_parcel(run.id, f"task-{number}", b"")) == "unexpected"
    counted = await unwanted(fleet, run)
    assert (counted["two", "not-asked"], counted["one", "malformed"]) == (501, 2)
    assert len(await fleet.events(run, "unwanted")) < 20
    await fleet.runs.__aexit__()  # what was only counted is written
    written = await fleet.events(run, "unwanted")
    assert sum(e["data"]["times"] for e in written if e["device"] == "two") == 501 + 3 + 1


async def test_what_was_only_counted_is_journalled_though_nothing_more_comes(
    fleet: SmallFleet,
) -> None:
    run = await fleet.train(HALVES, rounds=1)
    for number in range(50):
        with pytest.raises(RejectedError):
            await fleet.runs.reply(DeviceId("two"), reply_parcel(run.id, f"task-{number}", b""))

    async def journalled() -> int:
        return sum(each["data"]["times"] for each in await fleet.events(run, "unwanted"))

    async with asyncio.timeout(10):
        while await journalled() < 50:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    assert await journalled() == 50
    assert len(await fleet.events(run, "unwanted")) <= 4


async def test_a_reply_that_names_another_round_is_refused_by_name(fleet: SmallFleet) -> None:
    run = await fleet.begin(HALVES, rounds=1, run_config={"bad": "slow"})
    conductor = fleet.runs.under_way(run.id)
    assert conductor is not None
    await until(lambda: conductor.waiting()["on"] == ["one"])
    part = conductor.questions.exchanges[0].open[0]
    said = Reply(task=part.task, content=b"x").SerializeToString()
    with pytest.raises(RejectedError, match=r"of round 0; its task is of round 1"):
        await fleet.runs.reply(DeviceId("one"), reply_parcel(run.id, part.task, said, 0))
    ended = await fleet.ended(run)
    assert ended.state == "completed"
    assert (await fleet.events(run, "failure"))[0]["device"] == "one"
    assert (await unwanted(fleet, run))["one", "wrong-round"] == 1


def sized(folder: Path, size: int) -> Path:
    """Return the app with a larger model, whose contents travel as blobs."""
    app = folder / "sized"
    shutil.copytree(HALVES, app, ignore=shutil.ignore_patterns("__pycache__"))
    code = app / "halves.py"
    code.write_text(code.read_text().replace("SIZE = 3\n", f"SIZE = {size}\n"))
    return app


async def test_a_reply_too_large_is_refused_by_name(fleet: SmallFleet, tmp_path: Path) -> None:
    run = await fleet.begin(sized(tmp_path, 20_000), rounds=1, reply_bytes=1024)
    ended = await fleet.ended(run)
    assert ended.state == "completed", await fleet.story(run)
    failures = await fleet.events(run, "failure")
    assert {event["device"] for event in failures} == set(DEVICES)
    assert "this run takes 1024 (reply_bytes)" in failures[0]["data"]["why"]


async def test_a_late_reply_is_noted_once(fleet: SmallFleet) -> None:
    run = await fleet.begin(HALVES, rounds=1, run_config={"bad": "slow"}, round_deadline_s=3)
    await fleet.ended(run)
    rows = await fleet.store.read(lambda c: kept_tasks.task_table(c, run.id))
    late = next(row["id"] for row in rows if row["state"] == "late")
    said = Reply(task=late, failure=Failure(code=2, reason="x")).SerializeToString()
    for _ in range(2):
        await fleet.runs.reply(DeviceId("one"), reply_parcel(run.id, late, said))
    noted = await fleet.events(run, "late-reply")
    assert [(e["device"], e["data"]["why"]) for e in noted] == [
        ("one", "it came after the task was late")
    ]


async def test_what_a_run_moved_is_swept_when_it_ends(fleet: SmallFleet, tmp_path: Path) -> None:
    run = await fleet.train(sized(tmp_path, 20_000), rounds=2)
    assert run.model is not None
    held = set(await asyncio.to_thread(lambda: list(fleet.blobs.digests())))
    known = await fleet.store.read(lambda c: set(c.execute(tables.blobs.select()).scalars()))
    assert {run.model, run.app} <= held
    assert known == held == {run.model, run.app}


async def test_a_device_is_told_to_stop_what_was_closed_while_it_was_away(
    fleet: SmallFleet,
) -> None:
    run = await fleet.begin(HALVES, rounds=1, run_config={"bad": "slow"})
    conductor = fleet.runs.under_way(run.id)
    assert conductor is not None
    await until(lambda: conductor.waiting()["on"] == ["one"])
    inbox = fleet.home / "devices" / "one" / "inbox"
    await until(lambda: any(inbox.glob("*.parcel")))
    await fleet.stop("one")
    await fleet.runs.stop(run.id, by="test")
    await fleet.ended(run)
    await begin_again(fleet)  # what was to be said to the device is forgotten
    assert any(inbox.glob("*.parcel"))
    fleet.start("one")
    # Sooner than it would have been done with the work, which takes 15 s.
    await until(lambda: not any(inbox.glob("*.parcel")), 8)


async def test_an_order_to_a_coordinator_that_stops_is_refused_as_such(fleet: SmallFleet) -> None:
    run = await fleet.begin(HALVES, rounds=1, run_config={"bad": "pause"})
    await fleet.runs.__aexit__()
    for order in (fleet.runs.pause, fleet.runs.resume):
        with pytest.raises(StoppingError, match="the coordinator is stopping"):
            await order(run.id, "test")
