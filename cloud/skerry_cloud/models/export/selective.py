"""How sure an answer must be to stay on the device: a threshold on the confidence, from data.

Answers below it go to a bigger model (docs/inference.md). The threshold is the least at which the
answers that are kept are wrong no more often than allowed, with a guarantee: selection with
guaranteed risk (Geifman and El-Yaniv, "Selective Classification for Deep Neural Networks", NeurIPS
2017), whose bound on the risk is the exact one of the binomial tail (their lemma 3.1, after Gascuel
and Caraux 1992). Thresholds are not tried by bisection, as there: the bound is looser the fewer are
kept, so that would miss some. They are tried in an order that is fixed beforehand, from few kept to
all, up to the first that fails; then the chance of a wrong promise is that of one try (fixed
sequence testing; Angelopoulos et al., "Learn then Test", 2021).

The guarantee is for inputs that are drawn as the held-out ones were.
"""

import math
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from skerry_protos.drift import confidence
from skerry_protos.errors import SkerryError
from skerry_protos.manifest import Postprocessing
from skerry_protos.processing import PROBABILITIES, meaning

from skerry_cloud.models.export import DataError
from skerry_cloud.models.export.measure import Judge

DELTA = 0.05
"""The chance that the data were so lucky that the guarantee does not hold."""
STEPS = 50
"""Thresholds that are tried at most, about."""
BISECTIONS = 60


class RiskError(SkerryError):
    """The held-out examples do not show that the asked share of wrong answers is kept."""

    code = "unsure-risk"
    exit_code = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Threshold:
    """A confidence, and what is known of the answers that reach it; all are shares, 0 to 1."""

    below: float  # answers less sure than this are not kept
    kept: float  # of the held-out answers
    wrong: float  # of the kept ones, as measured
    bound: float  # of the kept ones, at most, but for a chance of DELTA

    def figures(self, risk: float) -> dict[str, float]:
        """Return what the manifest's figures say of it."""
        return {
            "unsure_below": self.below,
            "unsure_risk": risk,
            "unsure_kept": self.kept,
            "unsure_wrong": self.wrong,
            "unsure_bound": self.bound,
        }


def require_evidence(judge: Judge, risk: float) -> None:
    """Raise DataError or RiskError where held-out data cannot promise anything about the risk.

    Known before anything is converted.
    """
    labels = judge.data.labels
    if not judge.classes or judge.answers[0].ndim != 2:
        raise DataError(
            "--unsure-risk is for models that answer with one class for an example; this one's "
            f"output has the shape {list(judge.answers[0].shape[1:])}"
        )
    if labels is None or labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise DataError(
            "--unsure-risk needs the right class of every held-out example",
            hint="let held_out() in the app return (inputs, labels), or name an .npz with "
            "--held-out",
        )
    _fewest(len(judge.data), risk, DELTA)


def calibrated(scores: NDArray[Any], labels: NDArray[Any], risk: float) -> Threshold:
    """Return the threshold for scores (examples x classes) as a device reads them.

    Raise RiskError when no threshold keeps to the risk.
    """
    probabilities = meaning(Postprocessing(output="scores", kind="classes"), scores)[PROBABILITIES]
    return threshold(confidence(probabilities), scores.argmax(axis=-1) == labels, risk=risk)


def threshold(
    sure: NDArray[np.float64], right: NDArray[np.bool_], *, risk: float, delta: float = DELTA
) -> Threshold:
    """Return the least confidence from which on at most `risk` of the answers are wrong.

    `sure` and `right` have one value for each example. Raise RiskError when there is none.
    """
    order = np.argsort(-sure, kind="stable")
    levels, wrong = sure[order], np.cumsum(~right[order])
    found, nearest = None, 1.0
    for count in _sequence(len(levels), risk, delta):
        below = levels[count - 1]
        kept = int(np.searchsorted(-levels, -below, side="right"))  # equal ones are kept as well
        errors = int(wrong[kept - 1])
        bound = risk_bound(errors, kept, delta)
        nearest = min(nearest, bound)
        if bound > risk:
            break
        found = Threshold(
            below=float(below), kept=kept / len(levels), wrong=errors / kept, bound=bound
        )
    if found is None:
        raise RiskError(
            f"no confidence keeps wrong answers to {risk:g}: of the surest of {len(levels)} "
            f"held-out examples {nearest:.3g} can be promised (with {1 - delta:.0%} certainty)",
            hint="train the model further, or allow a larger --unsure-risk",
        )
    return found


def _sequence(examples: int, risk: float, delta: float) -> Iterator[int]:
    """Yield how many of the surest examples to keep, in the order in which it is tried.

    The first is the fewest that may hold one wrong answer, or, of few examples, none.
    """
    fewest = _fewest(examples, risk, delta)
    first = bisect_left(range(examples), True, key=lambda n: _promises(n, risk, delta))
    first = first if first < examples else fewest
    yield from range(first, examples, max(1, examples // STEPS))
    yield examples


def _fewest(examples: int, risk: float, delta: float) -> int:
    """Return how many right answers, and no wrong one, promise the risk; raise RiskError."""
    fewest = math.ceil(math.log(delta) / math.log1p(-risk))
    if fewest > examples:
        raise RiskError(
            f"{examples} held-out examples cannot show that at most {risk:g} of the answers are "
            f"wrong: it takes {fewest}, all of them right",
            hint="give more --held-out examples, or a larger --unsure-risk",
        )
    return fewest


def _promises(count: int, risk: float, delta: float) -> bool:
    """Return whether one wrong answer among `count` keeps to the risk."""
    return count > 1 and risk_bound(1, count, delta) <= risk


def risk_bound(errors: int, count: int, delta: float) -> float:
    """Return the chance b of an error at which so few in `count` trials have the chance `delta`.

    That is the solution of sum over j <= errors of C(count, j) b^j (1 - b)^(count - j) = delta.
    """
    if errors >= count:
        return 1.0
    steps = np.arange(1, errors + 1)
    ways = np.concatenate([[0.0], np.cumsum(np.log((count - steps + 1) / steps))])
    places = np.arange(errors + 1)
    low, high = errors / count, 1.0
    for _ in range(BISECTIONS):
        chance = (low + high) / 2
        terms = ways + places * math.log(chance) + (count - places) * math.log1p(-chance)
        top = terms.max()
        likely = top + math.log(np.exp(terms - top).sum()) > math.log(delta)
        low, high = (chance, high) if likely else (low, chance)
        if high - low < 1e-9:
            break
    return high
