"""The two halves of a stream as rows of bytes: what is on its way out, and what has come in.

A message is its length in four bytes, then itself. Where packets cut the row is of no meaning, so
what was lost may be sent again in other, smaller pieces.
"""

import bisect
import struct
from collections import deque
from typing import Final

from skerry_protos.errors import PeerError
from skerry_protos.session.frames import Buffer

LENGTH: Final = struct.Struct("<I")
SMALL: Final = 4096
"""Pieces below this are gathered, so that tiny packets do not cost many times their bytes."""
HELD: Final = 4096
"""Pieces kept after gaps; more are dropped, and come again."""


class Outflow:
    """Bytes written and not yet known to have arrived; offsets count from the stream's begin."""

    def __init__(self) -> None:
        self.acked = 0
        self.written = 0
        self._parts: deque[bytes] = deque()
        self._starts: deque[int] = deque()
        self._at = 0  # index of the part where the last read ended

    def write(self, message: bytes) -> None:
        """Append one message."""
        self._append(LENGTH.pack(len(message)))
        if message:
            self._append(message)

    def _append(self, part: bytes) -> None:
        self._parts.append(part)
        self._starts.append(self.written)
        self.written += len(part)

    def read(self, offset: int, size: int) -> list[Buffer]:
        """Return the parts of `size` bytes from `offset`, all of them unacknowledged."""
        index = self._at
        if index >= len(self._parts) or self._starts[index] > offset:
            index = 0
        while self._starts[index] + len(self._parts[index]) <= offset:
            index += 1
        found: list[Buffer] = []
        while size > 0:
            part, skip = self._parts[index], offset - self._starts[index]
            take = min(size, len(part) - skip)
            found.append(part if take == len(part) else memoryview(part)[skip : skip + take])
            offset, size = offset + take, size - take
            if skip + take == len(part):
                index += 1
        self._at = index
        return found

    def ack(self, received: int) -> bool:
        """Forget what has arrived; return whether that is more than before."""
        if not self.acked < received <= self.written:
            return False
        self.acked = received
        while self._parts and self._starts[0] + len(self._parts[0]) <= received:
            self._parts.popleft()
            self._starts.popleft()
            self._at = max(0, self._at - 1)
        return True


class Inflowing:
    """Bytes that have arrived: those in a row, and those that wait for a gap to close."""

    def __init__(self) -> None:
        self.received = 0  # every byte before this one has arrived
        self.taken = 0  # bytes of the row that were handed out
        self._row: deque[Buffer] = deque()
        self._skip = 0  # bytes of the first part that were handed out
        self._held: dict[int, Buffer] = {}
        self._order: list[int] = []

    @property
    def held(self) -> int:
        """Where what has arrived after a gap begins; 0 when there is no gap."""
        return self._order[0] if self._order else 0

    @property
    def waiting(self) -> int:
        """How many bytes of the row can be taken."""
        return self.received - self.taken

    def put(self, offset: int, data: memoryview, limit: int) -> bool:
        """Keep a piece; return whether it lengthens the row; raise PeerError beyond `limit`."""
        end = offset + len(data)
        if end > limit:
            raise PeerError(f"a stream's bytes reach {end}, its credit {limit}")
        if end <= self.received or not data:
            return False
        if offset > self.received:
            self._hold(offset, data)
            return False
        self._append(data[self.received - offset :] if offset < self.received else data)
        while self._order and self._order[0] <= self.received:
            start = self._order.pop(0)
            piece = memoryview(self._held.pop(start))
            if start + len(piece) > self.received:
                self._append(piece[self.received - start :])
        return True

    def _hold(self, offset: int, data: memoryview) -> None:
        known = self._held.get(offset)
        if known is None:
            if len(self._order) >= HELD:
                return
            bisect.insort(self._order, offset)
        elif len(known) >= len(data):
            return
        self._held[offset] = data if len(data) >= SMALL else bytes(data)

    def _append(self, data: memoryview) -> None:
        self.received += len(data)
        last = self._row[-1] if self._row else None
        if len(data) >= SMALL:
            self._row.append(data)
        elif isinstance(last, bytearray) and len(last) < SMALL:
            last += data
        else:
            self._row.append(bytearray(data))

    def take_message(self, longest: int) -> bytes | int:
        """Return the next message, or how many bytes of the row it needs before it is whole."""
        if self.waiting < LENGTH.size:
            return LENGTH.size
        size: int = LENGTH.unpack(self._bytes(LENGTH.size, keep=True))[0]
        if size > longest:
            raise PeerError(f"a stream's message has {size} bytes, the limit is {longest}")
        if self.waiting < LENGTH.size + size:
            return LENGTH.size + size
        self._bytes(LENGTH.size)
        return self._bytes(size)

    def drop(self) -> None:
        """Throw the row away: nobody will read it."""
        self._row.clear()
        self._skip = 0
        self.taken = self.received

    def _bytes(self, size: int, *, keep: bool = False) -> bytes:
        first = self._row[0] if size else b""
        if len(first) - self._skip >= size:
            found = bytes(memoryview(first)[self._skip : self._skip + size])
        else:
            found = self._gather(size)
        if not keep:
            self._advance(size)
        return found

    def _gather(self, size: int) -> bytes:
        parts: list[Buffer] = []
        skip = self._skip
        for part in self._row:
            piece = memoryview(part)[skip : skip + size]
            parts.append(piece)
            skip, size = 0, size - len(piece)
            if size == 0:
                break
        return b"".join(parts)

    def _advance(self, size: int) -> None:
        self.taken += size
        while size:
            left = len(self._row[0]) - self._skip
            if size < left:
                self._skip += size
                return
            size -= left
            self._row.popleft()
            self._skip = 0
