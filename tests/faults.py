"""A TCP proxy that misbehaves on demand, for tests over real sockets."""

import asyncio
import contextlib
import socket
import struct
from types import TracebackType
from typing import Self

BLOCK = 64 * 1024


class FaultProxy:
    """Forwards to a port of 127.0.0.1; its attributes say what goes wrong from now on."""

    def __init__(self, port: int) -> None:
        self._target = port
        self.port = 0
        self.delay_s = 0.0  # one way
        self.reset_after = 0  # bytes both ways of one connection; 0: never
        self.blackhole = False  # takes everything, forwards nothing
        self.refuse = False  # new connections are reset at once
        self.flip_at = 0  # the next byte after so many is flipped, once; 0: never
        self.passed = 0  # bytes forwarded, both ways
        self.connections = 0
        self._open: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
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
            there, back = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:
            _reset(writer)
            return
        self._open |= {writer, back}
        spent = [0]
        ways = [
            asyncio.ensure_future(self._forward(reader, back, spent)),
            asyncio.ensure_future(self._forward(there, writer, spent)),
        ]
        with contextlib.suppress(asyncio.CancelledError):  # 3.11 reports a cancelled callback
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        try:
            for way in ways:
                way.cancel()
            await asyncio.wait(ways)
        finally:
            for end in (writer, back):
                self._open.discard(end)
                _reset(end)

    async def _forward(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, spent: list[int]
    ) -> None:
        with contextlib.suppress(OSError):
            while block := await reader.read(BLOCK):
                if self.delay_s:
                    await asyncio.sleep(self.delay_s)
                while self.blackhole:  # noqa: ASYNC110 - a test sets it at any time
                    await asyncio.sleep(0.02)
                if self.flip_at and self.passed + len(block) > self.flip_at:
                    hurt = bytearray(block)
                    hurt[max(0, self.flip_at - self.passed)] ^= 0x10
                    block, self.flip_at = bytes(hurt), 0
                spent[0] += len(block)
                if self.reset_after and spent[0] > self.reset_after:
                    return
                self.passed += len(block)
                writer.write(block)
                await writer.drain()


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close with a RST, so that the other side sees a cut, not a clean end."""
    end = writer.get_extra_info("socket")
    with contextlib.suppress(OSError):
        if end is not None:
            end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
