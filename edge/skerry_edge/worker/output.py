"""What a worker prints: kept up to a limit, its end always, the rest counted and dropped.

The pipe is always drained: an app that prints a gigabyte is neither blocked nor believed.
"""

import asyncio
import os
from collections.abc import Callable
from time import time

CHUNK = 1 << 16
TAIL = 8 * 1024
LINE_LIMIT = 2000

OnLine = Callable[[float, str], None]


class Output:
    """Reads the pipe that is a worker's stdout and stderr."""

    def __init__(self) -> None:
        self._read, self.write = os.pipe()
        os.set_blocking(self._read, False)
        self._on_line: OnLine | None = None
        self._limit = 0
        self._kept = 0
        self._dropped = 0
        self._tail = b""
        self._line = b""
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._read, self._drain)

    def begin(self, limit: int, on_line: OnLine | None) -> None:
        """Begin a new task's output; `on_line` gets (time, text) until `limit` bytes were kept."""
        self._limit, self._on_line = limit, on_line
        self._kept = self._dropped = 0
        self._tail = self._line = b""

    def settle(self) -> None:
        """Take what the worker has printed so far, as far as it is bounded."""
        for _ in range(64):
            if not self._drain():
                break
        if self._line:
            self._emit(self._line)
            self._line = b""
        if self._dropped and self._on_line:
            self._on_line(time(), self.cut_notice())

    @property
    def dropped(self) -> int:
        """Return how many bytes were printed beyond the limit."""
        return self._dropped

    def cut_notice(self) -> str:
        """Return the line that says output was cut."""
        return f"[output cut: {self._dropped} bytes beyond the limit of {self._limit} were dropped]"

    def tail(self) -> str:
        """Return the last lines the worker printed."""
        text = self._tail.decode(errors="replace")
        return f"{self.cut_notice()}\n{text}" if self._dropped else text

    def close(self) -> None:
        """Stop reading."""
        self._loop.remove_reader(self._read)
        os.close(self._read)

    def close_write(self) -> None:
        """Close our copy of the worker's end, once it has its own."""
        os.close(self.write)

    def _drain(self) -> bool:
        """Take one chunk; return whether there may be more."""
        try:
            data = os.read(self._read, CHUNK)
        except BlockingIOError:
            return False
        if not data:
            self._loop.remove_reader(self._read)
            return False
        self._take(data)
        return True

    def _take(self, data: bytes) -> None:
        self._tail = (self._tail + data)[-TAIL:] if len(data) < TAIL else data[-TAIL:]
        room = max(0, self._limit - self._kept)
        kept = data[:room]
        self._kept += len(kept)
        self._dropped += len(data) - len(kept)
        if kept and self._on_line:
            *lines, rest = (self._line + kept).split(b"\n")
            for line in lines:
                self._emit(line)
            self._line = rest if len(rest) <= LINE_LIMIT else b""
            if not self._line and rest:
                self._emit(rest)

    def _emit(self, line: bytes) -> None:
        if self._on_line and line.strip():
            self._on_line(time(), line[:LINE_LIMIT].decode(errors="replace"))
