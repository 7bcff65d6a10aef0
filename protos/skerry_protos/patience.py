"""How long an HTTP client may take to say what it wants; for both sides' servers.

uvicorn closes a connection that says nothing after an answer, but waits for ever for one that has
said nothing yet, or only a part of a request's head: each holds one of a server's connections.
"""

import asyncio
from typing import Any


class Impatient(asyncio.Protocol):
    """Mixed in before one of uvicorn's HTTP protocols: aborts who does not bring a head in time."""

    head_s = 20.0
    """From the connection, or the first byte of a further request, to its head's end."""
    transport: Any
    loop: asyncio.AbstractEventLoop
    cycle: Any
    _late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._expect()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._busy:
            self._cancel()
        elif self._late is None:
            self._expect()

    def connection_lost(self, exc: Exception | None) -> None:
        self._cancel()
        super().connection_lost(exc)

    @property
    def _busy(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _expect(self) -> None:
        self._late = self.loop.call_later(self.head_s, self._give_up)

    def _give_up(self) -> None:
        if not self._busy:
            self.transport.abort()

    def _cancel(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None
