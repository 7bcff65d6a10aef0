"""Drift: silent on the same distribution, loud on another, and never larger than its bounds."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats
from skerry_protos.drift import (
    LEAST_ROWS,
    Reference,
    Window,
    compare,
    describe,
    kolmogorov_smirnov,
    stability_index,
)
from skerry_protos.errors import PeerError


def images(rng: np.random.Generator, rows: int, shift: float = 0.0) -> dict[str, NDArray[Any]]:
    return {"x": rng.normal(shift, 1, (rows, 1, 8, 8)).astype(np.float32)}


def scores(rng: np.random.Generator, rows: int, favour: float = 0.0) -> NDArray[Any]:
    made = rng.normal(0, 1, (rows, 5))
    made[:, 0] += favour
    return made


@pytest.mark.parametrize("seed", range(20))
def test_the_same_distribution_is_no_drift(seed: int) -> None:
    rng = np.random.default_rng(seed)
    reference = Reference.of(images(rng, 1000), scores(rng, 1000))
    window = Window(reference)
    for _ in range(10):
        window.add(images(rng, 20), scores(rng, 20))
    assert compare(reference, window).drifted == ()


def test_a_shift_of_inputs_and_of_answers_is_named() -> None:
    rng = np.random.default_rng(1)
    reference = Reference.of(images(rng, 1000), scores(rng, 1000))
    window = Window(reference)
    window.add(images(rng, 300, shift=0.5), scores(rng, 300, favour=3))
    found = compare(reference, window)
    assert {"x.mean", "classes"} <= set(found.drifted)
    assert found.psi[found.drifted[0]] == found.worst > 1


def test_too_few_rows_tell_nothing() -> None:
    rng = np.random.default_rng(1)
    reference = Reference.of(images(rng, 1000))
    window = Window(reference)
    window.add(images(rng, LEAST_ROWS - 1, shift=9))
    assert compare(reference, window).psi == {}


def test_short_rows_are_looked_at_value_by_value() -> None:
    assert list(describe({"t": np.zeros((3, 2))})) == ["t[0]", "t[1]"]


def test_the_p_value_agrees_with_scipy_on_fine_bins() -> None:
    rng = np.random.default_rng(3)
    a, b = rng.normal(size=400), rng.normal(0.15, 1, size=300)
    edges = np.sort(np.concatenate([a, b]))
    then = np.bincount(np.searchsorted(edges, a), minlength=len(edges))
    now = np.bincount(np.searchsorted(edges, b), minlength=len(edges))
    expected = stats.ks_2samp(a, b, method="asymp").pvalue
    assert kolmogorov_smirnov(then, now) == pytest.approx(expected, rel=0.3)


@given(st.lists(st.integers(0, 1000), min_size=2, max_size=20))
def test_the_index_is_symmetric_and_zero_only_between_equals(counts: list[int]) -> None:
    then = np.array(counts)
    now = then[::-1].copy()
    assert stability_index(then, now) == pytest.approx(stability_index(now, then))
    assert stability_index(then, then) == pytest.approx(0)
    assert stability_index(then, now) >= 0


def test_a_reference_survives_its_manifest() -> None:
    rng = np.random.default_rng(1)
    reference = Reference.of(images(rng, 200), scores(rng, 200))
    again = Reference.parse(reference.to_json())
    assert again.to_json() == reference.to_json()


@pytest.mark.parametrize(
    "said",
    [
        {},
        {"features": {"a": {"edges": [2, 1], "counts": [1, 1, 1]}}, "classes": []},
        {"features": {"a": {"edges": [1], "counts": [1]}}, "classes": []},
        {"features": {"a": {"edges": [float("nan")], "counts": [1, 1]}}, "classes": []},
        {"features": {"a": {"edges": [1], "counts": [1, -1]}}, "classes": []},
        {"features": {}, "classes": [[1]]},
        {"features": {}, "classes": [10**30]},
        [],
    ],
)
def test_a_reference_that_makes_no_sense_is_refused(said: Any) -> None:
    with pytest.raises(PeerError, match="drift reference"):
        Reference.parse(said)
