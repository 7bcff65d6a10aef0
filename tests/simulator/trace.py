"""What happened, moment by moment: a hash of all of it, and the last of it for people."""

import asyncio
import hashlib
from collections import deque
from dataclasses import dataclass
from typing import Any

from skerry_protos.errors import PeerError
from skerry_protos.session import unpack_all

from tests.simulator.loop import BEGIN_S

SHOWN = 60
"""Events kept for people."""


@dataclass(frozen=True, slots=True)
class _Moment:
    at_s: float
    who: str
    what: str | bytes  # a packet is put into words only when somebody asks


class Trace:
    """The events of one story."""

    def __init__(self, *, shown: int = SHOWN) -> None:
        self._hash = hashlib.blake2b(digest_size=16)
        self._last: deque[_Moment] = deque(maxlen=shown)
        self.events = 0

    def note(self, who: str, what: str) -> None:
        """Note an event."""
        self._keep(who, what, what.encode())

    def packet(self, way: str, packet: bytes) -> None:
        """Note a packet as it is thrown."""
        self._keep(way, packet, packet)

    def _keep(self, who: str, what: str | bytes, data: bytes) -> None:
        at_s = asyncio.get_running_loop().time() - BEGIN_S
        self.events += 1
        self._hash.update(f"{at_s!r} {who} {len(data)} ".encode())
        self._hash.update(data)
        self._last.append(_Moment(at_s, who, what))

    @property
    def hash(self) -> str:
        """Return the same text for the same events at the same times."""
        return self._hash.hexdigest()

    def last(self) -> list[str]:
        """Return the newest events in words."""
        return [
            f"{one.at_s:10.3f} s  {one.who:12} "
            f"{one.what if isinstance(one.what, str) else _words(one.what)}"
            for one in self._last
        ]


def _words(packet: bytes) -> str:
    """Return what a packet holds."""
    words = []
    try:
        for frame, data in unpack_all(packet):
            kind = frame.WhichOneof("kind") or "?"
            said: Any = getattr(frame, kind, None)
            detail = ""
            match kind:
                case "parcel":
                    detail = f" {said.kind} {said.id}"
                case "ack":
                    detail = " " + ",".join(said.parcels)
                case "reject":
                    detail = f" {said.parcel}: {said.code} {said.message}"
                case "blob_request":
                    detail = f" {said.digest.hex()[:8]} {list(said.offsets)}"
                case "blob_chunk":
                    detail = f" {said.digest.hex()[:8]} at {said.offset}, {len(data)} bytes"
                case "welcome":
                    detail = f" {said.session:x}{' resumed' if said.resumed else ''}"
                case "hello":
                    detail = f" resume {said.resume:x}"
            words.append(kind + detail)
    except PeerError as error:
        words.append(f"malformed: {error}")
    return "; ".join(words)
