"""Tasks and replies as parcels: from what a server side asks to what crosses, and back."""

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from google.protobuf.message import DecodeError
from skerry_protos import steady, tracing
from skerry_protos.codecs import NAMES
from skerry_protos.errors import PeerError
from skerry_protos.messages import (
    BODY_LIMIT,
    BlobRef,
    DeviceId,
    Parcel,
    ParcelId,
    ParcelKind,
    RunId,
    new_id,
)
from skerry_protos.v1 import fleet_pb2, work_pb2

from skerry_cloud.runs.plan import RunOptions

REPLY = "/reply"
CANCEL_S = 3600.0
"""How long a device that is away may still be told to stop."""
OUTAGE_S = 600.0
"""How long after its deadline a device may go on with a task: a coordinator that was away
gives the question more time. A device that is here is told when to stop."""
REASON_LIMIT = 1000
NODE_UNAVAILABLE = 5
"""Flower's ErrorCode for a device that did not answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AppCode:
    """The app as tasks name it."""

    kind: str
    name: str
    entry: str
    bundle: BlobRef


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What one device is asked: content inline, or a blob that is here."""

    device: DeviceId
    node: int
    message_type: str
    group: str
    ttl_s: float
    content: bytes | BlobRef
    beside: bytes = b""
    node_config: Mapping[str, Any]
    codec_json: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A device's reply, checked but for its content."""

    task: ParcelId
    content: bytes | BlobRef
    failed: bool
    code: int
    reason: str
    log_tail: str
    report: dict[str, float | bool | str]


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskMaker:
    """Makes a run's task parcels: all of them name the same app, limits and configuration."""

    run: RunId
    number: int
    app: AppCode
    options: RunOptions
    run_config: Mapping[str, Any]
    metadata: Callable[[], BlobRef | None] = lambda: None
    """The signed repository by which a device may look the app up."""

    def parcel(self, asked: Asked, *, round_: int, deadline: float) -> Parcel:
        """Return the parcel that asks one device."""
        task = ParcelId(new_id("task-"))
        limits = self.options.limits
        body = work_pb2.Task(
            message_type=asked.message_type,
            content=asked.content if isinstance(asked.content, bytes) else b"",
            group=asked.group,
            flower_run=self.number,
            node=asked.node,
            run_config_json=json.dumps(dict(self.run_config)),
            node_config_json=json.dumps(dict(asked.node_config)),
            app=work_pb2.AppRef(
                kind=self.app.kind,
                name=self.app.name,
                digest=bytes.fromhex(self.app.bundle.digest),
                entry=self.app.entry,
            ),
            limits=work_pb2.Limits(
                seconds=limits.seconds,
                memory_bytes=limits.memory_bytes,
                output_bytes=limits.output_bytes,
            ),
            fresh_worker=self.options.fresh_worker,
            created_unix_s=time.time(),
            message_id=task,
            ttl_s=asked.ttl_s,
            codec_json=asked.codec_json,
            beside=asked.beside,
        ).SerializeToString()
        if len(body) > BODY_LIMIT:
            raise PeerError(f"a task of {len(body)} bytes; expected at most {BODY_LIMIT}")
        content = (asked.content,) if isinstance(asked.content, BlobRef) else ()
        return Parcel(
            id=task,
            kind=ParcelKind.TASK,
            run=self.run,
            round=round_,
            deadline_unix_s=deadline,
            trace=tracing.context(self.run, tracing.span_id(task)),
            body=body,
            blobs=(*content, self.app.bundle, *filter(None, (self.metadata(),))),
        )


def cancel_parcel(
    run: RunId, tasks: list[ParcelId], reason: str, *, run_over: bool = False
) -> Parcel:
    """Return the parcel that tells a device to stop working on tasks, or that the run is over."""
    return Parcel(
        id=ParcelId(new_id("cancel-")),
        kind=ParcelKind.CANCEL,
        run=run,
        deadline_unix_s=steady.unix_s() + CANCEL_S,
        body=work_pb2.Cancel(
            tasks=tasks, reason=reason[:200], run_over=run_over
        ).SerializeToString(),
    )


def task_of(parcel: Parcel) -> ParcelId:
    """Return the id of the task that a reply parcel answers; PeerError when it names none."""
    if not parcel.id.endswith(REPLY):
        raise PeerError(f"a reply's id is its task's with {REPLY!r}; this is {parcel.id[:80]!r}")
    return ParcelId(parcel.id.removesuffix(REPLY))


def read_reply(parcel: Parcel) -> Answer:
    """Return what a reply parcel says, or raise PeerError."""
    try:
        reply = work_pb2.Reply.FromString(parcel.body)
    except DecodeError as error:
        raise PeerError(f"the reply does not parse: {error}") from error
    task = task_of(parcel)
    if reply.task != task:
        raise PeerError(f"the reply's body names another task: {reply.task[:80]!r}")
    content = parcel.blob("content")
    failed = reply.HasField("failure")
    if not failed and content is None and not reply.content:
        raise PeerError("the reply has neither content nor a failure")
    return Answer(
        task=task,
        content=reply.content if content is None else content,
        failed=failed,
        code=reply.failure.code if failed else 0,
        reason=shown(reply.failure.reason) if failed else "",
        log_tail=shown(reply.failure.log_tail, 4000) if failed else "",
        report=_report(reply.report),
    )


def shown(text: str, limit: int = REASON_LIMIT) -> str:
    """Return what may be shown of a device's text: no control characters, bounded."""
    return "".join(one if one.isprintable() or one in "\n\t" else " " for one in text[:limit])


def _report(report: work_pb2.WorkReport) -> dict[str, float | bool | str]:
    """Return the numbers of a report that are numbers, and the codec when it names one."""
    found: dict[str, float | bool | str] = {}
    for name in ("queued_s", "download_s", "compute_s", "cpu_s", "peak_rss_bytes", "energy_j"):
        value = float(getattr(report, name))
        if 0 <= value < 1e15:
            found[name] = round(value, 6)
    if report.held_bytes < 2**50:
        found["held_bytes"] = report.held_bytes
    found["warm"] = report.warm
    if report.codec.partition(",")[0] in NAMES and report.plain_bytes < 2**50:
        found |= {"codec": shown(report.codec, 64), "plain_bytes": report.plain_bytes}
    return found


def parcel_bytes(parcel: Parcel) -> bytes:
    """Return a parcel as it is kept in the database."""
    return fleet_pb2.Parcel(
        id=parcel.id,
        kind=parcel.kind,
        run=parcel.run,
        round=parcel.round,
        deadline_unix_s=parcel.deadline_unix_s,
        trace=parcel.trace,
        body=parcel.body,
        blobs=[
            fleet_pb2.BlobRef(digest=bytes.fromhex(ref.digest), size=ref.size, role=ref.role)
            for ref in parcel.blobs
        ],
    ).SerializeToString()
