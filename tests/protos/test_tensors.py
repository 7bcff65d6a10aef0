"""Tensors: every type there and back, and no shape that lies."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from skerry_protos.errors import PeerError
from skerry_protos.tensors import DType, Tensor, from_npy, nbytes_of, npy_bytes

CODES = sorted({dtype.numpy_code for dtype in DType})
arrays = hnp.arrays(
    dtype=st.sampled_from(CODES).map(np.dtype),
    shape=hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5),
)


@given(arrays)
def test_an_array_comes_back_the_same(array: NDArray[Any]) -> None:
    tensor = Tensor.of(array)
    back = tensor.numpy()
    assert (back.shape, back.dtype) == (array.shape, array.dtype)
    assert back.tobytes() == array.tobytes()


@given(arrays)
def test_an_npy_file_comes_back_the_same(array: NDArray[Any]) -> None:
    import io

    data = npy_bytes(Tensor.of(array))
    read = np.load(io.BytesIO(data), allow_pickle=False)
    assert (read.shape, read.dtype, read.tobytes()) == (array.shape, array.dtype, array.tobytes())
    again = from_npy(data)
    assert again is not None
    assert again.numpy().tobytes() == array.tobytes()


def test_a_contiguous_array_is_not_copied() -> None:
    array = np.arange(12, dtype=np.float32).reshape(3, 4)
    assert np.shares_memory(Tensor.of(array).numpy(), array)


def test_fortran_order_and_big_endian_are_made_plain() -> None:
    array = np.asfortranarray(np.arange(6, dtype=">f4").reshape(2, 3))
    assert np.array_equal(Tensor.of(array).numpy(), array)
    assert Tensor.of(array).dtype is DType.FLOAT32


@pytest.mark.parametrize("array", [np.array([object()]), np.array(["a"]), np.zeros(2, "M8[s]")])
def test_objects_text_and_times_are_refused(array: NDArray[Any]) -> None:
    with pytest.raises(TypeError, match="cannot be sent"):
        Tensor.of(array)


def test_an_npy_file_of_objects_stays_opaque_or_is_refused() -> None:
    import io

    file = io.BytesIO()
    np.save(file, np.array([{"a": 1}]), allow_pickle=True)
    assert from_npy(file.getvalue()) is None
    with pytest.raises(PeerError):
        from_npy(b"\x93NUMPY\x01\x00 nonsense")


@given(st.lists(st.integers(0, 2**63), max_size=40), st.sampled_from(DType))
def test_a_shape_is_exact_or_refused(shape: list[int], dtype: DType) -> None:
    import math

    try:
        nbytes = nbytes_of(dtype, shape, 1 << 20)
    except PeerError:
        extent = math.prod(max(axis, 1) for axis in shape) * dtype.itemsize
        assert extent > 1 << 20 or len(shape) > 32
    else:
        assert nbytes == math.prod(shape) * dtype.itemsize
        np.zeros(shape, dtype=dtype.numpy_code)  # numpy takes what we take


def test_data_that_does_not_fill_the_shape_is_refused() -> None:
    with pytest.raises(PeerError, match="expected 16"):
        Tensor(dtype=DType.FLOAT32, shape=(4,), data=memoryview(bytes(12)))


def test_a_bool_that_is_neither_is_refused() -> None:
    with pytest.raises(PeerError, match="neither"):
        Tensor(dtype=DType.BOOL, shape=(2,), data=memoryview(b"\x01\x02")).numpy()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("code", ["<f2", "<f4", "<f8", "<c8"])
def test_one_bad_element_is_found(code: str, bad: float) -> None:
    array = np.zeros(1000, dtype=code)
    assert Tensor.of(array).finite()
    array[517] = bad
    assert not Tensor.of(array).finite()


@pytest.mark.parametrize("code", ["<f2", "<f4", "<f8"])
def test_large_finite_elements_are_finite(code: str) -> None:
    assert Tensor.of(np.full(100, np.finfo(code).max, dtype=code)).finite()


def test_bfloat16_keeps_its_bits_and_its_nans_are_found() -> None:
    bits = (np.array([1.5, -2.0, 0.0], dtype=np.float32).view(np.uint32) >> 16).astype(np.uint16)
    tensor = Tensor.of_bits(DType.BFLOAT16, bits)
    assert np.array_equal(tensor.float32(), np.array([1.5, -2.0, 0.0], dtype=np.float32))
    assert tensor.finite()
    assert not Tensor.of_bits(DType.BFLOAT16, np.array([0x7FC0], dtype=np.uint16)).finite()
    with pytest.raises(TypeError):
        Tensor.of_bits(DType.BFLOAT16, np.zeros(2, dtype=np.uint8))


@pytest.mark.parametrize(
    "header", [b"{'descr': '<f4&, '  \n", b"{" * 60, b"\x00" * 20, b"{'a': (1,"]
)
def test_an_npy_header_that_is_no_python_is_refused(header: bytes) -> None:
    # numpy's reader lets a TokenError through (found by fuzzing).
    with pytest.raises(PeerError):
        from_npy(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
