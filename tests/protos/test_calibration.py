"""Ranges and histograms of activations: merged without error, and lies in them found."""

import json
from collections.abc import Callable

import numpy as np
import pytest
from skerry_protos.calibration import (
    BINS,
    Graph,
    Input,
    Plan,
    Spreads,
    Watched,
    coarser,
    edges,
    exponent_of,
    outliers,
    read_plan,
)
from skerry_protos.errors import PeerError
from skerry_protos.tensors import Tensor

PLAN = Plan(
    model="ab",
    inputs=(Input(name="input", dtype="float32", shape=(1, 8, 8)),),
    graphs={
        "onnx": Graph(
            file="graph.onnx",
            batch=64,
            examples=100,
            tensors=(
                Watched(name="relu", per_example=16),
                Watched(name="w", per_example=0, per_call=3),
            ),
        )
    },
)


def of(*batches: np.ndarray) -> Spreads:
    made = Spreads.empty(1)
    for values in batches:
        made.add(0, values)
    return made


def same(one: Spreads, other: Spreads) -> bool:
    return all(
        np.array_equal(getattr(one, name), getattr(other, name))
        for name in ("low", "high", "exponents", "bins")
    )


def test_merged_histograms_are_those_of_all_values_side_by_side() -> None:
    dice = np.random.default_rng(3)
    for _ in range(200):
        parts = [
            (dice.normal(dice.normal(), 1, dice.integers(1, 50)) * 2.0 ** dice.integers(-30, 30))
            .astype(np.float32)
            for _ in range(dice.integers(1, 6))
        ]  # fmt: skip
        merged = Spreads.empty(1)
        for each in parts:
            merged.merge(of(each))
        assert same(merged, of(np.concatenate(parts)))
        assert same(merged, of(*parts[::-1]))
        total = np.array([sum(map(len, parts))])
        assert merged.flaw(total) is None


@pytest.mark.parametrize(
    "values",
    [
        [0.0],
        [-1.0],
        [1.0, -1.0],
        [1024.0],
        [-1024.0, 1023.9],
        [np.finfo(np.float32).max, np.finfo(np.float32).min],
        [np.finfo(np.float32).smallest_subnormal],
        [-np.finfo(np.float32).smallest_subnormal, 0.0],
    ],
)
def test_every_float_has_a_bin_that_holds_it(values: list[float]) -> None:
    made = of(np.array(values, np.float32))
    assert made.bins.sum() == len(values)
    assert made.flaw(np.array([len(values)])) is None
    at = edges(int(made.exponents[0]))
    for value in values:
        assert any(
            at[place] <= value < at[place + 1] for place in np.flatnonzero(made.bins[0])
        )  # fmt: skip


def test_bins_double_from_zero() -> None:
    bins = np.zeros(BINS, np.int64)
    bins[[0, 1, BINS // 2 - 1, BINS // 2, BINS // 2 + 1, BINS - 1]] = [1, 2, 4, 8, 16, 32]
    made = coarser(bins, 1)
    half = BINS // 2
    assert {place: int(made[place]) for place in np.flatnonzero(made)} == {
        half // 2: 3, half - 1: 4, half: 24, half + half // 2 - 1: 32,
    }  # fmt: skip
    assert coarser(bins, 400)[[half - 1, half]].tolist() == [7, 56]
    assert exponent_of(-3.0, 2.0) == -8  # 2**1 <= 3 < 2**2: of bins of 2**-8, 768 on its side


LIES: dict[str, tuple[Callable[[Spreads], object], str]] = {
    "nan": (lambda s: s.low.fill(np.nan), "its range is not finite"),
    "order": (lambda s: s.low.fill(99.0), "its range is 99 to"),
    "huge": (lambda s: s.high.fill(1e300), "its range is -"),
    "finer": (lambda s: s.exponents.fill(-20), "bins of 2**-20 do not go with"),
    "far": (lambda s: s.exponents.fill(2**62), "do not go with"),
    "negative": (lambda s: s.bins.__setitem__((0, 5), -1), "counts that cannot be"),
    "over": (lambda s: s.bins.fill(2**62), "counts that cannot be"),
    "fewer": (lambda s: s.bins.fill(0), "its histogram counts 0 values; expected 100"),
    "ends": (lambda s: s.high.__imul__(1.1), "does not end where its range does"),
}


@pytest.mark.parametrize("lie", LIES)
def test_what_contradicts_itself_is_found(lie: str) -> None:
    made = of(np.linspace(-1.5, 1.7, 100).astype(np.float32))
    assert made.flaw(np.array([100])) is None
    change, told = LIES[lie]
    change(made)
    found = made.flaw(np.array([100]))
    assert found is not None
    assert found[0] == 0
    assert told in found[1]


def test_a_value_that_is_not_finite_is_never_counted() -> None:
    for bad in (np.nan, np.inf, -np.inf):
        with pytest.raises(ValueError, match="NaN or infinity"):
            of(np.array([1.0, bad]))


def test_arrays_of_the_wrong_form_are_refused() -> None:
    good = of(np.arange(9.0)).tensors()
    assert same(Spreads.parse(good, 1), of(np.arange(9.0)))
    wrong = [
        ({k: v for k, v in good.items() if k != "low"}, "expected"),
        ({**good, "more": good["low"]}, "expected"),
        ({**good, "low": Tensor.of(np.zeros(1, np.float32))}, "'low' is FLOAT32"),
        ({**good, "bins": Tensor.of(np.zeros((1, 9), np.int64))}, "'bins' is INT64 (1, 9)"),
        ({**good, "low": Tensor.opaque(bytes(8), "npy", "float64", (1,))}, "'low' is"),
    ]
    for given, told in wrong:
        with pytest.raises(PeerError) as refused:
            Spreads.parse(given, 1)
        assert told in refused.value.message
    with pytest.raises(PeerError):
        Spreads.parse(good, 2)


def test_only_what_is_out_of_all_proportion_is_an_outlier() -> None:
    usual = np.array([[1.0, 0.0, 4.0]] * 5)
    usual[2] = [9.0, 3.0, 0.1]  # bold, but a person
    assert outliers(usual, 10) == {}
    for tensor, value in ((0, 11.0), (1, 41.0), (2, 1e30)):
        spoilt = usual.copy()
        spoilt[4, tensor] = value
        assert outliers(spoilt, 10) == {4: tensor}
    assert outliers(np.array([[1.0], [100.0]]), 10) == {1: 0}
    assert outliers(np.array([[100.0]]), 10) == {}
    assert outliers(np.array([[1.0], [100.0]]), 0) == {}
    assert outliers(np.zeros((3, 2)), 10) == {}
    assert outliers(np.array([[0.0], [0.0], [1e-9]]), 10) == {2: 0}


def test_a_plan_reads_as_it_was_written_and_counts_calls() -> None:
    again = read_plan(json.dumps(PLAN.to_json()))
    assert again == PLAN
    assert again.graphs["onnx"].counts(70).tolist() == [70 * 16, 2 * 3]
    assert again.graphs["onnx"].counts(5000).tolist() == [100 * 16, 2 * 3]


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        "{}",
        json.dumps({**PLAN.to_json(), "format": 2}),
        json.dumps({**PLAN.to_json(), "graphs": {}}),
        json.dumps(PLAN.to_json()).replace("graph.onnx", "../graph.onnx"),
        json.dumps(PLAN.to_json()).replace('"batch": 64', '"batch": 0'),
        json.dumps(PLAN.to_json()).replace('["relu", 16, 0]', '["relu"]'),
    ],
)
def test_a_plan_that_makes_no_sense_is_refused(text: str) -> None:
    with pytest.raises(PeerError, match="plan of the calibration"):
        read_plan(text)
