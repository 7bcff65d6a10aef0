"""The seams both sides of the water share: a wire, a stream, and who receives.

The device's own seam is `skerry_edge.links.Link`, the cloud's `skerry_cloud.fleets.Fleet`; both
run the same `skerry_protos.session.Session` over a `Wire`, so both transports behave alike.
"""

from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from skerry_protos.messages import BlobRef, Digest, Parcel
from skerry_protos.v1.fleet_pb2 import Frame


class Wire(Protocol):
    """Moves frames one way; may lose, repeat or reorder them unless `reliable`."""

    @property
    def max_frame(self) -> int:
        """The largest serialised frame that `send` takes now, bytes."""
        ...

    @property
    def chunk(self) -> int:
        """The blob chunk and stream fragment size that suits this wire now, bytes."""
        ...

    @property
    def reliable(self) -> bool:
        """Whether frames arrive in order and once until the wire is cut."""
        ...

    async def send(self, frame: Frame) -> None:
        """Send one frame, waiting while the wire is full; raise LinkError once it is cut."""
        ...


class Stream(Protocol):
    """A short-lived ordered two-way flow of messages (bytes), with back-pressure.

    It outlives a cut of the wire shorter than its deadline. `send` waits for the reader's credit;
    iteration ends when the other side has finished, and raises RejectedError when it aborted,
    DeadlineError at the deadline, LinkError when the session was lost.
    """

    @property
    def kind(self) -> str: ...
    @property
    def run(self) -> str: ...

    async def send(self, message: bytes | bytearray | memoryview) -> None: ...
    async def receive(self) -> bytes:
        """Return the next message; raise EOFError after the other side's clean end."""
        ...

    async def finish(self) -> None:
        """End this direction and wait until the other side has everything."""
        ...

    async def abort(self, code: str, message: str) -> None: ...
    def __aiter__(self) -> Self: ...
    async def __anext__(self) -> bytes: ...
    async def __aenter__(self) -> Self: ...
    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...


class Partial(Protocol):
    """A blob on its way in: which chunks are here survives a restart."""

    chunk: int

    def missing(self, limit: int) -> list[int]:
        """Return up to `limit` offsets that have not arrived, lowest first."""
        ...

    def write(self, offset: int, data: bytes) -> bool:
        """Keep one chunk; return whether it was new."""
        ...

    @property
    def complete(self) -> bool: ...


class Blobs(Protocol):
    """Content-addressed bytes on this machine's disk (skerry_protos.blobs.LocalBlobs)."""

    def path(self, digest: Digest) -> Path | None:
        """Return the file that holds the blob, or None when it is not here."""
        ...

    def begin(self, ref: BlobRef, chunk: int) -> Partial:
        """Begin or go on with an arriving blob; raise PeerError for one too large."""
        ...

    def commit(self, ref: BlobRef, partial: Partial) -> Path:
        """Verify, fsync and name a complete blob; raise TrustError when the digest differs."""
        ...


class Receiver(Protocol):
    """What a session hands arrivals to; one per session."""

    async def accept(self, parcel: Parcel) -> None:
        """Store the parcel's effect, idempotently; the Ack goes out when this returns.

        RejectedError (or PeerError) rejects the parcel for good. Any other error, and no answer:
        the other side will send it again.
        """
        ...

    async def serve(self, stream: Stream) -> None:
        """Serve a stream the other side opened, until it ends."""
        ...
