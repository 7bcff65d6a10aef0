"""A calibration by devices whose coordinator or device is killed in the middle: real processes.

What it comes to is compared, bit for bit, with one that nothing happened to, and each device notes
itself how often it has measured.
"""

import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from skerry_cloud.models.export.request import Request
from skerry_devices.calibrations import bundle_of
from skerry_devices.client import at
from skerry_devices.waiting import until

from tests.cloud.models.apps import write_app
from tests.faults.trips import Trip
from tests.faults.world import World

pytestmark = [
    pytest.mark.skipif(
        importlib.util.find_spec("onnxruntime") is None, reason="needs skerry-cloud[export]"
    ),
    pytest.mark.network,
    pytest.mark.slow,
    pytest.mark.timeout(300),
]
APP = """
import time
from pathlib import Path

NOTES = Path({notes!r})


def model():
    torch.manual_seed(1)
    return network().eval()


def device_calibration(device):
    with (NOTES / device.id).open("a") as file:
        file.write("measured\\n")
    ends = time.monotonic() + 60
    while (NOTES / ("hold-" + device.id)).exists() and time.monotonic() < ends:
        time.sleep(0.02)
    return X[: 1500][device.partition :: 2]
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with World(tmp_path_factory.mktemp("killed"), "grpc", devices=2) as made:
        notes = made.home / "notes"
        notes.mkdir()
        notes.chmod(0o777)
        app = write_app(made.home / "app", APP.format(notes=str(notes)))
        (app / "skerry.toml").write_text('[app]\nname = "digits"\nmodule = "app"\n')
        request = Request(
            name="digits", folder=str(app), module="app", out=str(app / "out"), to=("onnx",)
        )
        bundle = bundle_of(request, made.home / "bundle", 200, lambda _line: None)
        with made.client() as client:
            made.app = str(client.upload(at("apps"), bundle.bundle)["digest"])
        yield made


@pytest.fixture(scope="module")
def clean(world: World) -> str:
    """Return the digest of what a calibration comes to that nothing happens to."""
    found = begin(world).end()
    assert found["state"] == "completed", found["why"]
    return str(found["model"])


@pytest.fixture(autouse=True)
def _fresh(world: World) -> None:
    for path in (world.home / "notes").iterdir():
        path.unlink()
    if world.coordinator is None:
        world.start_coordinator()
    world.wait_online()


def begin(world: World) -> Trip:
    options = {"min_devices": 2, "seed": 7, "checkpoint_s": 0}
    with world.client() as client:
        made = client.post(at("runs"), {"app": world.app, "options": options})
    return Trip(world, made["id"], 1, world.home / "notes", world.crossed())


def measured(world: World, device: str) -> int:
    file = world.home / "notes" / device
    return len(file.read_text().splitlines()) if file.exists() else 0


def hold(world: World, device: str) -> Callable[[], None]:
    """Keep a device in the middle of its measuring; return what lets it go on."""
    path = world.home / "notes" / f"hold-{device}"
    path.touch()
    return path.unlink


def wait(claim: Callable[[], object], what: str, timeout_s: float = 60.0) -> None:
    until(lambda: claim() or None, timeout_s=timeout_s, what=what, every_s=0.02)


def same(trip: Trip, clean: str) -> dict[str, Any]:
    found = trip.end()
    assert found["state"] == "completed", (found["why"], trip.world.home / "coordinator.log")
    assert found["model"] == clean, "the ranges are others than without the kill"
    return found


@pytest.mark.parametrize("point", ["reply.committed:2", "model.adopted"])
def test_a_coordinator_killed_at_a_point_comes_to_the_same_ranges(
    world: World, clean: str, point: str
) -> None:
    world.kill_coordinator()
    world.start_coordinator({"SKERRY_FAILPOINT": point})
    world.wait_online()
    trip = begin(world)
    child = world.coordinator
    assert child is not None
    wait(lambda: child.returncode is not None, f"the kill at {point}")
    world.kill_coordinator()
    world.start_coordinator()
    same(trip, clean)
    assert [measured(world, boat.name) for boat in world.boats] == [1, 1]


def test_a_device_killed_while_it_measures_measures_again_and_is_counted_once(
    world: World, clean: str
) -> None:
    boat, other = world.boats
    go_on = hold(world, boat.name)
    trip = begin(world)
    wait(lambda: measured(world, boat.name), "the beginning of its measuring")
    wait(lambda: len(trip.events("reply")) == 1, "the other's answer")
    world.kill_agents(boat)
    go_on()
    world.start_agents(boat)
    found = same(trip, clean)
    assert [measured(world, boat.name), measured(world, other.name)] == [2, 1]
    assert found["round"] == 1
    assert len(trip.events("reply")) == 2


def test_an_export_goes_on_while_its_coordinator_is_killed(world: World, clean: str) -> None:
    boat = world.boats[1]
    go_on = hold(world, boat.name)
    log = world.home / "export.log"
    words = ["models", "export", str(world.home / "app"), "--to", "onnx", "--allow-slower"]
    words += ["--calibrate", "devices", "--out", str(world.home / "out"), "-o", "json"]
    words += ["--max-drop", "100"]
    before = {one["id"] for one in world.ask(at("runs"))["items"]}
    with log.open("wb") as said:
        export = subprocess.Popen(
            [sys.executable, "-m", "skerry_devices", *words],
            stdout=subprocess.PIPE,
            stderr=said,
            env={**os.environ, "SKERRY_CONFIG": str(world.context()), "OMP_NUM_THREADS": "1"},
        )
    try:
        wait(lambda: measured(world, boat.name), "the device's measuring", 120)
        (run,) = {one["id"] for one in world.ask(at("runs"))["items"]} - before
        trip = Trip(world, run, 1, world.home / "notes", world.crossed())
        wait(lambda: len(trip.events("reply")) == 1, "the other's answer")
        world.kill_coordinator()
        time.sleep(1.0)  # the command sees that nobody answers
        world.start_coordinator()
        world.wait_online()
        go_on()
        out, _ = export.communicate(timeout=200)
    finally:
        export.kill()
        export.wait()
    text = log.read_text()
    assert export.returncode == 0, text
    assert "2 of 2 devices calibrated" in text
    (made,) = json.loads(out)
    assert [row for row in made["front"] if row["recipe"] == "static"]
    assert trip.detail()["model"] == clean
    assert [measured(world, each.name) for each in world.boats] == [1, 1]
