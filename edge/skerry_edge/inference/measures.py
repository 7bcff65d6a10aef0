"""What is measured of a served model: for Prometheus, for the gates of a rollout, for drift.

Inputs and answers are only looked at now and then (`LOOK_S`): what is looked for is a change over
hours, and looking costs as much as a small model.
"""

import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import psutil
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from skerry_protos.drift import Drift, Window, compare
from skerry_protos.errors import SkerryError

from skerry_edge.inference.predictor import Predictor
from skerry_edge.inference.protocol import Request

LOOK_S = 0.1
RECENT = 1000
"""Latencies kept for quantiles."""
WINDOW_ROWS = 5000
"""Rows after which a drift window begins anew."""
LATENCY_BUCKETS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)

REGISTRY = CollectorRegistry()
_BY_MODEL = ("model", "version")
REQUESTS = Counter(
    "skerry_inference_requests", "Requests answered", (*_BY_MODEL, "outcome"), registry=REGISTRY
)
LATENCY = Histogram(
    "skerry_inference_latency_seconds",
    "From a request's last byte to its answer",
    _BY_MODEL,
    buckets=LATENCY_BUCKETS,
    registry=REGISTRY,
)
COMPUTE = Counter(
    "skerry_inference_compute_seconds", "Time the model worked", _BY_MODEL, registry=REGISTRY
)
ROWS = Counter("skerry_inference_rows", "Inputs answered", _BY_MODEL, registry=REGISTRY)
BATCHES = Counter("skerry_inference_batches", "Calls of the runtime", _BY_MODEL, registry=REGISTRY)
ESCALATED = Counter(
    "skerry_inference_escalations",
    "Unsure inputs passed to the cloud",
    (*_BY_MODEL, "outcome"),
    registry=REGISTRY,
)
DRIFT = Gauge(
    "skerry_inference_drift_psi",
    "Population stability index of a feature against the model's reference",
    (*_BY_MODEL, "feature"),
    registry=REGISTRY,
)
JOULES = Gauge("skerry_device_energy_joules", "Energy used today", ("source",), registry=REGISTRY)


class Measures:
    """The measures of one served version."""

    def __init__(self, predictor: Predictor) -> None:
        self._predictor = predictor
        self._labels = (predictor.name, predictor.version)
        self._answered = REQUESTS.labels(*self._labels, "answered")
        self._failed = REQUESTS.labels(*self._labels, "failed")
        self._refused = REQUESTS.labels(*self._labels, "refused")
        self._latency = LATENCY.labels(*self._labels)
        self._compute, self._rows = COMPUTE.labels(*self._labels), ROWS.labels(*self._labels)
        self._batches = BATCHES.labels(*self._labels)
        self._recent: deque[float] = deque(maxlen=RECENT)
        self._looked = 0.0
        self._window = Window(predictor.reference) if predictor.reference is not None else None
        self._drift = Drift(rows=0)
        self._lock = threading.Lock()  # batches end in several threads
        self.requests = self.errors = self.rows = 0
        self.compute_s = 0.0

    def answered(self, seconds: float) -> None:
        """Note an answer and how long it took."""
        self.requests += 1
        self._recent.append(seconds)
        self._answered.inc()
        self._latency.observe(seconds)

    def failed(self, error: Exception) -> None:
        """Note a request that got none: one that was refused is not the model's fault."""
        if isinstance(error, SkerryError) and error.code in ("bad-input", "busy", "energy"):
            self._refused.inc()
            return
        self.requests += 1
        self.errors += 1
        self._failed.inc()

    def escalated(self, outcome: str) -> None:
        """Note that the cloud was asked, and whether it answered."""
        ESCALATED.labels(*self._labels, outcome).inc()

    def batch(
        self, requests: Sequence[Request], made: Sequence[Mapping[str, NDArray[Any]]]
    ) -> None:
        """Note a call of the model; in the thread that made it."""
        rows, seconds = sum(one.rows for one in requests), self._predictor.last_s
        self._rows.inc(rows)
        self._batches.inc()
        self._compute.inc(seconds)
        now = time.monotonic()
        with self._lock:
            self.rows += rows
            self.compute_s += seconds
            if self._window is not None and now - self._looked >= LOOK_S:
                self._looked = now
                self._look(requests[0], made[0])

    def _look(self, request: Request, outputs: Mapping[str, NDArray[Any]]) -> None:
        assert self._window is not None and self._predictor.reference is not None
        # The reference was taken of the model's own inputs, after preprocessing.
        inputs = self._predictor.prepare(request.inputs)
        self._window.add(inputs, outputs.get(self._predictor.scores))
        if self._window.rows >= WINDOW_ROWS:
            self._drift = compare(self._predictor.reference, self._window)
            self._window = Window(self._predictor.reference)

    def drift(self) -> Drift:
        """Return how far this window is from the reference, or the last one while it is new."""
        with self._lock:
            if self._window is not None and self._predictor.reference is not None:
                found = compare(self._predictor.reference, self._window)
                if found.psi:
                    self._drift = found
        for feature, value in self._drift.psi.items():
            DRIFT.labels(*self._labels, feature).set(value)
        return self._drift

    def readings(self) -> dict[str, float]:
        """Return what the gates of a rollout look at (skerry_protos.artefacts.Reading)."""
        found = {
            "requests": float(self.requests),
            "error_rate": self.errors / self.requests if self.requests else 0.0,
            "memory_bytes": float(psutil.Process().memory_info().rss),
        }
        if self._recent:
            times = sorted(self._recent)
            found["latency_p95_s"] = times[int(0.95 * (len(times) - 1))]
        drift = self.drift()
        if drift.psi:
            # Only what chance does not explain counts as drift.
            found["drift"] = drift.worst if drift.drifted else 0.0
        return found

    def close(self) -> None:
        """Leave the gauges: a version that is not served has no drift."""
        for feature in self._drift.psi:
            DRIFT.remove(*self._labels, feature)

    @staticmethod
    def exposition() -> bytes:
        """Return every measure of this process in Prometheus' text format."""
        return generate_latest(REGISTRY)
