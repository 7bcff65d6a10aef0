"""Ranges of activations that devices measured together, for static quantization.

Which part of what was seen becomes the range of 8 bits:

- `minmax`: all of it. Nothing is cut off.
- `percentile`: all but one value in ten thousand, half of them at each end.
- `mse`: both ends drawn in alike, as far as makes the squared error of 8 bits least (Nahshan and
  others 2019, arXiv 1911.07190, with p = 2), over the histogram: errors within a bin are not seen.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from skerry_protos.calibration import ABOUT, Plan, Spreads, edges
from skerry_protos.errors import PeerError
from skerry_protos.tensors import Tensor

from skerry_cloud.models.export import DataError
from skerry_cloud.models.export.source import read_npz

OUTSIDE = 1e-4
"""Share of the values that `percentile` leaves out."""
STEPS = np.linspace(1.0, 0.3, 71)
LEVELS = 255

Range = tuple[float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """The ranges for one runtime, by its names of tensors, and whom they are of."""

    ranges: Mapping[str, Range]
    devices: int
    examples: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Federated:
    """What a calibration by devices came to."""

    model: str  # the digest of the float weights
    method: str
    run: str
    by: Mapping[str, Measured]  # runtime -> ranges

    def lineage(self, runtime: str) -> dict[str, Any]:
        """Return what an artefact's lineage says of it."""
        found = self.by[runtime]
        return {
            "run": self.run,
            "devices": found.devices,
            "examples": found.examples,
            "ranges": self.method,
        }


def read(file: str, method: str, run: str = "") -> Federated:
    """Return the ranges in a calibration's result; raise DataError for what is none."""
    arrays = read_npz(file)
    try:
        about = json.loads(arrays[ABOUT].tobytes())
        plan = Plan.parse(about["plan"])
        by = {name: _measured(arrays, plan, name, of, method) for name, of in about["of"].items()}
    except (KeyError, TypeError, ValueError, AttributeError, PeerError) as error:
        raise DataError(
            f"{file} holds no calibration: {error}",
            hint="a run of --calibrate devices makes one; name it with --calibrate run:ID",
        ) from error
    return Federated(model=plan.model, method=method, run=run, by=by)


def of_model(federated: Federated, digest: str) -> None:
    """Raise DataError unless the ranges are of this model."""
    if federated.model != digest:
        raise DataError(
            "the calibration is of another model: its weights differ from these",
            hint="calibrate this one with --calibrate devices",
        )


def chosen(low: float, high: float, exponent: int, bins: NDArray[np.int64], method: str) -> Range:
    """Return the range of a tensor for 8 bits; a quantizer stretches it to hold zero."""
    if method == "minmax" or low == high:
        return low, high
    if method == "percentile":
        return _percentile(low, high, exponent, bins)
    return _least_error(low, high, exponent, bins)


def _percentile(low: float, high: float, exponent: int, bins: NDArray[np.int64]) -> Range:
    """Return the range that leaves half of OUTSIDE below and half above; even within a bin."""
    summed = np.concatenate([[0], np.cumsum(bins)]) / bins.sum()
    ends = np.interp([OUTSIDE / 2, 1 - OUTSIDE / 2], summed, edges(exponent))
    return float(np.clip(ends[0], low, high)), float(np.clip(ends[1], low, high))


def _least_error(low: float, high: float, exponent: int, bins: NDArray[np.int64]) -> Range:
    filled = np.flatnonzero(bins)
    at = edges(exponent)
    values = np.clip((at[filled] + at[filled + 1]) / 2, low, high)
    counts = bins[filled]
    errors = []
    for step in STEPS:
        # Both quantizers stretch a range to hold zero.
        least, most = min(low * step, 0.0), max(high * step, 0.0)
        scale = (most - least) / LEVELS
        if not scale:
            errors.append(np.inf)
            continue
        near = np.clip(np.rint((values - least) / scale), 0, LEVELS) * scale + least
        errors.append(float((counts * (near - values) ** 2).sum()))
    best = float(STEPS[int(np.argmin(errors))])
    return low * best, high * best


def _measured(
    arrays: Mapping[str, NDArray[Any]],
    plan: Plan,
    runtime: str,
    of: Mapping[str, Any],
    method: str,
) -> Measured:
    graph = plan.graphs[runtime]
    given = {
        name.removeprefix(f"{runtime}."): Tensor.of(each)
        for name, each in arrays.items()
        if name.startswith(f"{runtime}.")
    }
    spreads = Spreads.parse(given, len(graph.tensors))
    ranges = {
        watched.name: chosen(
            float(spreads.low[place]),
            float(spreads.high[place]),
            int(spreads.exponents[place]),
            spreads.bins[place],
            method,
        )
        for place, watched in enumerate(graph.tensors)
    }
    return Measured(ranges=ranges, devices=int(of["devices"]), examples=int(of["examples"]))
