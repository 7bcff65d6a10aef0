"""One blob on its way in: ask for chunks within a window, and ask again.

The receiver drives. Chunks asked for and not here are `_asked`; on a wire that loses packets
those overdue are asked for again as repairs, the window shrinks (additive increase, multiplicative
decrease), and chunks that keep failing are asked for in smaller pieces.
"""

import asyncio
import zlib
from collections.abc import Callable
from typing import Final

from skerry_protos.errors import (
    PeerError,
    SkerryError,
)
from skerry_protos.messages import BlobRef
from skerry_protos.seams import Partial
from skerry_protos.session.lanes import SMALLEST_CHUNK, Lanes
from skerry_protos.session.limits import Inflow, Limits
from skerry_protos.session.timing import LONGEST_S, RoundTrip
from skerry_protos.v1 import fleet_pb2 as pb

RELIABLE_TIMEOUT_S: Final = 30.0
"""On a wire that loses nothing, the other side must have dropped the request by then."""
FIRST_WINDOW: Final = 4
SILENT_S: Final = 10.0
"""So long without one chunk of those asked for: then chunks become a quarter as large. A slow path
may need seconds for one; what is on its way would be sent twice."""
SHRINK: Final = 4
PARTS: Final = 16
"""Chunks of a blob, at least, where they are not finer than FINEST: a cut costs 3 % of it."""
FINEST: Final = 64 * 1024
RELIABLE_CHUNK: Final = 128 * 1024
"""Largest chunk on a wire that loses nothing. The core of gRPC keeps about twice the largest
message for each connection: chunks of 512 KiB took 40 MB more from a coordinator of 40 devices.
256 KiB take a tenth less processor time a round, but with 100 devices too much memory."""
LEAD_S: Final = 5.0
"""On a wire that loses nothing, no more chunks are under way than come in so many seconds: what is
said meanwhile, pings too, has to wait behind them."""
STALLED_S: Final = 5.0
"""A session that gets nothing for so long lets another one that offers the blob try."""


OnAsk = Callable[[BlobRef, list[int], bool], None]
"""Told which chunks are asked for and which come next; or which are asked for again."""


def chunk_of(size: int, lanes: Lanes) -> int:
    """Return the size of a blob's chunks: half of one is lost with a cut, on average."""
    share = -(-size // PARTS)
    most = min(lanes.chunk, RELIABLE_CHUNK) if lanes.reliable else lanes.chunk
    return min(most, max(FINEST, 1 << max(0, share - 1).bit_length()))


class _Asked:
    """One chunk that was asked for."""

    __slots__ = ("again", "at_s", "first_s", "size")

    def __init__(self, size: int, at_s: float) -> None:
        self.size = size
        self.first_s = self.at_s = at_s
        self.again = False  # whether it was asked for more than once


class Transfer:
    """One blob that this session is fetching; `done` is set when every byte is here."""

    def __init__(
        self,
        ref: BlobRef,
        partial: Partial,
        lanes: Lanes,
        limits: Limits,
        inflow: Inflow,
        *,
        round_trip: RoundTrip,
        on_ask: OnAsk | None = None,
    ) -> None:
        """Fetch into `partial`; `round_trip` is what this session knows of chunks' times."""
        self.ref = ref
        self.partial = partial
        self._digest = bytes.fromhex(ref.digest)
        self._lanes = lanes
        self._limits = limits
        self._inflow = inflow
        self._on_ask = on_ask
        self._round_trip = round_trip
        self._loop = asyncio.get_running_loop()
        self.done: asyncio.Future[None] = self._loop.create_future()
        self._asked: dict[int, _Asked] = {}
        self._cursor = 0
        self._serial = 0
        self._window = float(FIRST_WINDOW)
        self._tries = 0  # time-outs since a chunk came that was asked for once
        self._timer: asyncio.TimerHandle | None = None
        self.moved_s = self._heard_s = self._loop.time()
        self._looked_s = self._begun_s = self._heard_s
        self._gap_s = 0.0
        self._got = 0  # bytes since `_begun_s`
        self._finish()

    def attach(self) -> None:
        """Ask on the new wire for what is missing."""
        self.partial.chunk = chunk_of(self.ref.size, self._lanes)
        self._window = float(FIRST_WINDOW)
        self._cursor = self._tries = self._got = 0
        self.moved_s = self._heard_s = self._begun_s = self._loop.time()
        self.pump()

    def detach(self) -> None:
        """Give up what was asked for on the old wire."""
        self._forget()

    def _forget(self) -> None:
        for asked in self._asked.values():
            self._inflow.give(asked.size)
        self._asked.clear()
        self._inflow.leave(self.pump)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def end(self, error: SkerryError | None = None) -> None:
        """Stop asking; with an error, fail."""
        self._forget()
        if error is not None and not self.done.done():
            self.done.set_exception(error)
            self.done.exception()

    @property
    def _most(self) -> int:
        if self._lanes.reliable:
            # As many bytes as the wire's own chunks would be.
            most = self._limits.window * max(1, self._lanes.chunk // self.partial.chunk)
            rate = self._got / max(self._loop.time() - self._begun_s, 1e-6)
            return min(most, max(FIRST_WINDOW, int(LEAD_S * rate / self.partial.chunk)))
        return max(1, min(self._limits.window, int(self._window)))

    def pump(self) -> None:
        """Ask for more chunks, as many as window and fan-in allow."""
        if self._lanes.wire is None or self.done.done():
            self._inflow.leave(self.pump)
            return
        most = self._most
        room = most - len(self._asked)
        if room <= 0 or (self._asked and room < most // 2):
            return
        chunk, size = self.partial.chunk, self.ref.size
        now = self._loop.time()
        offsets: list[int] = []
        missing = self.partial.missing(room, self._cursor)
        if not missing and not self._asked:
            missing = self.partial.missing(room)  # something asked for was lost on the way here
        for offset in missing:
            length = min(chunk, size - offset)
            if not self._inflow.take(length):
                self._inflow.wait(self.pump)
                break
            self._asked[offset] = _Asked(length, now)
            self._cursor = offset + chunk
            offsets.append(offset)
        if offsets:
            self._request(offsets, repair=False)

    def _request(self, offsets: list[int], *, repair: bool) -> None:
        self._serial += 1
        request = pb.BlobRequest(
            digest=self._digest,
            size=self.ref.size,
            chunk=self.partial.chunk,
            offsets=offsets,
            repair=repair,
            bare=self._lanes.exact,
            alone=self._lanes.shrunk,
        )
        if self._on_ask is not None and not repair and not self._lanes.shrunk:
            again = self._asked[offsets[0]].again
            ahead = [] if again else self.partial.missing(self._limits.window, self._cursor)
            self._on_ask(self.ref, offsets + ahead, again)
        key = ("request", self._digest, self._serial)
        self._lanes.control(key, pb.Frame(blob_request=request))
        self._arm()

    def _arm(self) -> None:
        if self._timer is None and self._asked:
            wait = self._due_s() - self._loop.time()
            self._timer = self._loop.call_later(max(0.01, wait), self._look)

    def _due_s(self) -> float:
        """Return when to ask again, unless something comes until then.

        A slow path has chunks on their way for long, one after the other: what comes at all says
        that the others come, too.
        """
        oldest = next(iter(self._asked.values())).at_s
        return max(oldest, self._heard_s, self._looked_s) + self._timeout_s()

    def _timeout_s(self) -> float:
        if self._lanes.reliable:
            return RELIABLE_TIMEOUT_S
        return max(self._round_trip.timeout_s(self._tries), min(2 * self._gap_s, LONGEST_S))

    def _look(self) -> None:
        """Ask again, as repairs, for the chunks that are overdue."""
        self._timer = None
        if self._lanes.wire is None or self.done.done():
            return
        now = self._loop.time()
        if self._asked and now >= self._due_s() - 0.001:
            before = now - self._timeout_s()
            overdue = [offset for offset, asked in self._asked.items() if asked.at_s <= before]
            overdue = overdue or [next(iter(self._asked))]
            if self._heard_s <= self._asked[overdue[0]].at_s:
                del overdue[1:]  # nothing has come: it may be lost, or slower than was thought
            self._looked_s = now
            self._window = max(1.0, self._window / 2)
            self._tries += 1
            seen = self._lanes.shrunk or all(self._asked[offset].again for offset in overdue)
            if self._on_ask is not None and not seen:
                self._ask_again(overdue, repair=False)  # of the broker, which may still have them
                self._arm()
                return
            since = max(self._heard_s, min(each.first_s for each in self._asked.values()))
            if now - since >= SILENT_S and self.partial.chunk > SMALLEST_CHUNK:
                self._shrink()
                return
            self._ask_again(overdue)
        self._arm()

    def _ask_again(self, offsets: list[int], *, repair: bool = True) -> None:
        now = self._loop.time()
        for offset in offsets:
            asked = self._asked.pop(offset)
            asked.at_s, asked.again = now, True
            self._asked[offset] = asked  # at the end: the oldest come first
        self._request(offsets, repair=repair)

    def _shrink(self) -> None:
        """Ask for smaller chunks from now on."""
        self.partial.chunk = max(SMALLEST_CHUNK, self.partial.chunk // SHRINK)
        self._forget()
        self._cursor = 0
        self.pump()

    def take(self, offset: int, crc32: int | None, data: memoryview) -> None:
        """Keep a chunk, asked for or from a broadcast; None: it has no CRC."""
        if self.done.done():
            return
        self._hear()
        if not self._lanes.exact and (crc32 is None or zlib.crc32(data) != crc32):
            base = offset // self.partial.chunk * self.partial.chunk
            if base in self._asked:
                self._ask_again([base])
            return
        try:
            new = self.partial.write(offset, data)
        except PeerError:
            raise
        except SkerryError as error:
            self.end(error)
            return
        self._arrived(offset, len(data), new=new)
        self._finish()
        self.pump()

    def _hear(self) -> None:
        """Note that a chunk came, and how long after the one before, or after it was asked for."""
        now = self._loop.time()
        if self._asked and not self._lanes.reliable:
            since = min(each.first_s for each in self._asked.values())
            self._gap_s = now - max(self._heard_s, since)
        self._heard_s = now

    def _arrived(self, offset: int, size: int, *, new: bool) -> None:
        base = offset // self.partial.chunk * self.partial.chunk
        asked = self._asked.get(base)
        now = self._loop.time()
        if new:
            self.moved_s = now
            self._got += size
            self._lanes.moved(size)
        if asked is None:
            return
        if size < asked.size and self.partial.missing(1, base) == [base]:
            return  # a part of it
        del self._asked[base]
        self._inflow.give(asked.size)
        if not asked.again or not self._round_trip.smoothed_s:
            # Only now: else a path slower than the first time-out has every chunk sent twice. Of
            # one that was asked for again it is not known which request it answers; taken from
            # the first, it is too long rather than too short.
            self._tries = 0
            self._round_trip.sample(now - asked.first_s)
            self._window = min(float(self._limits.window), self._window + 1 / self._window)

    def _finish(self) -> None:
        if self.partial.complete and not self.done.done():
            self._forget()
            self.done.set_result(None)
