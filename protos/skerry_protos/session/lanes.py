"""What waits to be sent, by priority, and the one task that puts it on the wire.

Control frames go first, then streams and blobs, each by turns, so that neither a stalled stream nor
a huge blob holds anyone. Data is cut into packets only when the wire has room for the next one.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from typing import Final, Protocol

from skerry_protos.errors import LinkError
from skerry_protos.partials import STEP
from skerry_protos.seams import Wire
from skerry_protos.session.frames import OVERHEAD, pack
from skerry_protos.v1 import fleet_pb2 as pb

log = logging.getLogger(__name__)

CONTROL_LIMIT: Final = 8192
"""Control frames that may wait; a peer that makes us answer more and reads none is cut."""
ACKS: Final = 64
"""Acknowledgements in one frame."""
STREAM_TURNS: Final = 8
"""Stream packets sent for one blob chunk while both wait."""
SLACK: Final = 256
SMALLEST_CHUNK: Final = 8 * 1024
CUTS: Final = 2
"""Wires in a row that were cut before one chunk had crossed: then chunks become half as large."""
RECOVERED: Final = 8 * 1024**2
"""Bytes across one wire after which chunks may grow again by one step."""


class Source(Protocol):
    """Something that has packets to send when asked."""

    waiting: bool  # in a lane now; kept by Lanes

    def next_packet(self) -> bytes | None:
        """Return the next packet, or None when there is nothing to send now."""
        ...


class Lanes:
    """The sending half of a session."""

    def __init__(self, on_broken: Callable[[str], None]) -> None:
        self._on_broken = on_broken
        self.wire: Wire | None = None
        self.number = 0
        self.sent_s = 0.0
        self.sent_bytes = 0
        self._max_packet = 0
        self._control: dict[object, pb.Frame] = {}
        self._acks: dict[str, None] = {}
        self._streams: deque[Source] = deque()
        self._blobs: deque[Source] = deque()
        self._turns = 0
        self._halvings = 0
        self._cuts = 0
        self._moved = 0
        self._sleeping: asyncio.Future[None] | None = None
        self._task: asyncio.Task[None] | None = None

    def attach(self, wire: Wire, number: int, max_packet: int) -> None:
        """Begin to send over `wire`; nothing waits yet."""
        self.wire, self.number, self._max_packet = wire, number, max_packet
        self._moved = 0
        self._task = asyncio.create_task(self._run(wire), name="session sender")

    def detach(self, *, busy: bool) -> None:
        """Stop sending and forget what waits; whoever wants it sent says so after attach.

        `busy` says that blobs or streams were under way, so that their chunks ought to have moved.
        """
        if self.wire is not None and busy:
            self._learn()
        self.wire = None
        if self._task is not None:
            self._task.cancel()
            self._task = None
        for lane in (self._streams, self._blobs):
            for source in lane:
                source.waiting = False
            lane.clear()
        self._control.clear()
        self._acks.clear()

    def moved(self, size: int) -> None:
        """Note that data has crossed the wire."""
        self._moved += size

    def _learn(self) -> None:
        """Choose the size of chunks by how the wire before did: a path may break any large one."""
        if self._moved:
            self._cuts = 0
            if self._moved >= RECOVERED:
                self._halvings = max(0, self._halvings - 1)
        else:
            self._cuts += 1
            if self._cuts % CUTS == 0:
                self._halvings += 1

    @property
    def reliable(self) -> bool:
        """Whether nothing is lost while there is a wire."""
        return self.wire is not None and self.wire.reliable

    @property
    def max_packet(self) -> int:
        """The largest packet that may be sent now."""
        if self.wire is None:
            return 0
        return min(self.wire.max_packet, self._max_packet)

    @property
    def chunk(self) -> int:
        """The most data that a packet carries now, a multiple of STEP."""
        if self.wire is None:
            return SMALLEST_CHUNK
        room = min(self.wire.chunk, self.max_packet - OVERHEAD)
        if self._halvings:
            room = min(room, max(SMALLEST_CHUNK, room >> self._halvings))
        return max(STEP, room // STEP * STEP)

    @property
    def piece(self) -> int:
        """The most bytes of a stream that a packet carries now: a chunk and a message's length.

        So a message of exactly a chunk, which is what people send, goes in one packet.
        """
        chunk = self.chunk
        return max(chunk, min(chunk + SLACK, self.max_packet - OVERHEAD))

    def control(self, key: object, frame: pb.Frame) -> None:
        """Send a frame before all data; it replaces one with the same key that still waits."""
        if self.wire is None:
            return
        if len(self._control) >= CONTROL_LIMIT:
            self._on_broken("the other side asks faster than it reads the answers")
            return
        self._control[key] = frame
        self._wake()

    def ack(self, parcel: str) -> None:
        """Acknowledge a parcel, together with others that wait."""
        if self.wire is not None:
            self._acks[parcel] = None
            self._wake()

    def stream_ready(self, source: Source) -> None:
        """Ask `source` for packets, in turn with the other streams."""
        self._ready(self._streams, source)

    def blob_ready(self, source: Source) -> None:
        """Ask `source` for packets, in turn with the other blobs."""
        self._ready(self._blobs, source)

    def _ready(self, lane: deque[Source], source: Source) -> None:
        if self.wire is not None and not source.waiting:
            source.waiting = True
            lane.append(source)
            self._wake()

    def _wake(self) -> None:
        if self._sleeping is not None and not self._sleeping.done():
            self._sleeping.set_result(None)

    async def _run(self, wire: Wire) -> None:
        loop = asyncio.get_running_loop()
        try:
            while self.wire is wire:
                packet = self._next()
                if packet is None:
                    self._sleeping = loop.create_future()
                    await self._sleeping
                    continue
                await wire.send(packet)
                self.sent_s = loop.time()
                self.sent_bytes += len(packet)
        except LinkError as error:
            self._on_broken(str(error))
        except Exception as error:
            log.exception("a session could not send")
            self._on_broken(f"sending failed: {type(error).__name__}: {error}")

    def _next(self) -> bytes | None:
        if self._acks:
            parcels = list(self._acks)[:ACKS]
            for parcel in parcels:
                del self._acks[parcel]
            return pack(pb.Frame(session=self.number, ack=pb.Ack(parcels=parcels)))
        if self._control:
            frame = self._control.pop(next(iter(self._control)))
            frame.session = self.number
            return pack(frame)
        if self._streams and (self._turns < STREAM_TURNS or not self._blobs):
            packet = self._turn(self._streams)
            if packet is not None:
                self._turns += 1
                return packet
        self._turns = 0
        packet = self._turn(self._blobs) or self._turn(self._streams)
        if packet is None and (self._control or self._acks):
            return self._next()  # a stream that was asked for data answered with its end
        return packet

    def _turn(self, lane: deque[Source]) -> bytes | None:
        """Return a packet of the next source that has one."""
        while lane:
            source = lane.popleft()
            source.waiting = False
            packet = source.next_packet()
            if packet is not None:
                if not source.waiting:
                    source.waiting = True
                    lane.append(source)
                return packet
        return None
