"""Packets: building what is sent, and checking all of what is received.

A packet is one or more Frames, each with the data that follows it (see v1/fleet.proto). Only this
package knows how values become `fleet_pb2` messages.
"""

import re
import struct
import zlib
from collections.abc import Iterator
from typing import Final

from google.protobuf.message import DecodeError

from skerry_protos.errors import PeerError, RejectCode, RejectedError
from skerry_protos.messages import (
    BLOB_SIZE_LIMIT,
    BLOBS_LIMIT,
    BODY_LIMIT,
    ID_LIMIT,
    BlobRef,
    Digest,
    Parcel,
    ParcelId,
    RunId,
)
from skerry_protos.v1 import fleet_pb2 as pb

Buffer = bytes | bytearray | memoryview

OVERHEAD: Final = 128
"""Bytes that a frame adds to the data of a blob chunk or a piece of a stream, at most."""
FRAMES: Final = 1024
"""Most frames in one packet."""
TEXT_LIMIT: Final = 2000
"""Longest message for people in a Reject, Refusal, BlobAbsent or StreamEnd, characters."""

_ID = re.compile(rf"[\x21-\x7e]{{1,{ID_LIMIT}}}")
_HEAD: Final = struct.Struct("<II")


def framed(frame: pb.Frame, *data: Buffer) -> list[Buffer]:
    """Return the parts of a frame and its data, to be joined with others into a packet."""
    head = frame.SerializeToString()
    return [_HEAD.pack(len(head), sum(map(len, data))), head, *data]


def pack(frame: pb.Frame, *data: Buffer) -> bytes:
    """Return the packet of one frame and its data, which may be in several parts."""
    return b"".join(framed(frame, *data))


def unpack_all(packet: bytes) -> Iterator[tuple[pb.Frame, memoryview]]:
    """Return the frames of a packet, each with a view of its data; PeerError where it is broken."""
    size, at, count = len(packet), 0, 0
    whole = memoryview(packet)
    while at < size or count == 0:
        begin = at + _HEAD.size
        if begin > size or count == FRAMES:
            raise PeerError(f"a packet of {size} bytes is broken at {at}")
        head, data = _HEAD.unpack_from(packet, at)
        middle = begin + head
        at = middle + data
        if not head or at > size:
            raise PeerError(f"a packet of {size} bytes has a frame that ends at {at}")
        try:
            frame = pb.Frame.FromString(packet[begin:middle])
        except DecodeError as error:
            raise PeerError(f"a frame of {head} bytes cannot be read: {error}") from error
        count += 1
        yield frame, whole[middle:at]


def unpack(packet: bytes) -> tuple[pb.Frame, memoryview]:
    """Return the only frame of a packet and a view of its data, or raise PeerError."""
    found = list(unpack_all(packet))
    if len(found) != 1:
        raise PeerError(f"{len(found)} frames in a packet that must have one")
    return found[0]


def chunk_parts(
    session: int, digest: bytes, offset: int, data: Buffer, *, bare: bool = False
) -> list[Buffer]:
    """Return the parts of one blob chunk, `bare` without its CRC."""
    frame = pb.Frame(session=session)
    chunk = frame.blob_chunk
    chunk.digest = digest
    chunk.offset = offset
    if not bare:
        chunk.crc32 = zlib.crc32(data)
    return framed(frame, data)


def chunk_packet(session: int, digest: bytes, offset: int, data: Buffer) -> bytes:
    """Return the packet of one blob chunk; session 0 for a broadcast."""
    return b"".join(chunk_parts(session, digest, offset, data))


def stream_parts(session: int, stream: int, offset: int, *parts: Buffer) -> list[Buffer]:
    """Return the parts of a piece of a stream."""
    frame = pb.Frame(session=session)
    piece = frame.stream_data
    piece.stream = stream
    piece.offset = offset
    return framed(frame, *parts)


def parcel_message(parcel: Parcel) -> pb.Parcel:
    """Return the message of a parcel, or raise RejectedError naming what passes its limits."""
    _check(parcel)
    return pb.Parcel(
        id=parcel.id,
        kind=parcel.kind,
        run=parcel.run,
        round=parcel.round,
        deadline_unix_s=parcel.deadline_unix_s,
        trace=parcel.trace,
        body=parcel.body,
        blobs=[
            pb.BlobRef(digest=bytes.fromhex(ref.digest), size=ref.size, role=ref.role)
            for ref in parcel.blobs
        ],
    )


def read_parcel(message: pb.Parcel) -> Parcel:
    """Return the parcel in a message, or raise RejectedError."""
    try:
        blobs = tuple(
            BlobRef(digest=read_digest(ref.digest), size=ref.size, role=ref.role)
            for ref in message.blobs[: BLOBS_LIMIT + 1]
        )
    except PeerError as error:
        raise RejectedError(RejectCode.MALFORMED, f"parcel {message.id}: {error}") from error
    parcel = Parcel(
        id=ParcelId(message.id),
        kind=message.kind,
        run=RunId(message.run),
        round=message.round,
        deadline_unix_s=message.deadline_unix_s,
        trace=message.trace,
        body=message.body,
        blobs=blobs,
    )
    _check(parcel)
    return parcel


def read_digest(digest: bytes) -> Digest:
    """Return a digest from its 32 bytes, or raise PeerError."""
    if len(digest) != 32:
        raise PeerError(f"a digest has {len(digest)} bytes, not 32")
    return Digest(digest.hex())


def readable_id(text: str) -> bool:
    """Return whether `text` may be an id: 1 to ID_LIMIT visible ASCII characters."""
    return _ID.fullmatch(text) is not None


def _check(parcel: Parcel) -> None:
    """Raise RejectedError when a parcel is outside its limits."""
    name = f"parcel {parcel.id[:40]!r}"
    if len(parcel.body) > BODY_LIMIT:
        raise RejectedError(
            RejectCode.OVERSIZE,
            f"{name}: the body has {len(parcel.body)} bytes, the limit is {BODY_LIMIT}: "
            "send it as a blob",
        )
    if why := _flaw(parcel):
        raise RejectedError(RejectCode.MALFORMED, f"{name}: {why}")


def _flaw(parcel: Parcel) -> str | None:
    """Return what makes no sense in a parcel, or None."""
    if not (readable_id(parcel.id) and readable_id(parcel.kind)):
        return f"id and kind must be 1 to {ID_LIMIT} visible characters"
    if len(parcel.run) > ID_LIMIT or len(parcel.trace) > ID_LIMIT:
        return f"run or trace is longer than {ID_LIMIT} characters"
    if len(parcel.blobs) > BLOBS_LIMIT:
        return f"it refers to more than {BLOBS_LIMIT} blobs"
    if not 0 <= parcel.round < 2**32:
        return f"round {parcel.round} is out of range"
    if not 0 <= parcel.deadline_unix_s < 1e12:
        return "the deadline is not a time"
    for ref in parcel.blobs:
        if not 0 <= ref.size <= BLOB_SIZE_LIMIT or len(ref.role) > ID_LIMIT:
            return f"blob {ref.digest[:12]} has a bad size or role"
    return None
