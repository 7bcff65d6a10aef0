"""The streaming mean: equal to numpy's, bit for bit the same, in the model's own types."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from skerry_cloud.blocks import BLOCK
from skerry_cloud.strategies.mean import Mean, MetricMean
from skerry_protos.errors import ConfigError
from skerry_protos.tensors import DType, Tensor

floats = st.floats(-1e6, 1e6, width=32)


@given(st.data())
def test_it_is_the_weighted_mean(data: st.DataObject) -> None:
    shape = data.draw(hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4))
    count = data.draw(st.integers(1, 5))
    arrays = [data.draw(hnp.arrays(np.float32, shape, elements=floats)) for _ in range(count)]
    weights = data.draw(st.lists(st.integers(1, 1000), min_size=count, max_size=count))
    mean = Mean({"w": Tensor.of(arrays[0])})
    for array, weight in zip(arrays, weights, strict=True):
        mean.add({"w": Tensor.of(array)}, weight)
    result = mean.result()
    assert result is not None
    expected = np.average(np.stack(arrays).astype(np.float64), axis=0, weights=weights)
    np.testing.assert_allclose(result["w"].numpy(), expected, rtol=1e-6, atol=1e-3)
    assert result["w"].dtype is DType.FLOAT32
    assert result["w"].shape == shape


def test_one_model_comes_back_bit_for_bit_across_blocks() -> None:
    array = np.random.default_rng(1).normal(size=BLOCK * 2 + 7).astype(np.float32)
    mean = Mean({"w": Tensor.of(array)})
    mean.add({"w": Tensor.of(array)}, 3)
    result = mean.result()
    assert result is not None
    assert result["w"].numpy().tobytes() == array.tobytes()


def test_counters_stay_whole_and_bfloat16_stays_so() -> None:
    bits = np.array([0x3F80, 0x4000], dtype=np.uint16)  # 1, 2
    like = {
        "steps": Tensor.of(np.array(0, dtype=np.int64)),
        "flag": Tensor.of(np.array([True, False])),
        "b": Tensor.of_bits(DType.BFLOAT16, bits),
    }
    mean = Mean(like)
    for steps in (3, 4, 4):
        mean.add({**like, "steps": Tensor.of(np.array(steps, dtype=np.int64))}, 1)
    result = mean.result()
    assert result is not None
    assert result["steps"].numpy() == 4
    assert result["flag"].numpy().tolist() == [True, False]
    assert result["b"].dtype is DType.BFLOAT16
    assert result["b"].numpy().tolist() == bits.tolist()


def test_nothing_has_no_mean_and_bytes_have_none() -> None:
    assert Mean({}).result() is None
    with pytest.raises(ConfigError, match="no mean"):
        Mean({"w": Tensor.opaque(b"xx", "mine", "q4", (1,))})


def test_metrics_are_weighed_where_they_are() -> None:
    mean = MetricMean()
    mean.add({"loss": 1.0, "num-examples": 1}, 1)
    mean.add({"loss": 4.0, "rare": 2.0, "nan": float("nan"), "list": [1.0]}, 2)
    assert mean.result() == {"loss": 3.0, "rare": 2.0}
