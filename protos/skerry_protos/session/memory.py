"""A wire within one process: fast and reliable, or as bad as its `Faults` say.

It ships: simulations and tests of whole fleets run on it. `listen` is the cloud's part, `connect`
the device's; they meet by name.
"""

import asyncio
import random
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from skerry_protos.errors import LinkError

PACKETS: Final = 64
"""Packets on their way before the sender waits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Faults:
    """What goes wrong, each with a probability for one packet; the dice are seeded."""

    seed: int = 0
    drop: float = 0.0
    duplicate: float = 0.0
    reorder: float = 0.0  # it overtakes nothing, but is overtaken by those of the next moment
    corrupt: float = 0.0  # one bit flips
    cut: float = 0.0  # both directions end
    cut_after: int = 0  # bytes one way after which both end, what passed before arrives; 0: never
    delay_s: float = 0.0
    bytes_per_s: float = 0.0  # each way; packets wait behind each other; 0: no limit
    max_packet: int = 4 * 1024**2
    chunk: int = 512 * 1024

    @property
    def reliable(self) -> bool:
        """Whether every packet arrives once, in order and unhurt."""
        return not (self.drop or self.duplicate or self.reorder or self.corrupt)


class _Way:
    """One direction."""

    def __init__(self, faults: Faults, seed: str) -> None:
        self._faults = faults
        slow = faults.delay_s or faults.bytes_per_s
        self._simple = faults.reliable and not (faults.cut or slow)
        self._thrown = 0
        self._dice = random.Random(seed)  # noqa: S311 - faults must be the same for the same seed
        self.packets: deque[bytes] = deque()
        self.under_way = 0
        self._due_s = self._free_s = 0.0
        self.finished = False
        self.readable = asyncio.Event()
        self.writable = asyncio.Event()
        self.writable.set()

    def put(self, packet: bytes) -> None:
        self.packets.append(packet)
        self.readable.set()
        if len(self.packets) + self.under_way >= PACKETS:
            self.writable.clear()

    def take(self) -> bytes:
        packet = self.packets.popleft()
        if not self.packets:
            self.readable.clear()
        if not self.writable.is_set() and len(self.packets) + self.under_way < PACKETS // 2:
            self.writable.set()
        return packet

    def worn(self, packet: bytes) -> bool:
        """Return whether the packet is more than the wire bears."""
        self._thrown += len(packet)
        return 0 < self._faults.cut_after < self._thrown

    def throw(self, packet: bytes) -> bool:
        """Send a packet through the faults; False when the wire is cut by it."""
        if self._simple:
            self.put(packet)
            return True
        faults, dice = self._faults, self._dice.random
        if dice() < faults.cut:
            return False
        if dice() < faults.drop:
            return True
        if dice() < faults.corrupt:
            hurt = bytearray(packet)
            hurt[int(dice() * len(hurt))] ^= 1 << int(dice() * 8)
            packet = bytes(hurt)
        for _ in range(2 if dice() < faults.duplicate else 1):
            late = 0.001 + 0.01 * dice() if dice() < faults.reorder else 0.0
            self._after(packet, self._wait_s(len(packet)) + faults.delay_s, late)
        return True

    def _wait_s(self, size: int) -> float:
        """Return how long a packet takes that has to wait for those before it."""
        if not self._faults.bytes_per_s:
            return 0.0
        now = asyncio.get_running_loop().time()
        self._free_s = max(now, self._free_s) + size / self._faults.bytes_per_s
        return self._free_s - now

    def _after(self, packet: bytes, delay_s: float, late_s: float) -> None:
        if not (delay_s or late_s):
            self.put(packet)
            return
        loop = asyncio.get_running_loop()
        self.under_way += 1
        due_s = loop.time() + delay_s + late_s
        if not late_s:
            # Timers of the same moment fire in any order, packets must not.
            due_s = self._due_s = max(due_s, self._due_s + 1e-6)
        loop.call_at(due_s, self._arrive, packet)

    def _arrive(self, packet: bytes) -> None:
        self.under_way -= 1
        self.put(packet)


class MemoryEnd:
    """One end of a wire: a Wire that is also read."""

    def __init__(self, faults: Faults, outward: _Way, inward: _Way, cut: asyncio.Event) -> None:
        self.max_packet = self.max_received = faults.max_packet
        self.chunk = faults.chunk
        self.reliable = faults.reliable
        self.exact = not faults.corrupt
        self.silent = False  # what is sent is swallowed, and nothing is received
        self.sent_packets = 0
        self._outward = outward
        self._inward = inward
        self._cut = cut

    async def send(self, packet: bytes) -> None:
        """Send one packet, waiting while too many are under way."""
        way = self._outward
        if len(packet) > self.max_packet:
            raise LinkError(f"a packet of {len(packet)} bytes, the wire takes {self.max_packet}")
        await way.writable.wait()
        if self._cut.is_set():
            raise LinkError("the wire was cut")
        self.sent_packets += 1
        if self.silent:
            await asyncio.sleep(0)
        elif way.worn(packet):
            self.finish()
        elif not way.throw(packet):
            self.close()
        elif self.sent_packets % (PACKETS // 4) == 0:
            await asyncio.sleep(0)  # let the reader and others have their turn

    async def receive(self) -> bytes:
        """Return the next packet; raise LinkError once the wire is cut."""
        way = self._inward
        while not self._cut.is_set() or (way.finished and (way.packets or way.under_way)):
            if way.packets:
                packet = way.take()
                if self.silent:
                    continue
                return packet
            way.readable.clear()
            await way.readable.wait()
        raise LinkError("the wire was cut")

    async def read(self, take: Callable[[bytes], None]) -> None:
        """Hand over every packet from now on; raise LinkError once the wire is cut."""
        while True:
            take(await self.receive())

    def finish(self) -> None:
        """Close the wire; what was sent this way can still be read at the other end."""
        self._outward.finished = True
        self.close()

    def close(self) -> None:
        """Cut the wire, both ways."""
        self._cut.set()
        for way in (self._inward, self._outward):
            way.readable.set()
            way.writable.set()


def memory_wire(faults: Faults | None = None) -> tuple[MemoryEnd, MemoryEnd]:
    """Return the two ends of a new wire."""
    faults = faults or Faults()
    one, other = _Way(faults, f"{faults.seed} there"), _Way(faults, f"{faults.seed} back")
    cut = asyncio.Event()
    return MemoryEnd(faults, one, other, cut), MemoryEnd(faults, other, one, cut)


Accept = Callable[[MemoryEnd], Awaitable[None]]

_listening: dict[str, Callable[[], MemoryEnd]] = {}


@contextmanager
def listen(name: str, connected: Callable[[], MemoryEnd]) -> Iterator[None]:
    """Have `connect(name)` return what `connected` returns."""
    if name in _listening:
        raise LinkError(f"memory://{name} is taken")
    _listening[name] = connected
    try:
        yield
    finally:
        del _listening[name]


def connect(name: str) -> MemoryEnd:
    """Return the device's end of a new wire to who listens under `name`."""
    connected = _listening.get(name)
    if connected is None:
        raise LinkError(f"memory://{name}: nobody listens")
    return connected()
