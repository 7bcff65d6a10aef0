"""An agent whose messages come twice, out of order, and again long afterwards.

Between its session and the real wire: a tenth of the packets is doubled, those of 5 ms or 64 of
them are shuffled, and one in fifty is followed by an old one of the same session. $SHIM_NOTES is a
file that gets the number of packets. `python shim.py run --home ...` is skerry-agent otherwise.
"""

import asyncio
import os
import random
import sys
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from skerry_edge.links.crossing import Connection, Crossing, Dial
from skerry_protos.errors import LinkError

DOUBLED, OLD = 0.1, 0.02
WINDOW = 64
FLUSH_S = 0.005
REMEMBERED = 2000
SMALL = 8192
"""Packets up to so many bytes are said again later: parcels, answers, requests; not chunks."""


class Shim:
    """A wire that does so, both ways; the handshake passes as it is."""

    reliable = False

    def __init__(self, inner: Connection) -> None:
        self._inner = inner
        self._dice = random.Random(6)
        self._sending = asyncio.Lock()
        self._greeted = False
        self._up: list[bytes] = []
        self._down: list[bytes] = []
        self._said: deque[bytes] = deque(maxlen=REMEMBERED)
        self.packets = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def receive(self) -> bytes:
        return await self._inner.receive()

    async def send(self, packet: bytes) -> None:
        if not self._greeted:
            await self._inner.send(packet)
            return
        self._up += self._worse(packet)
        if len(self._up) >= WINDOW:
            await self._flush_up()

    def _worse(self, packet: bytes) -> list[bytes]:
        """Return a packet, perhaps twice, perhaps with an old one."""
        self.packets += 1
        made = [packet] * (1 + (self._dice.random() < DOUBLED))
        if self._said and self._dice.random() < OLD:
            made.append(self._dice.choice(self._said))
        if len(packet) <= SMALL:
            self._said.append(packet)
        return made

    async def _flush_up(self) -> None:
        async with self._sending:
            packets, self._up = self._up, []
            self._dice.shuffle(packets)
            for packet in packets:
                await self._inner.send(packet)

    async def read(self, take: Callable[[bytes], None]) -> None:
        self._greeted = True
        reading = asyncio.create_task(self._inner.read(self._hear))
        flushing = asyncio.create_task(self._flush_always(take))
        try:
            await asyncio.wait({reading, flushing}, return_when=asyncio.FIRST_COMPLETED)
            for task in (reading, flushing):
                if task.done():
                    task.result()
            raise LinkError("the wire ended")
        finally:
            reading.cancel()
            flushing.cancel()
            await asyncio.wait({reading, flushing})

    def _hear(self, packet: bytes) -> None:
        self.packets += 1
        self._down += [packet] * (1 + (self._dice.random() < DOUBLED))

    async def _flush_always(self, take: Callable[[bytes], None]) -> None:
        before = noted()
        while True:
            await asyncio.sleep(FLUSH_S)
            await self._flush_up()
            packets, self._down = self._down, []
            self._dice.shuffle(packets)
            for packet in packets:
                take(packet)
            if packets:
                note(before + self.packets)


def noted() -> int:
    """Return how many packets earlier wires have had."""
    path = Path(os.environ["SHIM_NOTES"])
    return int(path.read_text() or 0) if path.exists() else 0


def note(packets: int) -> None:
    """Say how many packets there were."""
    Path(os.environ["SHIM_NOTES"]).write_text(str(packets))


def shimmed(dial: Dial) -> Dial:
    """Return a dial whose connections are so."""

    @asynccontextmanager
    async def dialled() -> AsyncIterator[Connection]:
        async with dial() as connection:
            yield Shim(connection)

    return dialled


def main() -> None:
    """Run the agent over such wires."""
    original = Crossing.__init__

    def init(self: Crossing, config: Any, dial: Dial, **options: Any) -> None:
        original(self, config, shimmed(dial), **options)

    Crossing.__init__ = init  # type: ignore[method-assign]
    from skerry_edge.__main__ import main as agent

    agent(sys.argv[1:])


if __name__ == "__main__":
    main()
