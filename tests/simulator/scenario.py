"""What a seed means: the fleet, the run, the weather, and what goes wrong and when.

Each kind of fault is switched on or off for a whole story, so that stories differ in kind and not
only in number; after `calm_s` nothing new goes wrong and all that is asked for must come true.
"""

import random
from dataclasses import dataclass, field
from typing import Any

from tests.simulator.network import Weather

HOUR_S = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class DevicePlan:
    """One device for the length of a story."""

    name: str
    seed: str
    compute_s: float
    slow_s: float  # its disk, at most
    wrong_s: float  # its clock, when the story begins
    workers: int
    fails: float  # share of tasks that its app fails at
    spoils: float  # share of replies that screening must refuse
    stuck: float  # share of tasks that take `stuck_s` times as long
    stuck_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """Something that goes wrong, and for how long where that means something."""

    at_s: float
    kind: str
    device: str = ""
    lasts_s: float = 0.0
    amount: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """A story before it is told."""

    seed: int
    devices: tuple[DevicePlan, ...]
    weathers: dict[str, Weather]
    size: int  # parameters of the model
    evaluates: bool
    runs: int
    options: dict[str, Any]
    shore_slow_s: float
    faults: tuple[Fault, ...] = field(default=())
    calm_s: float = 0.0


def draw(seed: int, *, short: bool = False) -> Scenario:
    """Return the scenario of a seed; a short one has fewer devices, rounds and parameters."""
    dice = random.Random(f"{'short' if short else 'scenario'} {seed}")
    count = dice.choice([1, 2, 2] if short else [1, 2, 3, 3, 4, 6])
    names = [f"device-{number + 1}" for number in range(count)]
    bad = _Bad(dice)
    rounds = dice.choice([1, 2] if short else [1, 2, 2, 3, 4])
    size = dice.choice([30, 300, 10_000] if short else [30, 30, 300, 20_000, 40_000])
    devices = tuple(_device(name, seed, bad, dice) for name in names)
    options = {
        "rounds": rounds,
        "min_devices": dice.randint(1, len(names)),
        "round_deadline_s": dice.choice([20.0, 60.0, 60.0, 240.0]),
        "wait_deadline_s": dice.choice([60.0, 300.0]),
        "quorum": dice.choice([1.0, 1.0, 0.5, 0.75]),
        "fraction": dice.choice([1.0, 1.0, 0.6]),
        "seed": dice.randrange(1000),
    }
    calm_s = dice.choice([20.0, 60.0] if short else [20.0, 60.0, 120.0, 300.0])
    return Scenario(
        seed=seed,
        devices=devices,
        weathers={name: _weather(bad, dice) for name in names},
        size=size,
        evaluates=not short and dice.random() < 0.3,
        runs=1 if short else dice.choice([1, 1, 1, 2]),
        options=options,
        shore_slow_s=dice.choice([0.0, 0.0, 0.02, 0.5]),
        faults=tuple(sorted(_faults(names, bad, calm_s, dice), key=lambda one: one.at_s)),
        calm_s=calm_s,
    )


class _Bad:
    """Which kinds of faults a story has."""

    def __init__(self, dice: random.Random) -> None:
        def some(share: float) -> bool:
            return dice.random() < share

        self.loss = some(0.5)
        self.cuts = some(0.5)
        self.silences = some(0.3)
        self.blocks = some(0.4)
        self.kills = some(0.5)
        self.powers = some(0.3)
        self.shore_kills = some(0.3)
        self.shore_powers = some(0.2)
        self.shore_stops = some(0.15)
        self.pauses = some(0.2)
        self.clocks = some(0.3)
        self.slow_disks = some(0.4)
        self.slow_devices = some(0.3)
        self.bad_apps = some(0.25)


def _device(name: str, seed: int, bad: _Bad, dice: random.Random) -> DevicePlan:
    clocks = [0.0, 12 * HOUR_S, -12 * HOUR_S, 48 * HOUR_S, 400 * 24 * HOUR_S, -20 * 8766 * HOUR_S]
    return DevicePlan(
        name=name,
        seed=f"{seed}/{name}",
        compute_s=dice.choice([0.1, 1.0, 5.0, 30.0 if bad.slow_devices else 2.0]),
        slow_s=dice.choice([0.0, 0.02, 1.0]) if bad.slow_disks else 0.0,
        wrong_s=dice.choice(clocks) if bad.clocks else dice.uniform(-2, 2),
        workers=dice.choice([1, 1, 2]),
        fails=dice.choice([0.0, 0.3]) if bad.bad_apps else 0.0,
        spoils=dice.choice([0.0, 0.3]) if bad.bad_apps else 0.0,
        stuck=dice.choice([0.0, 0.2]) if bad.slow_devices else 0.0,
        stuck_s=dice.choice([10.0, 100.0]),
    )


def _weather(bad: _Bad, dice: random.Random) -> Weather:
    reliable = not bad.loss or dice.random() < 0.3
    return Weather(
        reliable=reliable,
        delay_s=dice.choice([0.001, 0.02, 0.1, 0.4]),
        jitter_s=dice.choice([0.0, 0.02, 0.2]),
        bytes_per_s=dice.choice([10e6, 1e6, 100e3]),
        drop=dice.choice([0.0, 0.01, 0.05, 0.2]),
        duplicate=dice.choice([0.0, 0.1, 0.5]),
        reorder=dice.choice([0.0, 0.1, 0.5]),
        cut=dice.choice([0.0, 0.002, 0.02]) if bad.cuts else 0.0,
        chunk=dice.choice([8192, 65536, 262144]),
    )


def _faults(names: list[str], bad: _Bad, calm_s: float, dice: random.Random) -> list[Fault]:
    found: list[Fault] = []

    def add(
        kind: str, most: int, lasts_s: tuple[float, ...] = (0.0,), *, shore: bool = False
    ) -> None:
        found.extend(
            Fault(
                at_s=dice.uniform(1.0, calm_s),
                kind=kind,
                device="" if shore else dice.choice(names),
                lasts_s=dice.choice(lasts_s),
                amount=dice.random(),
            )
            for _ in range(dice.randint(1, most))
        )

    if bad.cuts:
        add("cut", 8)
    if bad.silences:
        add("silence", 3)
    if bad.blocks:
        add("block", 3, (3.0, 30.0, 120.0))
        add("block-up", 1, (3.0, 60.0))
        add("block-down", 1, (3.0, 60.0))
    if bad.kills:
        add("kill", 6, (0.1, 2.0, 20.0, 150.0))
        add("kill-within", 3, (0.1, 20.0))
    if bad.powers:
        add("power", 4, (0.1, 2.0, 20.0, 150.0))
        add("power-within", 3, (0.1, 20.0))
    if bad.shore_kills:
        add("shore-kill", 3, (0.1, 2.0, 20.0), shore=True)
        add("shore-kill-within", 2, (0.1, 20.0), shore=True)
    if bad.shore_powers:
        add("shore-power", 2, (0.1, 20.0), shore=True)
        add("shore-power-within", 2, (0.1, 20.0), shore=True)
    if bad.shore_stops:
        add("shore-stop", 1, (0.5, 5.0), shore=True)
    if bad.pauses:
        add("pause", 2, (1.0, 40.0), shore=True)
    if bad.clocks:
        add("clock", 2)
        add("shore-clock", 1, shore=True)
    return found
