"""Without loss: bytes by significance, and differences of bit patterns. NaN comes back as it was.

Training changes weights a little: the difference of two weights' bit patterns, read as integers,
has mostly zeros in its high bytes. Bytes of equal significance lie together (as Blosc's shuffle
does), each plane a part of its own, so that those of pure noise are not compressed in vain.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from skerry_protos.codecs import CodedError
from skerry_protos.tensors import DType

Words = NDArray[np.unsignedinteger]

BLOCK = 1 << 18
"""Values worked on together: they stay in the processor's cache, and few are held twice."""
_WORD = {1: "|u1", 2: "<u2", 4: "<u4", 8: "<u8"}
_COMPLEX = {DType.COMPLEX64: 4, DType.COMPLEX128: 8}


def word_of(dtype: DType) -> int:
    """Return the bytes of the numbers in an element: a complex one has two of them."""
    return _COMPLEX.get(dtype, dtype.itemsize)


def words(data: memoryview, width: int) -> Words:
    """Return bytes as unsigned integers of `width` bytes each."""
    return np.frombuffer(data, dtype=_WORD[width])


def split(values: Words) -> list[memoryview]:
    """Return the values' bytes by significance, the lowest first."""
    width = values.dtype.itemsize
    table = values.view(np.uint8).reshape(-1, width)
    return [np.ascontiguousarray(table[:, place]).data for place in range(width)]


def join(planes: Sequence[memoryview], width: int) -> Words:
    """Return the values whose bytes `split` gave."""
    if len(planes) != width or len({plane.nbytes for plane in planes}) != 1:
        raise CodedError(f"a tensor came in {len(planes)} planes of bytes; expected {width}")
    table = np.empty((planes[0].nbytes, width), dtype=np.uint8)
    for place, plane in enumerate(planes):
        table[:, place] = np.frombuffer(plane, dtype=np.uint8)
    return table.reshape(-1).view(_WORD[width])


def difference(new: Words, old: Words) -> Words:
    """Return new - old, with the sign in the lowest bit, so that small means zeros above."""
    bits = 8 * new.dtype.itemsize
    signed = (new - old).view(f"<i{new.dtype.itemsize}" if bits > 8 else "|i1")
    sign = signed >> (bits - 1)
    signed <<= 1
    signed ^= sign
    return signed.view(new.dtype)


def undo(coded: Words, old: Words) -> Words:
    """Return the values whose `difference` from `old` this is; in the memory of `coded`."""
    one = coded.dtype.type(1)
    for begin in range(0, coded.size, BLOCK):
        part = coded[begin : begin + BLOCK]
        sign = part & one
        part >>= one
        part ^= np.negative(sign, out=sign)
        part += old[begin : begin + BLOCK]
    return coded
