"""Screening: who is left out, in which words, and who is not."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from skerry_cloud.screening import flaws, own_flaw
from skerry_protos.records import Records
from skerry_protos.tensors import Tensor


def reply(
    array: Any = (1.0, 2.0),
    *,
    group: str = "arrays",
    key: str = "w",
    weight: float = 1,
    **more: Any,
) -> Records:
    values: dict[str, Any] = {"num-examples": weight, **more}
    tensor = Tensor.of(np.asarray(array, dtype=getattr(array, "dtype", np.float32)))
    return Records(arrays={group: {key: tensor}}, metrics={"metrics": values})


SENT = reply()


def test_replies_like_the_model_pass() -> None:
    assert flaws(SENT, {"a": reply(), "b": reply([3, 4])}) == {}


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        (reply([1, np.nan]), "its array 'w' has NaN or infinity"),
        (reply([1, 2, 3]), "its array 'w' is float32 (3,); expected float32 (2,)"),
        (reply(np.ones(2)), "its array 'w' is float64 (2,); expected float32 (2,)"),
        (reply(key="v"), "it has the array 'v'"),
        (reply(group="other"), "it lacks the arrays 'arrays'"),
        (reply(weight=0), "its metric 'num-examples' is 0; expected more than 0"),
        (reply(weight=float("nan")), "its metric 'num-examples' is nan"),
        (reply(extra=1), "its metrics have 'extra', the others' do not"),
        (Records(arrays=SENT.arrays), "it lacks the metrics 'metrics'"),
        (
            Records(arrays=SENT.arrays, metrics={"metrics": {"num-examples": [1]}}),
            "its metric 'num-examples' has another length than the others'",
        ),
        (Records(arrays=SENT.arrays, metrics={"metrics": {}}), "its metrics lack 'num-examples'"),
    ],
)
def test_a_bad_reply_among_good_ones_is_named(bad: Records, why: str) -> None:
    good = {"one": reply(), "two": reply([3, 4])}
    for replies in ({**good, "bad": bad}, {"bad": bad, **good}):
        found = flaws(SENT, replies)
        assert list(found) == ["bad"]
        assert found["bad"].startswith(why)


def test_one_good_reply_outweighs_many_that_are_bad_alike() -> None:
    replies = {"good": reply(), "b1": reply([1, 2, 3]), "b2": reply([4, 5, 6])}
    assert set(flaws(SENT, replies)) == {"b1", "b2"}


def test_where_no_reply_is_like_the_model_most_are_right() -> None:
    other = {"a": reply([1.0]), "b": reply([2.0]), "c": reply([1, 2, 3])}
    assert set(flaws(SENT, other)) == {"c"}
    apart = {"a": reply([1.0]), "b": reply([1, 2, 3])}
    assert flaws(SENT, apart) == {}, "nobody knows which is right"


def test_serialised_models_may_have_any_length() -> None:
    replies = {n: reply(np.zeros(n, dtype=np.uint8), key="0") for n in (3, 3, 5, 9)}
    assert flaws(reply(np.zeros(0, dtype=np.uint8), key="0"), replies) == {}


def test_evaluation_is_not_asked_for_arrays() -> None:
    bare = {n: Records(metrics={"metrics": {"num-examples": 1, "acc": 0.5}}) for n in "ab"}
    assert flaws(SENT, bare, arrays=False) == {}


def test_settings_are_nobodys_business() -> None:
    replies = {n: Records(configs={"c": {n: n}}) for n in "abc"}
    assert flaws(SENT, replies, arrays=False) == {}


@given(st.lists(st.sampled_from(["good", "nan", "shape", "metric"]), min_size=1, max_size=8))
def test_what_remains_is_alike(kinds: list[str]) -> None:
    made = {
        "good": reply(),
        "nan": reply([np.inf, 0]),
        "shape": reply([1, 2, 3]),
        "metric": reply(odd=1),
    }
    replies = {place: made[kind] for place, kind in enumerate(kinds)}
    found = flaws(SENT, replies)
    left = [kind for place, kind in enumerate(kinds) if place not in found]
    assert len(set(left)) <= 1
    assert "nan" not in left
    if "good" in kinds and kinds.count("metric") < kinds.count("good"):
        assert set(left) == {"good"}


def test_a_flaw_of_its_own_needs_no_others() -> None:
    assert own_flaw(reply()) is None
    assert own_flaw(reply([np.nan, 1]), arrays=False) is None
