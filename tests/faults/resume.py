"""The coordinator killed at any instruction: row 1."""

import random
import time

from skerry_devices.client import at
from skerry_protos.errors import SkerryError

from tests.faults.table import Tally, row
from tests.faults.trips import Trip
from tests.faults.world import World

RESUMED_S = 5.0
"""A run goes on within so long of the coordinator's start."""
RUNNING = (
    "nodes.before-commit",
    "nodes.committed",
    "ask.adopted",
    "ask.committed",
    "ask.told",
    "send.acknowledged",
    "reply.fetched",
    "reply.committed",
    "reply.told",
    "close.before-commit",
    "close.committed",
    "checkpoint.adopted",
    "checkpoint.committed",
    "checkpoint.removing",
    "model.adopted",
    "model.committed",
    "finish.before-commit",
    "finish.committed",
    "commit.before",
    "commit.after",
    "blob.written",
    "blob.named",
)
STARTING = ("start.checked", "resume.loaded", "resume.attached")
"""Those that are come to when a run is taken up again."""
OFTEN = {"commit.before": 40, "commit.after": 40, "blob.written": 8, "blob.named": 8}
ROUNDS = 3
OPTIONS = {"seed": 7, "checkpoint_s": 0}


@row(1, "coordinator killed", full=100, short=3)
def coordinator_killed(tally: Tally, world: World) -> None:
    """Kill the coordinator at each failpoint, and at random: the same round goes on."""
    clean = world.clean(rounds=ROUNDS, **OPTIONS)
    dice = random.Random(1)
    places = [*RUNNING, *STARTING, *("random",) * 12]
    dice.shuffle(places)
    missed: set[str] = set()
    come_to: set[str] = set()
    started: list[float] = []
    for turn in range(2 * tally.count):
        if tally.trials >= tally.count:
            break
        place = places[turn % len(places)]
        trip = _killed(world, place, dice)
        if trip is None:
            missed.add(place)
            continue
        come_to.add(place)
        tally.trials += 1
        began = time.time()
        world.start_coordinator()
        started.append(world.started_s)
        found = trip.end()
        resumed = [event["at"] for event in trip.events("resumed") if event["at"] > began]
        if resumed:
            tally.recovered(min(resumed) - began, RESUMED_S, f"{trip.id} going on after {place}")
        else:
            over = (found["ended_at"] or 0) < began or not trip.events("asked")
            tally.require(over, f"{trip.id} did not go on after {place}")
        world.wait_online()
        before = len(tally.violations)
        tally.judge(trip, clean, bytes_limit=0.0)
        tally.violations[before:] = [f"{place}: {one}" for one in tally.violations[before:]]
    tally.notes.append(f"started in {max(started, default=0):.1f} s at most")
    if never := sorted(missed - come_to):
        tally.notes.append(f"never come to: {', '.join(never)}")


def _killed(world: World, place: str, dice: random.Random) -> Trip | None:
    """Begin a run and have the coordinator die at a place; None when it does not come there."""
    once = place.startswith(("model.", "finish."))
    count = 1 if once else dice.randint(1, OFTEN.get(place, ROUNDS - 1))
    armed = {"SKERRY_FAILPOINT": f"{place}:{count}"}
    if place in RUNNING:
        world.kill_coordinator()
        try:
            world.start_coordinator(armed)
            world.wait_online()
        except SkerryError:  # it came to the place before there was a run
            world.kill_coordinator()
            world.start_coordinator()
            world.wait_online()
            return None
    trip = world.begin(rounds=ROUNDS, run_config={"train_s": 0.1}, **OPTIONS)
    if place in RUNNING:
        return trip if _dies(world, trip) else None
    time.sleep(dice.uniform(0.05, 2.0))
    world.kill_coordinator()
    if place in STARTING:
        world.start_coordinator({"SKERRY_FAILPOINT": place}, ready=False)
        return trip if _dies(world, trip) else None
    return trip


def _dies(world: World, trip: Trip) -> bool:
    """Wait until the coordinator has died, or the run is over."""
    child = world.coordinator
    assert child is not None
    ends = time.monotonic() + 60
    while child.returncode is None:
        if time.monotonic() > ends or _over(world, trip):
            time.sleep(0.3)  # what comes after the end may be the place
            break
        time.sleep(0.02)
    if child.returncode is None:
        return False
    world.kill_coordinator()
    return True


def _over(world: World, trip: Trip) -> bool:
    try:
        with world.client() as client:
            return bool(client.get(at("runs", trip.id))["ended_at"])
    except Exception:  # noqa: BLE001 (it is dying, in whatever way)
        return False
