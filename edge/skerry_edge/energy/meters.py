"""Meters: joules used since the meter was made, from the best source this device has.

In order: powercap RAPL (the processor's own counter), a power sensor (hwmon: INA219, INA226,
INA3221, ...), a battery that is being drained, and last the watts of the device's profile times its
processor load, which is an estimate and says so.

Sources: Documentation/power/powercap/powercap.rst, Documentation/hwmon/sysfs-interface.rst and
Documentation/ABI/testing/sysfs-class-power of the Linux kernel.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import psutil

SYS = Path("/sys")
STALE_S = 60.0
"""Power is taken as constant between two looks; over a longer gap nothing is known."""

Clock = Callable[[], float]


class Meter(Protocol):
    """A source of energy readings."""

    source: str
    """"rapl", "hwmon", "battery" or "estimated"."""

    def joules(self) -> float:
        """Return the energy used since the meter was made; never less than before."""
        ...


class RaplMeter:
    """Energy counters of the processor packages, or of the whole platform where there is one."""

    source = "rapl"

    def __init__(self, zones: list[Path]) -> None:
        self._zones = zones
        self._last = [_number(zone / "energy_uj") for zone in zones]
        self._wraps_at = [_number(zone / "max_energy_range_uj") for zone in zones]
        self._total_uj = 0.0

    @classmethod
    def find(cls, sys: Path = SYS) -> "RaplMeter | None":
        """Return a meter of the zones that can be read: `psys` covers all others."""
        zones = [
            zone
            for zone in sorted((sys / "class" / "powercap").glob("*rapl*:*"))
            if zone.name.count(":") == 1 and _readable(zone / "energy_uj")
        ]
        platform = [zone for zone in zones if _text(zone / "name") == "psys"]
        return cls(platform or zones) if zones else None

    def joules(self) -> float:
        for number, zone in enumerate(self._zones):
            now = _number(zone / "energy_uj")
            used = now - self._last[number]
            if used < 0:  # the counter has begun again
                used += self._wraps_at[number]
            self._total_uj += max(0.0, used)
            self._last[number] = now
        return self._total_uj / 1e6


class PowerMeter:
    """Watts looked at now and then, added up over time by the trapezoid rule."""

    def __init__(self, source: str, watts: Callable[[], float], clock: Clock) -> None:
        self.source = source
        self._watts, self._clock = watts, clock
        self._at, self._power = clock(), watts()
        self._total = 0.0

    def joules(self) -> float:
        now, power = self._clock(), self._watts()
        if now - self._at <= STALE_S:
            self._total += (now - self._at) * (power + self._power) / 2
        self._at, self._power = now, power
        return self._total


class ModelMeter:
    """The profile's watts: idle, and more by how busy the processor was. An estimate."""

    source = "estimated"

    def __init__(self, *, idle_w: float, busy_w: float, clock: Clock = time.monotonic) -> None:
        self._idle_w, self._busy_w, self._clock = idle_w, busy_w, clock
        self._at, self._cpu = clock(), _cpu_times()
        self._total = 0.0

    def joules(self) -> float:
        now, (busy, every) = self._clock(), _cpu_times()
        was_busy, was_every = self._cpu
        share = (busy - was_busy) / (every - was_every) if every > was_every else 0.0
        watts = self._idle_w + (self._busy_w - self._idle_w) * min(1.0, max(0.0, share))
        self._total += max(0.0, now - self._at) * watts
        self._at, self._cpu = now, (busy, every)
        return self._total


def find_meter(
    *, idle_w: float, busy_w: float, sys: Path = SYS, clock: Clock = time.monotonic
) -> Meter:
    """Return the best meter of this device; at worst one that estimates."""
    rapl = RaplMeter.find(sys)
    if rapl is not None:
        return rapl
    sensor = _power_sensor(sys)
    if sensor is not None:
        return PowerMeter("hwmon", sensor, clock)
    battery = _battery(sys)
    if battery is not None:
        return PowerMeter("battery", battery, clock)
    return ModelMeter(idle_w=idle_w, busy_w=busy_w, clock=clock)


def _power_sensor(sys: Path) -> Callable[[], float] | None:
    """Return how to read watts from hwmon: a power sensor, or volts times amperes of an INA."""
    for chip in sorted((sys / "class" / "hwmon").glob("hwmon*")):
        power = [file for file in sorted(chip.glob("power*_input")) if _readable(file)]
        if power:
            return lambda files=power: sum(map(_number, files)) / 1e6  # type: ignore[misc]
        if _text(chip / "name").startswith("ina"):
            pairs = [
                (chip / f"in{file.name[4:].split('_')[0]}_input", file)
                for file in sorted(chip.glob("curr*_input"))
            ]
            pairs = [pair for pair in pairs if all(map(_readable, pair))]
            if pairs:  # millivolts times milliamperes are microwatts
                return lambda every=pairs: (  # type: ignore[misc]
                    sum(_number(volt) * _number(ampere) for volt, ampere in every) / 1e6
                )
    return None


def _battery(sys: Path) -> Callable[[], float] | None:
    """Return how to read the watts a battery gives; 0 while it is not drained."""
    for supply in sorted((sys / "class" / "power_supply").glob("*")):
        if _text(supply / "type") != "Battery":
            continue
        if _readable(supply / "power_now"):
            measure: Callable[[], float] = lambda s=supply: _number(s / "power_now") / 1e6  # type: ignore[misc]  # noqa: E731
        elif _readable(supply / "current_now") and _readable(supply / "voltage_now"):
            measure = lambda s=supply: (  # type: ignore[misc]  # noqa: E731
                _number(s / "current_now") * _number(s / "voltage_now") / 1e12
            )
        else:
            continue

        def watts(supply: Path = supply, measure: Callable[[], float] = measure) -> float:
            return abs(measure()) if _text(supply / "status") == "Discharging" else 0.0

        # On mains the battery tells nothing of what the device uses.
        return watts if _text(supply / "status") == "Discharging" else None
    return None


def _cpu_times() -> tuple[float, float]:
    """Return processor seconds since boot: busy, and all."""
    times = psutil.cpu_times()
    every = sum(times) - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0)
    return every - times.idle - getattr(times, "iowait", 0.0), every


def _readable(file: Path) -> bool:
    try:
        int(file.read_text())
    except (OSError, ValueError):
        return False
    return True


def _number(file: Path) -> float:
    """Return a sysfs number; one that cannot be read now counts as nothing."""
    try:
        return float(int(file.read_text()))
    except (OSError, ValueError):
        return 0.0


def _text(file: Path) -> str:
    try:
        return file.read_text().strip()
    except OSError:
        return ""
