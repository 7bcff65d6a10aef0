"""Renewing the certificate: from two thirds of its life on, over the link; after it, over HTTPS."""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime

from skerry_protos.errors import SkerryError
from skerry_protos.messages import Parcel

from skerry_edge.clock import Clock
from skerry_edge.enrolment import renew_expired
from skerry_edge.identity import Identity

log = logging.getLogger(__name__)

LOOK_S = 60.0
ANSWER_S = 600.0
"""A request without an answer is made again after so long."""

SendRequest = Callable[[bytes], Awaitable[None]]


class Renewal:
    """The device's identity and its upkeep."""

    def __init__(self, identity: Identity, clock: Clock) -> None:
        self.identity = identity
        self._clock = clock
        self._renewed = asyncio.Event()

    async def if_expired(self) -> None:
        """Renew a certificate that no longer opens a link."""
        if self.identity.expired(self._clock.now()):
            log.warning("the certificate has expired; renewing it over HTTPS")
            self.identity = await asyncio.to_thread(renew_expired, self.identity)

    async def run(self, send: SendRequest) -> None:
        """Look after the certificate until cancelled."""
        while True:
            try:
                await self.if_expired()
            except SkerryError as error:
                log.warning("the certificate was not renewed: %s", error)
            if self.identity.needs_renewal(self._clock.now()):
                await self._ask(send)
            # Of what is left, not of the whole life: that begins before the certificate was made.
            left_s = self.identity.valid_until - self._clock.now()
            await asyncio.sleep(min(LOOK_S, max(1.0, left_s / 4)))

    async def _ask(self, send: SendRequest) -> None:
        self._renewed.clear()
        csr = await asyncio.to_thread(self.identity.csr)
        await send(csr.encode())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(ANSWER_S):
                await self._renewed.wait()

    async def install(self, parcel: Parcel) -> None:
        """Put the certificate in a parcel in place; the next connection presents it."""
        self.identity = await asyncio.to_thread(self.identity.install, parcel.body)
        self._renewed.set()
        until = datetime.fromtimestamp(self.identity.valid_until, UTC)
        log.info("certificate renewed until %s", until.isoformat(timespec="minutes"))
