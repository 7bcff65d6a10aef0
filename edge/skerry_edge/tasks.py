"""Tasks on the device: reading them, making a worker's job of them, and writing the reply.

A task that cannot be worked on is answered with a Failure (Flower's ErrorCode numbers), never with
silence: the run names the device and goes on.
"""

import json
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError
from skerry_protos.errors import RejectCode, RejectedError
from skerry_protos.messages import (
    BODY_LIMIT,
    INLINE_LIMIT,
    BlobRef,
    DeviceId,
    Parcel,
    ParcelKind,
)
from skerry_protos.v1 import work_pb2

from skerry_edge.bundles import Bundle
from skerry_edge.outbox import reply_id
from skerry_edge.states import FEEDBACK, STATE
from skerry_edge.worker.messages import Job
from skerry_edge.worker.process import Result

BESIDE = "beside"
"""The file, in a task's folder, of what goes with a content of tensors alone."""
BUNDLE, CONTENT = "bundle", "content"
TAIL_LIMIT = 8 * 1024
REASON_LIMIT = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A task parcel, read and checked."""

    parcel: Parcel
    body: work_pb2.Task
    bundle: BlobRef
    content: BlobRef | None
    run_config: Mapping[str, Any]
    node_config: Mapping[str, Any]
    codec: Mapping[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class Spent:
    """Where a task's time went, and its energy."""

    queued_s: float = 0.0
    download_s: float = 0.0
    held_bytes: int = 0
    energy_j: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a reply will say: content (a file), or a failure."""

    content: Path | None = None
    code: int = 0
    reason: str = ""
    log_tail: str = ""
    report: work_pb2.WorkReport = field(default_factory=work_pb2.WorkReport)


def read_task(parcel: Parcel) -> Task:
    """Return the task in a parcel, or raise RejectedError naming what is wrong with it."""
    try:
        body = work_pb2.Task.FromString(parcel.body)
        run_config = _table(body.run_config_json)
        node_config = _table(body.node_config_json)
        codec = _table(body.codec_json)
    except (DecodeError, ValueError, RecursionError) as error:
        raise _malformed(parcel, f"its body cannot be read: {error}") from error
    bundle, content = parcel.blob(BUNDLE), parcel.blob(CONTENT)
    if bundle is None or body.app.digest.hex() != bundle.digest:
        raise _malformed(parcel, "it has no bundle, or names another one than it carries")
    if content is None and not body.content:
        raise _malformed(parcel, "it has no content")
    if content is None and body.beside:
        raise _malformed(parcel, "it has settings beside a content that it does not have")
    if not body.message_type:
        raise _malformed(parcel, "it has no message type")
    return Task(
        parcel=parcel,
        body=body,
        bundle=bundle,
        content=content,
        run_config=run_config,
        node_config=node_config,
        codec=codec,
    )


def _table(text: str) -> dict[str, Any]:
    table = json.loads(text or "{}")
    if not isinstance(table, dict):
        raise ValueError("a configuration is not a table")
    return table


def _malformed(parcel: Parcel, why: str) -> RejectedError:
    return RejectedError(RejectCode.MALFORMED, f"task {parcel.id}: {why}")


def job_of(
    task: Task,
    bundle: Bundle,
    *,
    device: DeviceId,
    content: Path,
    folder: Path,
    states: Mapping[str, Path | None],
    node: Mapping[str, Any],
    labels: Mapping[str, str],
) -> Job:
    """Return the job a worker gets; this device's own [node] settings have the last word."""
    body, parcel = task.body, task.parcel
    return Job(
        id=parcel.id,
        kind=bundle.manifest.kind,
        app=str(bundle.files),
        entry=bundle.manifest.client,
        message_type=body.message_type,
        content=str(content),
        beside=str(folder / BESIDE) if body.beside else "",
        reply=str(folder / "reply"),
        state=str(states.get(STATE) or ""),
        state_out=str(folder / STATE),
        codec=dict(task.codec),
        feedback=str(states.get(FEEDBACK) or ""),
        feedback_out=str(folder / FEEDBACK),
        run=parcel.run,
        round=parcel.round,
        device=device,
        flower_run=body.flower_run,
        node=body.node,
        group=body.group,
        message_id=body.message_id or parcel.id,
        created_unix_s=body.created_unix_s,
        ttl_s=body.ttl_s,
        run_config=dict(task.run_config),
        node_config={**task.node_config, **node},
        labels=dict(labels),
    )


def answer_of(result: Result, folder: Path, spent: Spent, *, reply_limit: int) -> Answer:
    """Return what a worker's result comes to; its files are looked at, not trusted."""
    outcome = result.outcome
    report = work_pb2.WorkReport(
        queued_s=spent.queued_s,
        download_s=spent.download_s,
        compute_s=outcome.compute_s,
        cpu_s=outcome.cpu_s,
        peak_rss_bytes=max(0, outcome.peak_rss_bytes),
        warm=result.warm,
        codec=outcome.codec,
        plain_bytes=max(0, outcome.plain_bytes),
        energy_j=spent.energy_j,
        held_bytes=spent.held_bytes,
    )
    code, reason = outcome.code, outcome.reason
    if not outcome.failed:
        flaw = _flaw(folder / "reply", reply_limit)
        if flaw is None:
            return Answer(content=folder / "reply", report=report)
        code, reason = 8, f"the app's reply {flaw}"
    return Answer(code=code, reason=reason, log_tail=result.log_tail, report=report)


def _flaw(path: Path, limit: int) -> str | None:
    """Return why a worker's file cannot be taken over: it must be a plain file of its own."""
    try:
        found = path.lstat()
    except OSError:
        return "was not written"
    if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1:
        return "is not a plain file"
    if found.st_size > limit:
        return f"has {found.st_size} bytes; the limit is {limit}"
    return None


def kept_states(result: Result, folder: Path, *, limit: int) -> dict[str, Path]:
    """Return the next states that the worker wrote and that can be kept, by name."""
    wrote = {STATE: result.outcome.state, FEEDBACK: result.outcome.feedback}
    return {
        name: folder / name
        for name, written in wrote.items()
        if written and _flaw(folder / name, limit) is None
    }


def inline(answer: Answer) -> bytes | None:
    """Return the reply's content when it is small enough for the parcel itself."""
    if answer.content is None or answer.content.stat().st_size > INLINE_LIMIT:
        return None
    return answer.content.read_bytes()


def reply_to(
    task: Task, answer: Answer, *, content: bytes | None = None, blob: BlobRef | None = None
) -> Parcel:
    """Return the reply parcel: content inline, or a blob, or the failure.

    It has no deadline: whoever gets it says at once whether it came in time.
    """
    body = work_pb2.Reply(task=task.parcel.id, content=content or b"", report=answer.report)
    if answer.content is None:
        body.failure.code = answer.code
        body.failure.reason = answer.reason[:REASON_LIMIT]
        body.failure.log_tail = answer.log_tail[-TAIL_LIMIT:]
    data = body.SerializeToString()
    if len(data) > BODY_LIMIT:
        raise ValueError(f"a reply of {len(data)} bytes")
    return Parcel(
        id=reply_id(task.parcel.id),
        kind=ParcelKind.REPLY,
        run=task.parcel.run,
        round=task.parcel.round,
        trace=task.parcel.trace,
        body=data,
        blobs=(blob,) if blob else (),
    )
