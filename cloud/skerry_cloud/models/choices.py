"""Which of several artefacts a device serves and why, as it says: bounded, checked, kept as JSON.

The device measures each candidate (accuracy, latency, energy, memory) and chooses among them
(edge/skerry_edge/models/choice.py); here its word is made fit to keep and to show.
"""

import math
from typing import Any

from skerry_protos.artefacts import VARIANTS_LIMIT, TargetPath
from skerry_protos.errors import RejectCode, RejectedError, TrustError
from skerry_protos.v1.models_pb2 import Candidate, Choice

from skerry_cloud.telemetry import printable

FIGURES = ("accuracy", "latency_s", "energy_j", "memory_bytes")
FIGURE_LIMIT = 1e18
SOURCES = frozenset({"", "rapl", "hwmon", "battery", "estimated"})
WHY_LIMIT = 200


def read_choice(said: Choice, *, model: str, target: str) -> dict[str, Any]:
    """Return a device's choice as JSON: `serves` (a path), `why`, and a row for each candidate.

    `target` is the path of the release that it is about. Nothing when the device had none to
    choose from. Raise RejectedError for candidates that are not the release's.
    """
    if not said.candidates:
        return {}
    if len(said.candidates) > 1 + VARIANTS_LIMIT:
        raise RejectedError(
            RejectCode.MALFORMED,
            f"a release has at most {VARIANTS_LIMIT} variants, not {len(said.candidates) - 1}",
        )
    rows = [_row(each, model, target) for each in said.candidates]
    serves = next((row["target"] for row in rows if row["target"] == said.serves), "")
    return {"serves": serves, "why": printable(said.why, WHY_LIMIT), "rows": rows}


def _row(said: Candidate, model: str, target: str) -> dict[str, Any]:
    try:
        path, release = TargetPath.parse(said.target), TargetPath.parse(target)
    except TrustError as error:
        raise RejectedError(RejectCode.MALFORMED, f"a candidate is no artefact: {error}") from error
    if path.model != model or (path.model, path.version) != (release.model, release.version):
        raise RejectedError(
            RejectCode.MALFORMED, f"{printable(said.target, 300)} is no candidate for {model}"
        )
    row: dict[str, Any] = {"target": said.target}
    for name in FIGURES:
        value = getattr(said, name)
        if said.HasField(name) and math.isfinite(value) and abs(value) < FIGURE_LIMIT:
            row[name] = value
    if "energy_j" in row and said.energy_source in SOURCES:
        row["energy_source"] = said.energy_source
    return row | {"bad": printable(said.bad, WHY_LIMIT), "pareto": said.pareto}
