"""A server side that begins again goes on: the same model and the same words, nobody asked twice.

Here the coordinator's runs are ended and opened again in one process, in the middle of a round;
test_kills.py kills real processes.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from skerry_cloud.runs.engine import Runs
from skerry_cloud.store.runs import Run

from tests.fleet import SmallFleet, small_fleet

APPS = Path(__file__).parents[2] / "apps"
STEADY, LEDGER = APPS / "steady", APPS / "ledger"
DEVICES = ("one", "two")
SEED = 7


@pytest.fixture
async def fleet(tmp_path: Path) -> AsyncIterator[SmallFleet]:
    async with small_fleet(tmp_path, "memory", DEVICES) as made:
        yield made


async def begin_again(fleet: SmallFleet) -> None:
    """End all that the coordinator's runs do, and open them again, as a new coordinator would."""
    await fleet.runs.__aexit__()
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
