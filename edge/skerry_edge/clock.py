"""The coordinator's time, which deadlines are in: the device's own clock may be years off."""

import time


def _since_boot() -> float:
    """Return seconds since boot, those asleep included."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Clock:
    """Tells the coordinator's time from its last word and how long ago that was."""

    def __init__(self) -> None:
        self._at = _since_boot()
        self._then = time.time()

    def set(self, unix_s: float) -> None:
        """Note what the coordinator's clock shows now."""
        self._at, self._then = _since_boot(), unix_s

    def now(self) -> float:
        """Return the coordinator's time, seconds since 1970."""
        return self._then + _since_boot() - self._at

    @property
    def offset_s(self) -> float:
        """Return how far the coordinator's clock is ahead of this device's."""
        return self.now() - time.time()
