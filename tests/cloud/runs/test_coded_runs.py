"""Runs whose updates and models are coded: small on the wire, unseen by apps, named in the run."""

import sys
from collections.abc import AsyncIterator, Iterator
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from skerry_cloud.runs.plan import RunOptions
from skerry_cloud.store import tasks as kept_tasks
from skerry_cloud.store.runs import Run
from skerry_edge import heartbeat
from skerry_protos.codecs import BROADCASTS, NAMES
from skerry_protos.errors import ConfigError

from tests.cloud.runs.test_resume import begin_again, seen
from tests.fleet import SmallFleet, small_fleet, until

PLANKS = Path(__file__).parents[2] / "apps" / "planks"
DEVICES = ("one", "two", "three")
ROUNDS = 3
PAYLOAD = (120 * 100 + 120) * 4 + 8

Floats = NDArray[np.float32]


@pytest.fixture
async def fleet(tmp_path: Path) -> AsyncIterator[SmallFleet]:
    async with small_fleet(tmp_path, "memory", DEVICES) as made:
        yield made


@pytest.fixture
def plain() -> Iterator[dict[str, Any]]:
    """Return the model that rounds without codecs come to."""
    sys.path.insert(0, str(PLANKS))
    try:
        import planks  # type: ignore[import-not-found]

        class Device:
            def __init__(self, partition: int) -> None:
                self.partition = partition

        model = planks.model()
        held = [planks.data(Device(place)) for place in range(len(DEVICES))]
        for _ in range(ROUNDS):
            trained = []
            for data in held:
                own = {name: array.copy() for name, array in model.items()}
                planks.train(own, data, {"step": 0.5})
                trained.append(own)
            model = {
                name: np.mean([own[name].astype(float) for own in trained], axis=0).astype(
                    array.dtype
                )
                for name, array in model.items()
            }
        yield model
    finally:
        sys.path.remove(str(PLANKS))


async def replies(fleet: SmallFleet, run: Run, phase: str = "train") -> list[dict[str, Any]]:
    events = await fleet.events(run, "reply")
    return [event for event in events if event["data"]["phase"] == phase]


async def sent_to_train(fleet: SmallFleet, run: Run) -> list[int]:
    """Return the bytes of each task to train."""
    rows = await fleet.store.read(lambda c: kept_tasks.task_table(c, run.id))
    return [row["bytes_down"] for row in rows if row["message_type"] == "train"]


def model_of(fleet: SmallFleet, run: Run) -> dict[str, NDArray[Any]]:
    arrays = fleet.model(run).arrays["arrays"]
    return {name: tensor.numpy() for name, tensor in arrays.items()}


def off(found: NDArray[Any], expected: NDArray[Any]) -> float:
    """Return how far a matrix is from what it should be, over its own norm."""
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


FAR = {"lossless": 0.0, "bf16": 0.005, "int8": 0.01, "int4": 0.15, "topk": 1.0, "powersgd": 0.3}
SMALL = {"lossless": 0.95, "bf16": 0.55, "int8": 0.27, "int4": 0.14, "topk": 0.04, "powersgd": 0.16}


@pytest.mark.network
async def test_every_codec_comes_to_the_same_in_fewer_bytes_over_a_link(
    tmp_path: Path, plain: dict[str, Any]
) -> None:
    async with small_fleet(tmp_path, "grpc", DEVICES) as fleet:
        for name in NAMES[1:]:
            run = await fleet.train(PLANKS, rounds=ROUNDS, codec=name)
            found = model_of(fleet, run)
            assert off(found["w"], plain["w"]) <= FAR[name], name
            assert off(found["b"], plain["b"]) <= max(FAR[name], 0.01), name
            assert int(found["steps"]) == ROUNDS
            said = await replies(fleet, run)
            assert len(said) == ROUNDS * len(DEVICES)
            for event in said:
                assert event["data"]["codec"].partition(",")[0] == name
                assert event["data"]["plain_bytes"] > PAYLOAD
                # Beside the update: metrics, report, headers.
                assert event["data"]["bytes"] <= SMALL[name] * PAYLOAD + 600, name
            assert not await fleet.events(run, "refused", "failure", "late")
            evaluated = await replies(fleet, run, "evaluate")
            assert all("codec" not in event["data"] for event in evaluated)


async def test_without_a_codec_nothing_is_coded(fleet: SmallFleet, plain: dict[str, Any]) -> None:
    run = await fleet.train(PLANKS, rounds=ROUNDS)
    assert np.array_equal(model_of(fleet, run)["w"], plain["w"])
    assert all("codec" not in event["data"] for event in await replies(fleet, run))


async def test_each_class_of_devices_has_its_codec(fleet: SmallFleet) -> None:
    await fleet.registry.relabel("one", {"link": "radio"})  # type: ignore[arg-type]
    await fleet.enrol("four", first_node=200)
    await fleet.store.write(
        lambda c: c.exec_driver_sql("UPDATE device SET profile='pi4' WHERE id='four'")
    )
    fleet.start("four")
    await fleet.connected(4)
    codecs = {"link=radio": {"name": "topk", "ratio": 0.02}, "profile=pi4": "int4"}
    run = await fleet.train(PLANKS, rounds=1, min_devices=4, codec="bf16", codecs=codecs)
    said = {event["device"]: event["data"]["codec"] for event in await replies(fleet, run)}
    assert said == {"one": "topk,ratio=0.02", "two": "bf16", "three": "bf16", "four": "int4"}


@pytest.mark.network
@pytest.mark.broker
async def test_a_coded_broadcast_keeps_the_exact_weights_here(
    tmp_path: Path, plain: dict[str, Any]
) -> None:
    async with small_fleet(tmp_path, "mqtt", DEVICES) as fleet:
        for broadcast, codec in product(BROADCASTS[1:], ("none", "int8")):
            run = await fleet.train(PLANKS, rounds=ROUNDS, codec=codec, broadcast_codec=broadcast)
            assert off(model_of(fleet, run)["w"], plain["w"]) <= 0.02
            share = {"lossless": 1.0, "bf16": 0.5, "int8": 0.27}[broadcast]
            assert max(await sent_to_train(fleet, run)) <= share * PAYLOAD + 1500
            lossy = broadcast != "lossless"
            expected = {"int8": "int8", "none": "lossless" if lossy else ""}[codec]
            said = await replies(fleet, run)
            assert {event["data"].get("codec", "") for event in said} == {expected}


async def test_an_agent_that_announces_no_codec_is_asked_for_none(
    tmp_path: Path, plain: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heartbeat, "codecs", lambda: ())
    async with small_fleet(tmp_path, "memory", DEVICES) as fleet:
        await without_codecs(fleet, plain)


async def without_codecs(fleet: SmallFleet, plain: dict[str, Any]) -> None:
    run = await fleet.train(PLANKS, rounds=ROUNDS, codec="int4", broadcast_codec="int8")
    assert np.array_equal(model_of(fleet, run)["w"], plain["w"])
    assert all("codec" not in event["data"] for event in await replies(fleet, run))
    notes = [event["data"]["text"] for event in await fleet.events(run, "note")]
    for device in DEVICES:
        [note] = [text for text in notes if text.startswith(f"{device}:")]
        assert "announces no int4 and no int8 broadcasts" in note


async def test_feedback_stays_on_the_device_until_the_run_is_over(fleet: SmallFleet) -> None:
    home = fleet.home / "devices" / "one" / "state"
    run = await fleet.begin(PLANKS, rounds=50, codec="topk")
    await until(lambda: bool(list(home.glob("*/feedback"))))
    [kept] = home.glob("*/feedback")
    first = kept.read_bytes()
    await until(lambda: kept.read_bytes() != first)
    await fleet.runs.stop(run.id, "test")
    await until(lambda: not list(home.glob("*/feedback")))


async def test_a_coordinator_that_begins_again_comes_to_the_same_bits(fleet: SmallFleet) -> None:
    wanted: dict[str, Any] = {
        "rounds": ROUNDS,
        "min_devices": len(DEVICES),
        "seed": 7,
        "codec": "topk",
        "broadcast_codec": "int8",
        "checkpoint_s": 0.0,
    }
    clean = await fleet.train(PLANKS, **wanted)
    run = await fleet.begin(PLANKS, **wanted)
    for count in (2, 2 * len(DEVICES) + 1):  # training in the first round, and in the second
        await seen(fleet, run, "reply", count)
        await begin_again(fleet)
    ended = await fleet.ended(run)
    assert ended.state == "completed", await fleet.story(run)
    assert len(await fleet.events(run, "resumed")) == 2
    assert ended.model == clean.model
    notes = [event["data"]["text"] for event in await fleet.events(run, "note")]
    assert not any("other contents" in note for note in notes)


async def test_codecs_of_a_run_are_checked_when_it_begins() -> None:
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"codec": "int9"}, "did you mean 'int8'"),
        ({"codec": {"name": "topk", "ration": 0.1}}, "did you mean 'ratio'"),
        ({"codec": 8}, "codec must be str or dict"),
        ({"codecs": {"site=(": "int8"}}, "selector"),
        ({"codecs": {"site=a": "topc"}}, "did you mean 'topk'"),
        ({"broadcast_codec": "topk"}, "cannot code what is broadcast"),
        ({"broadcast_codec": "bf61"}, "did you mean 'bf16'"),
        ({"codex": "int8"}, "did you mean 'codec"),
    ]
    for options, words in wrong:
        with pytest.raises(ConfigError) as caught:
            RunOptions.parse(options)
        assert words in str(caught.value), options
    good = {"codec": {"name": "topk", "ratio": 0.02}, "codecs": {"site=a": "int8"}}
    assert RunOptions.parse(RunOptions.parse(good).to_json()) == RunOptions.parse(good)
