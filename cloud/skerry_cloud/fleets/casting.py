"""Which chunks of a blob are published once for many devices, and which for one alone.

The first device that asks for a chunk has it published for all who listen. Nothing is published
before all have begun to listen, or GATHER_S have passed since the first. A device that asks for
what went by after it began to listen gets no answer: it is on its way, or will be asked for again.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from skerry_protos.messages import BlobRef, DeviceId

GATHER_S: Final = 0.15
FRESH_S: Final = 10.0
"""How long a published chunk counts as on its way."""
IDLE_S: Final = 120.0
"""A cast that nobody asks for this long is forgotten."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What to do about a request: offsets to publish for all, and to send to the one that asked."""

    publish: list[int]
    alone: list[int]


@dataclass(slots=True)
class Cast:
    """One blob on its way to many devices; times are of one monotonic clock."""

    ref: BlobRef
    devices: set[DeviceId] = field(default_factory=set)
    absent: set[DeviceId] = field(default_factory=set)  # of them, who lost their connection
    chunk: int = 0
    begin_s: float = 0.0  # when publishing may begin; 0 before the first request
    used_s: float = 0.0
    listening: dict[DeviceId, float] = field(default_factory=dict)
    published: dict[int, float] = field(default_factory=dict)

    def add(self, devices: Iterable[DeviceId], now: float) -> None:
        """Expect these devices too."""
        self.devices.update(devices)
        self.used_s = now

    def leave(self, device: DeviceId) -> None:
        """Expect a device no longer, until it asks again."""
        if device in self.devices:
            self.absent.add(device)
            self.listening.pop(device, None)

    def _expected(self) -> set[DeviceId]:
        """Return who has not begun to listen yet."""
        return self.devices - self.absent - self.listening.keys()

    def ask(
        self, device: DeviceId, chunk: int, offsets: list[int], *, repair: bool, now: float
    ) -> Answer:
        """Return how to answer a device's request for chunks."""
        self.used_s = now
        if device not in self.devices or repair:
            return Answer([], offsets)
        self.absent.discard(device)
        since = self.listening.setdefault(device, now)
        self.chunk = self.chunk or chunk
        if chunk != self.chunk:  # the device's packets are smaller, or larger
            return Answer([], offsets)
        self.begin_s = self.begin_s or now + GATHER_S
        if not self._expected():
            self.begin_s = min(self.begin_s, now)
        publish, alone = [], []
        for offset in offsets:
            at = self.published.get(offset)
            if at is None or (at < since and self._missed_by_others(at)):
                publish.append(offset)
                # Not before publishing begins: those who begin to listen until then hear it.
                self.published[offset] = max(now, self.begin_s)
            elif at < since or now - at > FRESH_S:
                alone.append(offset)
        return Answer(publish, alone)

    def _missed_by_others(self, at: float) -> bool:
        """Return whether two or more devices were not listening yet when something went by."""
        late = sum(since > at for since in self.listening.values())
        return late + len(self._expected()) >= 2

    def idle(self, now: float) -> bool:
        """Return whether nobody wants this any more."""
        return now - self.used_s > IDLE_S
