"""What goes wrong in an app or on a device: it is named, and it ends what it should, no more."""

import json
import os
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest
from skerry_cloud.store.runs import Run
from skerry_protos.errors import ConfigError
from skerry_protos.hiding import available

from tests.fleet import SmallFleet, small_fleet, until

APPS = Path(__file__).parents[2] / "apps"
RUDE, HALVES = APPS / "rude", APPS / "halves"
DEVICES = ("one", "two", "three")


@pytest.fixture
async def fleet(tmp_path: Path) -> AsyncIterator[SmallFleet]:
    async with small_fleet(tmp_path, "memory", DEVICES) as made:
        yield made


BAD_REPLIES = {
    "no-examples": ("refused", "its metrics lack 'num-examples'"),
    "more-metrics": ("refused", "its metrics have 'odd', the others' do not"),
    "more-arrays": ("refused", "it has the array '1'"),
    "shape": ("refused", "its array '0' is float32 (5,); expected float32 (4,)"),
    "infinite": ("refused", "its array '0' has NaN or infinity"),
    "raise": ("failure", "the sensor is gone"),
    "slow": ("late", "no reply by the round's deadline"),
}


@pytest.mark.timeout(240)
async def test_a_bad_reply_never_ends_a_flower_run(fleet: SmallFleet) -> None:
    for bad, (kind, why) in BAD_REPLIES.items():
        run = await fleet.train(RUDE, run_config={"client": bad}, round_deadline_s=6)
        found = await fleet.events(run, "refused", "failure", "late")
        assert [(e["kind"], e["device"], e["round"]) for e in found] == [
            (kind, "one", 1),
            (kind, "one", 2),
        ], bad
        assert why in found[0]["data"]["why"], bad
        results = fleet.home / "runs" / run.id / "files" / "results.json"
        assert json.loads(results.read_text()) == [[1.0] * 4], bad


BAD_SERVERS = {
    "raise": "raised ValueError: no such thing, in main() at rude/server.py:",
    "exit": "exited with status 7; it last printed: about to leave",
    "hang": "asked for nothing in 3 s and was killed",
    "flood": "printed more than 1000000 bytes and was killed",
    "memory": "of 953 MiB of memory and was killed",
    "fork": "exited with status 1",
    "nonsense": "server side",
}


@pytest.mark.timeout(240)
async def test_a_bad_server_side_fails_its_run_alone(fleet: SmallFleet) -> None:
    for bad, why in BAD_SERVERS.items():
        limits = {"output_bytes": 1_000_000, "memory_bytes": 1_000_000_000}
        limits["silence_s"] = 3.0 if bad == "hang" else 60.0  # type: ignore[assignment]
        run = await fleet.begin(RUDE, run_config={"server": bad}, server_limits=limits)
        run = await fleet.ended(run)
        assert run.state == "failed", bad
        assert why in run.why, bad
        assert (await fleet.events(run, "state"))[-1]["data"] == {"state": "failed", "why": run.why}
        assert not left_over(run), bad
    assert (await fleet.train(HALVES, rounds=1)).model is not None


def left_over(run: Run) -> list[psutil.Process]:
    """Return processes that still live in a run's folder."""
    found = []
    for process in psutil.process_iter():
        try:
            if run.id in process.cwd():
                found.append(process)
        except (psutil.Error, OSError):
            continue
    return found


@pytest.mark.skipif(not available(), reason="this kernel has no Landlock")
async def test_a_server_side_cannot_read_the_coordinators_keys(fleet: SmallFleet) -> None:
    keys = [path for path in fleet.home.rglob("*") if path.is_file() and "key" in path.name]
    assert keys
    for key in keys:
        run = await fleet.begin(RUDE, run_config={"server": "peek", "peek": str(key)})
        run = await fleet.ended(run)
        assert run.state == "failed"
        assert "raised PermissionError" in run.why


async def test_an_app_may_leave_by_exit_0(fleet: SmallFleet) -> None:
    run = await fleet.train(RUDE, run_config={"server": "exit-0"})
    assert run.model is None


async def test_a_strategy_that_wants_more_devices_than_there_are_is_told(
    fleet: SmallFleet,
) -> None:
    run = await fleet.begin(RUDE, run_config={"want": 4}, wait_deadline_s=3)
    conductor = fleet.runs.under_way(run.id)
    assert conductor is not None
    await until(lambda: "again and again" in conductor.waiting()["why"])
    run = await fleet.ended(run)
    assert run.state == "failed"
    assert "asking for devices for 3 s: 3 are ready" in run.why


async def test_a_run_on_nobody_says_what_there_is(tmp_path: Path) -> None:
    async with small_fleet(tmp_path, "memory") as fleet:
        with pytest.raises(ConfigError, match="no device is enrolled"):
            await fleet.begin(HALVES)
        await fleet.enrol("one", labels={"site": "north"})
        with pytest.raises(ConfigError, match="no device matches 'site=nort'") as said:
            await fleet.begin(HALVES, selector="site=nort")
        assert "north" in said.value.hint
        with pytest.raises(ConfigError, match="min_devices is 2, but only 1 enrolled"):
            await fleet.begin(HALVES, min_devices=2)
        run = await fleet.ended(await fleet.begin(HALVES, wait_deadline_s=1))
        assert run.state == "failed"
        assert run.why == "waited 1 s for devices: 0 of 1 devices are ready: one is offline"


async def test_options_are_checked_against_the_app(fleet: SmallFleet) -> None:
    with pytest.raises(ConfigError, match=r"run\.config\.stepp.*did you mean 'step'"):
        await fleet.begin(HALVES, run_config={"stepp": 1})
    with pytest.raises(ConfigError, match=r"config\.whant.*did you mean 'want'"):
        await fleet.begin(RUDE, run_config={"whant": 1})
    with pytest.raises(ConfigError, match="brings its own strategy"):
        await fleet.begin(RUDE, strategy="fedadam")
    run = await fleet.ended(await fleet.begin(HALVES, strategy="fedadm"))
    assert "there is no strategy 'fedadm' (did you mean FedAdam?)" in run.why
    run = await fleet.ended(
        await fleet.begin(HALVES, strategy="FedAdam", strategy_options={"etta": 1.0})
    )
    assert "strategy FedAdam has no option 'etta' (did you mean 'eta'?)" in run.why


async def test_a_native_app_with_a_flower_strategy(fleet: SmallFleet) -> None:
    run = await fleet.train(HALVES, strategy="FedMedian", rounds=2)
    weights = fleet.model(run).arrays["arrays"]["w"].numpy()
    assert weights == pytest.approx(1.5)  # half way, twice, to the median of 1, 2, 3
    metrics = await fleet.metrics(run)
    assert metrics[2, "evaluate", "", "error"] > 0


async def test_a_stopped_run_leaves_nothing_behind(fleet: SmallFleet) -> None:
    run = await fleet.begin(HALVES, run_config={"bad": "slow"}, round_deadline_s=60)
    conductor = fleet.runs.under_way(run.id)
    assert conductor is not None
    await until(lambda: conductor.waiting()["on"] == ["one"])
    waiting = conductor.waiting()
    assert waiting["what"] == "replies"
    assert "round 1, train: 2 of 3 devices replied, 3 are needed" in waiting["why"]
    stopped = await fleet.runs.stop(run.id, "anna")
    assert (stopped.state, stopped.why) == ("stopped", "stopped by anna")
    assert not left_over(stopped)
    again = await fleet.train(HALVES, rounds=1)  # the slow device was told to stop
    assert not await fleet.events(again, "late", "failure")


async def test_a_quorum_closes_a_round_early(fleet: SmallFleet) -> None:
    run = await fleet.train(
        HALVES, rounds=1, run_config={"bad": "slow"}, round_deadline_s=60, quorum=0.6
    )
    late = (await fleet.events(run, "late"))[0]
    assert late["device"] == "one"
    assert late["data"]["why"].startswith("no reply before the quorum was reached")


@pytest.mark.skipif(not Path("/proc").exists(), reason="reads /proc")
async def test_the_app_sees_no_secrets_of_the_coordinator(fleet: SmallFleet) -> None:
    os.environ["SKERRY_SECRET"] = "x"
    try:
        run = await fleet.begin(RUDE, run_config={"server": "hang"})
        await until(lambda: bool(left_over(run)))
        assert "SKERRY_SECRET" not in left_over(run)[0].environ()
    finally:
        del os.environ["SKERRY_SECRET"]
        await fleet.runs.stop(run.id, "test")
