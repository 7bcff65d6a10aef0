"""Spans: ids follow from names, nothing is imported while it is off, no collector is waited for."""

import logging
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from skerry_protos import tracing

RUN = "run-0193ab"


@pytest.fixture(autouse=True)
def _off(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in (*tracing.ENDPOINTS, "OTEL_SDK_DISABLED", "OTEL_SERVICE_NAME"):
        monkeypatch.delenv(name, raising=False)
    yield
    tracing.end()


def test_everyone_finds_the_same_ids_by_name() -> None:
    task = tracing.span_id("task-7")
    context = tracing.context(RUN, task)
    assert context == f"00-{tracing.trace_id(RUN)}-{task}-01"
    assert tracing.trace_id(context) == tracing.trace_id(RUN)
    assert tracing.parent_of(context) == task
    assert tracing.span_id(RUN, "question", 1) != tracing.span_id(RUN, "question", 2)


@pytest.mark.parametrize(
    "trace", ["", "run-1", "00-zz-1-01", "00-" + "0" * 32 + "-1-01", "x" * 128]
)
def test_what_is_no_context_names_no_parent_and_still_a_trace(trace: str) -> None:
    assert tracing.parent_of(trace) == ""
    assert len(bytes.fromhex(tracing.trace_id(trace))) == 16


@pytest.mark.parametrize(
    ("said", "context"),
    [
        (f"00-{'a' * 32}-{'b' * 16}-01", f"00-{'a' * 32}-{'b' * 16}-01"),
        (f"00-{'a' * 32}-{'b' * 16}-00", f"00-{'a' * 32}-{'b' * 16}-00"),
        (f"cc-{'a' * 32}-{'b' * 16}-01-later", f"00-{'a' * 32}-{'b' * 16}-01"),
        (f"00-{'a' * 32}-{'b' * 16}-01-more", ""),
        (f"00-{'0' * 32}-{'b' * 16}-01", ""),
        (f"00-{'a' * 32}-{'0' * 16}-01", ""),
        (f"ff-{'a' * 32}-{'b' * 16}-01", ""),
        ("nonsense", ""),
    ],
)
def test_a_callers_context_is_taken_if_it_is_one(said: str, context: str) -> None:
    assert tracing.received(said) == context
    assert tracing.sampled(context) == (not context.endswith("-00"))


def test_spans_reach_the_exporter_with_their_parents_and_failures() -> None:
    exporter = InMemorySpanExporter()
    assert tracing.begin("test", exporter=exporter, device="pi-1")
    root = tracing.span_id(RUN)
    with (
        pytest.raises(ValueError, match="no data"),
        tracing.spanning("work", trace=RUN, parent=root, scope="s", n=1) as found,
    ):
        found["why"] = "x" * 1000
        raise ValueError("no data")
    with tracing.spanning("run", trace=RUN, span=root):
        pass
    tracing.end()
    work, run = exporter.get_finished_spans()
    assert run.context is not None
    assert work.context is not None
    assert work.parent is not None
    assert f"{run.context.trace_id:032x}" == tracing.trace_id(RUN)
    assert work.context.trace_id == run.context.trace_id
    assert work.parent.span_id == run.context.span_id == int(root, 16)
    assert run.parent is None
    assert work.status.description == "ValueError: no data"
    assert work.attributes is not None
    assert len(str(work.attributes["skerry.why"])) == tracing.TEXT_LIMIT
    assert work.resource.attributes["skerry.device"] == "pi-1"
    assert work.resource.attributes["service.name"] == "test"


def test_while_it_is_off_nothing_is_imported() -> None:
    code = (
        "import sys; import skerry_edge.running; from skerry_protos import tracing\n"
        "assert not tracing.begin('agent')\n"
        "with tracing.spanning('a', trace='run-1'): pass\n"
        "assert not [name for name in sys.modules if name.startswith('opentelemetry')]"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_a_collector_that_is_away_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(tracing.ENDPOINTS[1], "http://127.0.0.1:9")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
    assert tracing.begin("test")
    began = time.monotonic()
    for _ in range(2 * tracing.HELD):
        with tracing.spanning("a", trace=RUN):
            pass
    assert time.monotonic() - began < 2.0
    tracing.end()
    assert time.monotonic() - began < 2 * tracing.CLOSE_S + 3


def test_an_endpoint_without_the_extra_is_one_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(tracing.ENDPOINTS[1], "http://127.0.0.1:9")
    monkeypatch.setattr(tracing, "find_spec", lambda _: None)
    assert not tracing.begin("test")
    assert "pip install 'skerry-edge[otel]'" in caplog.text
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    assert not tracing.wanted()
