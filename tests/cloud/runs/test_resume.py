"""A server side that begins again goes on: the same model and the same words, nobody asked twice.

Here the coordinator's runs are ended and opened again in one process, in the middle of a round;
test_kills.py kills real processes.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from skerry_cloud.runs.engine import Runs, StateError
from skerry_cloud.store import tables
from skerry_cloud.store.runs import Run
from skerry_protos.messages import Digest

from tests.fleet import SmallFleet, small_fleet

APPS = Path(__file__).parents[2] / "apps"
STEADY, LEDGER = APPS / "steady", APPS / "ledger"
DEVICES = ("one", "two")
SEED = 7


@pytest.fixture
async def fleet(tmp_path: Path) -> AsyncIterator[SmallFleet]:
    async with small_fleet(tmp_path, "memory", DEVICES) as made:
        yield made


async def begin_again(
    fleet: SmallFleet, between: Callable[[sa.Connection], Any] | None = None
) -> None:
    """End all that the coordinator's runs do, and open them again, as a new coordinator would."""
    await fleet.runs.__aexit__()
    if between is not None:
        await fleet.store.write(between)
    fleet.runs = Runs(
        store=fleet.store,
        blobs=fleet.blobs,
        fleet=fleet.fleet,
        roster=fleet.registry,
        sign=fleet.authority.sign_bundle,
        folder=fleet.home / "runs",
    )
    fleet.registry.attach(fleet=fleet.fleet, work=fleet.runs)
    await fleet.runs.__aenter__()


async def seen(fleet: SmallFleet, run: Run, kind: str, count: int) -> None:
    """Wait until so many events of a kind are in the journal."""
    async with asyncio.timeout(60):
        while len(await fleet.events(run, kind)) < count:
            news = fleet.runs.news.next()
            if fleet.runs.under_way(run.id) is None:
                raise AssertionError(await fleet.story(run))
            await fleet.runs.news.wait(news, 0.2)


def result(fleet: SmallFleet, run: Run) -> Any:
    """Return what the app wrote that it had come to."""
    return json.loads((fleet.home / "runs" / run.id / "files" / "result.json").read_text())


async def asked(fleet: SmallFleet, run: Run) -> list[tuple[int, str, int]]:
    return [
        (event["round"], event["data"]["phase"], len(event["data"]["devices"]))
        for event in await fleet.events(run, "asked")
    ]


def options(how: str) -> dict[str, Any]:
    return {
        "seed": SEED,
        "checkpoint_s": 0.0,
        "min_devices": len(DEVICES),
        "run_config": {"how": how, "train_s": 0.1},
    }


KEPT = ("fedadam", "fedyogi", "fedadagrad", "fedavgm", "private", "slower")
QUICK = {"fedadam", "slower", "send"}
EVERY = [
    pytest.param(how, marks=() if how in QUICK else pytest.mark.slow)
    for how in (*KEPT, "closed", "send", "pull")
]


@pytest.mark.parametrize("how", EVERY)
async def test_a_flower_app_comes_to_the_same(fleet: SmallFleet, how: str) -> None:
    clean = await fleet.train(STEADY, **options(how))
    run = await fleet.begin(STEADY, **options(how))
    # In the middle of the second round, and again in the third.
    for count in (2 * 2 + 1, 2 * 4 + 1) if how not in {"send", "pull"} else (2 + 1, 4 + 1):
        await seen(fleet, run, "reply", count)
        await begin_again(fleet)
    ended = await fleet.ended(run)
    assert ended.state == "completed", await fleet.story(run)
    assert await asked(fleet, run) == await asked(fleet, clean)
    assert len(await fleet.events(run, "reply")) == len(await fleet.events(clean, "reply"))
    assert len(await fleet.events(run, "resumed")) == 2
    if how != "pull":  # there it matters who is first, and that is not the same in every run
        assert ended.model == clean.model
        assert result(fleet, run) == result(fleet, clean)
        assert await fleet.metrics(run) == await fleet.metrics(clean)
    kept = await fleet.events(run, "checkpoint")
    notes = [event["data"]["text"] for event in await fleet.events(run, "note")]
    assert bool(kept) == (how in KEPT)
    assert any("no checkpoints: state.reached" in note for note in notes) == (how == "closed")
    assert not any("other contents" in note for note in notes)


@pytest.mark.parametrize("strategy", ["fedavg", "fedyogi"])
async def test_a_native_app_comes_to_the_same(fleet: SmallFleet, strategy: str) -> None:
    wanted = {**options(""), "rounds": 3, "strategy": strategy, "run_config": {"train_s": 0.1}}
    clean = await fleet.train(LEDGER, **wanted)
    run = await fleet.begin(LEDGER, **wanted)
    for count in (3, 5):
        await seen(fleet, run, "reply", count)
        await begin_again(fleet)
    ended = await fleet.ended(run)
    assert ended.state == "completed", await fleet.story(run)
    assert ended.model == clean.model
    assert await asked(fleet, run) == await asked(fleet, clean)
    assert await fleet.events(run, "checkpoint")
    # What checkpoints made superfluous is gone, and at the end all but app and model.
    held = set(await asyncio.to_thread(lambda: list(fleet.blobs.digests())))
    assert held == {ended.app, ended.model}


@pytest.mark.parametrize(("app", "replies"), [(LEDGER, (1, 3)), (STEADY, (1, 5))])
async def test_a_run_that_began_with_anothers_model_comes_to_the_same(
    fleet: SmallFleet, app: Path, replies: tuple[int, int]
) -> None:
    """Once before there is a checkpoint, which has the model in it, and once after."""
    usual = options("fedavg")
    if app is LEDGER:
        usual["run_config"] = {"train_s": 0.1}
    first = await fleet.train(app, **usual | {"rounds": 1})
    wanted = usual | {"rounds": 2, "initial": first.id}
    clean = await fleet.train(app, **wanted)
    run = await fleet.begin(app, **wanted)
    for count in replies:
        await seen(fleet, run, "reply", count)
        await begin_again(fleet)
    ended = await fleet.ended(run)
    assert ended.state == "completed", await fleet.story(run)
    assert ended.model == clean.model != first.model
    assert await asked(fleet, run) == await asked(fleet, clean)
    assert len(await fleet.events(run, "reply")) == len(await fleet.events(clean, "reply"))


def ledger(**config: Any) -> dict[str, Any]:
    return {"seed": SEED, "min_devices": 2, "rounds": 2, "run_config": config}


async def states(fleet: SmallFleet, run: Run) -> list[str]:
    return [event["data"]["state"] for event in await fleet.events(run, "state")]


async def test_a_paused_run_keeps_what_comes_and_goes_on(fleet: SmallFleet) -> None:
    clean = await fleet.train(LEDGER, **ledger())
    run = await fleet.begin(LEDGER, **ledger(train_s=1.0), round_deadline_s=20)
    await seen(fleet, run, "asked", 1)
    with pytest.raises(StateError, match="not paused"):
        await fleet.runs.resume(run.id, "test")
    paused = await fleet.runs.pause(run.id, "test")
    assert (paused.state, paused.why) == ("paused", "paused by test")
    conductor = fleet.runs.under_way(run.id)
    assert conductor is not None
    assert "skerry runs resume" in conductor.waiting()["why"]
    await seen(fleet, run, "reply", 2)
    assert len(await fleet.events(run, "asked")) == 1
    await begin_again(fleet)
    assert (await fleet.runs.get(run.id)).state == "paused"
    await fleet.runs.resume(run.id, "test")
    ended = await fleet.ended(run)
    assert (ended.state, ended.model) == ("completed", clean.model), await fleet.story(run)
    assert len(await fleet.events(run, "reply")) == 4
    assert not await fleet.events(run, "late", "failure")
    assert await states(fleet, run) == [
        *("starting", "running", "pausing", "paused"),
        *("starting", "running", "completed"),
    ]


async def test_a_paused_run_can_be_stopped(fleet: SmallFleet) -> None:
    run = await fleet.begin(LEDGER, **ledger(train_s=30.0))
    await seen(fleet, run, "asked", 1)
    await fleet.runs.pause(run.id, "test")
    ended = await fleet.runs.stop(run.id, "test")
    assert (ended.state, ended.why) == ("stopped", "stopped by test")
    rows = await fleet.store.read(
        lambda c: c.execute(sa.select(tables.tasks.c.state).where(tables.tasks.c.run == run.id))
    )
    assert set(rows.scalars()) == {"cancelled"}


async def test_a_question_has_the_time_that_the_coordinator_was_away(fleet: SmallFleet) -> None:
    run = await fleet.begin(LEDGER, **ledger(train_s=3.0), round_deadline_s=60)
    await seen(fleet, run, "asked", 1)
    until = (await fleet.events(run, "asked"))[0]["data"]["until_unix_s"]
    away = 1000.0

    def long_ago(connection: sa.Connection) -> None:
        # As if everything had been longer ago.
        for table, column in (
            (tables.questions, "deadline_at"),
            (tables.events, "at"),
            (tables.devices, "last_seen_at"),
        ):
            connection.execute(table.update().values({column: table.c[column] - away}))
        connection.execute(tables.questions.update().values(left_s=None))

    await begin_again(fleet, long_ago)
    await seen(fleet, run, "reply", 2)
    conductor = fleet.runs.under_way(run.id)
    assert conductor is not None
    resumed = (await fleet.events(run, "resumed"))[0]["data"]
    assert resumed["away_s"] == pytest.approx(away, abs=30)
    ended = await fleet.ended(run)
    assert ended.state == "completed", await fleet.story(run)
    assert not await fleet.events(run, "late"), until


async def test_a_journal_of_a_newer_version_is_left_alone(fleet: SmallFleet) -> None:
    run = await fleet.begin(LEDGER, **ledger(train_s=2.0))
    await seen(fleet, run, "asked", 1)

    def newer(connection: sa.Connection, form: int = 99) -> None:
        values = {"journal": form, "written_by": "9.1.0"}
        connection.execute(tables.runs.update().values(values))

    await begin_again(fleet, newer)
    found = await fleet.runs.get(run.id)
    assert found.state == "running"
    assert found.waiting is not None
    assert "skerry-cloud 9.1.0 in form 99" in found.waiting["why"]
    assert "start the newer one again" in found.waiting["why"]
    await asyncio.sleep(3.0)  # the device has trained, and its reply is neither taken nor refused
    assert not await fleet.events(run, "reply", "late-reply", "failure")
    await begin_again(fleet, lambda c: newer(c, 1))
    ended = await fleet.ended(run)
    assert ended.state == "completed", await fleet.story(run)
    assert len(await fleet.events(run, "reply")) == 4


async def test_a_run_of_a_newer_version_can_be_stopped(fleet: SmallFleet) -> None:
    run = await fleet.begin(LEDGER, **ledger(train_s=30.0))
    await seen(fleet, run, "asked", 1)
    await begin_again(fleet, lambda c: c.execute(tables.runs.update().values(journal=99)))
    assert (await fleet.runs.stop(run.id, "test")).state == "stopped"


async def test_a_damaged_blob_stops_the_run_it_belongs_to_alone(fleet: SmallFleet) -> None:
    hurt = await fleet.begin(LEDGER, **ledger(train_s=1.0))
    # Its replies are other blobs: equal ones would be one, and both runs' loss.
    other = await fleet.begin(LEDGER, **ledger(train_s=1.0, more=1.0), fraction=1.0)
    await seen(fleet, hurt, "reply", 1)
    await fleet.runs.__aexit__()

    def content(connection: sa.Connection) -> str:
        chosen = sa.select(tables.tasks.c.answer).where(
            tables.tasks.c.run == hurt.id, tables.tasks.c.answer != ""
        )
        return str(connection.execute(chosen).scalars().first())

    digest = await fleet.store.read(content)
    path = fleet.blobs.path(Digest(digest))
    assert path is not None
    path.chmod(0o600)
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        byte = file.read(1)
        file.seek(-1, 1)
        file.write(bytes([byte[0] ^ 1]))
    await begin_again(fleet)
    ended = await fleet.ended(hurt)
    assert ended.state == "interrupted"
    assert f"blob {digest[:12]}, is damaged" in ended.why
    assert (await fleet.ended(other)).state == "completed", await fleet.story(other)
