"""The day's energy: joules used since midnight (UTC), kept on disk, and what to do as it runs out.

A budget of 0 is no limit. Up to 80 % nothing changes; then there are fewer threads, then larger
batches and a cheaper model where the device has one. When the day's joules are used inference is
refused until midnight. Tasks wait from 90 % on: answering is what the device is there for.
"""

import contextlib
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

from skerry_edge.energy.meters import Meter, find_meter

DAY_S = 86400
FRUGAL_AT, SCARCE_AT = 0.8, 0.9
KEEP_EVERY_S = 60.0


class Throttle(IntEnum):
    """How sparing the device has to be; each step holds for the ones above it too."""

    NONE = 0
    FRUGAL = 1  # one thread
    SCARCE = 2  # larger batches, the cheaper model, no new tasks
    SPENT = 3  # nothing until midnight


@dataclass(frozen=True, slots=True, kw_only=True)
class EnergyTable:
    """The table [energy] of agent.toml."""

    daily_j: float = 0.0
    """Joules a day that the device may use; 0: no limit."""
    idle_w: float = 2.0
    """Watts of the idle device, for estimates; the profile's [power] unless set here."""
    busy_w: float = 6.0
    """Watts of the busy device, likewise."""

    def __post_init__(self) -> None:
        if not 0 <= self.idle_w <= self.busy_w < 1e6:
            raise ValueError("idle_w must be 0 or more and at most busy_w")
        if not (math.isfinite(self.daily_j) and self.daily_j >= 0):
            raise ValueError("daily_j must be 0 (no limit) or more")


def open_budget(home: Path, table: EnergyTable) -> "Budget":
    """Return the account of the device whose agent lives in `home`, by its best meter."""
    meter = find_meter(idle_w=table.idle_w, busy_w=table.busy_w)
    return Budget(meter, home / "energy.json", daily_j=table.daily_j)


class Budget:
    """The account of one device."""

    def __init__(
        self,
        meter: Meter,
        file: Path,
        *,
        daily_j: float = 0.0,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._meter, self._file, self._now = meter, file, now
        self.daily_j = daily_j
        self.source = meter.source
        self._day, self._used = self._read()
        self._last = meter.joules()
        self.total_j = 0.0
        """Joules since this account was opened, whatever the day."""
        self._kept_at = -math.inf

    def update(self) -> float:
        """Take a reading; return the joules used today."""
        joules, day = self._meter.joules(), self._today()
        # A clock set back does not give the day's joules anew.
        if day > self._day:
            self._day, self._used = day, 0.0
        self._used += joules - self._last
        self.total_j += joules - self._last
        self._last = joules
        if self._now() - self._kept_at >= KEEP_EVERY_S:
            self._keep()
        return self._used

    @property
    def throttle(self) -> Throttle:
        """How sparing the device has to be, by the last reading."""
        if not self.daily_j:
            return Throttle.NONE
        share = self._used / self.daily_j
        if share >= 1:
            return Throttle.SPENT
        if share >= SCARCE_AT:
            return Throttle.SCARCE
        return Throttle.FRUGAL if share >= FRUGAL_AT else Throttle.NONE

    def why(self) -> str:
        """Return what is throttled and until when; empty when nothing is."""
        if self.throttle is Throttle.NONE:
            return ""
        midnight = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime((self._day + 1) * DAY_S))
        guess = " (estimated)" if self.source == "estimated" else ""
        return (
            f"the day's energy: {self._used:.0f} of {self.daily_j:.0f} J used{guess}, "
            f"new at {midnight}"
        )

    def _today(self) -> int:
        return int(self._now() // DAY_S)

    def _read(self) -> tuple[int, float]:
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError, OverflowError):
            said = json.loads(self._file.read_text())
            day, used = int(said["day"]), float(said["joules"])
            if day >= self._today() and math.isfinite(used) and used >= 0:
                return day, used
        return self._today(), 0.0

    def _keep(self) -> None:
        beside = self._file.with_name(f".{self._file.name}")
        with contextlib.suppress(OSError):  # an account is not worth failing for
            beside.write_text(json.dumps({"day": self._day, "joules": self._used}))
            beside.replace(self._file)
            self._kept_at = self._now()
