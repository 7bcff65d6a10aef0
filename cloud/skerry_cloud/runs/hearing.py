"""What a server side hears of a task: the reply, or a code and a reason; now and from the journal.

Both ways say the same words, so that a server side that begins again hears what the first one did.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError
from skerry_protos.blobs import LocalBlobs
from skerry_protos.messages import BlobRef, ParcelId
from skerry_protos.session.frames import read_parcel
from skerry_protos.v1 import fleet_pb2

from skerry_cloud.runs.exchange import Outcome, outcome_of
from skerry_cloud.runs.tasks import NODE_UNAVAILABLE, read_reply
from skerry_cloud.runs.world import DamagedError
from skerry_cloud.store.questions import Asked


@dataclass(frozen=True, slots=True, kw_only=True)
class Replied:
    """A reply: its content, or the file that holds it, and when it came."""

    content: bytes
    file: Path | None
    at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """No reply: Flower's ErrorCode and a reason."""

    code: int
    why: str
    at: float


Heard = Replied | Failed


def replied(content: bytes | BlobRef, at: float, blobs: LocalBlobs) -> Replied:
    """Return what is heard of a reply that is stored."""
    if isinstance(content, bytes):
        return Replied(content=content, file=None, at=at)
    path = blobs.path(content.digest)
    if path is None:
        raise DamagedError(f"a reply's content, blob {content.digest[:12]}, is gone")
    return Replied(content=b"", file=path, at=at)


def absent(node: int) -> Failed:
    """Return what is heard of a task for a node that nobody has."""
    return Failed(code=NODE_UNAVAILABLE, why=f"no device of this run has the node id {node}", at=0)


def heard(row: Asked | None, node: int, blobs: LocalBlobs) -> Heard | None:
    """Return what is heard of a recorded task, or None while it is open."""
    if row is None:
        return absent(node)
    match outcome_of(row.state):
        case Outcome.OPEN:
            return None
        case Outcome.REPLIED:
            try:
                parcel = read_parcel(fleet_pb2.Parcel.FromString(row.reply or b""))
            except DecodeError as error:
                raise DamagedError(f"the reply to task {row.id} does not parse") from error
            return replied(read_reply(parcel).content, row.replied_at or 0.0, blobs)
        case Outcome.LATE:
            return Failed(code=row.code, why=row.why, at=0.0)
        case Outcome.FAILED:
            return Failed(code=row.code, why=row.why, at=row.replied_at or 0.0)


def say(speak: Callable[[dict[str, Any], bytes], None], task: ParcelId, what: Heard) -> None:
    """Say it."""
    match what:
        case Replied():
            said: dict[str, Any] = {"do": "reply", "task": task, "at": what.at}
            if what.file is not None:
                said["file"] = str(what.file)
            speak(said, what.content)
        case Failed():
            said = {"do": "failure", "task": task, "code": what.code, "why": what.why}
            speak({**said, "at": what.at}, b"")
