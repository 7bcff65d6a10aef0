"""How much of everything one session holds, and what a fleet's sessions may ask for together."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from skerry_protos.messages import BLOB_SIZE_LIMIT, Digest


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds of one session; what passes them is refused, never queued without end."""

    parcels_out: int = 32  # parcels on the wire that are not answered yet; more wait their turn
    parcels_in: int = 64  # parcels being accepted at once
    parcels_known: int = 4096  # answers kept to recognise a repeated parcel
    blob: int = BLOB_SIZE_LIMIT
    window: int = 16  # blob chunks asked for and not here yet, per blob, at most
    serving: int = 4096  # blob chunks the other side may be waiting for
    streams: int = 256  # streams the other side may have open
    stream_window: int = 4 * 1024**2  # bytes a stream's sender may be ahead of its reader
    streams_window: int = 64 * 1024**2  # the same for all streams together
    message: int = 64 * 1024**2  # largest message of a stream


class Inflow:
    """What the sessions that share it have asked for and not received yet: a fleet's fan-in.

    A broker's queue in front of the cloud is the scarce thing: mosquitto silently drops what passes
    1000 messages (RELIABILITY.md 0.1), so the sum over all devices is bounded, not each device's.
    It is also what fan-in costs the receiver in memory: each byte on its way is held several times
    over (in the core of gRPC, as a packet, as a chunk): 64 MiB took 50 MB more of the coordinator
    and moved 16 replies of 40 MB no faster than 8 MiB.

    It also lets one session at a time fetch a blob that several devices offer.
    """

    def __init__(self, *, chunks: int = 512, size: int = 8 * 1024**2) -> None:
        self.chunks = chunks
        self.size = size
        self.used_chunks = 0
        self.used_size = 0
        self._waiting: deque[Callable[[], None]] = deque()
        self._turns: dict[Digest, _Turn] = {}

    def take(self, size: int) -> bool:
        """Take room for one chunk; False when there is none now. One chunk always fits."""
        if self.used_chunks and (
            self.used_chunks >= self.chunks or self.used_size + size > self.size
        ):
            return False
        self.used_chunks += 1
        self.used_size += size
        return True

    def give(self, size: int) -> None:
        """Give the room of one chunk back; the one who has waited longest is told."""
        self.used_chunks -= 1
        self.used_size -= size
        if self._waiting:
            self._waiting.popleft()()

    def wait(self, told: Callable[[], None]) -> None:
        """Call `told` once when there is room again."""
        if told not in self._waiting:
            self._waiting.append(told)

    def leave(self, told: Callable[[], None]) -> None:
        """Stop waiting; if a call was due to someone gone, the next one gets it."""
        if told in self._waiting:
            self._waiting.remove(told)
        elif self._waiting and self.used_chunks < self.chunks:
            self._waiting.popleft()()

    @asynccontextmanager
    async def turn(self, digest: Digest) -> AsyncIterator[None]:
        """Wait for the turn to fetch a blob: one at a time, in order."""
        turn = self._turns.setdefault(digest, _Turn())
        turn.users += 1
        try:
            async with turn.lock:
                yield
        finally:
            turn.users -= 1
            if turn.users == 0:
                del self._turns[digest]

    def wanted(self, digest: Digest) -> bool:
        """Return whether more than one wants to fetch a blob."""
        return digest in self._turns and self._turns[digest].users > 1


class _Turn:
    """Who fetches one blob, and how many want to."""

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.users = 0
