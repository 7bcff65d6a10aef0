"""One end of a session between a device and the cloud, over wires that come and go."""

from collections.abc import Awaitable, Callable
from enum import StrEnum
from pathlib import Path

from skerry_protos.errors import SkerryError
from skerry_protos.messages import BlobRef, Digest, Parcel
from skerry_protos.seams import Blobs, Receiver, Stream, Wire
from skerry_protos.session.limits import Inflow, Limits
from skerry_protos.v1 import fleet_pb2 as pb


class Side(StrEnum):
    """Which end this is; the device opens odd streams and sends the pings."""

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
        on_broken: Callable[[str], None] = lambda _why: None,
        on_blob_request: Callable[[pb.BlobRequest], list[int]] | None = None,
        on_want: Callable[[Digest], Awaitable[None]] | None = None,
        on_unwant: Callable[[Digest], None] | None = None,
    ) -> None:
        """Begin detached.

        `on_broken` is told when the wire must be cut: a send failed or nothing was heard for
        2.5 x `ping_s`. `on_blob_request` may take requests that are no repair for a broadcast; it
        returns the offsets still to be sent to this peer alone. `on_want` is awaited before a blob
        is first asked for (subscribe to its broadcast), `on_unwant` is told when it is here or
        given up.
        """
        raise NotImplementedError

    @property
    def number(self) -> int:
        """The session's number, 0 before the first attach."""
        raise NotImplementedError

    @property
    def attached(self) -> bool:
        """Whether there is a wire now."""
        raise NotImplementedError

    def attach(self, wire: Wire, number: int, *, resumed: bool, max_packet: int) -> None:
        """Go on over `wire`; without `resumed` the other side remembers nothing of before.

        `max_packet` is what the other side said it can receive. The Welcome must have been sent
        (cloud) or received (device). Not resumed: open streams fail with LinkError and known
        parcels are forgotten; deliveries and fetches go on.
        """
        raise NotImplementedError

    def detach(self, why: str) -> None:
        """Let go of the wire, which was cut; everything under way waits for the next."""
        raise NotImplementedError

    def receive(self, frame: pb.Frame, data: memoryview) -> None:
        """Take what the wire's reader unpacked; never waits. Raise PeerError when it is malformed.

        Frames of another session number are ignored (a late packet); Hello, Welcome and Refusal
        are the handshake's, and a PeerError here.
        """
        raise NotImplementedError

    def receive_cast(self, frame: pb.Frame, data: memoryview) -> None:
        """Take a blob chunk from a broadcast; ignored unless its blob is being fetched."""
        raise NotImplementedError

    async def deliver(self, parcel: Parcel) -> None:
        """Send until the other side has stored it; see Link.deliver and Fleet.deliver."""
        raise NotImplementedError

    async def fetch(self, ref: BlobRef, *, deadline_s: float) -> Path:
        """Return the blob's file, moved here and verified; see Link.fetch and Fleet.fetch."""
        raise NotImplementedError

    async def open_stream(
        self, kind: str, *, deadline_s: float, run: str = "", trace: str = ""
    ) -> Stream:
        """Open a stream; it is usable at once, the other side learns of it with the first data."""
        raise NotImplementedError

    async def close(self, error: SkerryError | None = None) -> None:
        """End for good: everything under way fails with `error` (default: a LinkError)."""
        raise NotImplementedError
