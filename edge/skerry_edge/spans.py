"""What the agent does as spans of the run that it is for (skerry_protos.tracing).

    task (the coordinator's) > work > queued, fetch, run, reply

The times are this device's clock's: where it is wrong, so are they.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator

from google.protobuf.message import DecodeError
from skerry_protos import tracing
from skerry_protos.messages import Parcel
from skerry_protos.v1 import work_pb2

from skerry_edge.tasks import Spent

SCOPE = "skerry.agent"
REPLY = "/reply"


@contextlib.contextmanager
def working(parcel: Parcel, spent: Spent) -> Iterator[Callable[[Parcel], None]]:
    """Tell of the work on a task, in parts; the block hands the reply over."""
    if not tracing.on():
        yield lambda _: None
        return
    began, replies, failed = time.time(), list[Parcel](), ""
    try:
        yield replies.append
    except BaseException as error:
        failed = f"{type(error).__name__}: {error}"
        raise
    finally:
        _tell_work(parcel, spent, began, replies[0] if replies else None, failed)


def _tell_work(
    parcel: Parcel, spent: Spent, began: float, reply: Parcel | None, failed: str
) -> None:
    report, wrong = _report(reply)
    noted, work = began - spent.queued_s, tracing.span_id(parcel.id, "work")

    def tell(
        name: str, span: str, parent: str, begin: float, end: float, **values: tracing.Value
    ) -> None:
        tracing.tell(
            tracing.Span(
                name=name,
                trace=tracing.trace_id(parcel.trace),
                span=span,
                parent=parent,
                scope=SCOPE,
                begin=begin,
                end=end,
                failed=(failed or wrong) if name == "work" else "",
                values=values,
            )
        )

    tell(
        "work",
        work,
        tracing.parent_of(parcel.trace),
        noted,
        time.time(),
        task=parcel.id,
        run=parcel.run,
        round=parcel.round,
        cpu_s=report.cpu_s,
        energy_j=report.energy_j,
        peak_rss_bytes=float(report.peak_rss_bytes),
        warm=report.warm,
    )
    fetched = began + spent.download_s
    for name, begin, end in (
        ("queued", noted, began),
        ("fetch", began, fetched),
        ("run", fetched, fetched + report.compute_s),
    ):
        if end > begin:
            tell(name, tracing.new_span_id(), work, begin, end)


def _report(reply: Parcel | None) -> tuple[work_pb2.WorkReport, str]:
    """Return what a reply says of the work, and why that failed."""
    if reply is None:
        return work_pb2.WorkReport(), ""
    try:
        said = work_pb2.Reply.FromString(reply.body)
    except DecodeError:
        return work_pb2.WorkReport(), ""
    return said.report, said.failure.reason if said.HasField("failure") else ""


def replying(reply: Parcel) -> contextlib.AbstractContextManager[object]:
    """Tell of a reply's way to the coordinator, up to the acknowledgement."""
    task = reply.id.removesuffix(REPLY)
    return tracing.spanning(
        "reply", trace=reply.trace, parent=tracing.span_id(task, "work"), scope=SCOPE, task=task
    )


@contextlib.contextmanager
def asking_cloud(model: str, caller: str = "") -> Iterator[str]:
    """Tell of a question to the cloud's bigger model; the context goes with it.

    It belongs to the trace of who asked the device, where that is known (`caller`, its context).
    """
    if not (tracing.on() and tracing.sampled(caller)):
        yield ""
        return
    span = tracing.new_span_id()
    trace = tracing.context(caller or f"question/{span}", span)
    with tracing.spanning(
        "infer in the cloud",
        trace=trace,
        span=span,
        parent=tracing.parent_of(caller),
        scope=SCOPE,
        model=model,
    ):
        yield trace


async def caller(traceparent: str) -> str:
    """Return the context that came with a request (W3C traceparent); empty when it is none."""
    if not (traceparent and tracing.on()):
        return ""
    return await asyncio.to_thread(tracing.received, traceparent)
