"""Networks that are cut, silent, lossy, slow, narrow or wrong: rows 5 to 8."""

import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

from skerry_devices.waiting import until

from tests.faults.table import Tally, Unable, row
from tests.faults.world import Boat, World

SHIM = Path(__file__).with_name("shim.py")
NOTICED_S = 30.0
"""A device that is cut off is known to be within so long."""


@contextmanager
def dropping(port: int, share: float = 1.0) -> Iterator[None]:
    """Have the kernel drop this share of the packets from and to a port of this machine."""
    program = shutil.which("iptables") or shutil.which("iptables", path="/usr/sbin:/sbin")
    if program is None:
        raise Unable("there is no iptables")
    chance = ["-m", "statistic", "--mode", "random", "--probability", str(share)]
    rules = [
        ["INPUT", "-p", "tcp", side, str(port), *(chance if share < 1 else []), "-j", "DROP"]
        for side in ("--dport", "--sport")
    ]
    with ExitStack() as stack:
        for rule in rules:
            done = subprocess.run([program, "-w", "-A", *rule], check=False, capture_output=True)
            if done.returncode:
                said = done.stderr.decode().strip().splitlines()
                raise Unable(f"iptables: {said[0] if said else done.returncode}")
            stack.callback(subprocess.run, [program, "-w", "-D", *rule], check=True)
        yield


@contextmanager
def partitioned(boat: Boat, way: str) -> Iterator[None]:
    """Cut a device off: by its proxy, one way or both, or by the kernel."""
    with ExitStack() as stack:
        if way == "kernel":
            stack.enter_context(dropping(boat.proxy.port))
        name = {"both ways": "blackhole", "to the cloud": "mute", "from the cloud": "deaf"}.get(way)
        if name:
            setattr(boat.proxy, name, True)
            stack.callback(setattr, boat.proxy, name, False)
        yield


WAYS = ("both ways", "kernel", "to the cloud", "from the cloud")


@row(5, "partition", full=30)
def partition(tally: Tally, world: World) -> None:
    """Cut one device off for a while: nothing is lost, and it is noticed where it lasts."""
    clean = world.clean(rounds=2)
    dice = random.Random(5)
    while tally.trials < tally.count:
        lasts = (600.0 if tally.trials % 10 == 9 else 60.0) if tally.full else 3.0
        boat = world.boats[tally.trials % len(world.boats)]
        trip = world.begin(rounds=2, run_config={"train_s": 0.3}, round_deadline_s=3000)
        time.sleep(dice.uniform(0.1, clean.seconds + 0.3))
        with partitioned(boat, WAYS[tally.trials % len(WAYS)]):
            began = time.monotonic()
            if tally.full:
                until(
                    partial(_missing, world, boat.name),
                    timeout_s=NOTICED_S + 5,
                    what=f"{boat.name} noticed missing",
                )
                noticed = time.monotonic() - began
                tally.require(noticed <= NOTICED_S, f"noticed after {noticed:.0f} s only")
            time.sleep(max(0.0, began + lasts - time.monotonic()))
        healed = time.monotonic()
        tally.trials += 1
        trip.end()
        tally.recovered(time.monotonic() - healed, 60.0, "the run's end")
        world.wait_online()
        tally.judge(trip, clean, bytes_limit=1.6)


def _missing(world: World, name: str) -> bool | None:
    return name not in world.online() or None


@row(5, "partition over a round's end", full=10)
def late(tally: Tally, world: World) -> None:
    """Cut one device off until its round has closed on a quorum: it is named, its update unused."""
    clean = world.clean()
    while tally.trials < tally.count:
        boat = world.boats[tally.trials % len(world.boats)]
        trip = world.begin(run_config={"train_s": 1.0}, quorum=0.6)
        trip.wait(partial(trip.has, boat.name, "begin"), "a training")
        with partitioned(boat, WAYS[tally.trials % len(WAYS)]):
            trip.end()
        tally.trials += 1
        world.wait_online()
        named = [event["device"] for event in trip.events("late")]
        tally.require(named == [boat.name], f"{trip.id}: late is {named}, not {boat.name}")
        tally.judge(trip, everybody=False, died_training=1)
        again = world.begin()
        again.end()
        tally.judge(again, clean)


@row(6, "messages doubled, shuffled, said again", full=60, short=1)
def shuffled(tally: Tally, world: World) -> None:
    """Double, shuffle and repeat the messages of every device: each update counts once."""
    clean = world.clean(rounds=2)
    notes = {boat.name: world.home / f"{boat.name}.packets" for boat in world.boats}
    before = {boat.name: (boat.program, boat.environment) for boat in world.boats}
    world.kill_agents(*world.boats, number=signal.SIGTERM)
    try:
        for boat in world.boats:
            boat.program = (sys.executable, str(SHIM))
            boat.environment = {**boat.environment, "SHIM_NOTES": str(notes[boat.name])}
        world.start_agents(*world.boats)
        world.wait_online()
        while tally.trials < tally.count:
            trip = world.begin(rounds=2)
            trip.end()
            tally.trials += 1
            tally.judge(trip, clean, bytes_limit=1.6)
            for one in trip.detail()["unwanted"]:
                tally.require(one["reason"] == "repeated", f"{trip.id}: {one} was not taken")
    finally:
        world.kill_agents(*world.boats, number=signal.SIGTERM)
        for boat in world.boats:
            boat.program, boat.environment = before[boat.name]
        world.start_agents(*world.boats)
        world.wait_online()
    passed = sum(int(path.read_text()) for path in notes.values())
    tally.require(passed > 20 * tally.trials, f"{passed} messages passed the shim")
    tally.notes.append(f"{passed} messages")


def _slowly(
    tally: Tally, world: World, most: tuple[float, float], *, limit: float = 1.2, rounds: int = 1
) -> None:
    """Do runs as the network is; they may take `most`[0] times as long, and `most`[1] s more."""
    clean = world.clean(rounds)
    while tally.trials < tally.count:
        trip = world.begin(rounds=rounds, round_deadline_s=3000)
        found = trip.end(900)
        took = found["ended_at"] - found["created_at"]
        tally.trials += 1
        tally.recovered(took, most[0] * clean.seconds + most[1], "the run")
        tally.judge(trip, clean, bytes_limit=limit)
    tally.notes.append(f"{clean.seconds:.2f} s without")


def _lossy(tally: Tally, world: World, share: float, most: tuple[float, float]) -> None:
    world.clean()
    with ExitStack() as stack:
        for boat in world.boats:
            stack.enter_context(dropping(boat.proxy.port, share))
        _slowly(tally, world, most)


@row(7, "1 % of packets lost", full=10, short=0)
def loss(tally: Tally, world: World) -> None:
    """Lose one packet in a hundred, each way."""
    _lossy(tally, world, 0.01, (2.0, 3.0))


@row(7, "5 % of packets lost", full=10)
def heavy_loss(tally: Tally, world: World) -> None:
    """Lose one packet in twenty, each way."""
    _lossy(tally, world, 0.05, (5.0, 10.0))


@row(7, "200 ms round trip, jitter", full=10)
def latency(tally: Tally, world: World) -> None:
    """Delay each way by 100 ms, and up to 50 ms more, in small pieces."""
    world.clean()
    for boat in world.boats:
        boat.proxy.delay_s, boat.proxy.jitter_s, boat.proxy.slice = 0.1, 0.05, 8192
    _slowly(tally, world, (5.0, 10.0))


@row(7, "256 kbit/s", full=10, short=0)
def narrow(tally: Tally, world: World) -> None:
    """Leave 32 kB/s each way: 2 x 2 MB take 125 s at least, and a third more may pass."""
    world.clean()
    for boat in world.boats:
        boat.proxy.bandwidth = 32_000
    _slowly(tally, world, (2.0, 165.0))


@row(7, "8 Mbit/s", full=0, short=1)
def narrow_briefly(tally: Tally, world: World) -> None:
    """Leave 1 MB/s each way: 2 x 2 MB take 4 s at least."""
    world.clean()
    for boat in world.boats:
        boat.proxy.bandwidth = 1_000_000
    _slowly(tally, world, (2.0, 8.0))


def _resets(tally: Tally, world: World, after: int, limit: float) -> None:
    rounds = 3 if tally.full else 1  # the size of chunks is learnt in the first
    world.clean(rounds)
    for boat in world.boats:
        boat.proxy.reset_after = after
        world.cut(boat)
    try:
        _slowly(tally, world, (0.0, 600.0), limit=limit if tally.full else 1.5, rounds=rounds)
    finally:
        world.heal()
        world.wait_online()


@row(8, "reset every 400 kB", full=10)
def resets(tally: Tally, world: World) -> None:
    """Reset every connection after 400 kB."""
    _resets(tally, world, 400_000, 1.2)


@row(8, "reset every 150 kB", full=10, short=0)
def frequent_resets(tally: Tally, world: World) -> None:
    """Reset every connection after 150 kB: less than a chunk."""
    _resets(tally, world, 150_000, 1.2)


@row(8, "reset every 32 kB", full=10, short=0)
def endless_resets(tally: Tally, world: World) -> None:
    """Reset every connection after 32 kB.

    The handshakes of TLS, HTTP/2 and the session take 7.3 kB of them on gRPC, 5.7 on MQTT. What is
    left has room for five chunks of 4 KiB on gRPC: 1.56 times the bytes at least.
    """
    _resets(tally, world, 32_000, 1.65)


@row(8, "bit flips", full=20)
def flips(tally: Tally, world: World) -> None:
    """Flip one bit of each device's traffic in a run."""
    clean = world.clean()
    dice = random.Random(8)
    while tally.trials < tally.count:
        for boat in world.boats:
            boat.proxy.flip_at = boat.proxy.passed + dice.randrange(10_000, 3_900_000)
        trip = world.begin()
        trip.end()
        tally.trials += sum(not boat.proxy.flip_at for boat in world.boats)
        world.heal()
        world.wait_online()
        tally.judge(trip, clean, bytes_limit=1.6)
