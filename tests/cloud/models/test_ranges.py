"""From a histogram to the range of 8 bits."""

import importlib.util

import numpy as np
import pytest

if importlib.util.find_spec("torch") is None:
    pytest.skip("needs skerry-cloud[export]", allow_module_level=True)

from skerry_cloud.models.export.ranges import LEVELS, chosen
from skerry_protos.calibration import Spreads


def range_of(values: np.ndarray, method: str) -> tuple[float, float]:
    made = Spreads.empty(1)
    made.add(0, values)
    return chosen(
        float(made.low[0]), float(made.high[0]), int(made.exponents[0]), made.bins[0], method
    )


def error(values: np.ndarray, low: float, high: float) -> float:
    """Return the mean squared error of 8 bits between low and high, stretched to hold zero."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = (high - low) / LEVELS
    return float(
        ((np.clip(np.rint((values - low) / scale), 0, LEVELS) * scale + low - values) ** 2).mean()
    )


def test_minmax_is_all_that_was_seen() -> None:
    assert range_of(np.array([-3.0, 0.5, 7.25]), "minmax") == (-3.0, 7.25)


def test_percentile_leaves_out_what_is_rare() -> None:
    values = np.random.default_rng(1).normal(size=200_000)
    values[0] = 500.0
    low, high = range_of(values, "percentile")
    width = 2.0**-1  # of a bin, with 500 among them
    assert low == pytest.approx(np.quantile(values, 5e-5), abs=width)
    assert high == pytest.approx(np.quantile(values, 1 - 5e-5), abs=width)


def test_the_least_error_is_near_that_of_the_values_themselves() -> None:
    values = np.random.default_rng(2).laplace(size=50_000)
    low, high = range_of(values, "mse")
    assert values.min() < low
    assert high < values.max()
    found = error(values, low, high)
    assert found < 0.95 * error(values, float(values.min()), float(values.max()))
    tried = [
        error(values, values.min() * step, values.max() * step) for step in np.linspace(0.3, 1, 40)
    ]
    assert found <= 1.02 * min(tried)


@pytest.mark.parametrize("method", ["minmax", "percentile", "mse"])
@pytest.mark.parametrize("values", [[0.0], [5.0, 5.0], [-2.0], [0.0, 1e-30], [3.0, 4.0]])
def test_no_range_leaves_what_was_seen(method: str, values: list[float]) -> None:
    low, high = range_of(np.array(values), method)
    assert low <= high
    assert max(values) >= high
    assert low >= min(values) or method == "mse"  # which goes on to zero, as both quantizers do
