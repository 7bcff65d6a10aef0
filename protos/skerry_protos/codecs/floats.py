"""Floats of every width as updates in float32, and back; bfloat16 by the bits."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from skerry_protos.codecs import CodecError
from skerry_protos.tensors import DType, Tensor

Floats = NDArray[np.float32]

LARGEST = 1e38
"""Largest magnitude that lossy codecs take: scales and factors of it are finite still."""
LOSSY = frozenset({DType.FLOAT16, DType.FLOAT32, DType.FLOAT64, DType.BFLOAT16})
"""Types that may be coded with loss; all others (counters, flags, bytes) are kept exactly."""


def values(tensor: Tensor) -> NDArray[Any]:
    """Return the elements in one axis, at least as wide as float32."""
    flat: NDArray[Any] = tensor.float32() if tensor.dtype is DType.BFLOAT16 else tensor.numpy()
    flat = flat.reshape(-1)
    return flat.astype(np.float32) if flat.itemsize < 4 else flat


def update(trained: Tensor, received: Tensor | None) -> Floats:
    """Return a new array of trained - received as float32 (of `trained` itself without it)."""
    with np.errstate(all="ignore"):
        if received is None:
            return values(trained).astype(np.float32)
        change: Floats = (values(trained) - values(received)).astype(np.float32, copy=False)
        return change


def apply(change: Floats, held: Tensor | None, *, dtype: DType, shape: tuple[int, ...]) -> Tensor:
    """Return held + change (change itself without it) as a tensor of this type and shape."""
    with np.errstate(all="ignore"):
        new = change if held is None else _sum(values(held), change)
        if dtype is DType.BFLOAT16:
            return Tensor.of_bits(dtype, to_bfloat16(new).reshape(shape))
        return Tensor.of(new.astype(dtype.numpy_code, copy=False).reshape(shape))


def _sum(base: NDArray[Any], change: Floats) -> NDArray[Any]:
    """Return base + change, in the memory of `change` where that is wide enough."""
    made: NDArray[Any] = np.add(base, change, out=change if base.dtype == change.dtype else None)
    return made


def require_range(change: Floats, *, name: str) -> float:
    """Return the largest magnitude, or raise CodecError for NaN, infinity and what is too large."""
    if not change.size:
        return 0.0
    largest = float(max(change.max(), -change.min()))
    if not largest <= LARGEST:  # NaN too
        raise CodecError(f"{name} holds NaN, infinity or a value beyond {LARGEST:g}")
    return largest


def to_bfloat16(change: NDArray[Any]) -> NDArray[np.uint16]:
    """Return bfloat16 bits, rounded to the nearest, ties to even (as hardware does)."""
    bits = change.astype(np.float32, copy=False).view(np.uint32)
    made = bits >> 16
    made &= 1
    made += 0x7FFF
    made += bits
    made >>= 16
    return made.astype(np.uint16)


def to_bfloat16_above(change: Floats) -> NDArray[np.uint16]:
    """Return bfloat16 bits of values of 0 or more, rounded up."""
    return ((change.view(np.uint32) + np.uint32(0xFFFF)) >> 16).astype(np.uint16)


def from_bfloat16(bits: NDArray[np.unsignedinteger]) -> Floats:
    """Return float32 of bfloat16 bits."""
    made = bits.astype(np.uint32)
    made <<= 16
    return made.view(np.float32)
