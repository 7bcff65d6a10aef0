"""What devices say of themselves, made fit to keep and to show: bounded, finite, printable."""

import math
import time
from typing import Any

from google.protobuf.json_format import MessageToDict
from google.protobuf.message import DecodeError
from skerry_protos.errors import RejectCode, RejectedError
from skerry_protos.labels import stated_flaws, usable_stated
from skerry_protos.v1.work_pb2 import Heartbeat, LogLines

LINES_LIMIT = 500
"""Most log lines that are taken from one parcel."""
LOG_TEXT_LIMIT = 4000
"""Longest log line kept, characters."""


def heartbeat_json(body: bytes) -> dict[str, Any]:
    """Return a heartbeat as JSON, or raise RejectedError.

    Labels that a device may not state are left out; `labels_refused` says why of the first.
    """
    try:
        message = Heartbeat.FromString(body)
    except DecodeError as error:
        raise RejectedError(RejectCode.MALFORMED, "the heartbeat cannot be read") from error
    found: dict[str, Any] = MessageToDict(message, preserving_proto_field_name=True)
    # protobuf's JSON writes 64-bit numbers as text, and NaN as a word.
    for name in ("memory_total_bytes", "memory_available_bytes", "disk_free_bytes"):
        if name in found:
            found[name] = int(found[name])
    found.pop("labels", None)
    if message.labels:
        said = dict(message.labels)
        found["labels"] = usable_stated(said)
        if flaws := stated_flaws(said):
            found["labels_refused"] = printable(flaws[0], 300)
    return {name: value for name, value in found.items() if value not in ("NaN", "Infinity")}


def log_rows(body: bytes) -> list[dict[str, object]]:
    """Return a log parcel's lines as rows, bounded, or raise RejectedError."""
    try:
        message = LogLines.FromString(body)
    except DecodeError as error:
        raise RejectedError(RejectCode.MALFORMED, "the log lines cannot be read") from error
    return [
        {
            "at": line.unix_time_s if math.isfinite(line.unix_time_s) else time.time(),
            "source": printable(message.source, 16),
            "level": printable(line.level, 16),
            "text": printable(line.text, LOG_TEXT_LIMIT),
        }
        for line in message.lines[:LINES_LIMIT]
    ]


def printable(text: str, limit: int) -> str:
    """Return what may be kept and shown of a device's text: no control characters, bounded."""
    return "".join(one if one.isprintable() or one == "\t" else " " for one in text[:limit])
