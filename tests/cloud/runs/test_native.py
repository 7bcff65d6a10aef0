"""Native apps on real agents: the mean is right, and one bad device never ends a run."""

from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest

from tests.fleet import SmallFleet, small_fleet

HALVES = Path(__file__).parents[2] / "apps" / "halves"
DEVICES = ("one", "two", "three")


@pytest.fixture
async def fleet(tmp_path: Path) -> AsyncIterator[SmallFleet]:
    async with small_fleet(tmp_path, "memory", DEVICES) as made:
        yield made


def expected(rounds: int, targets: tuple[int, ...] = (1, 2, 3)) -> float:
    """Return the closed form: half way to the mean of the targets, weighted by themselves."""
    mean = sum(target * target for target in targets) / sum(targets)
    return float(mean * (1 - 0.5**rounds))


async def test_the_mean_equals_the_closed_form(fleet: SmallFleet) -> None:
    run = await fleet.train(HALVES)
    weights = fleet.model(run).arrays["arrays"]
    assert weights["w"].numpy() == pytest.approx(expected(3))
    assert weights["steps"].numpy().dtype == np.int64
    assert weights["steps"].numpy() == 3
    assert (run.round, run.rounds, run.state) == (3, 3, "completed")
    closed = [event["data"] for event in await fleet.events(run, "closed")]
    assert len(closed) == 6
    assert all(one["replied"] == 3 for one in closed)
    metrics = await fleet.metrics(run)
    assert metrics[1, "train", "two", "target"] == 2.0
    assert metrics[3, "evaluate", "", "error"] == pytest.approx(
        sum(abs(expected(3) - target) for target in (1, 2, 3)) / 3
    )


BAD = {
    "nan": ("refused", "its array 'w' has NaN or infinity"),
    "shape": ("refused", "its array 'w' is float32 (2,); expected float32 (3,)"),
    "dtype": ("refused", "its array 'w' is float64 (3,); expected float32 (3,)"),
    "missing": ("refused", "it lacks the array 'w'"),
    "weight": ("refused", "its metric 'num-examples' is 0; expected more than 0"),
    "raise": ("failure", "ValueError: no more data"),
    "exit": ("failure", "exit"),
    "slow": ("late", "no reply by the round's deadline"),
}


async def test_a_bad_device_is_named_and_left_out(fleet: SmallFleet) -> None:
    for bad, (kind, why) in BAD.items():
        config = {"bad": bad, "when": 2}
        run = await fleet.train(HALVES, rounds=2, run_config=config, round_deadline_s=4)
        found = await fleet.events(run, "refused", "failure", "late")
        assert [(e["kind"], e["device"], e["round"]) for e in found] == [(kind, "one", 2)], bad
        assert why in found[0]["data"]["why"], bad
        first = expected(1)
        second = first + 0.5 * (13 / 5 - first)  # of the devices two and three alone
        weights = fleet.model(run).arrays["arrays"]["w"].numpy()
        assert weights == pytest.approx(second), bad


async def test_a_metric_that_is_no_number_spoils_nothing(fleet: SmallFleet) -> None:
    run = await fleet.train(HALVES, rounds=1, run_config={"bad": "metric"})
    metrics = await fleet.metrics(run)
    assert (1, "train", "one", "target") not in metrics
    assert metrics[1, "train", "", "target"] == pytest.approx(13 / 5)
    assert not await fleet.events(run, "refused", "failure", "late")


async def test_a_round_without_a_usable_reply_leaves_the_model(fleet: SmallFleet) -> None:
    run = await fleet.train(
        HALVES, rounds=2, run_config={"bad": "nan", "when": 2}, capabilities=[], fraction=0.1
    )
    asked = [e["data"]["devices"] for e in await fleet.events(run, "asked")]
    assert all(len(devices) == 1 for devices in asked)
    assert asked[0] == asked[1], "a round evaluates on the devices it trained on"
