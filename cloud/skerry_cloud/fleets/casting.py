"""Which chunks of a blob are published once for many devices, and which for one alone.

The first device that asks for a chunk has it published for all who listen. Where the broker keeps
what is published (MQTT's retained messages) that is all: a device that begins to listen later gets
the chunk from the broker, and nobody has to be waited for. Where it does not, or where a device of
an older version would not hear it, a chunk is published at once when nobody else is expected to
begin to listen, else when none has begun to for a while.

A device that asks for what it can still hear gets no answer: it is on its way, or will be asked for
again. What devices say that they have missed (negative acknowledgements, RFC 5740) is gathered for
a moment and published once more for all of them, only those chunks; who misses a chunk that often
that it is nobody else's fault gets it alone.
"""

import heapq
import math
from collections import deque
from collections.abc import Collection, Iterable
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
KEPT_S: Final = 600.0
"""How long a chunk that the broker keeps counts as there."""
MERGE_S: Final = 0.15
"""How long repairs are gathered."""
MERGED: Final = 2
"""How often a device's want of one chunk is met by publishing it; then it is sent alone."""
IDLE_S: Final = 120.0
"""A cast that nobody asks for this long is forgotten."""


@dataclass(slots=True)
class Cast:
    """One blob on its way to many devices; times are of one monotonic clock."""

    ref: BlobRef
    keep: bool = False  # whether the broker is to keep the chunks
    devices: set[DeviceId] = field(default_factory=set)
    deaf: set[DeviceId] = field(default_factory=set)  # of them, who do not hear what is kept
    absent: set[DeviceId] = field(default_factory=set)  # of them, who lost their connection
    chunk: int = 0
    used_s: float = 0.0
    listening: dict[DeviceId, float] = field(default_factory=dict)
    published: dict[int, float] = field(default_factory=dict)  # when; infinity: it will be
    kept: set[int] = field(default_factory=set)
    pending: list[tuple[float, int]] = field(default_factory=list)  # a heap: (when, offset)
    repairs: deque[tuple[float, int]] = field(default_factory=deque)
    _fits: set[DeviceId] = field(default_factory=set)  # who asked for chunks of this size
    _wants: dict[tuple[DeviceId, int], int] = field(default_factory=dict)
    _begin_s: float = 0.0
    _joined_s: float = 0.0  # when the last one began to listen

    def add(self, devices: Iterable[DeviceId], now: float, deaf: Collection[DeviceId] = ()) -> None:
        """Expect these devices too; the `deaf` of them hear only what goes by."""
        self.devices.update(devices)
        self.deaf.update(deaf)
        self.used_s = now

    def leave(self, device: DeviceId) -> None:
        """Expect a device no longer, until it asks for what is broadcast."""
        if device in self.devices:
            self.absent.add(device)
            self.listening.pop(device, None)

    def ask(
        self,
        device: DeviceId,
        chunk: int,
        offsets: list[int],
        *,
        repair: bool,
        now: float,
        alone: bool = False,
    ) -> list[int]:
        """Take a device's request; return what is to be sent to it alone.

        `alone`: all, as it says itself.
        """
        self.used_s = now
        if alone:
            self.leave(device)
        if alone or device not in self.devices:
            return offsets
        self.absent.discard(device)
        if device not in self.listening:
            self.listening[device] = self._joined_s = now
        self.chunk = self.chunk or chunk
        if chunk != self.chunk:  # the device's packets are smaller, or larger
            return [o for o in offsets if not self._coming(device, chunk, o, now)]
        self._fits.add(device)
        self._begin_s = self._begin_s or now + self._gather_s
        take = self._repair if repair else self._want
        return [offset for offset in offsets if not take(device, offset, now)]

    def _coming(self, device: DeviceId, chunk: int, offset: int, now: float) -> bool:
        """Return whether a device only lost patience, and asks for parts of what is on its way."""
        at = self.published.get(offset - offset % self.chunk)
        return chunk < self.chunk and device in self._fits and at is not None and now - at < FRESH_S

    def _want(self, device: DeviceId, offset: int, now: float) -> bool:
        """Return whether the device hears a chunk, or will."""
        at, since = self.published.get(offset), self.listening[device]
        if at is not None and offset in self.kept and now - at > KEPT_S:
            self.kept.discard(offset)
            at = None
        if at is None:
            self._publish(offset, now if self._keeping else max(now, self._begin_s))
        elif at == math.inf or self._kept_for(device, offset):
            pass
        elif at < since and self._late(offset, at) >= 2:
            self._publish(offset, now + self._gather_s)
        else:
            return at >= since and now - at <= FRESH_S
        return True

    def _repair(self, device: DeviceId, offset: int, now: float) -> bool:
        """Return whether what a device has missed is published once more."""
        at = self.published.get(offset)
        if at is None:
            return self._want(device, offset, now)
        if at == math.inf or (self._kept_for(device, offset) and now - at < FRESH_S):
            return True  # a broker that has so much to hand over is slow
        times = self._wants[device, offset] = self._wants.get((device, offset), 0) + 1
        if times <= MERGED:
            self.published[offset] = math.inf
            self.repairs.append((now + MERGE_S, offset))
        return times <= MERGED

    def _kept_for(self, device: DeviceId, offset: int) -> bool:
        return offset in self.kept and device not in self.deaf

    def _publish(self, offset: int, when: float) -> None:
        self.published[offset] = math.inf  # those who begin to listen until then will hear it
        heapq.heappush(self.pending, (when, offset))

    @property
    def _gather_s(self) -> float:
        return min(GATHER_MOST_S, max(GATHER_S, GATHER_EACH_S * len(self.devices)))

    @property
    def _keeping(self) -> bool:
        """Whether every device that is here hears what the broker keeps."""
        return self.keep and self.deaf <= self.absent

    def _expected(self) -> int:
        """Return how many have not begun to listen yet."""
        return len(self.devices) - len(self.absent) - len(self.listening)

    def _late(self, offset: int, at: float) -> int:
        """Return how many missed, or will have missed, a chunk that went by at a time."""
        hearing = self.deaf if offset in self.kept else self.devices
        return sum(
            self.listening.get(device, math.inf) > at
            for device in hearing
            if device not in self.absent
        )

    @property
    def waiting(self) -> bool:
        """Whether something is to be published, now or later."""
        return bool(self.pending or self.repairs)

    def take(self, now: float) -> tuple[int, bool] | None:
        """Return the offset of a chunk to publish now and whether the broker keeps it, or None."""
        if self.repairs and self.repairs[0][0] <= now:
            _, offset = self.repairs.popleft()
            keep = False
        elif self.pending and self._pending_s(now) <= 0:
            _, offset = heapq.heappop(self.pending)
            keep = self._keeping and offset not in self.kept
        else:
            return None
        self.published[offset] = now
        if keep:
            self.kept.add(offset)
        return offset, keep

    def wait_s(self, now: float) -> float:
        """Return how long the next chunk that waits has to."""
        repair = self.repairs[0][0] - now if self.repairs else math.inf
        return min(repair, self._pending_s(now) if self.pending else math.inf)

    def _pending_s(self, now: float) -> float:
        if self._keeping or self._expected() <= 0:
            return 0.0
        when = self.pending[0][0]
        return min(max(when, self._joined_s + self._gather_s), when + LONGEST_S) - now

    def release(self) -> list[int]:
        """Have nothing kept any more; return the offsets that were."""
        self.keep = False
        kept = sorted(self.kept)
        self.kept.clear()
        return kept

    def lose(self) -> None:
        """Note that the broker may have lost what it kept."""
        for offset in self.kept:
            self.published.pop(offset, None)
        self.kept.clear()

    def idle(self, now: float) -> bool:
        """Return whether nobody wants this any more."""
        return now - self.used_s > IDLE_S
