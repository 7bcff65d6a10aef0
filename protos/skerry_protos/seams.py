"""The seams both sides of the water share: a wire, a stream, and who receives.

The device's own seam is `skerry_edge.links.Link`, the cloud's `skerry_cloud.fleets.Fleet`; both
run the same `skerry_protos.session.Session` over a `Wire`, so both transports behave alike.
"""

from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from skerry_protos.messages import BlobRef, Digest, Parcel


class Wire(Protocol):
    """Moves packets (session.frames) one way; may lose or repeat them unless `reliable`."""

    @property
    def max_packet(self) -> int:
        """The largest packet that `send` takes now, bytes."""
        ...

    @property
    def chunk(self) -> int:
        """The size of blob chunks and stream fragments that suits this wire now, bytes."""
        ...

    @property
    def reliable(self) -> bool:
        """Whether packets arrive in order and once until the wire is cut."""
        ...

    @property
    def exact(self) -> bool:
        """Whether what arrives is what was sent, bit for bit, as TLS sees to."""
        ...

    async def send(self, packet: bytes) -> None:
        """Send one packet, waiting while the wire is full; raise LinkError once it is cut.

        One caller at a time; it returns as soon as the wire has room for the next packet.
        """
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
    @property
    def trace(self) -> str: ...

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
    """A blob on its way in: which parts are here survives a restart.

    Arrivals are noted in steps of `skerry_protos.blobs.STEP` bytes, so `chunk` may change at any
    time to another multiple of it.
    """

    chunk: int

    @property
    def resumed(self) -> bool:
        """Whether some of it was here before this process began."""
        ...

    def missing(self, limit: int, start: int = 0) -> list[int]:
        """Return up to `limit` offsets at or after `start` that are not all here, lowest first."""
        ...

    def write(self, offset: int, data: bytes | memoryview) -> bool:
        """Keep one chunk; return whether any of it was new; raise PeerError for a bad range."""
        ...

    @property
    def complete(self) -> bool: ...

    def close(self) -> None:
        """Let go of the files; what has arrived stays for the next `begin`."""
        ...


class Blobs(Protocol):
    """Content-addressed bytes on this machine's disk (skerry_protos.blobs.LocalBlobs)."""

    def path(self, digest: Digest) -> Path | None:
        """Return the file that holds the blob, or None when it is not here."""
        ...

    def begin(self, ref: BlobRef, chunk: int) -> Partial:
        """Begin or go on with an arriving blob; raise PeerError for one too large.

        Who begins it a second time at once shares the first one's Partial.
        """
        ...

    def commit(self, ref: BlobRef, partial: Partial) -> Path:
        """Verify, keep and name a complete blob; raise TrustError when the digest differs."""
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
