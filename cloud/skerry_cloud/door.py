"""Takes connections on a listening socket, so that a flood of new ones is not felt by those within.

asyncio's own server accepts as many as wait in one step of the event loop, and does the TLS
handshakes of all as they come, each some milliseconds of the loop in which every device is served.
Here handshakes begin at a bounded rate, the sources of connections (addresses) by turns; a
connection that waits for its turn costs a socket and no more. Few handshakes are under way at once:
another makes room by ending the oldest of its own source, else the oldest of all, which is no
honest one: those take some round trips.
"""

import asyncio
import contextlib
import ipaddress
import socket
import ssl
from collections import Counter, deque
from collections.abc import Callable
from typing import Final

HANDSHAKE_S: Final = 10.0
RATE: Final = 100.0
"""Handshakes that begin in a second, in the long run."""
BURST: Final = 32.0
"""How many may begin at once after a quiet time."""
UNDER_WAY: Final = 512
UNDER_WAY_EACH: Final = 128
"""Handshakes not done yet, of all sources and of each."""
WAITING: Final = 2048
WAITING_EACH: Final = 1024
"""Connections that wait for their turn, of all sources and of each; more are closed."""
BACKLOG: Final = 512
NO_FILES_S: Final = 0.5
"""Pause when the process has no file left for a connection."""


class Door:
    """Listens from its making until it is closed; has the face of an asyncio.Server."""

    def __init__(
        self,
        listener: socket.socket,
        protocol: Callable[[], asyncio.Protocol],
        tls: ssl.SSLContext | None,
        *,
        shutdown_s: float | None = None,
    ) -> None:
        """Begin to listen on a bound socket, which stays the caller's to close.

        `shutdown_s`: how long a TLS connection that is closed may take to send what is left.
        """
        self._listener = listener
        self._protocol = protocol
        self._tls = tls
        self._shutdown_s = shutdown_s if tls else None
        self._loop = asyncio.get_running_loop()
        self._waiting: dict[str, deque[socket.socket]] = {}  # the next source comes first
        self._count = 0
        self._came = asyncio.Event()
        self._under_way: dict[asyncio.Task[None], str] = {}  # the oldest first
        self._each: Counter[str] = Counter()
        listener.setblocking(False)
        listener.listen(BACKLOG)
        self._tasks = [
            asyncio.create_task(self._accept(), name="door"),
            asyncio.create_task(self._greet_by_turns(), name="door, handshakes"),
        ]

    def close(self) -> None:
        """Take no more connections; those made go on."""
        self._loop.remove_reader(self._listener.fileno())
        for task in (*self._tasks, *self._under_way):
            task.cancel()
        for line in self._waiting.values():
            for connection in line:
                connection.close()
        self._waiting.clear()
        self._count = 0

    async def wait_closed(self) -> None:
        """Return when `close` has done."""
        await asyncio.wait({*self._tasks, *self._under_way}, timeout=HANDSHAKE_S)

    async def _accept(self) -> None:
        while True:
            try:
                connection, address = await self._loop.sock_accept(self._listener)
            except OSError:  # the other side is gone already, or there is no file left for it
                await asyncio.sleep(NO_FILES_S)
                continue
            source = source_of(str(address[0]))
            line = self._waiting.get(source, ())
            if self._count >= WAITING or len(line) >= WAITING_EACH:
                connection.close()
                await asyncio.sleep(0)
                continue
            self._waiting.setdefault(source, deque()).append(connection)
            self._count += 1
            self._came.set()
            await asyncio.sleep(0)  # the loop's other work after each, however many wait

    async def _greet_by_turns(self) -> None:
        room, seen_s = BURST, self._loop.time()
        while True:
            while not self._waiting:
                self._came.clear()
                await self._came.wait()
            now = self._loop.time()
            room, seen_s = min(BURST, room + (now - seen_s) * RATE), now
            if room < 1:
                await asyncio.sleep((1 - room) / RATE)
                continue
            room -= 1
            source = next(iter(self._waiting))
            line = self._waiting.pop(source)
            connection = line.popleft()
            self._count -= 1
            if line:
                self._waiting[source] = line  # at the end
            self._make_room(source)
            task = asyncio.create_task(self._greet(connection))
            self._under_way[task] = source
            self._each[source] += 1
            task.add_done_callback(self._done)
            await asyncio.sleep(0)

    def _make_room(self, source: str) -> None:
        if self._each[source] >= UNDER_WAY_EACH:
            oldest = next(task for task, of in self._under_way.items() if of == source)
        elif len(self._under_way) >= UNDER_WAY:
            oldest = next(iter(self._under_way))
        else:
            return
        oldest.cancel()
        self._done(oldest)

    def _done(self, task: "asyncio.Task[None]") -> None:
        source = self._under_way.pop(task, None)
        if source is not None:
            self._each[source] -= 1
            if not self._each[source]:
                del self._each[source]

    async def _greet(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError, TimeoutError):  # the newcomer's fault (ssl's too)
            await self._loop.connect_accepted_socket(
                self._protocol,
                connection,
                ssl=self._tls,
                ssl_handshake_timeout=HANDSHAKE_S if self._tls else None,
                ssl_shutdown_timeout=self._shutdown_s,
            )


def source_of(address: str) -> str:
    """Return whom a connection counts for: its address, of IPv6 the network of 64 bits."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(found, ipaddress.IPv6Address):
        return str(found.ipv4_mapped or ipaddress.ip_network((int(found) >> 64 << 64, 64)))
    return str(found)
