"""Processes that die or stand still: rows 2, 3, 4 and 21."""

import os
import random
import signal
import time
from functools import partial

from tests.faults.table import Tally, row
from tests.faults.trips import Trip
from tests.faults.world import SIZE, Boat, World

SETTLED_S = 11.0


@row(2, "device killed while uploading", full=200, short=3)
def killed_uploading(tally: Tally, world: World) -> None:
    """Kill every device of a run at 10 to 90 % of its upload; at most 5 % is sent again."""
    clean = world.clean()
    dice = random.Random(2)
    overhead = clean.moved / (2 * SIZE * len(world.boats))
    again = missed = 0
    while tally.trials < tally.count:
        for boat in world.boats:
            boat.proxy.bandwidth = 4e6
        trip = world.begin()
        marks = {
            boat.name: int(SIZE * dice.uniform(0.1, 0.9))
            for boat in world.boats[: tally.count - tally.trials]
        }
        missed += _kill_at(tally, trip, marks)
        tally.require(missed <= tally.count, f"{missed} uploads were over before their kill")
        trip.end()
        tally.judge(trip, clean)
        again += max(0, trip.moved() - clean.moved)
    share = again / (tally.trials * SIZE * overhead)
    tally.notes.append(f"{share:.1%} of an upload sent again for each kill")
    if tally.full:
        tally.require(share <= 0.05, f"{share:.1%} of the bytes were sent again; at most 5 %")


def _kill_at(tally: Tally, trip: Trip, marks: dict[str, int]) -> int:
    """Kill each device when it has sent so many bytes of its update, and start it again.

    Return how many were through before they could be: one is waited for while another sends.
    """
    world = trip.world
    left = {boat.name: boat for boat in world.boats if boat.name in marks}
    began: dict[str, int] = {}

    def look() -> bool:
        for boat in list(left.values()):
            if boat.name not in began and trip.has(boat.name, "end"):
                began[boat.name] = boat.proxy.up
            if boat.name in began and boat.proxy.up > began[boat.name] + marks[boat.name]:
                world.kill_agents(boat)
                at = time.monotonic()
                world.start_agents(boat)
                tally.trials += 1
                del left[boat.name]
                world.wait_online(boat)
                tally.recovered(time.monotonic() - at, 10.0, f"{boat.name}'s return")
        return not left

    trip.wait(look, "every device sends")
    return len(left)


@row(3, "device killed while training", full=50, short=2)
def killed_training(tally: Tally, world: World) -> None:
    """Kill a device in its training: it trains once more, and its update counts once."""
    clean = world.clean()
    dice = random.Random(3)
    while tally.trials < tally.count:
        boats = world.boats[: tally.count - tally.trials]
        trip = world.begin(run_config={"train_s": 2.0})
        trip.wait(partial(_training, trip, boats), "a training")
        time.sleep(dice.uniform(0.0, 1.0))
        world.kill_agents(*boats)
        killed = sum(not trip.has(boat.name, "end") for boat in boats)
        world.start_agents(*boats)
        tally.trials += killed
        trip.end()
        tally.judge(trip, clean, died_training=killed, bytes_limit=1.6)
        for boat in boats:
            begun = sum(note["what"] == "begin" for note in trip.noted(boat.name))
            tally.require(begun <= 2, f"I3: {boat.name} began to train {begun} times")


def _training(trip: Trip, boats: list[Boat]) -> bool:
    return all(trip.has(boat.name, "begin") for boat in boats)


@row(4, "broker killed", full=100, short=2, links=("mqtt",), settings={"broker": "mosquitto"})
def broker_killed(tally: Tally, world: World) -> None:
    """Kill mosquitto, which keeps nothing, at random: nothing is lost, all are back in 10 s."""
    clean = world.clean(rounds=2)
    dice = random.Random(4)
    began = 0.0
    while tally.trials < tally.count:
        if tally.full:  # who starts it again waits longer when it dies at once
            time.sleep(max(0.0, began + SETTLED_S - time.monotonic()))
        trip = world.begin(rounds=2, run_config={"train_s": 0.1})
        time.sleep(dice.uniform(0.1, clean.seconds + 0.2))
        before = world.broker()
        before.kill()
        began = time.monotonic()
        tally.trials += 1
        world.wait_online()
        while not _other(world, before.pid):
            assert time.monotonic() < began + 20, "mosquitto is not started again"
        world.wait_online()
        tally.recovered(time.monotonic() - began, 10.0, "all devices' return")
        trip.end()
        tally.judge(trip, clean, bytes_limit=0.0)


def _other(world: World, pid: int) -> bool:
    try:
        return world.broker().pid != pid
    except AssertionError:
        return False


@row(21, "device stands still", full=10, short=1)
def device_stands_still(tally: Tally, world: World) -> None:
    """Stop a device with SIGSTOP for longer than it is waited for: it goes on where it was."""
    _stand_still(tally, world, lambda: _pids(world, world.boats[0]))


@row(21, "coordinator stands still", full=10, short=1)
def coordinator_stands_still(tally: Tally, world: World) -> None:
    """Stop the coordinator with SIGSTOP: no task is given twice, nothing trained twice."""

    def pids() -> list[int]:
        assert world.coordinator is not None
        return [world.coordinator.pid]

    _stand_still(tally, world, pids)


def _stand_still(tally: Tally, world: World, pids: object) -> None:
    clean = world.clean(rounds=2)
    dice = random.Random(21)
    seconds = 30.0 if tally.full else 1.5
    while tally.trials < tally.count:
        trip = world.begin(rounds=2, run_config={"train_s": 0.3})
        time.sleep(dice.uniform(0.1, clean.seconds + 0.4))
        stopped = pids()  # type: ignore[operator]
        _signal(stopped, signal.SIGSTOP)
        time.sleep(seconds)
        _signal(stopped, signal.SIGCONT)
        began = time.monotonic()
        tally.trials += 1
        trip.end()
        tally.recovered(time.monotonic() - began, 30.0, "the run's end")
        world.wait_online()
        tally.judge(trip, clean, bytes_limit=1.6)


def _pids(world: World, boat: Boat) -> list[int]:
    assert boat.child is not None
    return [process.pid for process in boat.child.tree()]


def _signal(pids: list[int], number: int) -> None:
    for pid in pids:
        os.kill(pid, number)
