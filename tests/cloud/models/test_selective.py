"""The threshold below which a device asks a bigger model: its bound, its promise, its refusals."""

import numpy as np
import pytest
from skerry_cloud.models.export.selective import DELTA, RiskError, calibrated, risk_bound, threshold

DRAWS = 200


@pytest.mark.parametrize(
    ("errors", "count", "bound"),
    [
        # One-sided Clopper-Pearson limits at 95 %: the beta distribution's quantiles (k + 1, n - k)
        (0, 100, 0.029513),
        (3, 100, 0.075711),
        (50, 100, 0.586378),
        (17, 4000, 0.006368),
        (5, 5, 1.0),
    ],
)
def test_the_bound_is_the_binomial_tail_s(errors: int, count: int, bound: float) -> None:
    assert risk_bound(errors, count, 0.05) == pytest.approx(bound, abs=2e-6)


def drawn(rng: np.random.Generator, count: int) -> tuple["np.ndarray", "np.ndarray"]:
    """Return confidences and whether the answers are right, each as often as it is sure."""
    sure = rng.uniform(0.5, 1.0, count)
    return sure, rng.uniform(size=count) < sure


@pytest.mark.parametrize(("count", "risk"), [(200, 0.1), (1000, 0.15)])
def test_the_promise_is_broken_no_more_often_than_said(count: int, risk: float) -> None:
    rng = np.random.default_rng(3)
    broken, made, kept = 0, 0, 0.0
    for _ in range(DRAWS):
        try:
            found = threshold(*drawn(rng, count), risk=risk)
        except RiskError:
            continue
        made += 1
        kept += found.kept
        broken += (1 - found.below) / 2 > risk  # the true risk of all answers as sure as that
    chance = (DRAWS * DELTA * (1 - DELTA)) ** 0.5
    assert broken <= DRAWS * DELTA + 3 * chance  # more are drawn once in 1000 times
    if count >= 1000:
        assert made > 0.9 * DRAWS
        assert kept / made > 0.6 * 4 * risk  # of the share that may be kept, 4 x risk, most


def test_more_risk_keeps_more() -> None:
    sure, right = drawn(np.random.default_rng(1), 4000)
    kept = [threshold(sure, right, risk=risk).kept for risk in (0.05, 0.1, 0.15, 0.2)]
    assert kept == sorted(kept)
    assert threshold(sure, right, risk=0.3).kept == 1.0


def test_what_is_kept_is_what_a_device_keeps() -> None:
    rng = np.random.default_rng(2)
    labels = rng.integers(0, 10, 2000)
    scores = rng.normal(size=(2000, 10)).astype(np.float32)
    scores[np.arange(2000), labels] += 4
    found = calibrated(scores, labels, 0.02)
    chances = np.exp(scores - scores.max(axis=1, keepdims=True))
    sure = (chances / chances.sum(axis=1, keepdims=True)).max(axis=1)
    stays = ~(sure < found.below)
    assert stays.mean() == pytest.approx(found.kept, abs=1e-3)  # but for the last bit of one
    assert (scores.argmax(1) != labels)[stays].mean() == pytest.approx(found.wrong, abs=1e-3)
    assert 0 < found.wrong < found.bound <= 0.02 < (scores.argmax(1) != labels).mean()


def test_equal_confidences_are_kept_or_sent_together() -> None:
    sure = np.repeat([0.9, 0.6], 200)
    right = np.concatenate([np.full(200, True), np.arange(200) % 2 == 0])
    found = threshold(sure, right, risk=0.05)
    assert (found.below, found.kept, found.wrong) == (0.9, 0.5, 0.0)


@pytest.mark.parametrize(
    ("count", "share", "told"),
    [
        (100, 1.0, "100 held-out examples cannot show that at most 0.01 .* it takes 299, all"),
        (500, 0.5, "no confidence keeps wrong answers to 0.01"),
    ],
)
def test_what_cannot_be_promised_is_refused_with_the_figures(
    count: int, share: float, told: str
) -> None:
    rng = np.random.default_rng(4)
    with pytest.raises(RiskError, match=told):
        threshold(rng.uniform(size=count), rng.uniform(size=count) < share, risk=0.01)
