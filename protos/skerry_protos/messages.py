"""Messages as values: the ids, parcels and references every part of Skerry passes around.

Generated `*_pb2` classes stay inside this package's codecs, the session and the gRPC adapters.
"""

import hashlib
import secrets
import time
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import NewType

DeviceId = NewType("DeviceId", str)
RunId = NewType("RunId", str)
ParcelId = NewType("ParcelId", str)
Digest = NewType("Digest", str)
"""SHA-256 of a blob's bytes, 64 lower-case hexadecimal digits."""

BODY_LIMIT = 48 * 1024
"""Largest parcel body, bytes: a parcel fits in one 64 KiB MQTT message."""
BESIDE = "beside"
"""The feature of devices that take tasks whose content blob is of tensors alone (work.proto)."""
INLINE_LIMIT = 32 * 1024
"""Records up to this many bytes travel inside the body; larger ones as a blob."""
BLOBS_LIMIT = 16
"""Most blobs a parcel may refer to."""
BLOB_SIZE_LIMIT = 16 * 1024**3
"""Largest blob, bytes; stores and callers set smaller limits of their own."""
ID_LIMIT = 128
"""Longest id, run, kind or trace, characters."""

DEVICE_ID_PATTERN = r"[A-Za-z0-9_-]{1,64}"


class ParcelKind(StrEnum):
    """What a parcel's body is (the message of the same name in work.proto or models.proto)."""

    TASK = "task"
    REPLY = "reply"
    HEARTBEAT = "heartbeat"
    LOG = "log"
    CANCEL = "cancel"
    PROGRESS = "progress"
    RENEW = "renew"  # device to cloud: body is a CSR (PEM)
    CERTIFICATE = "certificate"  # cloud to device: body is a certificate chain (PEM)
    UPDATE = "update"  # cloud to device: what it shall serve, with the metadata that proves it
    UPDATE_REPORT = "update-report"  # device to cloud: what came of it (models.proto)


@dataclass(frozen=True, slots=True, kw_only=True)
class BlobRef:
    """A blob by name: where its bytes are is the holder's business."""

    digest: Digest
    size: int
    role: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parcel:
    """The unit of delivery; handling is idempotent by `id`."""

    id: ParcelId
    kind: str
    run: RunId = RunId("")
    round: int = 0
    deadline_unix_s: float = 0.0
    trace: str = ""
    body: bytes = b""
    blobs: tuple[BlobRef, ...] = field(default=())

    def expired(self, now_unix_s: float) -> bool:
        """Return whether the parcel's deadline has passed."""
        return 0 < self.deadline_unix_s < now_unix_s

    def blob(self, role: str) -> BlobRef | None:
        """Return the first blob with `role`, or None."""
        return next((ref for ref in self.blobs if ref.role == role), None)


def new_id(prefix: str) -> str:
    """Return a new id that sorts by time: prefix, 48-bit milliseconds, 40 random bits."""
    return f"{prefix}{int(time.time() * 1000):012x}{secrets.token_hex(5)}"


def digest_of(data: bytes | bytearray | memoryview) -> Digest:
    """Return the name of a blob with these bytes."""
    return Digest(hashlib.sha256(data).hexdigest())


def digest_file(path: Path) -> Digest:
    """Return the name of a blob with this file's bytes."""
    with path.open("rb") as file:
        return Digest(hashlib.file_digest(file, "sha256").hexdigest())
