"""The energy of one inference: it is repeated for a moment, and what that cost is divided."""

import os
import time
from collections.abc import Callable

from skerry_edge.energy.meters import Meter
from skerry_edge.energy.share import Share

MOMENT_S = 0.3


class _Account:
    """A meter as `Share` reads it."""

    def __init__(self, meter: Meter) -> None:
        self._meter = meter
        self.total_j = 0.0

    def update(self) -> float:
        self.total_j = self._meter.joules()
        return self.total_j


def energy_of(
    run: Callable[[], object],
    *,
    meter: Meter,
    idle_w: float,
    busy_w: float,
    moment_s: float = MOMENT_S,
) -> float:
    """Return the joules above idle that one call of `run` takes.

    By the meter, shared by processor time; where the meter only estimates, by the processor time of
    the calls alone, so that what else the device does meanwhile does not count.
    """
    share = Share(_Account(meter), idle_w=idle_w)
    calls, cpu_s, end = 0, time.process_time(), time.monotonic() + moment_s
    while calls == 0 or time.monotonic() < end:
        run()
        calls += 1
    cpu_s = time.process_time() - cpu_s
    if meter.source == "estimated":
        return cpu_s * (busy_w - idle_w) / (os.cpu_count() or 1) / calls
    return share.joules(cpu_s) / calls
