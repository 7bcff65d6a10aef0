"""A blob on its way in: a sparse file, and beside it a map of what has arrived.

The map has a byte for each STEP of the blob, so the size of chunks may change at any time. It is
written after the data it speaks of; a killed process loses nothing.
"""

import contextlib
import hashlib
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from skerry_protos.disk import disk_error
from skerry_protos.errors import PeerError
from skerry_protos.messages import Digest

STEP: Final = 4096
"""Arrivals are noted in steps of so many bytes; every chunk is a multiple of it."""
BLOCK: Final = 1024**2
"""Bytes hashed at a time."""


class LocalPartial:
    """What has arrived of one blob; made by LocalBlobs.begin."""

    def __init__(
        self, folder: Path, name: str, size: int, let_go: Callable[["LocalPartial"], bool]
    ) -> None:
        self.name = name
        self.size = size
        self.chunk = STEP
        self.users = 0
        self.path = folder / f"{name}.part"
        self._lock = threading.Lock()  # held while it is committed
        self.named = False
        self.discarded = False
        self._map_path = folder / f"{name}.map"
        self._map = -1
        self._let_go = let_go
        self._steps = -(-size // STEP)
        self._sha = hashlib.sha256()
        self._hashed = 0
        self.file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            self._here = self._load()
        except BaseException:
            os.close(self.file)
            raise
        self._left = self._here.count(0)
        self._first = max(0, self._here.find(0)) if self._left else self._steps
        self.resumed = self._left < self._steps
        """Whether some of it was here before this process began."""

    def _load(self) -> bytearray:
        """Return the map of an earlier process, or an empty one when it makes no sense."""
        with contextlib.suppress(FileNotFoundError):
            here = bytearray(self._map_path.read_bytes())
            last = here.rfind(1)
            if (
                len(here) == self._steps
                and here.count(0) + here.count(1) == len(here)
                and os.fstat(self.file).st_size >= min(self.size, (last + 1) * STEP)
            ):
                return here
        return bytearray(self._steps)

    @property
    def complete(self) -> bool:
        """Whether every byte has arrived; not yet whether they are the right ones."""
        return self._left == 0

    def missing(self, limit: int, start: int = 0) -> list[int]:
        """Return up to `limit` offsets at or after `start` that are not all here, lowest first."""
        offsets: list[int] = []
        chunk, step = self.chunk, max(self._first, start // STEP)
        while len(offsets) < limit:
            step = self._here.find(0, step)
            if step < 0:
                break
            offset = step * STEP // chunk * chunk
            if offset >= start:
                offsets.append(offset)
            step = (offset + chunk) // STEP
        return offsets

    def write(self, offset: int, data: bytes | memoryview) -> bool:
        """Keep one chunk; return whether any of it was new; raise PeerError for a bad range.

        What is here already is never written again: it may have been hashed.
        """
        size = len(data)
        end = offset + size
        if offset % STEP or not 0 < size <= self.size - offset or (end % STEP and end != self.size):
            raise PeerError(
                f"a chunk of {size} bytes at {offset} does not fit a blob of {self.size}"
            )
        begin, stop = offset // STEP, -(-end // STEP)
        if self.file < 0 or self._here.find(0, begin, stop) < 0:
            return False
        try:
            if self._here.find(1, begin, stop) < 0:
                self._keep(begin, stop, data)
            else:
                for step in range(begin, stop):
                    if not self._here[step]:
                        at = step * STEP - offset
                        self._keep(step, step + 1, data[at : at + STEP])
        except OSError as error:
            raise disk_error(error, self.path, f"keep {self.size} bytes") from error
        return True

    def _keep(self, begin: int, stop: int, data: bytes | memoryview) -> None:
        offset = begin * STEP
        view = memoryview(data)
        while view:
            written = os.pwrite(self.file, view, offset)
            view, offset = view[written:], offset + written
        marks = b"\1" * (stop - begin)
        self._here[begin:stop] = marks
        self._left -= stop - begin
        if begin == self._first:
            first = self._here.find(0, stop)
            self._first = first if first >= 0 else self._steps
        if self._left:
            self._note(begin, marks)
        if begin * STEP == self._hashed:
            self._sha.update(data)
            self._hashed += len(data)
        elif self._hashed < self._first * STEP:
            self._hash(BLOCK)

    def _note(self, begin: int, marks: bytes) -> None:
        """Write to the map what has arrived; a blob that comes in one chunk needs none."""
        if self._map < 0:
            self._map = os.open(
                self._map_path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600
            )
            os.pwrite(self._map, self._here, 0)
        else:
            os.pwrite(self._map, marks, begin)

    def _hash(self, limit: int) -> None:
        """Hash up to `limit` bytes more of the prefix that is here, from the file."""
        end = min(self._first * STEP, self.size, self._hashed + limit)
        while self._hashed < end:
            block = os.pread(self.file, min(BLOCK, end - self._hashed), self._hashed)
            if not block:
                raise OSError(f"{self.path} is shorter than its map says")
            self._sha.update(block)
            self._hashed += len(block)

    def digest(self) -> Digest:
        """Return the digest of all bytes; reads only those that did not come in order."""
        self._hash(self.size)
        return Digest(self._sha.hexdigest())

    def discard(self) -> None:
        """Throw everything away."""
        self.discarded = True
        self.path.unlink(missing_ok=True)
        self.forget()

    def forget(self) -> None:
        """Stop writing: the file has its name, or is gone."""
        self.named = not self.discarded
        self._map_path.unlink(missing_ok=True)
        self._close()

    @contextlib.contextmanager
    def committing(self) -> Iterator[None]:
        """Hold the files open while another thread commits."""
        with self._lock:
            try:
                yield
            finally:
                if self.users <= 0:
                    self._close()

    def close(self) -> None:
        """Let go of the files; what has arrived stays for the next `begin`."""
        if self._let_go(self) and self._lock.acquire(blocking=False):
            try:
                self._close()
            finally:
                self._lock.release()

    def _close(self) -> None:
        for handle in (self.file, self._map):
            if handle >= 0:
                os.close(handle)
        self.file = self._map = -1
