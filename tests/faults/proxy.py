"""A TCP proxy that misbehaves on demand, for tests over real sockets."""

import asyncio
import contextlib
import random
import socket
import struct
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

BLOCK = 64 * 1024
HELD = 16 * 1024 * 1024
"""Bytes of one way that may be on their way: more than any delay here times any rate."""
LOOK_S = 0.02
LAST_S = 0.05


@dataclass(slots=True)
class _Way:
    """One direction of one connection."""

    upward: bool  # from whoever connected to the target
    blocks: asyncio.Queue[tuple[float, bytes]] = field(default_factory=asyncio.Queue)
    held: int = 0
    free_at: float = 0.0  # when the narrow link has room for the next byte


class FaultProxy:
    """Forwards to a port of 127.0.0.1; its attributes say what goes wrong from now on.

    `window` bounds what the kernel holds for each connection, so that a narrow proxy is felt by the
    sender as a narrow network would be.
    """

    def __init__(self, port: int, *, window: int = 0) -> None:
        self.target = port
        self.port = 0
        self.delay_s = 0.0  # one way
        self.jitter_s = 0.0  # up to so much more, at random; the order of bytes stays
        self.bandwidth = 0.0  # bytes/s of each way of each connection; 0: all there is
        self.slice = 0  # largest piece forwarded at once; 0: as they come
        self.reset_after = 0  # bytes both ways of one connection; 0: never
        self.blackhole = False  # takes everything, forwards nothing
        self.deaf = False  # the same, for what comes from the target alone
        self.mute = False  # the same, for what goes to the target alone
        self.refuse = False  # new connections are reset at once
        self.flip_at = 0  # the next byte after so many is flipped, once; 0: never
        self.up = 0  # bytes forwarded to the target
        self.down = 0  # bytes forwarded from it
        self.connections = 0
        self._window = window
        self._dice = random.Random(0)
        self._open: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    @property
    def passed(self) -> int:
        """Bytes forwarded, both ways."""
        return self.up + self.down

    async def __aenter__(self) -> Self:
        listener = socket.create_server(("127.0.0.1", 0))
        if self._window:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self._window)
        self._server = await asyncio.start_server(self._connected, sock=listener)
        self.port = listener.getsockname()[1]
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._server is not None
        self._server.close()
        self.cut()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        await self._server.wait_closed()

    def heal(self) -> None:
        """Let nothing go wrong from now on."""
        self.delay_s = self.jitter_s = self.bandwidth = 0.0
        self.slice = self.reset_after = self.flip_at = 0
        self.blackhole = self.deaf = self.mute = self.refuse = False

    def cut(self) -> None:
        """Reset every connection, as a lost network or a killed peer does."""
        for writer in list(self._open):
            _reset(writer)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self.connections += 1
        if self.refuse:
            _reset(writer)
            return
        try:
            there, back = await asyncio.open_connection("127.0.0.1", self.target)
        except OSError:
            _reset(writer)
            return
        self._open |= {writer, back}
        spent = [0]
        up, down = _Way(upward=True), _Way(upward=False)
        ways = [
            asyncio.ensure_future(self._take(reader, up)),
            asyncio.ensure_future(self._give(back, up, spent)),
            asyncio.ensure_future(self._take(there, down)),
            asyncio.ensure_future(self._give(writer, down, spent)),
        ]
        with contextlib.suppress(asyncio.CancelledError):  # 3.11 reports a cancelled callback
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        clean = any(way.done() and not way.cancelled() and way.result() for way in ways)
        try:
            for way in ways:
                way.cancel()
            await asyncio.wait(ways)
        finally:
            for end in (writer, back):
                self._open.discard(end)
                if clean:  # a reset could overtake the last words
                    end.close()
                else:
                    _reset(end)

    async def _take(self, reader: asyncio.StreamReader, way: _Way) -> bool:
        """Read what comes, and note when it may go on; return whether it ended by a close.

        What was sent before the close goes on first.
        """
        loop = asyncio.get_running_loop()
        clean = False
        with contextlib.suppress(OSError):
            while block := await reader.read(BLOCK):
                delay = self.delay_s + self._dice.uniform(0.0, self.jitter_s)
                size = self._piece() or len(block)
                for begin in range(0, len(block), size):
                    piece = block[begin : begin + size]
                    way.held += len(piece)
                    way.blocks.put_nowait((loop.time() + delay, piece))
                most = self._piece() if self.bandwidth else HELD
                while way.held > most:  # noqa: ASYNC110 - the bound changes with the attributes
                    await asyncio.sleep(0.002)
            clean = True
        while way.held and not self.bandwidth:  # noqa: ASYNC110
            await asyncio.sleep(0.002)
        return clean

    def _piece(self) -> int:
        """Return the largest piece forwarded at once, or 0: as they come."""
        narrow = max(1024, int(self.bandwidth * LOOK_S)) if self.bandwidth else 0
        return min(filter(None, (self.slice, narrow)), default=0)

    async def _give(self, writer: asyncio.StreamWriter, way: _Way, spent: list[int]) -> bool:
        """Forward what was read, each piece when its time has come; it never ends cleanly."""
        loop = asyncio.get_running_loop()
        with contextlib.suppress(OSError):
            while True:
                due, block = await way.blocks.get()
                if self.bandwidth:
                    way.free_at = max(way.free_at, loop.time()) + len(block) / self.bandwidth
                    due = max(due, way.free_at)
                if (wait := due - loop.time()) > 0:
                    await asyncio.sleep(wait)
                while self.blackhole or (self.mute if way.upward else self.deaf):  # noqa: ASYNC110
                    await asyncio.sleep(LOOK_S)
                if self.flip_at and self.passed + len(block) > self.flip_at:
                    hurt = bytearray(block)
                    hurt[max(0, self.flip_at - self.passed)] ^= 0x10
                    block, self.flip_at = bytes(hurt), 0
                way.held -= len(block)
                if self.reset_after:
                    block = block[: max(0, self.reset_after - spent[0])]
                spent[0] += len(block)
                if way.upward:
                    self.up += len(block)
                else:
                    self.down += len(block)
                writer.write(block)
                await writer.drain()
                if self.reset_after and spent[0] >= self.reset_after:
                    await asyncio.sleep(LAST_S)  # what has passed arrives before the reset
                    return False
        return False


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close with a RST, so that the other side sees a cut, not a clean end."""
    end = writer.get_extra_info("socket")
    with contextlib.suppress(OSError):
        if end is not None:
            end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
