"""Two sessions with a memory wire between them, for tests of the session itself."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from skerry_protos.blobs import LocalBlobs
from skerry_protos.errors import LinkError, PeerError
from skerry_protos.messages import Parcel
from skerry_protos.seams import Stream
from skerry_protos.session import Inflow, Limits, Session, Side, unpack_all
from skerry_protos.session.memory import Faults, MemoryEnd, memory_wire
from skerry_protos.session.transfer import OnAsk

NUMBER = 7


async def _take(_parcel: Parcel) -> None:
    """Accept a parcel."""


async def _echo(stream: Stream) -> None:
    """Send back what comes."""
    async for message in stream:
        await stream.send(message)


@dataclass
class Taker:
    """A Receiver that notes what it accepts."""

    accepting: Callable[[Parcel], Awaitable[None]] = _take
    serving: Callable[[Stream], Awaitable[None]] = _echo
    parcels: list[Parcel] = field(default_factory=list)

    async def accept(self, parcel: Parcel) -> None:
        self.parcels.append(parcel)
        await self.accepting(parcel)

    async def serve(self, stream: Stream) -> None:
        await self.serving(stream)


class Pair:
    """A device's session and the cloud's; a wire that is cut is replaced after a moment."""

    def __init__(
        self,
        folder: Path,
        faults: Faults,
        *,
        limits: Limits | None = None,
        inflow: Inflow | None = None,
        on_ask: OnAsk | None = None,
    ) -> None:
        self.faults = faults
        self.takers = {side: Taker() for side in Side}
        self.blobs = {side: LocalBlobs(folder / side, durable=False) for side in Side}
        self.sessions = {
            side: Session(
                side=side,
                blobs=self.blobs[side],
                receiver=self.takers[side],
                limits=limits,
                inflow=inflow,
                on_broken=self._broken,
                on_ask=on_ask if side is Side.DEVICE else None,
            )
            for side in Side
        }
        self.device, self.cloud = self.sessions[Side.DEVICE], self.sessions[Side.CLOUD]
        self.wires = 0
        self._ends: tuple[MemoryEnd, MemoryEnd] | None = None
        self.broken: list[str] = []
        self.forgiving = False  # a malformed frame is only dropped

    def _broken(self, why: str) -> None:
        self.broken.append(why)
        self.cut()

    def cut(self) -> None:
        """Cut the wire, both ways."""
        if self._ends is not None:
            self._ends[0].close()

    async def run(self) -> None:
        """Give the sessions one wire after the other."""
        while True:
            seed = self.faults.seed * 1000 + self.wires
            self._ends = memory_wire(replace(self.faults, seed=seed))
            ends = dict(zip(Side, self._ends, strict=True))
            self.wires += 1
            for side, end in ends.items():
                self.sessions[side].attach(
                    end, NUMBER, resumed=self.wires > 1, max_packet=end.max_received
                )
            readers = [self._read(side, end) for side, end in ends.items()]
            for result in await asyncio.gather(*readers, return_exceptions=True):
                if not isinstance(result, LinkError):
                    raise result or RuntimeError("a reader ended")
            for session in self.sessions.values():
                session.detach("the wire was cut")
            await asyncio.sleep(0.01)

    async def _read(self, side: Side, end: MemoryEnd) -> None:
        while True:
            packet = await end.receive()
            try:
                for frame, data in unpack_all(packet):
                    self.sessions[side].receive(frame, data)
            except PeerError:
                if not self.forgiving:
                    raise


@contextlib.asynccontextmanager
async def paired(
    folder: Path,
    faults: Faults | None = None,
    *,
    limits: Limits | None = None,
    inflow: Inflow | None = None,
    on_ask: OnAsk | None = None,
) -> AsyncIterator[Pair]:
    """Run two sessions while the block runs; `on_ask` is told what the device asks for."""
    pair = Pair(folder, faults or Faults(), limits=limits, inflow=inflow, on_ask=on_ask)
    running = asyncio.ensure_future(pair.run())
    try:
        await asyncio.sleep(0)
        yield pair
    finally:
        running.cancel()
        await asyncio.wait({running})
        if not running.cancelled() and (error := running.exception()):
            raise error
        for session in pair.sessions.values():
            await session.close()


async def until_quiet(pair: Pair) -> None:
    """Wait until both sessions have forgotten every stream."""
    async with asyncio.timeout(3000):
        while any(  # noqa: ASYNC110 - a claim about both sides
            session._streams._live for session in pair.sessions.values()
        ):
            await asyncio.sleep(0.1)
