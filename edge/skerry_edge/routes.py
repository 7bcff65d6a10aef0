"""Which way across: one open link at a time, and another way when the first does not get through.

A link reconnects by itself. With more than one way (link = "auto") a link that stays without a
connection is closed and the next one is tried; the first way is tried first again after a loss.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path

from skerry_protos.errors import (
    ConfigError,
    DeadlineError,
    LinkError,
    RefusalCode,
    RefusedError,
)
from skerry_protos.messages import BlobRef, Parcel
from skerry_protos.seams import Stream

from skerry_edge.identity import LinkAddress
from skerry_edge.links import Link, LinkConfig, open_link

log = logging.getLogger(__name__)

FIRST_TRY_S = 5.0
"""A link that never connected gets so long before the next is tried."""
AGAIN_S = 0.2
REFUSED_WAIT_S = {RefusalCode.VERSION: 300.0, RefusalCode.TAKEN_OVER: 30.0}
"""Refusals that may pass: an upgrade of the coordinator, another agent with our name."""

MakeConfig = Callable[[LinkAddress], LinkConfig]
Open = Callable[[LinkConfig], AbstractAsyncContextManager[Link]]


def ways(addresses: Sequence[LinkAddress], kind: str) -> tuple[LinkAddress, ...]:
    """Return the addresses to try, in order: gRPC first, or only those of one kind."""
    if kind == "auto":
        return tuple(sorted(addresses, key=lambda each: each.kind != "grpc"))
    found = tuple(each for each in addresses if each.kind == kind)
    if not found:
        offered = ", ".join(sorted({each.kind for each in addresses})) or "none"
        raise ConfigError(f"the coordinator offers no {kind!r} link; it offers {offered}")
    return found


class Route:
    """Keeps one link open; `run` it, and use it as a Link that outlives links."""

    def __init__(
        self,
        addresses: Sequence[LinkAddress],
        make: MakeConfig,
        *,
        failover_s: float,
        opener: Open = open_link,
    ) -> None:
        self._addresses, self._make, self._opener = tuple(addresses), make, opener
        self._failover_s = failover_s
        self.on_change: Callable[[], None] = lambda: None
        self._link: Link | None = None
        self._opened = asyncio.Event()
        self._changed = asyncio.Event()
        self._refusal: RefusedError | None = None
        self.address: LinkAddress | None = None
        self.connected = False
        self.why = "not connected yet"

    async def run(self) -> None:
        """Keep a link open until cancelled; raise RefusedError when we are refused for good."""
        turn = 0
        while True:
            address = self._addresses[turn % len(self._addresses)]
            self._refusal = None
            self._note(f"{address.kind}: connecting")
            was_connected = await self._cross(address)
            turn = 0 if was_connected else turn + 1
            if self._refusal is not None:
                await self._refused(self._refusal)

    async def _cross(self, address: LinkAddress) -> bool:
        """Use one link until it is time for another; return whether it ever connected."""
        self.address = address
        try:
            async with self._opener(self._make(address)) as link:
                self._link = link
                self._opened.set()
                try:
                    return await self._until_lost()
                finally:
                    self._link = None
                    self._opened.clear()
                    self.connected = False
        except (ImportError, ConfigError) as error:
            self._note(f"{address.kind}: {error}")
            if len(self._addresses) == 1:
                raise ConfigError(f"the {address.kind} link cannot be opened: {error}") from error
            await asyncio.sleep(1)
            return False

    async def _until_lost(self) -> bool:
        """Return when the link was refused, or was without a connection for too long."""
        ever, lost_at = False, time.monotonic()
        while self._refusal is None:
            self._changed.clear()
            if self.connected:
                ever = True
                await self._changed.wait()
                lost_at = time.monotonic()
                continue
            patience = self._failover_s if ever else min(FIRST_TRY_S, self._failover_s)
            left = lost_at + patience - time.monotonic()
            if len(self._addresses) > 1 and left <= 0:
                log.warning("%s does not get through (%s); trying another", self.address, self.why)
                break
            try:
                async with asyncio.timeout(left if len(self._addresses) > 1 else None):
                    await self._changed.wait()
            except TimeoutError:
                continue
        return ever

    async def _refused(self, refusal: RefusedError) -> None:
        """Wait where the refusal may pass, else raise it."""
        code = next((each for each in REFUSED_WAIT_S if each == refusal.code), None)
        if code is None:
            raise refusal
        self._note(f"refused: {refusal}")
        log.warning("refused: %s; trying again in %g s", refusal, REFUSED_WAIT_S[code])
        await asyncio.sleep(REFUSED_WAIT_S[code])

    def state(self, why: str | None, wait_s: float) -> None:
        """Take a link's news: None when it is connected, else why not."""
        self.connected = why is None
        again = f"; next attempt in {wait_s:.0f} s" if wait_s >= 1 else ""
        self._note("" if why is None else why + again)

    def refused(self, refusal: RefusedError) -> None:
        """Take a link's news that the cloud refuses us."""
        if refusal.retry_after_s <= 0:
            self._refusal = refusal
        self._changed.set()

    def _note(self, why: str) -> None:
        self.why = why
        self._changed.set()
        self.on_change()

    async def deliver(self, parcel: Parcel) -> None:
        """Deliver over whatever link is open; raise RejectedError or DeadlineError."""
        while True:
            link = await self._open_link()
            try:
                return await link.deliver(parcel)
            except DeadlineError:
                raise
            except (LinkError, RefusedError) as error:
                log.debug("parcel %s: %s", parcel.id, error)
                await asyncio.sleep(AGAIN_S)

    async def fetch(self, ref: BlobRef, *, deadline_s: float) -> Path:
        """Fetch over whatever link is open; raise RejectedError, TrustError or DeadlineError."""
        ends = time.monotonic() + deadline_s
        try:
            async with asyncio.timeout(deadline_s):
                while True:
                    link = await self._open_link()
                    try:
                        return await link.fetch(ref, deadline_s=max(0.1, ends - time.monotonic()))
                    except DeadlineError:
                        raise
                    except (LinkError, RefusedError) as error:
                        log.debug("blob %s: %s", ref.digest[:12], error)
                        await asyncio.sleep(AGAIN_S)
        except TimeoutError:
            raise DeadlineError(
                f"blob {ref.digest[:12]} ({ref.size} bytes) did not arrive within {deadline_s:g} s"
            ) from None

    async def open_stream(self, kind: str, *, deadline_s: float, trace: str = "") -> Stream:
        """Open a stream over the link that is open now; raise LinkError when none is."""
        if self._link is None or not self.connected:
            raise LinkError("there is no connection to the coordinator")
        return await self._link.open_stream(kind, deadline_s=deadline_s, trace=trace)

    async def _open_link(self) -> Link:
        while self._link is None:
            await self._opened.wait()
        return self._link
