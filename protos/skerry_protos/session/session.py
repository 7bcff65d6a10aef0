"""One end of a session between a device and the cloud, over wires that come and go."""

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable
from enum import StrEnum
from pathlib import Path
from typing import Final

from skerry_protos import steady
from skerry_protos.errors import LinkError, PeerError, RejectedError, SkerryError
from skerry_protos.messages import BlobRef, Digest, Parcel
from skerry_protos.seams import Blobs, Receiver, Stream, Wire
from skerry_protos.session.lanes import Lanes
from skerry_protos.session.limits import Inflow, Limits
from skerry_protos.session.parcels import Parcels
from skerry_protos.session.servings import Servings
from skerry_protos.session.streams import Streams
from skerry_protos.session.timing import RoundTrip
from skerry_protos.session.transfer import OnAsk
from skerry_protos.session.transfers import Transfers
from skerry_protos.v1 import fleet_pb2 as pb

log = logging.getLogger(__name__)

SILENCE: Final = 2.5
"""Pings that may go unanswered before the wire counts as dead: 25 s with the default."""
UNASKED: Final = 1.5
"""After so many pings' time without a word the cloud pings, too; an idle device's come earlier."""


class Side(StrEnum):
    """Which end this is; the device opens odd streams and sends most pings."""

    DEVICE = "device"
    CLOUD = "cloud"


class Session:
    """Parcels, blobs and streams for one device, the same code on both sides.

    It is passive about connections: a link or fleet makes the handshake, gives it a wire by
    `attach`, feeds it by `receive`, and takes the wire away by `detach`. Everything under way goes
    on with the next wire.
    """

    def __init__(
        self,
        *,
        side: Side,
        blobs: Blobs,
        receiver: Receiver,
        limits: Limits | None = None,
        inflow: Inflow | None = None,
        ping_s: float = 10.0,
        now: Callable[[], float] = steady.unix_s,
        on_broken: Callable[[str], None] = lambda _why: None,
        on_refused: Callable[[str, RejectedError], None] = lambda _run, _error: None,
        on_blob_request: Callable[[pb.BlobRequest], list[int]] | None = None,
        on_want: Callable[[Digest], Awaitable[None]] | None = None,
        on_unwant: Callable[[Digest], None] | None = None,
        on_ask: OnAsk | None = None,
    ) -> None:
        """Begin detached.

        `now` is the clock that parcels' deadlines are in, the cloud's on both sides.
        `on_broken` is told when the wire must be cut: a send failed or nothing was heard for
        2.5 x `ping_s`; `on_refused` of each parcel outside its limits, with the run it names.
        `on_blob_request` may take requests for a broadcast; it
        returns the offsets still to be sent to this peer alone. `on_want` is awaited before a blob
        is first asked for (subscribe to its broadcast), `on_unwant` is told when it is here or
        given up; `on_ask` is told the chunks that are asked for (have the broker send them).
        """
        self._side = side
        self._limits = limits or Limits()
        self._ping_s = ping_s
        self._on_broken = on_broken
        self._lanes = Lanes(on_broken)
        self._round_trip = RoundTrip()
        self._parcels = Parcels(
            self._lanes,
            receiver,
            self._limits,
            self._round_trip,
            now=now,
            on_refused=on_refused,
        )
        self._transfers = Transfers(
            blobs=blobs,
            lanes=self._lanes,
            limits=self._limits,
            inflow=inflow or Inflow(),
            on_want=on_want,
            on_unwant=on_unwant,
            on_ask=on_ask,
        )
        self._servings = Servings(blobs, self._lanes, self._limits, on_blob_request)
        self._streams = Streams(
            device=side is Side.DEVICE,
            lanes=self._lanes,
            receiver=receiver,
            limits=self._limits,
        )
        self._heard_s = self._looked_s = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._pinged: tuple[int, float] | None = None
        self._closed: SkerryError | None = None

    @property
    def number(self) -> int:
        """The session's number, 0 before the first attach."""
        return self._lanes.number

    @property
    def attached(self) -> bool:
        """Whether there is a wire now."""
        return self._lanes.wire is not None

    @property
    def sent_bytes(self) -> int:
        """How many bytes were sent, over all wires."""
        return self._lanes.sent_bytes

    @property
    def chunk(self) -> int:
        """The size of chunks now, bytes."""
        return self._lanes.chunk

    def attach(self, wire: Wire, number: int, *, resumed: bool, max_packet: int) -> None:
        """Go on over `wire`; without `resumed` the other side remembers nothing of before.

        `max_packet` is what the other side said it can receive. The Welcome must have been sent
        (cloud) or received (device). Not resumed: open streams fail with LinkError and known
        parcels are forgotten; deliveries and fetches go on.
        """
        if self._closed is not None:
            raise self._closed
        if self.attached:
            self.detach("another connection took over")
        resumed = resumed or self.number == 0  # before the first wire there is nothing to lose
        self._lanes.attach(wire, number, max_packet)
        self._streams.attach(resumed=resumed)
        self._parcels.attach(resumed=resumed)
        self._transfers.attach()
        self._heard_s = self._looked_s = self._now()
        self._look_later()

    def detach(self, why: str) -> None:
        """Let go of the wire, which was cut; everything under way waits for the next."""
        if not self.attached:
            return
        log.debug("session %x lost its wire: %s", self.number, why)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        busy = self._transfers.busy or self._streams.busy
        self._lanes.detach(busy=busy)
        self._parcels.detach()
        self._transfers.detach()
        self._servings.detach()
        self._streams.detach()

    def repeat(self, welcome: pb.Frame) -> None:
        """Send the Welcome of this session again: the device has not seen it."""
        self._lanes.control("welcome", welcome)

    def receive(self, frame: pb.Frame, data: memoryview) -> None:
        """Take what the wire's reader unpacked; never waits. Raise PeerError when it is malformed.

        Frames of another session number are ignored (a late packet); Hello, Welcome and Refusal
        are the handshake's, and a PeerError here.
        """
        if frame.session != self._lanes.number or self._lanes.wire is None:
            return
        self._heard_s = self._now()
        match frame.WhichOneof("kind"):
            case "blob_chunk":
                self._transfers.take_chunk(frame.blob_chunk, data)
            case "stream_data":
                self._streams.take_data(frame.stream_data, data)
            case "stream_credit":
                self._streams.take_credit(frame.stream_credit)
            case "blob_request":
                self._servings.take_request(frame.blob_request)
            case "parcel":
                self._parcels.take(frame.parcel)
            case "ack":
                self._parcels.take_ack(frame.ack)
            case "reject":
                self._parcels.take_reject(frame.reject)
            case "blob_absent":
                self._transfers.take_absent(frame.blob_absent)
            case "stream_open":
                self._streams.take_open(frame.stream_open)
            case "stream_end":
                self._streams.take_end(frame.stream_end)
            case "ping":
                pong = pb.Frame(pong=pb.Pong(nonce=frame.ping.nonce))
                self._lanes.control("pong", pong)
            case "pong":
                self._take_pong(frame.pong.nonce)
            case kind:
                raise PeerError(f"a {kind or 'frame of unknown kind'} has no place in a session")

    def receive_cast(self, frame: pb.Frame, data: memoryview) -> None:
        """Take a blob chunk from a broadcast; ignored unless its blob is being fetched."""
        if frame.WhichOneof("kind") != "blob_chunk":
            raise PeerError("a broadcast carries blob chunks only")
        self._heard_s = self._now()  # a slow path has nothing else for a while
        self._transfers.take_chunk(frame.blob_chunk, data)

    async def deliver(self, parcel: Parcel) -> None:
        """Send until the other side has stored it; see Link.deliver and Fleet.deliver."""
        await self._parcels.deliver(parcel)

    async def fetch(self, ref: BlobRef, *, deadline_s: float) -> Path:
        """Return the blob's file, moved here and verified; see Link.fetch and Fleet.fetch."""
        return await self._transfers.fetch(ref, deadline_s=deadline_s)

    async def open_stream(
        self, kind: str, *, deadline_s: float, run: str = "", trace: str = ""
    ) -> Stream:
        """Open a stream; it is usable at once, and waits for a wire where there is none."""
        return self._streams.open(kind, deadline_s=deadline_s, run=run, trace=trace)

    async def close(self, error: SkerryError | None = None) -> None:
        """End for good: everything under way fails with `error` (default: a LinkError)."""
        if self._closed is not None:
            return
        self._closed = error or LinkError("the session was closed")
        self.detach(str(self._closed))
        self._transfers.close(self._closed)
        await self._streams.close(self._closed)
        await self._parcels.close(self._closed)

    # --- is the other side there?

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()

    def _look_later(self) -> None:
        """Look again after half a ping's time, and no later than when silence is too long."""
        left = self._heard_s + SILENCE * self._ping_s - self._now()
        wait_s = min(self._ping_s / 2, max(left, 0.01 * self._ping_s))
        self._timer = asyncio.get_running_loop().call_later(wait_s, self._look)

    def _look(self) -> None:
        """Ping when it is quiet, and give the wire up when it has been too quiet."""
        now = self._now()
        if now - self._looked_s > self._ping_s:
            self._heard_s = now  # this process was asleep: what came meanwhile is not read yet
        self._looked_s = now
        if now - self._heard_s >= SILENCE * self._ping_s:
            self._timer = None
            self._on_broken(f"nothing was heard for {now - self._heard_s:.0f} s")
            return
        if self._side is Side.DEVICE:
            quiet = now - min(self._heard_s, self._lanes.sent_s) >= 0.9 * self._ping_s
        else:
            # A device's ping may be stuck behind what it uploads on a slow path.
            quiet = now - self._lanes.sent_s >= UNASKED * self._ping_s
        if quiet:
            nonce = secrets.randbits(64)
            self._pinged = (nonce, now)
            self._lanes.control("ping", pb.Frame(ping=pb.Ping(nonce=nonce)))
        self._look_later()

    def _take_pong(self, nonce: int) -> None:
        if self._pinged is not None and self._pinged[0] == nonce:
            self._round_trip.sample(self._now() - self._pinged[1])
            self._pinged = None
