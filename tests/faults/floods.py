"""Floods of every port from loopback, and what other devices feel of them: row 15."""

import resource
import signal
import statistics
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager

from tests.faults.machine import resident
from tests.faults.mallory import Mallory
from tests.faults.table import Tally, row
from tests.faults.world import World

P99_S = 0.25
"""99 of 100 parcels of other devices are stored within so long, whoever floods."""
FEW_FILES = 1024
"""How many files a service may open at first, by systemd's default."""
PAUSE_S = 0.02


@contextmanager
def few_files(world: World) -> Iterator[None]:
    """Have the coordinator begin with as few file descriptors as a service has."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    world.kill_coordinator(signal.SIGTERM)
    resource.setrlimit(resource.RLIMIT_NOFILE, (FEW_FILES, before[1]))
    try:
        world.start_coordinator()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    world.wait_online()
    yield


def felt(probe: Mallory, seconds: float) -> list[float]:
    """Return how long each of a device's heartbeats took until it was stored, seconds."""
    found, ends = [], time.monotonic() + seconds
    while time.monotonic() < ends:
        began = time.monotonic()
        probe.beat()
        found.append(time.monotonic() - began)
        time.sleep(PAUSE_S)
    return found


def p99(times: list[float]) -> float:
    """Return the 99th percentile."""
    return statistics.quantiles(times, n=100, method="inclusive")[98]


@row(15, "slow and malformed floods", full=3, devices=1)
def floods(tally: Tally, world: World) -> None:
    """Flood gRPC, HTTPS and the broker in turn; a device's heartbeats and a run go on."""
    slow, noise, seconds = (1000, 10_000, 10) if tally.full else (100, 200, 2)
    settings = tomllib.loads((world.cloud / "coordinator.toml").read_text())
    ports = {name: int(settings[f"{name}_port"]) for name in ("http", "grpc", "mqtt")}
    clean = world.clean(rounds=2)
    with few_files(world), Mallory(world, "probe") as probe:
        quiet = p99(felt(probe, 2.0))
        worst = 0.0
        while tally.trials < tally.count:
            trip = world.begin(rounds=2, quorum=0.5)
            orders = [(kind, name) for name in ports for kind in ("slow", "noise")]
            for kind, name in [*orders, ("asks", "http")]:
                count = slow if kind == "slow" else noise
                arguments = [kind, str(ports[name]), str(count), str(seconds)]
                flooder = subprocess.Popen(
                    [sys.executable, "-m", "tests.faults.flooder", *arguments],
                    stdout=subprocess.PIPE,
                    text=True,
                )
                try:
                    assert flooder.stdout is not None
                    assert flooder.stdout.readline() == "begins\n"
                    times = felt(probe, seconds if kind == "slow" else seconds / 2)
                    made = int(flooder.communicate(timeout=seconds + 60)[0])
                finally:
                    flooder.kill()
                found = p99(times)
                worst = max(worst, found)
                tally.require(made >= 100, f"{kind} on {name}: {made} connections")
                if tally.full:
                    tally.require(found <= P99_S, f"{kind} on {name}: p99 {found * 1000:.0f} ms")
                held = resident(world.tree())["coordinator"] >> 20
                tally.notes.append(f"{name} {kind} {made}: {found * 1000:.0f} ms, {held} MB")
            tally.trials += 1
            trip.end()
            # A connection in its handshake takes 80 kB, nobody knows of whom.
            tally.judge(trip, clean, bytes_limit=0.0, memory_limit=3.0)
    tally.notes.append(f"p99 {worst * 1000:.0f} ms, {quiet * 1000:.0f} ms before")
