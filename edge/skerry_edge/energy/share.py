"""What a piece of work costs: its share of the energy that the device used meanwhile.

Energy above idle is shared by processor time: a process that had half of the busy time has used
half of it. That is as near as a meter of the whole device comes.
"""

import time
from typing import Protocol

import psutil


class Account(Protocol):
    """Who counts the device's energy (skerry_edge.energy.Budget)."""

    @property
    def total_j(self) -> float:
        """Joules at the last reading."""
        ...

    def update(self) -> float:
        """Take a reading."""
        ...


class Share:
    """Energy of one consumer between looks."""

    def __init__(self, budget: Account, *, idle_w: float) -> None:
        """Begin to count; `idle_w` is what the device takes while nothing happens."""
        self._budget, self._idle_w = budget, idle_w
        self._last = self._look()

    def joules(self, cpu_s: float) -> float:
        """Return what `cpu_s` of processor time since the last look has cost."""
        now = self._look()
        seconds, joules, busy = (a - b for a, b in zip(now, self._last, strict=True))
        self._last = now
        share = min(1.0, max(0.0, cpu_s / busy)) if busy > 0 else 0.0
        return max(0.0, joules - self._idle_w * seconds) * share

    def _look(self) -> tuple[float, float, float]:
        times = psutil.cpu_times()
        busy = float(sum(times) - times.idle - getattr(times, "iowait", 0.0))
        self._budget.update()
        return time.monotonic(), self._budget.total_j, busy
