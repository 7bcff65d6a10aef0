"""Blobs on their way out: read from the store when the wire has room, by turns."""

import contextlib
import os
from collections.abc import Callable
from typing import Final

from skerry_protos.errors import PeerError
from skerry_protos.partials import STEP
from skerry_protos.seams import Blobs
from skerry_protos.session.frames import Buffer, chunk_parts, framed, read_digest
from skerry_protos.session.lanes import Lanes
from skerry_protos.session.limits import Limits
from skerry_protos.v1 import fleet_pb2 as pb

SERVED: Final = 64
"""Blobs that the other side may fetch at the same time."""
OPEN_FILES: Final = 4
"""Files kept open for the next request, once all that was asked of them is sent."""


class _Serving:
    """One blob that the other side asks for."""

    def __init__(self, digest: bytes, file: int, size: int, lanes: Lanes) -> None:
        self.digest = digest
        self.file = file
        self.size = size
        self.waiting = False  # in a lane; kept by Lanes
        self.bare = False  # whether the other side wants no CRCs
        self.wanted: dict[int, int] = {}  # offset: bytes, in the order asked for
        self._lanes = lanes

    @property
    def more(self) -> bool:
        """Whether more chunks are asked for."""
        return bool(self.wanted)

    def next_parts(self) -> list[Buffer] | None:
        """Return the next chunk; one larger than the wire takes goes in several."""
        if not self.wanted:
            return None
        offset = next(iter(self.wanted))
        size = self.wanted.pop(offset)
        fits = self._lanes.chunk
        if size > fits:
            self.wanted = {offset + fits: size - fits, **self.wanted}
            size = fits
        try:
            data = os.pread(self.file, size, offset)
        except OSError as error:
            return self._absent(error.strerror or str(error))
        if len(data) < size:
            return self._absent("its file became shorter")
        return chunk_parts(self._lanes.number, self.digest, offset, data, bare=self.bare)

    def _absent(self, why: str) -> list[Buffer]:
        self.wanted.clear()
        absent = pb.BlobAbsent(digest=self.digest, message=f"a blob cannot be read: {why}")
        return framed(pb.Frame(session=self._lanes.number, blob_absent=absent))


class Servings:
    """The blobs that a session sends."""

    def __init__(
        self,
        blobs: Blobs,
        lanes: Lanes,
        limits: Limits,
        on_request: Callable[[pb.BlobRequest], list[int]] | None,
    ) -> None:
        self._blobs = blobs
        self._lanes = lanes
        self._limits = limits
        self._on_request = on_request
        self._open: dict[bytes, _Serving] = {}

    def take_request(self, request: pb.BlobRequest) -> None:
        """Send the chunks asked for, those left to this session alone."""
        digest = read_digest(request.digest)
        chunk = request.chunk
        if chunk < STEP or chunk % STEP:
            raise PeerError(f"a chunk of {chunk} bytes is no multiple of {STEP}")
        if len(request.offsets) > self._limits.serving:
            raise PeerError(f"{len(request.offsets)} chunks are asked for at once")
        offsets = list(request.offsets)
        if self._on_request is not None:
            offsets = self._on_request(request)
        if not offsets:
            return
        serving = self._open.get(request.digest)
        if serving is None:
            self._close_idle()
            if len(self._open) >= SERVED:
                return  # it is asked for again
            path = self._blobs.path(digest)
            if path is None:
                self._absent(request.digest, f"blob {digest[:12]} is not here")
                return
            try:
                file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            except OSError as error:
                self._absent(request.digest, f"blob {digest[:12]} cannot be read: {error.strerror}")
                return
            size = os.fstat(file).st_size
            serving = _Serving(request.digest, file, size, self._lanes)
            self._open[request.digest] = serving
        if serving.size != request.size:
            self._absent(
                request.digest, f"blob {digest[:12]} has {serving.size} bytes, not {request.size}"
            )
            return
        serving.bare = request.bare
        room = self._limits.serving - sum(len(other.wanted) for other in self._open.values())
        for offset in offsets[:room]:
            if offset % STEP or offset >= serving.size:
                raise PeerError(f"there is no chunk at {offset} in blob {digest[:12]}")
            serving.wanted[offset] = min(chunk, serving.size - offset)
        self._lanes.blob_ready(serving)

    def _absent(self, digest: bytes, message: str) -> None:
        absent = pb.BlobAbsent(digest=digest, message=message)
        self._lanes.control(("absent", digest), pb.Frame(blob_absent=absent))

    def _close_idle(self) -> None:
        """Keep few files open that nothing is asked of."""
        idle = [digest for digest, serving in self._open.items() if not serving.wanted]
        for digest in idle[: max(0, len(idle) - OPEN_FILES + 1)]:
            self._shut(digest)

    def _shut(self, digest: bytes) -> None:
        serving = self._open.pop(digest)
        serving.wanted.clear()
        with contextlib.suppress(OSError):
            os.close(serving.file)

    def detach(self) -> None:
        """Forget what was asked: the other side asks again on the next wire."""
        for digest in list(self._open):
            self._shut(digest)
