"""Verdicts before all replies are here: as early as certain, and never other than in the end."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from skerry_cloud.screening import FIT, RoundScreen, flaws, measured
from skerry_protos.records import Records
from skerry_protos.tensors import Tensor

SENT = Records(arrays={"arrays": {"w": Tensor.of(np.zeros(4, np.float32))}})


def reply(norm: float, **metrics: Any) -> Records:
    """Return a reply whose update has this norm."""
    array = np.array([norm, 0, 0, 0], np.float32)
    values = {"num-examples": 1, **metrics}
    return Records(arrays={"arrays": {"w": Tensor.of(array)}}, metrics={"metrics": values})


def shaped(size: int) -> Records:
    """Return a reply of another shape."""
    return Records(
        arrays={"arrays": {"w": Tensor.of(np.ones(size, np.float32))}},
        metrics={"metrics": {"num-examples": 1}},
    )


KINDS = {
    "one": reply(1),
    "two": reply(2),
    "still": reply(0),
    "far": reply(100),
    "nan": reply(float("nan")),
    "odd": reply(1, odd=1),
    "shape": shaped(3),
}


@given(
    st.lists(st.sampled_from([*KINDS, "missing"]), min_size=1, max_size=9),
    st.randoms(use_true_random=False),
)
def test_an_early_verdict_is_the_last_one(kinds: list[str], chance: Any) -> None:
    replies = {place: KINDS[kind] for place, kind in enumerate(kinds) if kind != "missing"}
    last = flaws(SENT, replies, max_norm_ratio=3)
    screen = RoundScreen(range(len(kinds)), SENT, max_norm_ratio=3)
    order = list(range(len(kinds)))
    chance.shuffle(order)
    for place in order:
        if place in replies:
            screen.hear(place, replies[place])
        else:
            screen.miss(place)
        for each in replies:
            verdict = screen.verdict(each)
            assert verdict is None or verdict == last.get(each, FIT)
    assert all(screen.verdict(place) == last.get(place, FIT) for place in replies)


def test_it_is_certain_once_most_are_here() -> None:
    screen = RoundScreen("abcde", SENT, max_norm_ratio=3)
    screen.hear("a", reply(1))
    screen.hear("b", reply(2))
    assert screen.verdict("a") is None, "the other three may be unlike it"
    screen.hear("c", reply(1.5))
    assert screen.verdict("a") == FIT
    assert screen.verdict("b") == FIT
    screen.hear("d", reply(1000))
    assert screen.verdict("d") == (
        "its update's norm of 1000 is more than 3 times the round's median (max_norm_ratio)"
    )
    screen.close()
    assert screen.verdict("c") == FIT


def test_exact_arrays_and_finite_numbers_need_no_others() -> None:
    screen = RoundScreen("abcd", SENT, exact=True)
    screen.hear("a", shaped(3))
    assert screen.verdict("a") == "its array 'w' is float32 (3,); expected float32 (4,)"
    screen.hear("b", reply(float("inf")))
    assert screen.verdict("b") == "its array 'w' has NaN or infinity"


def test_norms_far_from_the_median_are_refused_and_0_lets_them_be() -> None:
    replies = {place: reply(1 + place / 10) for place in range(8)} | {8: reply(11), 9: reply(25)}
    assert list(flaws(SENT, replies, max_norm_ratio=10)) == [9]
    assert list(flaws(SENT, replies, max_norm_ratio=3)) == [8, 9]
    assert flaws(SENT, replies) == {}
    resting = {place: reply(0) for place in range(3)} | {3: reply(5)}
    assert flaws(SENT, resting, max_norm_ratio=2) == {}, "a median of 0 has no scale"


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.complex64])
def test_a_norm_is_that_of_the_update(dtype: Any) -> None:
    chance = np.random.default_rng(1)
    sent, got = (chance.normal(size=600_001).astype(dtype) for _ in range(2))
    asked, there = (
        Records(arrays={"arrays": {"w": Tensor.of(x), "steps": Tensor.of(np.array(7))}})
        for x in (sent, got)
    )
    flaw, norm = measured(there, asked)
    assert flaw is None
    assert norm == pytest.approx(float(np.linalg.norm(got.astype(complex) - sent)), rel=1e-4)
    assert measured(there, None)[1] == pytest.approx(
        float(np.linalg.norm(got.astype(complex))), 1e-4
    )


def test_a_norm_too_large_for_its_type_is_far_and_not_a_flaw() -> None:
    huge = Records(arrays={"arrays": {"w": Tensor.of(np.full(4, 1e30, np.float32))}})
    flaw, norm = measured(huge, SENT)
    assert flaw is None
    assert norm == pytest.approx(2e30)
