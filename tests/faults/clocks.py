"""Clocks that jump in the middle of a round: row 10. The rows of rollouts are in tests/edge/models.

libfaketime moves what a process sees of the wall clock while it runs; the clocks that only count
(monotonic, since boot) it leaves alone, as a person or NTP who sets a clock does.
"""

import json
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from skerry_devices.waiting import until

from tests.faults.table import Tally, Unable, row
from tests.faults.world import Boat, World

LIBRARY = "/usr/lib/*/faketime/libfaketimeMT.so.1"
SHIFTS = ("+12h", "-12h", "+2d", "+400d", "-20y", "-400d", "+20y", "-2d")
RIGHT = "+0"
BACK_S = 60.0
"""A device whose clock is put right is back within so long: its longest pause, twice."""


class Clock:
    """The wall clock of a process, which a test may set."""

    def __init__(self, file: Path) -> None:
        found = next(iter(Path("/").glob(LIBRARY[1:])), None)
        if found is None:
            raise Unable("there is no libfaketime")
        self._file = file
        self.set(RIGHT)
        self.environment = {
            "LD_PRELOAD": str(found),
            "FAKETIME_TIMESTAMP_FILE": str(file),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }

    def set(self, shift: str) -> None:
        """Set it so far ahead of the right time, or behind."""
        self._file.write_text(shift + "\n")


@contextmanager
def clock_of(world: World, boat: Boat) -> Iterator[Clock]:
    """Give a device a clock that can be set."""
    clock = Clock(world.home / f"clock-{boat.name}")
    world.kill_agents(boat, number=signal.SIGTERM)
    before, boat.environment = boat.environment, {**boat.environment, **clock.environment}
    try:
        world.start_agents(boat)
        world.wait_online(boat)
        yield clock
    finally:
        world.kill_agents(boat)
        boat.environment = before
        world.start_agents(boat)
        world.wait_online(boat)


@row(10, "a device's clock jumps", full=16)
def of_device(tally: Tally, world: World) -> None:
    """Set a device's clock in its training; then cut it off, and put the clock right again."""
    clean = world.clean(rounds=2)
    boat = world.boats[0]
    with clock_of(world, boat) as clock:
        while tally.trials < tally.count:
            shift = SHIFTS[tally.trials % len(SHIFTS)]
            trip = world.begin(rounds=2, run_config={"train_s": 0.5})
            trip.wait(partial(trip.has, boat.name, "begin"), "a training")
            clock.set(shift)
            tally.trials += 1
            trip.end()
            tally.judge(trip, clean, bytes_limit=1.6)
            world.cut(boat)
            clock.set(RIGHT)
            tally.recovered(world.wait_online(boat), BACK_S, f"the return from {shift}")


@row(10, "a device's clock is wrong", full=8, short=1)
def wrong(tally: Tally, world: World) -> None:
    """Have a device connect with a wrong clock: it comes in, or says why not until it is right."""
    clean = world.clean()
    boat = world.boats[0]
    outside = 0
    with clock_of(world, boat) as clock:
        while tally.trials < tally.count:
            shift = SHIFTS[(tally.trials + 3) % len(SHIFTS)]
            clock.set(shift)
            world.cut(boat)
            while boat.name in world.online():
                pass
            tally.trials += 1
            trip = world.begin(min_devices=len(world.boats) - 1, quorum=0.6)
            found = trip.end()
            tally.require(found["state"] == "completed", f"{shift}: {found['why']}")
            if boat.name not in world.online():
                outside += 1
                until(
                    lambda: "certificate" in _said(boat).lower() or None,
                    timeout_s=30,
                    what=f"a reason in the status of a device whose clock is {shift}",
                )
            clock.set(RIGHT)
            tally.recovered(world.wait_online(boat), BACK_S, f"the return from {shift}")
            again = world.begin()
            again.end()
            tally.judge(again, clean, bytes_limit=0.0)
    tally.notes.append(f"{outside} stayed out until the clock was right")


def _said(boat: Boat) -> str:
    """Return why a device says it is not connected."""
    return str(json.loads((boat.home / "status.json").read_text())["why"])


@row(10, "the coordinator's clock jumps", full=16, short=0)
def of_coordinator(tally: Tally, world: World) -> None:
    """Set the coordinator's clock in a round: no deadline ends early, nothing is lost."""
    clean = world.clean(rounds=2)
    clock = Clock(world.home / "clock-coordinator")
    world.kill_coordinator(signal.SIGTERM)
    try:
        world.start_coordinator(clock.environment)
        world.wait_online()
        while tally.trials < tally.count:
            shift = SHIFTS[(tally.trials + 3) % len(SHIFTS)]
            trip = world.begin(rounds=2, run_config={"train_s": 0.5}, round_deadline_s=120)
            trip.wait(partial(trip.has, world.boats[0].name, "begin"), "a training")
            clock.set(shift)
            tally.trials += 1
            trip.end()
            clock.set(RIGHT)
            world.wait_online()
            tally.judge(trip, clean, bytes_limit=1.6)
    finally:
        if world.coordinator is not None:
            world.kill_coordinator(signal.SIGTERM)
        world.start_coordinator()
        world.wait_online()
