"""Large tensors in small parts: passes over models in little memory, wherever their bytes lie.

A reply is a mapped file. Pages that were read count as ours until they are given back, so every
pass gives each block back as it leaves it; the file stays in the page cache for the next pass.
"""

import mmap
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from skerry_protos.tensors import DType, Tensor

BLOCK = 1 << 18
"""Elements looked at together: a block and its product stay in the processor's cache."""


def mapped(tensor: Tensor) -> bool:
    """Return whether the tensor's bytes are those of a mapped file."""
    return isinstance(tensor.data.obj, mmap.mmap)


def give_back(data: memoryview) -> None:
    """Let go of the pages that these bytes of a mapped file lie on; other bytes stay."""
    source = data.obj
    if isinstance(source, mmap.mmap) and data.nbytes:
        begin = _address(data) - _address(memoryview(source))
        first = begin - begin % mmap.PAGESIZE
        source.madvise(mmap.MADV_DONTNEED, first, begin + data.nbytes - first)


def _address(data: memoryview) -> int:
    return int(np.frombuffer(data, dtype=np.uint8).__array_interface__["data"][0])


def spans(size: int, block: int = BLOCK) -> Iterator[tuple[int, int]]:
    """Yield where each block of `size` elements begins and ends."""
    for begin in range(0, size, block):
        yield begin, min(size, begin + block)


def part(tensor: Tensor, begin: int, end: int) -> memoryview:
    """Return the bytes of the elements from `begin` to before `end`, in C order."""
    width = tensor.dtype.itemsize
    return tensor.data[begin * width : end * width]


def values(tensor: Tensor, begin: int, end: int) -> NDArray[Any]:
    """Return these elements, flat; bfloat16 as float32, 8-bit floats as their bits."""
    found = np.frombuffer(part(tensor, begin, end), dtype=tensor.dtype.numpy_code)
    if tensor.dtype is DType.BFLOAT16:
        return (found.astype(np.uint32) << 16).view(np.float32)
    return found


def blocks(tensor: Tensor, block: int = BLOCK) -> Iterator[NDArray[Any]]:
    """Yield a tensor's elements block by block; each is valid until the next is asked for."""
    for begin, end in spans(tensor.nbytes // tensor.dtype.itemsize, block):
        yield values(tensor, begin, end)
        give_back(part(tensor, begin, end))


def copy(tensor: Tensor) -> NDArray[Any]:
    """Return a tensor's array in memory of its own."""
    made = np.empty(tensor.shape, dtype=tensor.dtype.numpy_code)
    flat = made.reshape(-1)
    for begin, end in spans(flat.size):
        data = part(tensor, begin, end)
        flat[begin:end] = np.frombuffer(data, dtype=flat.dtype)
        give_back(data)
    if tensor.dtype is DType.BOOL:
        tensor.numpy()  # raises PeerError for an element that is neither 0 nor 1
    return made
