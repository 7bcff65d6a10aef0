"""A model crosses once: what devices evaluate is what they train next, whatever goes with it."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from skerry_cloud.runs.asking import Asking
from skerry_cloud.runs.codecs import Codecs
from skerry_cloud.store import tasks as kept_tasks
from skerry_cloud.store.runs import Run
from skerry_edge import heartbeat

from tests.cloud.runs.test_coded_runs import DEVICES, PAYLOAD, PLANKS, ROUNDS, model_of
from tests.cloud.runs.test_resume import begin_again, seen
from tests.fleet import SmallFleet, small_fleet

WORDS = 4096
"""A task's own bytes, far above what they are and far below the model's."""
OPTIONS: dict[str, Any] = {"rounds": ROUNDS, "run_config": {"step": 0.5}}


async def down(fleet: SmallFleet, run: Run) -> dict[tuple[int, str], list[int]]:
    """Return the bytes that tasks took to devices, by round and phase."""
    found: dict[tuple[int, str], list[int]] = {}
    for row in await fleet.store.read(lambda c: kept_tasks.task_table(c, run.id)):
        found.setdefault((row["round"], row["message_type"]), []).append(row["bytes_down"])
    return found


async def heard_of(fleet: SmallFleet) -> None:
    """Wait until every device's first heartbeat is here: it says what the device can."""
    async with asyncio.timeout(30):
        while not all(one.heartbeat for one in await fleet.registry.devices()):
            await fleet.registry.wait_change(0.1)


@pytest.fixture
async def fleet(tmp_path: Path) -> AsyncIterator[SmallFleet]:
    async with small_fleet(tmp_path, "memory", DEVICES) as made:
        await heard_of(made)
        yield made


async def test_devices_fetch_each_model_once(fleet: SmallFleet) -> None:
    run = await fleet.train(PLANKS, **OPTIONS)
    sizes = await down(fleet, run)
    for round_ in range(1, ROUNDS + 1):
        assert all(size < WORDS for size in sizes[round_, "train"]) is (round_ > 1), sizes
        # The round's result is new to devices when they evaluate it.
        assert all(size > PAYLOAD for size in sizes[round_, "evaluate"]), sizes
    replies = await fleet.events(run, "reply")
    held = {one["data"]["held_bytes"] for one in replies if one["data"]["phase"] == "train"}
    assert held == {0, max(held)}
    assert max(held) > PAYLOAD


async def test_an_older_agent_gets_all_in_one_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fleet: SmallFleet
) -> None:
    expected = model_of(fleet, await fleet.train(PLANKS, **OPTIONS))
    monkeypatch.setattr(heartbeat, "FEATURES", ())
    home = tmp_path / "older"
    home.mkdir()
    async with small_fleet(home, "memory", DEVICES) as aged:
        await heard_of(aged)
        run = await aged.train(PLANKS, **OPTIONS)
        assert all(size > PAYLOAD for each in (await down(aged, run)).values() for size in each)
        found = model_of(aged, run)
    assert all(np.array_equal(found[name], expected[name]) for name in expected)


async def test_a_fleet_of_both_is_sent_one_file_and_not_two(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Codecs, "beside", lambda _, device: device.id != DEVICES[0])
    async with small_fleet(tmp_path, "memory", DEVICES) as fleet:
        await heard_of(fleet)
        run = await fleet.train(PLANKS, **OPTIONS)
        rows = await fleet.store.read(lambda c: kept_tasks.task_table(c, run.id))
        by_question: dict[int, set[str]] = {}
        for row in rows:
            by_question.setdefault(row["question"], set()).add(row["content"])
        assert all(len(each) == 1 for each in by_question.values())


async def test_a_run_that_goes_on_asks_with_the_same(
    fleet: SmallFleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = model_of(fleet, await fleet.train(PLANKS, **OPTIONS))
    prints: list[Any] = []
    made = Asking.print_of

    def note(self: Asking, question: Any) -> Any:
        prints.append(made(self, question))
        return prints[-1]

    monkeypatch.setattr(Asking, "print_of", note)
    run = await fleet.begin(PLANKS, **OPTIONS, checkpoint_s=3600.0)
    await seen(fleet, run, "asked", 3)
    await begin_again(fleet)
    ended = await fleet.ended(run)
    assert ended.state == "completed", await fleet.story(run)
    assert prints, "nothing was asked again: the kill came too late"
    notes = [event["data"].get("text", "") for event in await fleet.events(run, "note")]
    assert not [text for text in notes if "other contents" in text]
    found = model_of(fleet, ended)
    assert all(np.array_equal(found[name], expected[name]) for name in expected)
