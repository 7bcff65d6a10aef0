"""Which chunks of a blob are published once for many devices, and which for one alone.

The first device that asks for a chunk has it published for all who listen: at once when nobody
else is expected to begin to listen, else when none has begun to for GATHER_S. A device that asks
for what went by after it began to listen gets no answer: it is on its way, or will be asked for
again.
"""

import heapq
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from skerry_protos.messages import BlobRef, DeviceId

GATHER_S: Final = 0.15
GATHER_EACH_S: Final = 0.0025
"""For each device, where that is more, up to GATHER_MOST_S: a large fleet comes one by one."""
GATHER_MOST_S: Final = 1.0
LONGEST_S: Final = 5.0
"""While devices keep beginning to listen, a chunk waits for them at most this long."""
FRESH_S: Final = 10.0
"""How long a published chunk counts as on its way."""
IDLE_S: Final = 120.0
"""A cast that nobody asks for this long is forgotten."""


@dataclass(slots=True)
class Cast:
    """One blob on its way to many devices; times are of one monotonic clock."""

    ref: BlobRef
    devices: set[DeviceId] = field(default_factory=set)
    absent: set[DeviceId] = field(default_factory=set)  # of them, who lost their connection
    chunk: int = 0
    used_s: float = 0.0
    listening: dict[DeviceId, float] = field(default_factory=dict)
    published: dict[int, float] = field(default_factory=dict)  # when; infinity: it will be
    pending: list[tuple[float, int]] = field(default_factory=list)  # a heap: (when, offset)
    _begin_s: float = 0.0
    _joined_s: float = 0.0  # when the last one began to listen

    def add(self, devices: Iterable[DeviceId], now: float) -> None:
        """Expect these devices too."""
        self.devices.update(devices)
        self.used_s = now

    def leave(self, device: DeviceId) -> None:
        """Expect a device no longer, until it asks again."""
        if device in self.devices:
            self.absent.add(device)
            self.listening.pop(device, None)

    def ask(
        self, device: DeviceId, chunk: int, offsets: list[int], *, repair: bool, now: float
    ) -> list[int]:
        """Take a device's request; return what is to be sent to it alone."""
        self.used_s = now
        if device not in self.devices or repair:
            return offsets
        self.absent.discard(device)
        if device not in self.listening:
            self.listening[device] = self._joined_s = now
        since = self.listening[device]
        self.chunk = self.chunk or chunk
        if chunk != self.chunk:  # the device's packets are smaller, or larger
            return offsets
        self._begin_s = self._begin_s or now + self._gather_s
        alone = []
        for offset in offsets:
            at = self.published.get(offset)
            if at is None:
                self._publish(offset, max(now, self._begin_s))
            elif at < since and self._late(at) >= 2:
                self._publish(offset, now + self._gather_s)
            elif at < since or now - at > FRESH_S:
                alone.append(offset)
        return alone

    def _publish(self, offset: int, when: float) -> None:
        self.published[offset] = math.inf  # those who begin to listen until then will hear it
        heapq.heappush(self.pending, (when, offset))

    @property
    def _gather_s(self) -> float:
        return min(GATHER_MOST_S, max(GATHER_S, GATHER_EACH_S * len(self.devices)))

    def _expected(self) -> int:
        """Return how many have not begun to listen yet."""
        return len(self.devices) - len(self.absent) - len(self.listening)

    def _late(self, at: float) -> int:
        """Return how many missed, or will have missed, what went by at a time."""
        return sum(since > at for since in self.listening.values()) + self._expected()

    def take(self, now: float) -> int | None:
        """Return the offset of a chunk to publish now, or None."""
        if self.pending and self.wait_s(now) <= 0:
            _, offset = heapq.heappop(self.pending)
            self.published[offset] = now
            return offset
        return None

    def wait_s(self, now: float) -> float:
        """Return how long the next pending chunk has to wait."""
        if self._expected() <= 0:
            return 0.0
        when = self.pending[0][0]
        return min(max(when, self._joined_s + self._gather_s), when + LONGEST_S) - now

    def idle(self, now: float) -> bool:
        """Return whether nobody wants this any more."""
        return now - self.used_s > IDLE_S
