"""The coordinator's time: the device's own clock may be years off, and may be set at any moment."""

import asyncio
import time

from skerry_protos.steady import since_boot


class Clock:
    """Tells the coordinator's time from its last word and how long ago that was.

    `known` is set once it has said it: until then no deadline can be judged.
    """

    def __init__(self) -> None:
        self._at = since_boot()
        self._then = time.time()
        self._ahead = 0.0
        self.known = asyncio.Event()

    def set(self, unix_s: float, deadlines_s: float = 0.0) -> None:
        """Note what the coordinator's clocks show now: the wall's, and that of deadlines."""
        self._at, self._then = since_boot(), unix_s
        self._ahead = deadlines_s - unix_s if deadlines_s else 0.0
        self.known.set()

    def now(self) -> float:
        """Return the coordinator's time, seconds since 1970."""
        return self._then + since_boot() - self._at

    def deadlines(self) -> float:
        """Return what the clock shows that deadlines are in (skerry_protos.steady)."""
        return self.now() + self._ahead

    @property
    def offset_s(self) -> float:
        """Return how far the coordinator's clock is ahead of this device's."""
        return self.now() - time.time()
