"""What a run's server side and the coordinator say to each other, over a socket pair.

A message is a JSON object with a body of bytes beside it (small records); large records are files
in the run's scratch folder, or blobs, and pass by name. The coordinator trusts nothing that comes
from the child: sizes are bounded here, fields are checked where they are used.
"""

import asyncio
import contextlib
import json
import socket
import struct
from typing import Any

from skerry_protos.errors import PeerError

HEAD = struct.Struct("<II")
TEXT_LIMIT = 8 * 1024**2
"""Longest JSON either way, bytes: ten thousand devices fit in one."""
BODY_LIMIT = 4 * 1024**2

Message = tuple[dict[str, Any], bytes]


def pack(said: dict[str, Any], body: bytes = b"") -> bytes:
    """Return a message as it is sent."""
    text = json.dumps(said, separators=(",", ":"), allow_nan=False).encode()
    if len(text) > TEXT_LIMIT or len(body) > BODY_LIMIT:
        raise PeerError(f"a message of {len(text)} and {len(body)} bytes is too long")
    return HEAD.pack(len(text), len(body)) + text + body


def unpack(text: bytes, body: bytes) -> Message:
    """Return a received message, or raise PeerError."""
    try:
        said = json.loads(text)
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        raise PeerError(
            f"the run's server side said something that is not JSON: {error}"
        ) from error
    if not isinstance(said, dict) or not isinstance(said.get("do"), str):
        raise PeerError("the run's server side said something that is no message")
    return said, body


def _lengths(head: bytes) -> tuple[int, int]:
    text, body = HEAD.unpack(head)
    if text > TEXT_LIMIT or body > BODY_LIMIT:
        raise PeerError(f"the run's server side began a message of {text} and {body} bytes")
    return text, body


async def receive(reader: asyncio.StreamReader) -> Message | None:
    """Return the child's next message, or None when it has closed."""
    try:
        text, body = _lengths(await reader.readexactly(HEAD.size))
        return unpack(await reader.readexactly(text), await reader.readexactly(body))
    except (asyncio.IncompleteReadError, ConnectionError):
        return None


class ChildEnd:
    """The child's end: blocking; one thread sends at a time, and one receives."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection

    def send(self, said: dict[str, Any], body: bytes = b"") -> None:
        """Send one message; the coordinator always reads."""
        self._connection.sendall(pack(said, body))

    def receive(self) -> Message:
        """Return the next message; EOFError at the end."""
        text, body = _lengths(self._exactly(HEAD.size))
        return unpack(self._exactly(text), self._exactly(body))

    def finish(self, said: dict[str, Any], patience_s: float = 10.0) -> None:
        """Send the last message, and stay until the coordinator has hung up.

        To leave with unread bytes in the socket would throw away what the coordinator has not read.
        """
        self.send(said)
        self._connection.settimeout(patience_s)
        with contextlib.suppress(OSError):
            while self._connection.recv(64 * 1024):
                pass

    def _exactly(self, size: int) -> bytes:
        data = bytearray(size)
        view = memoryview(data)
        while view:
            got = self._connection.recv_into(view)
            if not got:
                raise EOFError("the coordinator has gone away")
            view = view[got:]
        return bytes(data)
