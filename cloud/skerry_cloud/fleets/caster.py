"""Publishes blobs once for many devices over a broker: casting.py decides, this does it.

A broker that can is asked to keep the chunks of the latest blobs, KEPT_ROOM bytes of them together,
for devices that begin to listen late or miss some; each chunk on a topic of its own, so that a
device asks the broker for just those that it lacks. It is told to forget them when nobody has asked
for a blob for a while, when a newer one needs the room, and (MQTT 5) in any case after a time.
"""

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Callable, Collection
from typing import Final

from skerry_protos.errors import LinkError
from skerry_protos.messages import BlobRef, DeviceId, Digest
from skerry_protos.mqtt import CHUNK, BrokerConnection
from skerry_protos.partials import STEP
from skerry_protos.seams import Blobs
from skerry_protos.session import chunk_packet
from skerry_protos.topics import KEPT_SIZE, cast, kept
from skerry_protos.v1 import fleet_pb2 as pb

from skerry_cloud.fleets.casting import IDLE_S, KEPT_S, Cast

log = logging.getLogger(__name__)

KEPT_ROOM: Final = KEPT_SIZE
"""Bytes that a broker keeps of all blobs together."""
EXPIRY_S: Final = int(KEPT_S) + 60
TIDY_S: Final = IDLE_S / 4


class Caster:
    """The blobs that are on their way to many devices."""

    def __init__(self, blobs: Blobs, connection: Callable[[], BrokerConnection | None]) -> None:
        """Begin with none; `connection` returns the present one to the broker."""
        self._blobs = blobs
        self._connection = connection
        self._casts: dict[Digest, Cast] = {}
        self._stale: deque[str] = deque()  # topics whose chunks the broker is to forget
        self._news = asyncio.Event()
        self.keeps = False
        """Whether the broker keeps what it is asked to."""

    def expect(
        self, ref: BlobRef, devices: Collection[DeviceId], deaf: Collection[DeviceId]
    ) -> None:
        """Publish the blob's chunks once for these devices when they ask; see Cast.add."""
        now = asyncio.get_running_loop().time()
        self._tidy(now)
        if len(devices) > 1:
            known = self._casts.get(ref.digest)
            if known is None:
                known = self._casts[ref.digest] = Cast(ref, keep=self._room_for(ref))
            known.add(devices, now, deaf)
            self._news.set()

    def _room_for(self, ref: BlobRef) -> bool:
        """Make room at the broker for one more blob; False when it is not to keep it at all."""
        if not self.keeps or ref.size > KEPT_ROOM:
            return False
        keeping = sorted((c for c in self._casts.values() if c.keep), key=lambda c: c.used_s)
        used = sum(known.ref.size for known in keeping)
        for known in keeping:
            if used + ref.size > KEPT_ROOM:
                used -= known.ref.size
                self._release(known)
        return True

    def _release(self, known: Cast) -> None:
        self._stale += (kept(known.ref.digest, offset) for offset in known.release())

    def _tidy(self, now: float) -> None:
        for digest in [d for d, known in self._casts.items() if known.idle(now)]:
            self._release(self._casts.pop(digest))

    def leave(self, device: DeviceId) -> None:
        """Wait for a device no longer, until it asks again."""
        for known in self._casts.values():
            known.leave(device)

    def lose(self) -> None:
        """Note that the broker was away, and may have lost what it kept."""
        for known in self._casts.values():
            known.lose()

    def ask(self, device: DeviceId, request: pb.BlobRequest) -> list[int]:
        """Publish what a request calls for, and return the offsets to send to the device alone."""
        offsets = list(request.offsets)
        known = self._casts.get(Digest(request.digest.hex()))
        chunk = request.chunk
        if known is None or not STEP <= chunk <= CHUNK:
            return offsets
        if any(offset % chunk or offset >= known.ref.size for offset in offsets):
            return offsets
        now = asyncio.get_running_loop().time()
        alone = known.ask(
            device, chunk, offsets, repair=request.repair, alone=request.alone, now=now
        )
        if known.waiting:
            self._news.set()
        return alone

    async def run(self) -> None:
        """Publish the chunks that were asked for, each when it may be, by turns."""
        loop = asyncio.get_running_loop()
        while True:
            await self._forget()
            waiting = [known for known in self._casts.values() if known.waiting]
            published = False
            for known in waiting:
                chunk = known.take(loop.time())
                if chunk is None:
                    continue
                published = True
                try:
                    await self._publish(known, *chunk)
                except (LinkError, OSError) as error:  # whoever misses it asks again
                    log.info("cast %s: %s", known.ref.digest[:12], error)
            if not published:
                soonest = min((known.wait_s(loop.time()) for known in waiting), default=TIDY_S)
                self._news.clear()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(min(soonest, TIDY_S)):
                        await self._news.wait()
                self._tidy(loop.time())

    async def _publish(self, known: Cast, offset: int, keep: bool) -> None:
        path, connection = self._blobs.path(known.ref.digest), self._connection()
        if path is None or connection is None:
            return
        with path.open("rb") as file:
            file.seek(offset)
            data = file.read(known.chunk)
        digest = known.ref.digest
        packet = chunk_packet(0, bytes.fromhex(digest), offset, data)
        topic = kept(digest, offset) if keep else cast(digest)
        await connection.push(topic, packet, keep_s=EXPIRY_S if keep else 0)

    async def _forget(self) -> None:
        """Have the broker forget what is of no use any more."""
        while self._stale and (connection := self._connection()) is not None:
            try:
                await connection.push(self._stale.popleft(), b"", keep_s=1)
            except LinkError as error:  # a broker that lives on forgets by itself
                log.info("%s", error)

    async def close(self) -> None:
        """Have the broker forget everything; `run` must have ended."""
        for known in self._casts.values():
            self._release(known)
        self._casts.clear()
        await self._forget()
