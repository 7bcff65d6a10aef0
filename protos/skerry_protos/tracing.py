"""Traces across coordinator and devices, by OpenTelemetry: off unless an endpoint is named.

One run is one trace, and so is one rollout. The ids of its spans follow from the names of what they
are about (a run, a question, a task), so that nobody has to hand them on: a parcel carries the W3C
trace context of its task (https://www.w3.org/TR/trace-context), and a coordinator that was killed
goes on with the same trace. A span is told when it is over, with its begin and end.

    OTEL_EXPORTER_OTLP_ENDPOINT=http://collector:4318 skerry-coordinator serve

The SDK is imported by a thread of its own, with the first span: a process that does nothing, or
that has tracing off, is no larger for it.
"""

import contextlib
import hashlib
import logging
import os
import queue
import re
import secrets
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any, Final

log = logging.getLogger(__name__)

ENDPOINTS: Final = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
HELD: Final = 4096
"""Spans that wait for the exporter; more are left out, and counted."""
CLOSE_S: Final = 5.0
TEXT_LIMIT: Final = 300
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}")

Value = str | int | float | bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """Something that took time; times are seconds since 1970."""

    name: str
    trace: str
    """32 hexadecimal digits."""
    span: str
    """16 hexadecimal digits."""
    parent: str = ""
    scope: str = ""
    begin: float = 0.0
    end: float = 0.0
    failed: str = ""
    """Why it failed; empty: it did not."""
    values: Mapping[str, Value] = field(default_factory=dict)


# Ids.


def trace_id(name: str) -> str:
    """Return the trace of a run, a rollout or a trace context, 32 hexadecimal digits."""
    found = _TRACEPARENT.fullmatch(name)
    return found[1] if found else hashlib.sha256(f"trace/{name}".encode()).hexdigest()[:32]


def span_id(*names: object) -> str:
    """Return the id of the span about these names, 16 hexadecimal digits."""
    text = "/".join(map(str, names))
    return hashlib.sha256(f"span/{text}".encode()).hexdigest()[:16]


def new_span_id() -> str:
    """Return the id of a span that nobody has to find."""
    return secrets.token_hex(8)


def context(name: str, span: str) -> str:
    """Return the trace context (W3C traceparent) of a span in the trace of a run or rollout."""
    return f"00-{trace_id(name)}-{span}-01"


def parent_of(trace: str) -> str:
    """Return the span that a trace context names; empty when it is none."""
    found = _TRACEPARENT.fullmatch(trace)
    return found[2] if found else ""


def received(traceparent: str) -> str:
    """Return the trace context that a caller outside of Skerry sent; empty when it is none.

    By OpenTelemetry's propagator, which has to be installed. Imports it: call this in a thread.
    """
    from opentelemetry import trace
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    found = TraceContextTextMapPropagator().extract({"traceparent": traceparent})
    above = trace.get_current_span(found).get_span_context()
    if not above.is_valid:
        return ""
    return f"00-{above.trace_id:032x}-{above.span_id:016x}-{above.trace_flags:02x}"


def sampled(trace: str) -> bool:
    """Return whether a trace is recorded: any is, but one whose context says that it is not."""
    return _TRACEPARENT.fullmatch(trace) is None or bool(int(trace[-2:], 16) & 1)


# Telling.

_sink: "_Sink | None" = None


def wanted() -> bool:
    """Return whether the environment names where traces go."""
    off = os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true"
    return not off and any(os.environ.get(name) for name in ENDPOINTS)


def begin(service: str, *, exporter: Any = None, **about: str) -> bool:
    """Send spans from now on, where the environment says; return whether they are sent.

    `about` says of this process what a collector shall know, as device="pi-1". An `exporter` (of
    the SDK's) may be given instead of the environment's endpoint.
    """
    global _sink  # noqa: PLW0603 - as logging, one for the process
    if _sink is not None or (exporter is None and not wanted()):
        return _sink is not None
    if find_spec("opentelemetry") is None or find_spec("opentelemetry.sdk") is None:
        log.warning("no traces are sent: pip install 'skerry-edge[otel]' or 'skerry-cloud[otel]'")
        return False
    _sink = _Sink(service, about, exporter)
    return True


def on() -> bool:
    """Return whether spans are sent."""
    return _sink is not None


def tell(span: Span) -> None:
    """Send a span that is over; never waits."""
    if _sink is not None:
        _sink.put(span)


def end() -> None:
    """Send what waits, for a few seconds at most, and stop."""
    global _sink  # noqa: PLW0603
    if _sink is not None:
        _sink.close()
        _sink = None


@contextlib.contextmanager
def spanning(
    name: str, *, trace: str, span: str = "", parent: str = "", scope: str = "", **values: Value
) -> Iterator[dict[str, Value]]:
    """Tell of a span that begins and ends with the block; what the block adds is told too."""
    if not on():
        yield {}
        return
    began, found, failed = time.time(), dict(values), ""
    try:
        yield found
    except BaseException as error:
        failed = f"{type(error).__name__}: {error}"
        raise
    finally:
        tell(
            Span(
                name=name,
                trace=trace_id(trace),
                span=span or new_span_id(),
                parent=parent,
                scope=scope,
                begin=began,
                end=time.time(),
                failed=failed,
                values=found,
            )
        )


class _Sink:
    """A thread that hands spans to the SDK."""

    def __init__(self, service: str, about: Mapping[str, str], exporter: Any) -> None:
        self._service, self._about, self._exporter = service, about, exporter
        self._queue: queue.Queue[Span | None] = queue.Queue(HELD)
        self._thread: threading.Thread | None = None
        self._lost = 0

    def put(self, span: Span) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="tracing", daemon=True)
            self._thread.start()
        try:
            self._queue.put_nowait(span)
        except queue.Full:
            self._lost += 1
            if self._lost in {1, 1000, 1_000_000}:
                log.warning("%d spans were left out: the collector is too slow", self._lost)

    def close(self) -> None:
        if self._thread is not None:
            with contextlib.suppress(queue.Full):
                self._queue.put(None, timeout=CLOSE_S)
            self._thread.join(CLOSE_S)

    def _run(self) -> None:
        try:
            provider, ids = self._open()
        except Exception as error:  # noqa: BLE001 - traces are not worth failing for
            log.warning("no traces are sent: %s: %s", type(error).__name__, error)
            return
        while (span := self._queue.get()) is not None:
            _hand_over(span, provider, ids)
        provider.force_flush(int(CLOSE_S * 1e3))
        provider.shutdown()

    def _open(self) -> tuple[Any, "_Ids"]:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor

        named = os.environ.get("OTEL_SERVICE_NAME") or self._service
        about = {f"skerry.{name}": text for name, text in self._about.items()}
        ids: Any = _Ids()
        provider = TracerProvider(
            resource=Resource.create({"service.name": named, **about}),
            id_generator=ids,
            shutdown_on_exit=False,
        )
        if self._exporter is not None:
            provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        else:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

            provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        return provider, ids


class _Ids:
    """The SDK's generator of ids, told which ones to give."""

    trace = span = 1

    def generate_trace_id(self) -> int:
        return self.trace

    def generate_span_id(self) -> int:
        return self.span

    def is_trace_id_random(self) -> bool:
        return False  # they are digests of names


def _hand_over(told: Span, provider: Any, ids: _Ids) -> None:
    from opentelemetry.context import Context
    from opentelemetry.trace import (
        NonRecordingSpan,
        SpanContext,
        Status,
        StatusCode,
        TraceFlags,
        set_span_in_context,
    )

    ids.trace, ids.span = int(told.trace, 16), int(told.span, 16)
    around = Context()
    if told.parent:
        above = SpanContext(
            ids.trace, int(told.parent, 16), is_remote=True, trace_flags=TraceFlags(1)
        )
        around = set_span_in_context(NonRecordingSpan(above), around)
    values = {
        f"skerry.{name}": value[:TEXT_LIMIT] if isinstance(value, str) else value
        for name, value in told.values.items()
    }
    span = provider.get_tracer(told.scope or "skerry").start_span(
        told.name, context=around, attributes=values, start_time=int(told.begin * 1e9)
    )
    if told.failed:
        span.set_status(Status(StatusCode.ERROR, told.failed[:TEXT_LIMIT]))
    span.end(end_time=int(max(told.begin, told.end) * 1e9))
