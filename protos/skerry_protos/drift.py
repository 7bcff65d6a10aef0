"""Drift: how far what a model sees and says now is from what it saw when it was measured.

A `Reference` travels with the model: histograms, by deciles, of a few features of its inputs, of
the confidence of its answers, and of the classes it answered. A `Window` counts the same on the
device; only those counts ever leave it. `compare` gives, per feature,

- the population stability index, sum((p - q) ln(p / q)) over the bins (Siddiqi, Credit Risk
  Scorecards, 2006), smoothed by half a count per bin, and
- the Kolmogorov-Smirnov distance of the binned distributions with its asymptotic p-value (Smirnov
  1948), corrected for the number of features by Holm's method (1979).

A feature has drifted when its index is above `PSI_LIMIT` and above what chance alone would give,
and its corrected p-value is below `ALPHA`. It needs numpy: not for the agent's own process.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skerry_protos.errors import PeerError

PSI_LIMIT = 0.2
ALPHA = 0.01
LEAST_ROWS = 100
"""Fewer rows than this tell nothing."""
BINS = 10
FEATURES_LIMIT, CLASSES_LIMIT = 64, 10_000
CONFIDENCE, CLASSES = "confidence", "classes"
_CHANCE_Z = 3.09  # the normal distribution's 99.9 % quantile

Features = dict[str, NDArray[np.float64]]


def describe(inputs: Mapping[str, NDArray[Any]]) -> Features:
    """Return features of each row of a batch: the values of a short row, else its statistics.

    `inputs` are arrays of shape (rows, ...); each feature has shape (rows,).
    """
    found: Features = {}
    for name, values in inputs.items():
        flat = np.asarray(values, dtype=np.float64).reshape(len(values), -1)
        if flat.shape[1] <= FEATURES_LIMIT // max(1, len(inputs)) // 2:
            found |= {f"{name}[{at}]": flat[:, at] for at in range(flat.shape[1])}
            continue
        low, middle, high = np.quantile(flat, (0.05, 0.5, 0.95), axis=1)
        found |= {
            f"{name}.mean": flat.mean(axis=1),
            f"{name}.std": flat.std(axis=1),
            f"{name}.p05": low,
            f"{name}.p50": middle,
            f"{name}.p95": high,
            f"{name}.step": np.abs(np.diff(flat, axis=1)).mean(axis=1),
        }
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Histogram:
    """Counts of a feature in the bins between `edges`; the first and last bin are open."""

    edges: NDArray[np.float64]
    counts: NDArray[np.int64]

    @property
    def rows(self) -> int:
        """How many values were counted."""
        return int(self.counts.sum())


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """What a model saw and said when it was measured."""

    features: Mapping[str, Histogram]
    classes: NDArray[np.int64]
    """How often each class was the answer; empty where the answers are no classes."""

    @classmethod
    def of(
        cls, inputs: Mapping[str, NDArray[Any]], scores: NDArray[Any] | None = None
    ) -> "Reference":
        """Return the reference of measured inputs, and of class scores of shape (rows, classes)."""
        features = describe(inputs)
        classes: NDArray[np.int64] = np.empty(0, dtype=np.int64)
        if scores is not None and scores.ndim == 2:
            features[CONFIDENCE] = confidence(scores)
            classes = np.bincount(scores.argmax(axis=1), minlength=scores.shape[1])
        found = {}
        for name, values in features.items():
            edges = np.unique(np.quantile(values, np.linspace(0, 1, BINS + 1)[1:-1]))
            found[name] = Histogram(edges=edges, counts=_count(values, edges))
        return cls(features=found, classes=classes)

    def to_json(self) -> dict[str, Any]:
        """Return the reference as it stands in a model's manifest."""
        return {
            "features": {
                name: {"edges": one.edges.tolist(), "counts": one.counts.tolist()}
                for name, one in self.features.items()
            },
            "classes": self.classes.tolist(),
        }

    @classmethod
    def parse(cls, said: Any) -> "Reference":
        """Return the reference in a manifest's JSON, or raise PeerError."""
        try:
            features = {}
            if len(said["features"]) > 2 * FEATURES_LIMIT or len(said["classes"]) > CLASSES_LIMIT:
                raise ValueError("it has too many features or classes")
            for name, one in said["features"].items():
                edges = np.asarray(one["edges"], dtype=np.float64)
                counts = np.asarray(one["counts"], dtype=np.int64)
                if edges.ndim != 1 or counts.shape != (len(edges) + 1,) or len(edges) >= 1000:
                    raise ValueError(f"{name!r:.80} needs one count more than it has edges")
                if not np.isfinite(edges).all() or (np.diff(edges) <= 0).any() or counts.min() < 0:
                    raise ValueError(f"{name!r:.80}: edges must rise and counts be 0 or more")
                features[str(name)[:200]] = Histogram(edges=edges, counts=counts)
            classes = np.asarray(said["classes"], dtype=np.int64)
            if classes.ndim != 1 or (classes < 0).any():
                raise ValueError("classes must be a list of counts")
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise PeerError(f"the model's drift reference cannot be read: {error}") from error
        return cls(features=features, classes=classes)


class Window:
    """The same counts of what comes now."""

    def __init__(self, reference: Reference) -> None:
        self._reference = reference
        self.rows = 0
        self.counts = {name: np.zeros_like(one.counts) for name, one in reference.features.items()}
        self.classes = np.zeros_like(reference.classes)

    def add(self, inputs: Mapping[str, NDArray[Any]], scores: NDArray[Any] | None = None) -> None:
        """Count a batch."""
        features = describe(inputs)
        if scores is not None and scores.ndim == 2 and len(self.classes) == scores.shape[1]:
            features[CONFIDENCE] = confidence(scores)
            self.classes += np.bincount(scores.argmax(axis=1), minlength=scores.shape[1])
        for name, values in features.items():
            if name in self.counts:
                self.counts[name] += _count(values, self._reference.features[name].edges)
        self.rows += len(next(iter(inputs.values())))


@dataclass(frozen=True, slots=True, kw_only=True)
class Drift:
    """How far a window is from its reference."""

    rows: int
    psi: Mapping[str, float] = field(default_factory=dict)
    p_values: Mapping[str, float] = field(default_factory=dict)
    """By feature, corrected for their number."""
    drifted: tuple[str, ...] = ()
    """The features that have, the farthest first."""

    @property
    def worst(self) -> float:
        """The largest index; 0 where too little was seen to tell."""
        return max(self.psi.values(), default=0.0)


def compare(reference: Reference, window: Window) -> Drift:
    """Return how far the window is from the reference; nothing while it has too few rows."""
    if window.rows < LEAST_ROWS:
        return Drift(rows=window.rows)
    psi, p_values, chance = {}, {}, {}
    pairs = {name: (one.counts, window.counts[name]) for name, one in reference.features.items()}
    if len(reference.classes):
        pairs[CLASSES] = (reference.classes, window.classes)
    for name, (then, now) in pairs.items():
        if not (then.sum() and now.sum()):
            continue
        psi[name] = stability_index(then, now)
        chance[name] = _chance(then, now)
        p_values[name] = kolmogorov_smirnov(then, now)
    corrected = _holm(p_values)
    drifted = [
        name
        for name in sorted(psi, key=lambda one: -psi[one])
        if psi[name] > max(PSI_LIMIT, chance[name]) and corrected[name] < ALPHA
    ]
    return Drift(rows=window.rows, psi=psi, p_values=corrected, drifted=tuple(drifted))


def confidence(scores: NDArray[Any]) -> NDArray[np.float64]:
    """Return the largest probability of each row; other scores go through a softmax first."""
    wide = np.asarray(scores, dtype=np.float64)
    if (wide < 0).any() or not np.allclose(wide.sum(axis=1), 1.0, atol=0.05):
        wide = np.exp(wide - wide.max(axis=1, keepdims=True))
        wide = wide / wide.sum(axis=1, keepdims=True)
    best: NDArray[np.float64] = wide.max(axis=1)
    return best


def stability_index(then: NDArray[Any], now: NDArray[Any]) -> float:
    """Return the population stability index of two histograms with the same bins."""
    p = (then + 0.5) / (then.sum() + 0.5 * len(then))
    q = (now + 0.5) / (now.sum() + 0.5 * len(now))
    return float(((p - q) * np.log(p / q)).sum())


def kolmogorov_smirnov(then: NDArray[Any], now: NDArray[Any]) -> float:
    """Return the p-value of the largest distance between two binned distributions.

    Binning can only make the distance smaller, so the p-value is never too small.
    """
    n, m = int(then.sum()), int(now.sum())
    distance = float(np.abs(np.cumsum(then) / n - np.cumsum(now) / m).max())
    root = math.sqrt(n * m / (n + m))
    scaled = (root + 0.12 + 0.11 / root) * distance
    if scaled < 0.2:
        return 1.0
    terms = ((-1) ** (k - 1) * math.exp(-2 * (k * scaled) ** 2) for k in range(1, 101))
    return float(min(1.0, max(0.0, 2 * sum(terms))))


def _chance(then: NDArray[Any], now: NDArray[Any]) -> float:
    """Return the index that equal distributions pass once in a thousand windows.

    It is near chi-squared with bins - 1 degrees of freedom, times 1/n + 1/m (Yurdakul 2018); the
    quantile by Wilson and Hilferty (1931).
    """
    free = max(1, len(then) - 1)
    bend = 2 / (9 * free)
    quantile = free * (1 - bend + _CHANCE_Z * math.sqrt(bend)) ** 3
    return float(quantile * (1 / then.sum() + 1 / now.sum()))


def _holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Return p-values corrected for their number by Holm's step-down method."""
    corrected: dict[str, float] = {}
    most = 0.0
    for rank, name in enumerate(sorted(p_values, key=lambda one: p_values[one])):
        most = max(most, min(1.0, (len(p_values) - rank) * p_values[name]))
        corrected[name] = most
    return corrected


def _count(values: NDArray[Any], edges: NDArray[Any]) -> NDArray[np.int64]:
    return np.bincount(np.searchsorted(edges, values, side="right"), minlength=len(edges) + 1)
