"""A run that begins with another run's model: native apps, Flower apps as they are, and misfits."""

from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
from skerry_protos.errors import ConfigError

from tests.cloud.runs.test_devices import sized
from tests.fleet import SmallFleet, small_fleet

APPS = Path(__file__).parents[2] / "apps"
HALVES, STEADY = APPS / "halves", APPS / "steady"


@pytest.fixture
async def fleet(tmp_path: Path) -> AsyncIterator[SmallFleet]:
    async with small_fleet(tmp_path, "memory", ("one", "two")) as made:
        yield made


async def notes(fleet: SmallFleet, run: object) -> str:
    return "\n".join(str(e["data"]["text"]) for e in await fleet.events(run, "note"))  # type: ignore[arg-type]


@pytest.mark.parametrize("strategy", ["fedavg", "FedAdam"])
async def test_a_native_run_goes_on_from_anothers_model(fleet: SmallFleet, strategy: str) -> None:
    first = await fleet.train(HALVES, rounds=2)
    assert fleet.model(first).arrays["arrays"]["steps"].numpy() == 2
    second = await fleet.train(HALVES, rounds=1, initial=first.id[:-3], strategy=strategy)
    assert second.options["initial"] == first.id
    assert (await notes(fleet, second)).count(f"begins with the model of run {first.id}") == 1
    before = float(fleet.model(first).arrays["arrays"]["w"].numpy()[0])
    after = float(fleet.model(second).arrays["arrays"]["w"].numpy()[0])
    assert 1.2 < before < after < 5 / 3, "it did not begin with zeros again"
    if strategy == "fedavg":
        assert fleet.model(second).arrays["arrays"]["steps"].numpy() == 3


async def test_an_unmodified_flower_app_goes_on_from_anothers_model(fleet: SmallFleet) -> None:
    said = {"rounds": 1, "seed": 7, "run_config": {"how": "fedavg", "size": 50}}
    first = await fleet.train(STEADY, **said)
    second = await fleet.train(STEADY, **said, initial=first.id)
    assert f"begins with the model of run {first.id}" in await notes(fleet, second)
    one, two = (
        next(iter(fleet.model(each).arrays["arrays"].values())).numpy() for each in (first, second)
    )
    assert np.abs(two - one).mean() > 0.1, "by one seed both would be the same"


async def test_a_model_that_does_not_fit_is_refused_or_left_out_as_was_asked(
    fleet: SmallFleet, tmp_path: Path
) -> None:
    first = await fleet.train(HALVES, rounds=1)
    other = sized(tmp_path, 5)
    failed = await fleet.ended(await fleet.begin(other, rounds=1, initial=first.id))
    assert failed.state == "failed"
    assert f"the model of run {first.id} does not fit the app's" in failed.why
    assert "'w' is float32 3 in it, float32 5 in the app's" in failed.why
    run = await fleet.train(other, rounds=1, initial=first.id, initial_if_fits=True)
    assert "begins with the app's own model: the model of run" in await notes(fleet, run)
    with pytest.raises(ConfigError, match="has no model"):
        await fleet.begin(HALVES, initial=failed.id)


async def test_an_app_that_makes_its_model_elsewhere_says_so(fleet: SmallFleet) -> None:
    first = await fleet.train(HALVES, rounds=1)
    loop = {"how": "send", "size": 50}
    run = await fleet.train(STEADY, rounds=1, run_config=loop, initial=first.id)
    assert "was not used: this app hands its first model to no Strategy" in await notes(fleet, run)
