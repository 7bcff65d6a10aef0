"""What an app's data give a calibration: the model's inputs, or one clear line."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from skerry_edge.apps import AppFailure
from skerry_edge.calibrating import FUNCTION, inputs_of, some
from skerry_protos.calibration import Graph, Input, Plan, Watched

ONE = (Input(name="x", dtype="float32", shape=(3,)),)
TWO = (*ONE, Input(name="mask", dtype="int64", shape=()))


def plan(inputs: tuple[Input, ...] = ONE, examples: int = 20) -> Plan:
    tensors = (Watched(name="x", per_example=3),)
    graph = Graph(file="g", batch=4, examples=examples, tensors=tensors)
    return Plan(model="", inputs=inputs, graphs={"onnx": graph})


X = np.arange(36, dtype=np.float32).reshape(12, 3)
Y = np.arange(12)


class Loader:
    """Batches of four, forever."""

    def __init__(self) -> None:
        self.given = 0

    def __iter__(self) -> Any:
        while True:
            at = self.given % 3 * 4
            self.given += 1
            yield X[at : at + 4], Y[at : at + 4]


@pytest.mark.parametrize(
    ("what", "given", "inputs"),
    [
        (FUNCTION, X, ONE),
        (FUNCTION, (X,), ONE),
        (FUNCTION, (X, Y), TWO),
        ("data", X, ONE),
        ("data", {"train": (X, Y), "test": (X[:9], Y[:9])}, ONE),
        ("data", SimpleNamespace(train=(X, Y), test=None), ONE),
        ("data", (X, Y), ONE),
        ("data", [X, Y], ONE),
        ("data", (X, Y, Y), TWO),
        ("data", ((X, Y), Y), TWO),
    ],
)
def test_inputs_are_found_in_what_the_app_gives(what: str, given: Any, inputs: Any) -> None:
    found = inputs_of(given, plan(inputs), what)
    np.testing.assert_array_equal(found[0], X)
    assert len(found) == len(inputs)


def test_tensors_and_loaders_give_no_more_than_is_looked_at() -> None:
    torch = pytest.importorskip("torch")
    loader = Loader()
    assert len(inputs_of(loader, plan(), "data")[0]) == 20
    assert loader.given == 5
    dataset = torch.utils.data.TensorDataset(torch.from_numpy(X), torch.from_numpy(Y))
    batches = torch.utils.data.DataLoader(dataset, batch_size=5)
    np.testing.assert_array_equal(inputs_of(batches, plan(), "data")[0], X)
    given = torch.from_numpy(X).requires_grad_()
    np.testing.assert_array_equal(inputs_of((given, Y), plan(), "data")[0], X)


def test_what_is_looked_at_is_spread_over_all() -> None:
    (found,) = some((np.arange(1000),), 5)
    assert found.tolist() == [0, 249, 499, 749, 999]


@pytest.mark.parametrize(
    ("what", "given", "told"),
    [
        ("data", object(), "data() gave object, which holds no inputs to see"),
        ("data", [{"x": 1}] * 9, "data() gave 9 inputs; the model has 1"),
        ("data", iter([{"x": 1}]), "of dict; let device_calibration(device) in the app"),
        ("data", iter([]), "there are 0 examples"),
        (FUNCTION, X.astype(np.float64), "is float64 [3]; the model takes float32 [3]"),
        (FUNCTION, X[:, :2], "is float32 [2]; the model takes float32 [3]"),
        (FUNCTION, X[:0], "there are 0 examples to calibrate with; at least 8 count"),
        (FUNCTION, X[:7], "there are 7 examples"),
        (FUNCTION, X * 0 + 4, "this device's data are constant: all of 'x' is 4.0"),
        (FUNCTION, np.where(X > 30, np.nan, X).astype(np.float32), "has NaN or infinity"),
        (FUNCTION, [[1.0], [2.0, 3.0]], "gave 2 inputs"),
        (FUNCTION, None, "NoneType is no array of examples"),
        (FUNCTION, np.float32(3), "no array of examples"),
    ],
)
def test_data_that_cannot_be_used_are_told_in_one_line(what: str, given: Any, told: str) -> None:
    with pytest.raises(AppFailure) as refused:
        inputs_of(given, plan(), what)
    assert told in refused.value.reason
    assert "\n" not in refused.value.reason


def test_inputs_of_different_lengths_are_refused() -> None:
    with pytest.raises(AppFailure, match="inputs of different lengths"):
        inputs_of((X, Y[:5]), plan(TWO), FUNCTION)
