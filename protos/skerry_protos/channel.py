"""What a process and its child say to each other over a socket pair: JSON, with bytes behind it.

Either side may ask; an answer carries the question's number.
"""

import asyncio
import contextlib
import itertools
import json
import socket
import struct
from collections.abc import Awaitable, Callable
from typing import Any, Self

from skerry_protos.errors import DeadlineError, LinkError, PeerError, SkerryError

HEAD = struct.Struct("<II")
SAID_LIMIT, BODY_LIMIT = 1 << 20, 64 << 20

Said = dict[str, Any]
Handler = Callable[[Said, bytes], Awaitable[tuple[Said, bytes]]]


class Channel:
    """One end. `serve` reads until the other end closes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self._numbers = itertools.count(1)
        self._open: dict[int, asyncio.Future[tuple[Said, bytes]]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    @classmethod
    async def over(cls, end: socket.socket) -> Self:
        """Return the channel over one end of a socket pair."""
        reader, writer = await asyncio.open_connection(sock=end, limit=SAID_LIMIT)
        return cls(reader, writer)

    async def ask(self, said: Said, body: bytes = b"", *, timeout_s: float) -> tuple[Said, bytes]:
        """Return the answer; raise SkerryError as the other end did, LinkError when it is gone."""
        number = next(self._numbers)
        future: asyncio.Future[tuple[Said, bytes]] = asyncio.get_running_loop().create_future()
        self._open[number] = future
        try:
            await self._send({**said, "ask": number}, body)
            async with asyncio.timeout(timeout_s):
                answer, found = await future
        except TimeoutError:
            what = str(said.get("do", ""))
            raise DeadlineError(f"no answer to {what!r} within {timeout_s:g} s") from None
        finally:
            self._open.pop(number, None)
        if "error" in answer:
            raise SkerryError(str(answer["error"])[:1000])
        return answer, found

    async def serve(self, handler: Handler) -> None:
        """Answer what the other end asks until it closes; raise PeerError at nonsense."""
        try:
            while (message := await self._receive()) is not None:
                said, body = message
                if "answer" in said:
                    future = self._open.get(said["answer"])
                    if future is not None and not future.done():
                        future.set_result((said, body))
                    continue
                task = asyncio.create_task(self._answer(handler, said, body))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
        finally:
            for future in self._open.values():
                if not future.done():
                    future.set_exception(LinkError("the other process is gone"))
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def serve_one(self, handler: Handler) -> None:
        """Answer one question."""
        message = await self._receive()
        if message is not None:
            await self._answer(handler, *message)

    def close(self) -> None:
        """Close this end."""
        self._writer.close()

    async def _answer(self, handler: Handler, said: Said, body: bytes) -> None:
        try:
            answer, found = await handler(said, body)
        except SkerryError as error:
            answer, found = {"error": str(error)}, b""
        with contextlib.suppress(ConnectionError):
            await self._send({**answer, "answer": said.get("ask")}, found)

    async def _send(self, said: Said, body: bytes) -> None:
        text = json.dumps(said).encode()
        if len(text) > SAID_LIMIT or len(body) > BODY_LIMIT:
            raise PeerError(f"a message of {len(text)} and {len(body)} bytes is too long")
        try:
            self._writer.write(HEAD.pack(len(text), len(body)) + text)
            if body:
                self._writer.write(body)
            await self._writer.drain()
        except (ConnectionError, RuntimeError) as error:
            raise LinkError("the other process is gone") from error

    async def _receive(self) -> tuple[Said, bytes] | None:
        try:
            head = await self._reader.readexactly(HEAD.size)
            sizes = HEAD.unpack(head)
            if sizes[0] > SAID_LIMIT or sizes[1] > BODY_LIMIT:
                raise PeerError(f"the other process sends {sizes} bytes at once")
            said = json.loads(await self._reader.readexactly(sizes[0]))
            body = await self._reader.readexactly(sizes[1])
        except (asyncio.IncompleteReadError, ConnectionError):
            return None
        except (ValueError, RecursionError) as error:
            raise PeerError(f"the other process said what is not JSON: {error}") from error
        if not isinstance(said, dict):
            raise PeerError("the other process said something that is no message")
        return said, body
