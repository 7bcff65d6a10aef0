"""Fleets that are large, slow, or of several versions: rows 9, 19 and 20."""

import sys
import time

import numpy as np
from skerry_devices.local import plan_devices
from skerry_devices.simulated import Fleet, start_shares
from skerry_devices.waiting import until

from tests.faults.invariants import expected, model_of
from tests.faults.table import Tally, row
from tests.faults.world import World

ROUND_S = 4.0
AS_VERSION = (
    "import sys; from skerry_protos import versions; "
    "versions.PROTOCOL = versions.ProtocolVersion({major}, {minor}); "
    "from {package}.__main__ import main; sys.exit(main(sys.argv[1:]))"
)


@row(9, "fan-in, default broker", full=10, links=("mqtt",), devices=0, settings={"broker": "stock"})
def fan_in(tally: Tally, world: World) -> None:
    """Have 200 devices push 2 MB each at once through a mosquitto with its default queues."""
    count = 200 if tally.full else 24
    plans = plan_devices(count, "mqtt")
    home = world.home / "simulated"
    home.mkdir()
    with world.client() as client:
        fleet = Fleet(count=count, profile="generic", link="mqtt", processes=2)
        start_shares(fleet, plans, home, client, world.children)
    names = {plan.name for plan in plans}
    until(
        lambda: names <= world.online() or None,
        timeout_s=180,
        what=f"{count} devices coming online",
        every_s=0.5,
    )
    while tally.trials < tally.count:
        began = time.monotonic()
        trip = world.begin(min_devices=count, wait_deadline_s=120)
        found = trip.end(300)
        tally.trials += 1
        replies = trip.events("reply")
        tally.updates += len(replies)
        tally.require(found["state"] == "completed", f"{trip.id}: {found['state']} {found['why']}")
        tally.require(len(replies) == count, f"{count - len(replies)} of {count} updates are lost")
        wanted = expected([(1, int(plan.node["partition-id"])) for plan in plans])
        close = np.allclose(model_of(trip), wanted, rtol=1e-5, atol=1e-5)
        tally.require(close, f"{trip.id}: I1: the model is not the mean of all updates")
        tally.recovered(time.monotonic() - began, 120.0, "a round")
    tally.notes.append(f"{count} devices")


@row(19, "30 % slow, 20 % away", full=20, devices=5)
def stragglers(tally: Tally, world: World) -> None:
    """Have other devices fail and others sleep in each round: it closes at its deadline."""
    while tally.trials < tally.count:
        config = {"away": 0.2, "slow": 0.3, "slow_s": 60.0}
        trip = world.begin(rounds=3, run_config=config, round_deadline_s=ROUND_S)
        trip.end()
        tally.trials += 1
        asked = {event["round"]: event["at"] for event in trip.events("asked")}
        for event in trip.events("closed"):
            took = event["at"] - asked[event["round"]]
            tally.recovered(took, ROUND_S + 2.0, f"round {event['round']} of {trip.id}")
            data = event["data"]
            counts = (data["replied"], data["failed"], data["late"])
            tally.require(sum(counts) == 5, f"{trip.id}: {counts} of 5 devices are accounted for")
            tally.require(counts[0] >= 1, f"{trip.id}: nobody in round {event['round']}")
        tally.judge(trip, everybody=False, died_training=3 * 5)
        tally.retrained = 0  # the trainings that did not end were told to stop


@row(20, "versions mixed", full=10)
def versions(tally: Tally, world: World) -> None:
    """Exchange an agent for one a version older, and back, in mid-round; refuse a newer one."""
    clean = world.clean(rounds=2)
    boat = world.boats[0]
    usual = boat.program
    try:
        while tally.trials < tally.count:
            trip = world.begin(rounds=2, run_config={"train_s": 0.5})
            for program in (as_version("skerry_edge", 1, 0), usual):
                trip.wait(
                    lambda trip=trip: trip.has(boat.name, "begin"),  # type: ignore[misc]
                    "a training",
                )
                world.kill_agents(boat)
                boat.program = program
                world.start_agents(boat)
                world.wait_online(boat)
            tally.trials += 1
            trip.end()
            tally.judge(trip, clean, died_training=2, bytes_limit=1.6)
        world.kill_agents(boat)
        boat.program = as_version("skerry_edge", 1, 99)
        world.start_agents(boat)
        log = world.home / f"{boat.name}.log"
        until(
            lambda: "upgrade the coordinator first" in log.read_text() or None,
            timeout_s=30,
            what="a newer agent's refusal",
        )
        world.kill_agents(boat)
    finally:
        boat.program = usual
        if boat.child is None:
            world.start_agents(boat)
        world.wait_online(boat)


def as_version(package: str, major: int, minor: int) -> tuple[str, ...]:
    """Return a program that is `package`, but speaks another version of the wire."""
    code = AS_VERSION.format(package=package, major=major, minor=minor)
    return (sys.executable, "-c", code)
