"""A coordinator killed by SIGKILL in the middle of a run, and started again: real processes.

Each run is compared with one that nothing happened to: its model bit for bit, its metrics, and what
the devices noted themselves of each training. The full counts are rows of `make faults`.
"""

import contextlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from skerry_devices.apps import read_app
from skerry_devices.client import at
from skerry_devices.waiting import until
from skerry_protos.errors import SkerryError

from tests.faults.trips import Trip
from tests.faults.world import World

pytestmark = [pytest.mark.network, pytest.mark.timeout(300)]

STEADY = Path(__file__).parents[2] / "apps" / "steady"
ROUNDS = 3


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with World(tmp_path_factory.mktemp("kills"), "grpc", devices=2) as made:
        yield made


def app_of(world: World, folder: Path) -> str:
    with world.client() as client:
        return str(client.upload(at("apps"), read_app(folder).bundle)["digest"])


def begin(world: World, how: str, strategy: str = "") -> Trip:
    """Begin a run of the ledger app with a strategy, or of the Flower app in one of its ways."""
    wanted: dict[str, Any] = {"seed": 7, "checkpoint_s": 0, "round_deadline_s": 60}
    if strategy:
        return world.begin(rounds=ROUNDS, strategy=strategy, **wanted)
    before, world.app = world.app, app_of(world, STEADY)
    try:
        return world.begin(rounds=ROUNDS, run_config={"how": how}, **wanted)
    finally:
        world.app = before


def came_to(world: World, trip: Trip) -> dict[str, Any]:
    """Return what a run came to: its model, its metrics, and how often each device trained."""
    found = trip.end()
    assert found["state"] == "completed", (found["why"], world.home / "coordinator.log")
    items = world.ask(at("runs", trip.id, "metrics"))["items"]
    files = world.cloud / "runs" / trip.id / "files" / "result.json"
    return {
        "model": found["model"],
        "metrics": sorted(
            (m["round"], m["phase"], m["device"], m["name"], m["value"]) for m in items
        ),
        "trained": {boat.name: [n["round"] for n in trip.noted(boat.name)] for boat in world.boats},
        "asked": len(trip.events("asked")),
        "result": json.loads(files.read_text()) if files.exists() else None,
    }


def killed_at(world: World, point: str, trip: Trip | None = None) -> None:
    """Wait until the coordinator has killed itself at a failpoint, and start it again."""
    child = world.coordinator
    assert child is not None
    until(
        lambda: True if child.returncode is not None else None,
        timeout_s=60,
        what=f"the kill at {point}",
        hint=str(child.log),
        every_s=0.02,
    )
    assert f"failpoint {point.partition(':')[0]}: killed" in child.log.read_text()
    world.kill_coordinator()


def start(world: World, *points: str) -> None:
    """Start the coordinator so that it kills itself at these failpoints."""
    world.start_coordinator({"SKERRY_FAILPOINT": ",".join(points)} if points else {})


CASES = [
    ("native", "fedavg", "reply.committed:3", "checkpoint.committed"),
    ("native", "fedadam", "checkpoint.adopted:2", "ask.committed"),
    ("slower", "", "close.committed:3", "checkpoint.removing"),
    ("send", "", "reply.told:3", "resume.attached:2"),
]


@pytest.mark.parametrize(("how", "strategy", "first", "second"), CASES)
def test_a_killed_coordinator_changes_nothing(
    world: World, how: str, strategy: str, first: str, second: str
) -> None:
    clean = came_to(world, begin(world, how, strategy))
    world.kill_coordinator()
    start(world, first)
    world.wait_online()
    trip = begin(world, how, strategy)
    killed_at(world, first)
    start(world, second)
    killed_at(world, second)
    start(world)
    began = time.monotonic()
    assert came_to(world, trip) == clean
    assert time.monotonic() - began < 30
    assert len(trip.events("resumed")) == 2


def test_a_killed_coordinator_goes_on_in_time(world: World) -> None:
    trip = world.begin(rounds=2, run_config={"train_s": 1.5}, seed=7)
    assert trip.wait(lambda: trip.has("device-1", "begin"), "a training")
    world.kill_coordinator()
    began = time.monotonic()
    with contextlib.suppress(SkerryError):
        start(world)
    until(
        lambda: len([e for e in trip.events("reply") if e["round"] == 1]) == 2 or None,
        timeout_s=60,
        what="both replies of the first round",
    )
    took = time.monotonic() - began
    assert trip.end()["state"] == "completed"
    assert took < 20  # in at most 5 s on an idle machine: benchmarks/recovery.py
    for boat in world.boats:
        begun = [n["round"] for n in trip.noted(boat.name) if n["what"] == "begin"]
        assert begun == [1, 2]
