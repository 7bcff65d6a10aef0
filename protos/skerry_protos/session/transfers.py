"""The blobs that a session fetches: one Transfer for each, then verified and kept."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

from skerry_protos.errors import (
    DeadlineError,
    RejectCode,
    RejectedError,
    SkerryError,
    TrustError,
)
from skerry_protos.messages import BlobRef, Digest
from skerry_protos.seams import Blobs, Partial
from skerry_protos.session.frames import TEXT_LIMIT
from skerry_protos.session.lanes import Lanes
from skerry_protos.session.limits import Inflow, Limits
from skerry_protos.session.timing import RoundTrip
from skerry_protos.session.transfer import STALLED_S, OnAsk, Transfer, chunk_of
from skerry_protos.v1 import fleet_pb2 as pb


class Transfers:
    """The blobs that a session fetches, one Transfer for each."""

    def __init__(
        self,
        *,
        blobs: Blobs,
        lanes: Lanes,
        limits: Limits,
        inflow: Inflow,
        on_want: Callable[[Digest], Awaitable[None]] | None,
        on_unwant: Callable[[Digest], None] | None,
        on_ask: OnAsk | None = None,
    ) -> None:
        self._blobs = blobs
        self._lanes = lanes
        self._limits = limits
        self._inflow = inflow
        self._on_want = on_want
        self._on_unwant = on_unwant
        self._on_ask = on_ask
        self._round_trip = RoundTrip()
        self._live: dict[bytes, Transfer] = {}
        self.error: SkerryError | None = None

    async def fetch(self, ref: BlobRef, *, deadline_s: float) -> Path:
        """Return the blob's file, moved here and verified."""
        if ref.size > self._limits.blob:
            raise RejectedError(
                RejectCode.OVERSIZE,
                f"blob {ref.digest[:12]} has {ref.size} bytes, the limit is {self._limits.blob}",
            )
        try:
            async with asyncio.timeout(deadline_s):
                while True:
                    async with self._inflow.turn(ref.digest):
                        path = self._blobs.path(ref.digest) or await self._fetch(ref)
                    if path is not None:
                        return path
                    await asyncio.sleep(0)  # another session that waits for its turn has it now
        except TimeoutError as error:
            raise DeadlineError(
                f"blob {ref.digest[:12]} ({ref.size} bytes) did not arrive within {deadline_s:g} s"
            ) from error

    async def _fetch(self, ref: BlobRef) -> Path | None:
        """Fetch the blob, twice when what an earlier process left of it was wrong."""
        if self.error is not None:
            raise self.error
        if self._on_want is not None and not self._lanes.shrunk:
            await self._on_want(ref.digest)
        try:
            while True:
                partial = self._blobs.begin(ref, chunk_of(ref.size, self._lanes))
                try:
                    if not await self._move(ref, partial):
                        return None
                    return await asyncio.to_thread(self._blobs.commit, ref, partial)
                except TrustError:
                    if not partial.resumed:
                        raise
                finally:
                    partial.close()
        finally:
            if self._on_unwant is not None:
                self._on_unwant(ref.digest)

    async def _move(self, ref: BlobRef, partial: Partial) -> bool:
        """Have every byte arrive; False when it stalls and another session waits for its turn."""
        transfer = Transfer(
            ref,
            partial,
            self._lanes,
            self._limits,
            self._inflow,
            round_trip=self._round_trip,
            on_ask=self._on_ask,
        )
        digest = bytes.fromhex(ref.digest)
        self._live[digest] = transfer
        try:
            transfer.pump()
            while not transfer.done.done():
                await asyncio.wait({transfer.done}, timeout=STALLED_S)
                stalled = asyncio.get_running_loop().time() - transfer.moved_s > STALLED_S
                if stalled and not transfer.done.done() and self._inflow.wanted(ref.digest):
                    return False
            transfer.done.result()
            return True
        finally:
            transfer.end()
            del self._live[digest]

    def attach(self) -> None:
        """Ask on the new wire, which a broadcast chunk may break as it did those before."""
        for transfer in list(self._live.values()):
            if self._on_unwant is not None and self._lanes.shrunk:
                self._on_unwant(transfer.ref.digest)
            transfer.attach()

    def detach(self) -> None:
        """Wait for the next wire."""
        for transfer in self._live.values():
            transfer.detach()

    def close(self, error: SkerryError) -> None:
        """Fail every fetch."""
        self.error = error
        for transfer in list(self._live.values()):
            transfer.end(error)

    @property
    def busy(self) -> bool:
        """Whether something is under way."""
        return bool(self._live)

    def take_chunk(self, chunk: pb.BlobChunk, data: memoryview) -> None:
        """Take a chunk; one of a blob that is not wanted is ignored: it came twice or late."""
        transfer = self._live.get(chunk.digest)
        if transfer is not None:
            crc32 = chunk.crc32 if chunk.HasField("crc32") else None
            transfer.take(chunk.offset, crc32, data)

    def take_absent(self, absent: pb.BlobAbsent) -> None:
        """Fail the fetch of a blob that the other side does not have."""
        transfer = self._live.get(absent.digest)
        if transfer is not None:
            text = absent.message[:TEXT_LIMIT] or f"blob {transfer.ref.digest[:12]} is not there"
            transfer.end(RejectedError(RejectCode.BLOB, text))
