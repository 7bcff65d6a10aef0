"""What waits to be sent, by priority, and the one task that puts it on the wire.

Control frames go first, then streams and blobs, each by turns, so that neither a stalled stream nor
a huge blob holds anyone. Data is cut into frames only when the wire has room for the next packet,
and small frames share one: what a packet costs on the way is more than what is in it.
"""

import asyncio
import logging
import math
from collections import deque
from collections.abc import Callable
from typing import Final, Protocol

from skerry_protos.errors import LinkError
from skerry_protos.partials import STEP
from skerry_protos.seams import Wire
from skerry_protos.session.frames import FRAMES, OVERHEAD, Buffer, framed
from skerry_protos.v1 import fleet_pb2 as pb

log = logging.getLogger(__name__)

CONTROL_LIMIT: Final = 8192
"""Control frames that may wait; a peer that makes us answer more and reads none is cut."""
ACKS: Final = 64
"""Acknowledgements in one frame."""
STREAM_TURNS: Final = 8
"""Stream packets sent for one blob chunk while both wait."""
SLACK: Final = 256
BATCH: Final = 256 * 1024
"""Small frames share a packet up to about this size, on a reliable wire."""
PIECE: Final = 2
"""Chunks in the largest piece of a stream on a reliable wire."""
SMALLEST_CHUNK: Final = 4 * 1024
CUTS: Final = 2
"""Wires in a row that were cut before FEW chunks had crossed: then chunks become smaller."""
FEW: Final = 6
"""A cut wastes half a chunk on average: a twelfth of this many."""
HALVINGS: Final = 8
RECOVERED: Final = 8 * 1024**2
"""Bytes across one wire after which chunks may grow again by one step."""


class Source(Protocol):
    """Something that has frames to send when asked."""

    waiting: bool  # in a lane now; kept by Lanes

    @property
    def more(self) -> bool:
        """Whether there may be something to send right after what was sent."""
        ...

    def next_parts(self) -> list[Buffer] | None:
        """Return the parts of the next frame, or None when there is nothing to send now."""
        ...


class Lanes:
    """The sending half of a session."""

    def __init__(self, on_broken: Callable[[str], None]) -> None:
        self._on_broken = on_broken
        self.wire: Wire | None = None
        self.number = 0
        self.sent_s = 0.0
        self.sent_bytes = 0
        self._room = 0
        self.reliable = False
        """Whether nothing is lost while there is a wire."""
        self.exact = False
        """Whether what arrives is what was sent."""
        self.max_packet = 0
        """The largest packet that may be sent now."""
        self.chunk = SMALLEST_CHUNK
        """The most of a blob in one frame now, a multiple of STEP."""
        self.piece = SMALLEST_CHUNK
        """The most of a stream in one frame now: a chunk or two, and a message's length.

        So a message of exactly a chunk, which is what people send, goes in one packet.
        """
        self._control: dict[object, pb.Frame] = {}
        self._acks: dict[str, None] = {}
        self._streams: deque[Source] = deque()
        self._blobs: deque[Source] = deque()
        self._turns = 0
        self._chunk_taken = False
        self._halvings = 0
        self._cuts = 0
        self._best = 0
        self._moved = 0
        self._sleeping: asyncio.Future[None] | None = None
        self._task: asyncio.Task[None] | None = None

    def attach(self, wire: Wire, number: int, max_packet: int) -> None:
        """Begin to send over `wire`; nothing waits yet."""
        self.wire, self.number = wire, number
        self._moved = 0
        self._fit(wire, max_packet)
        self._task = asyncio.create_task(self._run(wire), name="session sender")

    def detach(self, *, busy: bool) -> None:
        """Stop sending and forget what waits; whoever wants it sent says so after attach.

        `busy` says that blobs or streams were under way, so that their chunks ought to have moved.
        """
        if self.wire is not None and busy:
            self._learn()
        self.wire = None
        self.reliable = self.exact = False
        self.max_packet = 0
        if self._task is not None:
            self._task.cancel()
            self._task = None
        for lane in (self._streams, self._blobs):
            for source in lane:
                source.waiting = False
            lane.clear()
        self._control.clear()
        self._acks.clear()

    @property
    def shrunk(self) -> bool:
        """Whether wires broke so early that chunks are smaller than the wire's own."""
        return self._halvings > 0

    def moved(self, size: int) -> None:
        """Note that data has crossed the wire."""
        self._moved += size

    def _learn(self) -> None:
        """Choose the size of chunks by how the wire before did: a path may break any large one."""
        if self._moved >= RECOVERED:
            self._cuts = 0
            self._halvings = max(0, self._halvings - 1)
        elif self._moved >= FEW * self.chunk:
            self._cuts = 0
        else:
            self._cuts += 1
            self._best = max(self._best, self._moved)
            if self._cuts == CUTS:
                fits = self._best / FEW or self.chunk / 4
                steps = max(1, math.ceil(math.log2(self.chunk / fits)))
                self._halvings = min(self._halvings + steps, HALVINGS)
                self._cuts = self._best = 0

    def _fit(self, wire: Wire, max_packet: int) -> None:
        """Set what fits on `wire`; the other side takes packets of `max_packet`."""
        self.reliable, self.exact = wire.reliable, wire.exact
        self.max_packet = min(wire.max_packet, max_packet)
        data = self.max_packet - OVERHEAD
        room = min(wire.chunk, data)
        if self._halvings:
            room = min(room, max(SMALLEST_CHUNK, room >> self._halvings))
        self.chunk = max(STEP, room // STEP * STEP)
        most = self.chunk * PIECE if self.reliable else self.chunk
        self.piece = min(most + SLACK, data)
        # What is too large for the path is the packet, however many frames are in it.
        self._room = self.piece + OVERHEAD if self._halvings else self.max_packet

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
                packet = self._gather()
                if packet is None:
                    self._sleeping = loop.create_future()
                    await self._sleeping
                    if not (self._streams or self._blobs):
                        # Who is told of an arrival may be about to send: one packet for both.
                        await asyncio.sleep(0)
                    continue
                await wire.send(packet)
                self.sent_s = loop.time()
                self.sent_bytes += len(packet)
        except LinkError as error:
            self._on_broken(str(error))
        except Exception as error:
            log.exception("a session could not send")
            self._on_broken(f"sending failed: {type(error).__name__}: {error}")

    def _gather(self) -> bytes | None:
        """Return the next packet: what waits, as far as it fits; None when nothing does."""
        parts: list[Buffer] = []
        self._chunk_taken = False
        room = self._room
        least = self.piece + OVERHEAD  # any piece fits while there is so much room
        enough = max(room - BATCH, 0) if self.reliable else 0
        count = 0
        while room > enough and count < FRAMES // 2:
            found = self._control_parts(room, alone=not parts)
            if found is None:
                if self._control or self._acks or (parts and room < least):
                    break  # what is next does not fit
                found = self._data_parts()
            if found is None:
                if self._control or self._acks:
                    continue  # a stream that was asked for data answered with its end
                break
            parts += found
            room -= sum(map(len, found))
            count += 1
            if self._chunk_taken:
                break  # the other side may have asked for small ones because large packets fail
        return b"".join(parts) if parts else None

    def _control_parts(self, room: int, *, alone: bool) -> list[Buffer] | None:
        """Return the next control frame, if it fits in `room`."""
        if self._acks:
            parcels = list(self._acks)[:ACKS]
            frame = pb.Frame(session=self.number, ack=pb.Ack(parcels=parcels))
            if not alone and frame.ByteSize() + OVERHEAD > room:
                return None
            for parcel in parcels:
                del self._acks[parcel]
            return framed(frame)
        if self._control:
            key, frame = next(iter(self._control.items()))
            if not alone and frame.ByteSize() + OVERHEAD > room:
                return None
            del self._control[key]
            frame.session = self.number
            return framed(frame)
        return None

    def _data_parts(self) -> list[Buffer] | None:
        """Return a piece of the next stream or blob."""
        self._chunk_taken = False
        if self._streams and (self._turns < STREAM_TURNS or not self._blobs):
            parts = self._turn(self._streams)
            if parts is not None:
                self._turns += 1
                return parts
        self._turns = 0
        parts = self._turn(self._blobs)
        self._chunk_taken = parts is not None
        return parts or self._turn(self._streams)

    def _turn(self, lane: deque[Source]) -> list[Buffer] | None:
        """Return what the next source of a lane that has something sends."""
        while lane:
            source = lane.popleft()
            source.waiting = False
            parts = source.next_parts()
            if parts is not None:
                if source.more and not source.waiting:
                    source.waiting = True
                    lane.append(source)
                return parts
        return None
