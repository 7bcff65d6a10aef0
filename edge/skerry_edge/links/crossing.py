"""The device's side of a session, whatever the wire: connect, greet, read, and again after a cut.

A transport is a `Dial`: an async context manager that connects and yields a `Connection`. All else
(handshake, resume, back-off with jitter, refusals, the methods of `Link`) is here.
"""

import asyncio
import contextlib
import logging
import random
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from skerry_protos.allocator import keep_freed_memory
from skerry_protos.errors import LinkError, PeerError, RefusedError, SkerryError
from skerry_protos.messages import BlobRef, Digest, Parcel
from skerry_protos.seams import Stream, Wire
from skerry_protos.session import Limits, Session, Side, pack, unpack_all
from skerry_protos.session.handshake import AGAIN_S, HELLO_S, hello, read_answer, refused

from skerry_edge.links import LinkConfig

log = logging.getLogger(__name__)

KEPT_MEMORY = 8 * 1024**2
"""Freed memory that an agent keeps for the next messages."""
FIRST_WAIT_S = 0.25
LONGEST_WAIT_S = 8.0
"""Longest pause between attempts in the first minutes; PATIENT_WAIT_S after PATIENCE attempts."""
PATIENT_WAIT_S = 30.0
PATIENCE = 16
SETTLED_S = 10.0
"""A connection that lasted this long was a success: the next pause is the first again."""
MET = 3
"""A shorter one that was welcomed: the pause grows to that of this attempt, no further."""


class Connection(Wire, Protocol):
    """A wire that is read here too."""

    @property
    def max_received(self) -> int:
        """The largest packet this side can receive, bytes."""
        ...

    async def receive(self) -> bytes:
        """Return the next packet; raise LinkError once the wire is cut."""
        ...

    async def read(self, take: Callable[[bytes], None]) -> None:
        """Hand over every packet from now on; raise LinkError once cut, or what `take` raised."""
        ...


Dial = Callable[[], AbstractAsyncContextManager[Connection]]


def pause(attempt: int, dice: float) -> float:
    """Return seconds to wait before attempt 1, 2, ...; `dice` in 0..1 spreads a fleet's devices."""
    longest = LONGEST_WAIT_S if attempt <= PATIENCE else PATIENT_WAIT_S
    return float(min(longest, FIRST_WAIT_S * 2.0 ** min(attempt - 1, 10))) * (0.5 + 0.5 * dice)


class Crossing:
    """A Link over any Dial; an async context manager that runs until closed."""

    def __init__(
        self,
        config: LinkConfig,
        dial: Dial,
        *,
        limits: Limits | None = None,
        ping_s: float = 10.0,
        on_want: Callable[[Digest], Awaitable[None]] | None = None,
        on_unwant: Callable[[Digest], None] | None = None,
        on_ask: Callable[[BlobRef, list[int], bool], None] | None = None,
    ) -> None:
        keep_freed_memory(KEPT_MEMORY)
        self._config = config
        self._dial = dial
        self._broken: asyncio.Event = asyncio.Event()
        self._why = ""
        self._met = False
        self._task: asyncio.Task[None] | None = None
        self.session = Session(
            side=Side.DEVICE,
            blobs=config.blobs,
            receiver=config.receiver,
            limits=limits,
            ping_s=ping_s,
            now=config.now,
            on_broken=self._break,
            on_want=on_want,
            on_unwant=on_unwant,
            on_ask=on_ask,
        )
        self.hears_kept = on_ask is not None

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._run(), name=f"link {self._config.url}")
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})
        await self.session.close(LinkError("the link was closed"))

    @property
    def connected(self) -> bool:
        return self.session.attached

    async def deliver(self, parcel: Parcel) -> None:
        await self.session.deliver(parcel)

    async def fetch(self, ref: BlobRef, *, deadline_s: float) -> Path:
        return await self.session.fetch(ref, deadline_s=deadline_s)

    async def open_stream(
        self, kind: str, *, deadline_s: float, run: str = "", trace: str = ""
    ) -> Stream:
        return await self.session.open_stream(kind, deadline_s=deadline_s, run=run, trace=trace)

    def _break(self, why: str) -> None:
        self._why = why
        self._broken.set()

    async def _run(self) -> None:
        """Cross, and cross again after each cut, until refused for good."""
        attempt = 0
        loop = asyncio.get_running_loop()
        while True:
            began, asked, self._met = loop.time(), 0.0, False
            try:
                await self._cross()
                why = "the connection was closed"
            except RefusedError as refusal:
                self._config.on_refused(refusal)
                if refusal.retry_after_s <= 0:
                    self._config.on_state(str(refusal), 0.0)
                    await self.session.close(refusal)
                    return
                why, asked = str(refusal), refusal.retry_after_s
            except SkerryError as error:
                why = str(error)
            except OSError as error:
                why = f"{self._config.url}: {error}"
            except TimeoutError:
                why = f"{self._config.url}: no answer within {HELLO_S:g} s"
            except Exception as error:
                log.exception("link %s", self._config.url)
                why = f"{self._config.url}: {type(error).__name__}: {error}"
            finally:
                self.session.detach(self._why or "the connection was cut")
            attempt += 1
            if self._met:
                attempt = 1 if loop.time() - began > SETTLED_S else min(attempt, MET)
            wait = max(pause(attempt, random.random()), asked)  # noqa: S311 - only spreads load
            self._config.on_state(why, wait)
            await asyncio.sleep(wait)

    async def _cross(self) -> None:
        """Connect once and stay until the wire is cut."""
        self._broken.clear()
        self._why = ""
        async with asyncio.timeout(HELLO_S) as limit, self._dial() as connection:
            await self._greet(connection)
            if limit.expired():
                raise TimeoutError  # at the same moment as the Welcome: no more time, all the same
            limit.reschedule(None)
            reading = asyncio.create_task(connection.read(self._take))
            broken = asyncio.create_task(self._broken.wait())
            try:
                await asyncio.wait({reading, broken}, return_when=asyncio.FIRST_COMPLETED)
                if reading.done():
                    reading.result()
                raise LinkError(self._why or "the connection was closed")
            finally:
                reading.cancel()
                broken.cancel()
                await asyncio.wait({reading, broken})

    async def _greet(self, connection: Connection) -> None:
        config = self._config
        frame = hello(
            config.device,
            config.agent_version,
            resume=self.session.number,
            max_packet=connection.max_received,
            hears_kept=self.hears_kept,
        )
        welcome = None
        while welcome is None:
            await connection.send(pack(frame))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(None if connection.reliable else AGAIN_S):
                    while welcome is None:
                        for answer, _ in unpack_all(await connection.receive()):
                            welcome = welcome or read_answer(answer, frame.hello.nonce)
        self.session.attach(
            connection,
            welcome.session,
            resumed=welcome.resumed,
            max_packet=welcome.max_packet,
        )
        self._met = True
        config.on_welcome(welcome.unix_time_s, welcome.deadlines_s, welcome.heartbeat_s)
        config.on_state(None, 0.0)

    def _take(self, packet: bytes) -> None:
        """Take one packet of the session."""
        try:
            for frame, data in unpack_all(packet):
                if frame.HasField("welcome"):
                    continue  # again, since our Hello was said again: the first has done
                if not frame.HasField("refusal"):
                    self.session.receive(frame, data)
                elif frame.session in {0, self.session.number}:
                    raise refused(frame)
        except PeerError as error:
            log.warning("%s broke the protocol: %s", self._config.url, error)
            raise
