"""Rollouts under faults: rows 10, 11 and 22."""

import random
import shutil
import signal
import time
from contextlib import suppress
from pathlib import Path

from skerry_devices.client import at
from skerry_protos.errors import LinkError

from tests.faults.disks import cramped, fill
from tests.faults.shipping import (
    OVER,
    Shipper,
    Voyage,
    answers,
    brought,
    serving,
    shipper,
    slots,
)
from tests.faults.table import Tally, Unable, row
from tests.faults.world import World

PLACES = (
    "rollout.created",
    "rollout.stepped:1",
    "rollout.stepped:2",
    "rollout.stepped:4",
    "rollout.told:1",
    "rollout.told:3",
    "report.committed:1",
    "report.committed:4",
    "report.committed:8",
    *("commit.before",) * 3,
    *("commit.after",) * 3,
    *("random",) * 3,
)
COMMITS = 15
HEAVY = 2_000_000
"""Bytes of an artefact: it takes a while on a narrow link, so that kills meet downloads."""


@row(22, "coordinator killed in a rollout", full=40, short=0)
def killed_rolling_out(tally: Tally, world: World) -> None:
    """Kill the coordinator in rollouts of good and bad versions: each ends as it should, unasked.

    No device takes a version twice or is left between two, the second wave waits for the first,
    and a bad version reaches nobody but the canary wave and is quarantined.
    """
    held = shipper(world)
    settle(world, held)
    dice = random.Random(22)
    places = list(PLACES)
    dice.shuffle(places)
    missed: list[str] = []
    for turn in range(2 * tally.count):
        if tally.trials >= tally.count:
            break
        place = places[turn % len(places)]
        if place.startswith("commit"):
            place = f"{place}:{dice.randint(1, COMMITS)}"
        bad = turn % 2 == 1
        name = held.release(heavy=HEAVY, **({"golden_from": 9999} if bad else {}))
        before = len(tally.violations)
        if not _killed(tally, world, held, name, place, dice, bad=bad):
            missed.append(place)
        tally.violations[before:] = [f"{place}: {one}" for one in tally.violations[before:]]
    if missed:
        tally.notes.append(f"not come to: {', '.join(sorted(set(missed)))}")


def _killed(
    tally: Tally,
    world: World,
    held: Shipper,
    name: str,
    place: str,
    dice: random.Random,
    *,
    bad: bool,
) -> bool:
    """Have the coordinator die at a place of a rollout; return whether it came there."""
    had = {boat.name: serving(boat) for boat in world.boats}
    if place != "random":
        world.kill_coordinator()
        world.start_coordinator({"SKERRY_FAILPOINT": place})
        world.wait_online()
    for boat in world.boats:
        boat.proxy.bandwidth = 2e6
    voyage: Voyage | None = None
    with suppress(LinkError):
        voyage = held.begin(name)
    if place == "random":
        time.sleep(dice.uniform(0.0, 4.0))
        world.kill_coordinator()
    died = place == "random" or _dies(world, voyage)
    if died:
        began = time.monotonic()
        if world.coordinator is not None:
            world.kill_coordinator()
        world.start_coordinator()
        world.wait_online()
        tally.trials += 1
        tally.recovered(time.monotonic() - began, 15.0, "everybody's return")
    world.heal()
    voyage = voyage or held.newest(name) or held.begin(name)  # it died before it had noted it
    _judge(tally, world, voyage, name, had, bad=bad)
    return died


def _dies(world: World, voyage: Voyage | None) -> bool:
    """Wait until the coordinator has died, or the rollout is over."""
    child = world.coordinator
    assert child is not None
    ends = time.monotonic() + 60
    while child.returncode is None and time.monotonic() < ends:
        with suppress(Exception):  # it is dying, in whatever way
            if voyage is not None and _over(world, voyage):
                time.sleep(0.3)  # what comes after the end may be the place
                break
        time.sleep(0.02)
    return child.returncode is not None


def _over(world: World, voyage: Voyage) -> bool:
    with world.client() as client:
        return client.get(at("rollouts", voyage.id))["state"] in OVER


def _judge(
    tally: Tally,
    world: World,
    voyage: Voyage,
    name: str,
    had: dict[str, int],
    *,
    bad: bool,
) -> None:
    """Hold a rollout that ends against what it was to be."""
    found = voyage.end()
    version = int(name.partition("@")[2])
    wanted = "rolled-back" if bad else "completed"
    tally.require(found["state"] == wanted, f"{name} is {found['state']}: {found['why']}")
    moves = voyage.events("device")
    for boat in world.boats:
        mine = [each["data"]["to"] for each in moves if each["device"] == boat.name]
        tally.require(
            mine.count("asked") <= 1, f"{boat.name} was asked {mine.count('asked')} times"
        )
        times = brought(boat, name)
        tally.require(times == (0 if bad else 1), f"{boat.name} let {name} serve {times} times")
        now, on_trial = serving(boat), slots(boat).on_trial
        due = had[boat.name] if bad else version
        tally.require(now == due, f"{boat.name} serves version {now}, not {due}")
        tally.require(not on_trial, f"{boat.name} is left on trial")
    asked = [each for each in moves if each["data"]["to"] == "asked"]
    if bad:
        first = {each["device"] for each in found["devices"] if each["wave"] == 0}
        more = {each["device"] for each in asked} - first
        tally.require(not more, f"{name} was assigned to {sorted(more)} beyond the canary")
        shown = world.ask(at("models", name))
        tally.require("golden set" in shown["quarantined_why"], f"{name} is not quarantined")
        return
    tally.require(len(asked) == len(world.boats), f"{len(asked)} devices were asked")
    states = [each for each in voyage.events("state") if each["data"]["state"] == "soaking"]
    second = [each for each in asked if each["wave"] == 1]
    if states and second:
        soaked = second[0]["at"] - states[0]["at"]
        tally.require(soaked >= 1.0, f"the second wave began after {soaked:.2f} s, not 1 s")


def settle(world: World, held: Shipper) -> None:
    """Have every device serve a good version."""
    if all(serving(boat) for boat in world.boats):
        return
    found = held.begin(held.release(), soak_s=0, waves=["100%"]).end()
    assert found["state"] == "completed", found


@row(11, "device's disk full in a download", full=20, short=0)
def full_in_a_download(tally: Tally, world: World) -> None:
    """Fill a device's disk while an artefact comes: it says so, serves on, and then goes on."""
    held = shipper(world)
    settle(world, held)
    boat = world.boats[0]
    world.kill_agents(boat, number=signal.SIGTERM)
    try:
        with cramped(boat.home, 64.0):
            world.start_agents(boat)
            world.wait_online(boat)
            try:
                while tally.trials < tally.count:
                    _full(tally, world, held)
            finally:
                world.kill_agents(boat, number=signal.SIGTERM)
    finally:
        world.start_agents(boat)
        world.wait_online(boat)


def _full(tally: Tally, world: World, held: Shipper) -> None:
    boat = world.boats[0]
    name, before = held.release(heavy=3 * HEAVY), serving(boat)
    boat.proxy.bandwidth = 3e6
    down = boat.proxy.down
    voyage = held.begin(name, waves=["100%"], soak_s=0)
    ends = time.monotonic() + 60
    while boat.proxy.down < down + 1_500_000:
        assert time.monotonic() < ends, "the artefact does not come"
        time.sleep(0.005)
    ballast = fill(boat.home)
    world.heal()
    try:
        said = _why(voyage, boat.name)
        tally.require("no room" in said, f"a full disk was told as {said!r}")
        tally.require("\n" not in said and len(said) < 300, f"not one clear line: {said!r}")
        tally.require(serving(boat) == before, f"{boat.name} does not serve {before} any more")
    finally:
        ballast.unlink()
    freed = time.monotonic()
    tally.trials += 1
    found = voyage.end()
    if found["state"] != "completed":
        told = [(one["device"], one["state"], one["why"]) for one in found["devices"]]
        tally.broke(f"{name} is {found['state']}: {told}")
        return
    tally.recovered(time.monotonic() - freed, 20.0, "the rollout's end")
    moved = boat.proxy.down - down
    size = slots(boat).live.release.size if slots(boat).live else 0  # type: ignore[union-attr]
    tally.require(moved < 2 * size, f"{moved} bytes came for an artefact of {size}")


AHEAD, BACK = "+2d", "-7300d"


@row(10, "device's clock wrong at an update", full=8, short=0)
def wrong_clock(tally: Tally, world: World) -> None:
    """Start a device two days ahead, then twenty years back: it takes nothing, and serves on."""
    found = shutil.which("faketime")
    library = next(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"), None)
    if found is None or library is None:
        raise Unable("libfaketime is not installed (apt install faketime)")
    held = shipper(world)
    settle(world, held)
    boat = world.boats[0]
    usual = boat.environment
    try:
        while tally.trials < tally.count:
            for off in (AHEAD, BACK):
                world.kill_agents(boat)
                boat.environment = {
                    "LD_PRELOAD": str(library),
                    "FAKETIME": off,
                    "FAKETIME_DONT_FAKE_MONOTONIC": "1",
                }
                world.start_agents(boat)
                (_ahead if off == AHEAD else _back)(tally, world, held)
                tally.trials += 1
            world.kill_agents(boat)
            boat.environment = usual
            world.start_agents(boat)
            world.wait_online(boat)
            name = held.release()
            ended = held.begin(name, waves=["100%"], soak_s=0).end()
            tally.require(ended["state"] == "completed", f"the clock is right: {ended['why']}")
    finally:
        boat.environment = usual


def _ahead(tally: Tally, world: World, held: Shipper) -> None:
    boat = world.boats[0]
    world.wait_online(boat)
    before = serving(boat)
    ended = held.begin(held.release(), waves=["100%"]).end()
    said = next(each["why"] for each in ended["devices"] if each["device"] == boat.name)
    tally.require(ended["state"] == "rolled-back", f"two days ahead: {ended['state']}")
    tally.require("expired" in said and "set this device's clock" in said, f"it says {said!r}")
    _serves(tally, world, before)


def _back(tally: Tally, world: World, held: Shipper) -> None:
    """Twenty years back no certificate is valid yet: the device is alone, and serves."""
    boat = world.boats[0]
    before = serving(boat)
    voyage = held.begin(held.release(), waves=["100%"], wave_s=3.0)
    _serves(tally, world, before)
    time.sleep(2.0)
    tally.require(serving(boat) == before, "twenty years back: a version was taken")
    with world.client() as client:
        client.post(at("rollouts", voyage.id, "undo"))


def _serves(tally: Tally, world: World, version: int) -> None:
    """Require that the first device's endpoint answers with a version, once it is up."""
    boat = world.boats[0]
    ends, found = time.monotonic() + 30, -1
    while found != version and time.monotonic() < ends:
        with suppress(OSError, ValueError, KeyError):
            found = answers(boat)
        time.sleep(0.1)
    tally.require(found == version, f"version {found} answers, not {version}")


def _why(voyage: Voyage, device: str) -> str:
    """Return why a device waits, once it says so."""
    ends = time.monotonic() + 60
    while time.monotonic() < ends:
        for each in voyage.detail()["devices"]:
            if each["device"] == device and each["why"]:
                return str(each["why"])
        time.sleep(0.05)
    raise AssertionError("the device does not say that its disk is full")
