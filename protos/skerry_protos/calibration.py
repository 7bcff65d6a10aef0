"""Calibration by the devices: what is asked of them, and the ranges and histograms they answer.

A `Plan` travels in the bundle beside the graphs it names: float models, each in the format of one
runtime, with the tensors whose ranges an int8 model needs. A device answers with `Spreads`: for
each tensor the least and the largest value and counts in bins, over its own examples.

All bins of a tensor have the width 2**e, counted from zero, and e follows from the largest
magnitude alone: 2**(e + 9) <= max|x| < 2**(e + 10). So two histograms merge without error: the
finer one's bins are added up in blocks of 2**(difference of e), and what comes out are the counts
that all examples side by side would have given. It needs numpy: not for the agent's own process.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skerry_protos.errors import PeerError
from skerry_protos.tensors import DType, Tensor

FOLDER = "skerry-calibration"
"""Where the plan and its graphs lie in the bundle."""
PLAN = "plan.json"
FORMAT = 1
MESSAGE = "query.calibrate"
RESULT = "calibration"
"""The group of records with what all devices came to."""
ABOUT = "about"
EXAMPLES, METRICS = "num-examples", "metrics"
BINS = 2048
_HALF = BINS // 2
LEAST_EXPONENT, MOST_EXPONENT = -149, 118  # of float32's least and largest numbers
LEAST_EXAMPLES = 8
"""A device with fewer says nothing: the least and largest value of one example are its pixels."""
TENSORS_LIMIT = 4096
EXAMPLES_LIMIT = 65_536
_LARGEST = float(np.finfo(np.float32).max)


@dataclass(frozen=True, slots=True, kw_only=True)
class Input:
    """One input of the model; `shape` without the axis of examples."""

    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Watched:
    """A tensor, and how many numbers it has for each example and besides for each call."""

    name: str
    per_example: int
    per_call: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Graph:
    """The float model for one runtime."""

    file: str
    batch: int  # examples of one call
    examples: int  # most that are used
    tensors: tuple[Watched, ...]

    def counts(self, examples: int) -> NDArray[np.int64]:
        """Return how many numbers of each tensor so many examples of a device give."""
        used = min(examples, self.examples)
        calls = -(-used // self.batch)
        each = [one.per_example * used + one.per_call * calls for one in self.tensors]
        return np.asarray(each, dtype=np.int64)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is asked of devices; `model` is the digest of the float weights."""

    model: str
    inputs: tuple[Input, ...]
    graphs: Mapping[str, Graph]

    @property
    def examples(self) -> int:
        """How many examples of a device are looked at, at most."""
        return max(one.examples for one in self.graphs.values())

    def to_json(self) -> dict[str, Any]:
        """Return the plan as it stands in the bundle."""
        return {
            "format": FORMAT,
            "model": self.model,
            "inputs": [
                {"name": one.name, "dtype": one.dtype, "shape": list(one.shape)}
                for one in self.inputs
            ],
            "graphs": {
                runtime: {
                    "file": one.file,
                    "batch": one.batch,
                    "examples": one.examples,
                    "tensors": [[t.name, t.per_example, t.per_call] for t in one.tensors],
                }
                for runtime, one in self.graphs.items()
            },
        }

    @classmethod
    def parse(cls, said: Any) -> "Plan":
        """Return the plan in JSON that was read, or raise PeerError."""
        try:
            if said["format"] != FORMAT:
                raise ValueError(f"format {said['format']}; expected {FORMAT}")
            made = cls(
                model=str(said["model"]),
                inputs=tuple(
                    Input(name=str(n["name"]), dtype=str(n["dtype"]), shape=tuple(n["shape"]))
                    for n in said["inputs"]
                ),
                graphs={str(name): _graph(one) for name, one in said["graphs"].items()},
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise PeerError(f"the plan of the calibration cannot be read: {error}") from error
        if not made.graphs or not made.inputs:
            raise PeerError("the plan of the calibration names no graph or no input")
        return made


def read_plan(text: str | bytes) -> Plan:
    """Return the plan in a file's text, or raise PeerError."""
    try:
        return Plan.parse(json.loads(text))
    except ValueError as error:
        raise PeerError(f"the plan of the calibration is no JSON: {error}") from error


def _graph(said: Any) -> Graph:
    tensors = tuple(
        Watched(name=str(name), per_example=int(per_example), per_call=int(per_call))
        for name, per_example, per_call in said["tensors"]
    )
    made = Graph(
        file=str(said["file"]),
        batch=int(said["batch"]),
        examples=int(said["examples"]),
        tensors=tensors,
    )
    if not 0 < len(tensors) <= TENSORS_LIMIT:
        raise ValueError(f"a graph with {len(tensors)} tensors; expected 1 to {TENSORS_LIMIT}")
    if not (made.batch > 0 and 0 < made.examples <= EXAMPLES_LIMIT) or "/" in made.file:
        raise ValueError("a graph's batch, examples or file is out of bounds")
    return made


@dataclass(slots=True)
class Spreads:
    """The spreads of several tensors, in the order of their graph's.

    `low` and `high` are float64 of shape (tensors,), `exponents` int64 of the same shape, `bins`
    int64 of shape (tensors, BINS); bin i counts BINS / 2 - i times 2**exponent from zero.
    """

    low: NDArray[np.float64]
    high: NDArray[np.float64]
    exponents: NDArray[np.int64]
    bins: NDArray[np.int64]

    @classmethod
    def empty(cls, tensors: int) -> "Spreads":
        """Return spreads of nothing yet."""
        return cls(
            low=np.full(tensors, np.inf),
            high=np.full(tensors, -np.inf),
            exponents=np.full(tensors, LEAST_EXPONENT, dtype=np.int64),
            bins=np.zeros((tensors, BINS), dtype=np.int64),
        )

    def add(self, place: int, values: NDArray[Any]) -> None:
        """Count a tensor's values, of any shape; raise ValueError when one is not finite."""
        flat = np.asarray(values, dtype=np.float64).ravel()
        if not flat.size:
            return
        low, high = float(flat.min()), float(flat.max())
        if not (math.isfinite(low) and math.isfinite(high)):
            raise ValueError("it has NaN or infinity")
        fitting = exponent_of(low, high)
        if fitting > self.exponents[place]:
            self._coarsen(place, fitting)
        where = np.floor(flat / 2.0 ** int(self.exponents[place])).astype(np.int64) + _HALF
        self.bins[place] += np.bincount(where, minlength=BINS)
        self.low[place] = min(self.low[place], low)
        self.high[place] = max(self.high[place], high)

    def merge(self, other: "Spreads") -> None:
        """Add another device's spreads of the same tensors."""
        for place, exponent in enumerate(other.exponents):
            if exponent > self.exponents[place]:
                self._coarsen(place, int(exponent))
            steps = int(self.exponents[place] - exponent)
            self.bins[place] += coarser(other.bins[place], steps)
        self.low = np.minimum(self.low, other.low)
        self.high = np.maximum(self.high, other.high)

    def _coarsen(self, place: int, exponent: int) -> None:
        steps = exponent - int(self.exponents[place])
        self.bins[place] = coarser(self.bins[place], steps)
        self.exponents[place] = exponent

    def flaw(self, counts: NDArray[np.int64]) -> tuple[int, str] | None:
        """Return the first tensor that contradicts itself or its number of values, and how."""
        for place, count in enumerate(counts):
            low, high = float(self.low[place]), float(self.high[place])
            exponent, bins = int(self.exponents[place]), self.bins[place]
            if not (math.isfinite(low) and math.isfinite(high)):
                return place, "its range is not finite"
            if low > high or max(-low, high) > _LARGEST:
                return place, f"its range is {low:g} to {high:g}"
            if exponent != exponent_of(low, high):
                return place, f"bins of 2**{exponent} do not go with the range {low:g} to {high:g}"
            # Before they are added up: a sum may not overflow into the right number.
            if (bins < 0).any() or (bins > count).any():
                return place, "its histogram has counts that cannot be"
            if (found := int(bins.sum())) != count:
                return place, f"its histogram counts {found} values; expected {count}"
            filled = np.flatnonzero(bins)
            ends = [math.floor(end / 2.0**exponent) + _HALF for end in (low, high)]
            if [int(filled[0]), int(filled[-1])] != ends:
                return (
                    place,
                    f"its histogram does not end where its range does, {low:g} to {high:g}",
                )
        return None

    def tensors(self) -> dict[str, Tensor]:
        """Return the spreads as a group of records."""
        return {
            "low": Tensor.of(self.low),
            "high": Tensor.of(self.high),
            "exponents": Tensor.of(self.exponents),
            "bins": Tensor.of(self.bins),
        }

    @classmethod
    def parse(cls, given: Mapping[str, Tensor], tensors: int) -> "Spreads":
        """Return the spreads in a group of records, or raise PeerError."""
        wanted = {
            "low": (DType.FLOAT64, (tensors,)),
            "high": (DType.FLOAT64, (tensors,)),
            "exponents": (DType.INT64, (tensors,)),
            "bins": (DType.INT64, (tensors, BINS)),
        }
        if set(given) != set(wanted):
            raise PeerError(f"its arrays are {sorted(given)[:8]!r:.200}; expected {sorted(wanted)}")
        for name, (dtype, shape) in wanted.items():
            one = given[name]
            if one.stype or (one.dtype, one.shape) != (dtype, shape):
                raise PeerError(
                    f"its array {name!r} is {one.dtype.name} {one.shape}; "
                    f"expected {dtype.name} {shape}"
                )
        return cls(**{name: given[name].numpy() for name in wanted})


def exponent_of(low: float, high: float) -> int:
    """Return the exponent of the bins' width for values from `low` to `high`."""
    _, most = math.frexp(max(abs(low), abs(high)))
    return min(max(most - 10, LEAST_EXPONENT), MOST_EXPONENT) if low or high else LEAST_EXPONENT


def coarser(bins: NDArray[np.int64], steps: int) -> NDArray[np.int64]:
    """Return the counts in bins that are 2**steps times as wide."""
    if not steps:
        return bins
    places = np.arange(BINS) - _HALF
    made = np.zeros(BINS, dtype=np.int64)
    np.add.at(made, (places >> min(steps, 62)) + _HALF, bins)
    return made


def edges(exponent: int) -> NDArray[np.float64]:
    """Return the BINS + 1 edges of bins of the width 2**exponent."""
    return np.asarray((np.arange(BINS + 1) - _HALF) * 2.0**exponent)


def outliers(magnitudes: NDArray[np.float64], ratio: float) -> dict[int, int]:
    """Return the devices with a tensor more than `ratio` times as large as usual, and which.

    `magnitudes` are the largest |x| of shape (devices, tensors). Usual is the lower median over the
    devices, so of two the larger one is odd; where that is zero, as with a feature that few have,
    the lower median of the devices' largest magnitudes of all tensors.
    """
    middle = (len(magnitudes) - 1) // 2
    usual = np.sort(magnitudes, axis=0)[middle]
    general = np.sort(magnitudes.max(axis=1))[middle]
    usual = np.where(usual > 0, usual, general)
    with np.errstate(divide="ignore", invalid="ignore"):
        times = np.where(magnitudes > 0, magnitudes / usual, 0.0)
    worst = times.argmax(axis=1)
    return {
        device: int(tensor)
        for device, tensor in enumerate(worst)
        if ratio and times[device, tensor] > ratio
    }
