"""A coordinator and two devices as processes send one trace to a collector, by OTLP over HTTP."""

import gzip
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from skerry_devices.apps import read_app
from skerry_devices.client import at
from skerry_devices.local import LocalFleet, plan_devices
from skerry_devices.waiting import until
from skerry_protos import tracing

HALVES = Path(__file__).parent / "apps" / "halves"
AGENT_MB = 60
"""What the agent may take, sending traces too."""


def pss_mb(pid: int) -> float:
    """Return the proportional set size of a process, MiB."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("Pss:")).split()[1]) / 1024


class Collector(ThreadingHTTPServer):
    """What listens at /v1/traces."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.spans: list[tuple[str, Span]] = []  # with the service that sent it

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        assert self.path == "/v1/traces"
        for each in ExportTraceServiceRequest.FromString(body).resource_spans:
            about = {one.key: one.value.string_value for one in each.resource.attributes}
            sender = about["service.name"] + about.get("skerry.device", "")
            spans = [span for scope in each.scope_spans for span in scope.spans]
            self.server.spans += [(sender, span) for span in spans]
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def collector() -> Iterator[Collector]:
    made = Collector()
    thread = threading.Thread(target=made.serve_forever, args=(0.05,))
    thread.start()
    yield made
    made.shutdown()
    thread.join()
    made.server_close()


@pytest.mark.slow
@pytest.mark.network
def test_processes_send_one_trace_to_a_collector(
    tmp_path: Path, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "200")
    plans = plan_devices(2, "both")
    with LocalFleet(tmp_path) as fleet:
        fleet.start()
        fleet.join(plans)
        fleet.run(plans)
        fleet.wait_online(plans)
        with fleet.client() as client:
            app = client.upload(at("apps"), read_app(HALVES).bundle)
            options = {"rounds": 1, "min_devices": 2}
            run = client.post(at("runs"), {"app": app["digest"], "options": options})["id"]

            def done() -> bool | None:
                state = client.get(at("runs", run))["state"]
                assert state != "failed", client.get(at("runs", run))
                return state == "completed" or None

            until(done, timeout_s=60, what="the run's end")
            here = {"skerry-coordinator", *(f"skerry-agent{plan.name}" for plan in plans)}
            trace = bytes.fromhex(tracing.trace_id(run))

            def arrived() -> bool | None:
                mine = [(who, span) for who, span in collector.spans if span.trace_id == trace]
                replies = {who for who, span in mine if span.name == "reply"}
                root = any(span.name == "run" and not span.parent_span_id for _, span in mine)
                return (root and len(replies) == 2) or None

            until(arrived, timeout_s=20, what="the spans")
        agents = [child for child in fleet.children if child.name != "the coordinator"]
        sizes = {child.name: pss_mb(child.pid) for child in agents}
        print(sizes)
        assert max(sizes.values()) <= AGENT_MB
    spans = [(who, span) for who, span in collector.spans if span.trace_id == trace]
    assert {who for who, _ in spans} == here
    by_id = {span.span_id: (who, span) for who, span in spans}
    works = [(who, span) for who, span in spans if span.name == "work"]
    assert {who for who, _ in works} == here - {"skerry-coordinator"}
    for _, span in works:
        who, task = by_id[span.parent_span_id]
        assert (who, task.name) == ("skerry-coordinator", "task")
        asked = by_id[task.parent_span_id][1]
        assert asked.name.startswith("question ")
        assert by_id[asked.parent_span_id][1].name == "run"
    assert any(span.name == "aggregate" for _, span in spans)
