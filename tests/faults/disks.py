"""Disks that are full: row 11."""

import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.faults.machine import small_disk
from tests.faults.table import Tally, Unable, row
from tests.faults.world import World

ROOM = 400_000
"""Bytes left: enough for notes and journals, not for a model."""
AGAIN_S = 10.0


@contextmanager
def cramped(folder: Path, megabytes: float) -> Iterator[Path]:
    """Put a small file system in a folder's place, its content in it; nobody may have it open."""
    aside = folder.with_name(folder.name + ".aside")
    folder.rename(aside)
    try:
        with small_disk(folder, megabytes):
            shutil.copytree(aside, folder, symlinks=True, dirs_exist_ok=True)
            yield folder
            shutil.rmtree(aside)
            shutil.copytree(folder, aside, symlinks=True, ignore=_no_ballast)
    except OSError as error:
        if "mount" in str(error):
            raise Unable(str(error)) from None
        raise
    finally:
        with suppress(FileNotFoundError):
            aside.rename(folder)


def _no_ballast(_folder: str, names: list[str]) -> list[str]:
    return [name for name in names if name == "ballast"]


def fill(folder: Path) -> Path:
    """Fill the disk that a folder is on but for ROOM; return the file to remove."""
    ballast = folder / "ballast"
    with ballast.open("wb", buffering=0) as file:
        left = shutil.disk_usage(folder).free - ROOM
        file.write(bytes(max(0, left)))
    return ballast


def _full_for_a_while(tally: Tally, world: World, folder: Path) -> None:
    """Do runs that begin on a full disk, which has room again after two seconds."""
    clean = world.clean()
    while tally.trials < tally.count:
        ballast = fill(folder)
        try:
            trip = world.begin(run_config={"train_s": 0.2})
            time.sleep(2.0)
            tally.require(not trip.over(), f"{trip.id}: the disk was not full")
        finally:
            ballast.unlink()
        freed = time.monotonic()
        tally.trials += 1
        trip.end()
        tally.recovered(time.monotonic() - freed, AGAIN_S, "the run's end")
        tally.judge(trip, clean, bytes_limit=2.0)


@row(11, "device's disk full", full=20)
def device(tally: Tally, world: World) -> None:
    """Fill a device's disk: it waits, says so, and goes on when there is room again."""
    world.clean()
    boat = world.boats[0]
    world.kill_agents(boat, number=signal.SIGTERM)
    try:
        with cramped(boat.home, 160.0):
            world.start_agents(boat)
            world.wait_online(boat)
            try:
                _full_for_a_while(tally, world, boat.home)
            finally:
                world.kill_agents(boat, number=signal.SIGTERM)
    finally:
        world.start_agents(boat)
        world.wait_online(boat)


@row(11, "cloud's disk full", full=20)
def cloud(tally: Tally, world: World) -> None:
    """Fill the disk of the coordinator's blobs and database while devices send."""
    world.clean()
    world.kill_coordinator(signal.SIGTERM)
    try:
        with cramped(world.cloud, 64.0):
            world.start_coordinator()
            world.wait_online()
            try:
                _cloud_full(tally, world)
            finally:
                world.kill_coordinator(signal.SIGTERM)
    finally:
        world.start_coordinator()
        world.wait_online()


def _cloud_full(tally: Tally, world: World) -> None:
    clean = world.clean()
    while tally.trials < tally.count:
        trip = world.begin(run_config={"train_s": 1.5})
        trip.wait(lambda trip=trip: trip.has(world.boats[0].name, "begin"), "a training")  # type: ignore[misc]
        ballast = fill(world.cloud)
        try:
            time.sleep(4.0)
        finally:
            ballast.unlink()
        freed = time.monotonic()
        tally.trials += 1
        trip.end()
        tally.recovered(time.monotonic() - freed, AGAIN_S, "the run's end")
        tally.judge(trip, clean, bytes_limit=0.0)
