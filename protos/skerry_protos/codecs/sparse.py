"""topk: the largest elements, and where they are in about log2(n/k) + 1.5 bits each.

Places are gaps in Golomb-Rice code, near the best there is for gaps as they fall by chance (Sattler
et al. 2019 code sparse updates so): the high part of a gap in unary, its low bits as they are.
What is not sent is kept by the caller and added to the next update (error feedback; Stich et al.
2018, Karimireddy et al. 2019).
"""

import math

import numpy as np
from numpy.typing import NDArray

from skerry_protos.codecs import CodedError
from skerry_protos.codecs.floats import Floats

Places = NDArray[np.int64]


def count(size: int, ratio: float) -> int:
    """Return how many of `size` elements are sent: at least one, where there is one."""
    return min(size, max(1, math.ceil(size * ratio))) if size else 0


def largest(change: Floats, number: int) -> Places:
    """Return the places of the `number` elements of the largest magnitude, in order."""
    if number >= change.size:
        return np.arange(change.size, dtype=np.int64)
    found = np.argpartition(np.abs(change), change.size - number)[change.size - number :]
    return np.sort(found).astype(np.int64)


def low_bits(size: int, number: int) -> int:
    """Return how many low bits of a gap are written as they are: log2 of 0.69 mean gaps."""
    mean = size / max(1, number)
    return max(0, round(math.log2(max(1.0, 0.69 * mean))))


def code_places(places: Places, size: int) -> tuple[bytes, bytes]:
    """Return the gaps' high parts in unary and their low bits, each packed."""
    low = low_bits(size, places.size)
    gaps = np.diff(places, prepend=-1) - 1
    high = gaps >> low
    unary = np.ones(int(high.sum()) + gaps.size, dtype=np.uint8)
    unary[np.cumsum(high + 1) - 1] = 0
    rest = (gaps[:, None] >> np.arange(low)) & 1
    return np.packbits(unary).tobytes(), np.packbits(rest.astype(np.uint8)).tobytes()


def most_unary(size: int, number: int) -> int:
    """Return the most bytes that the unary part can have."""
    return (number + (size >> low_bits(size, number)) + 7) // 8


def low_bytes(size: int, number: int) -> int:
    """Return the bytes of the low bits."""
    return (number * low_bits(size, number) + 7) // 8


def read_places(unary: memoryview, low_part: memoryview, size: int, number: int) -> Places:
    """Return the places that `code_places` wrote, or raise CodedError: they rise, below `size`."""
    low = low_bits(size, number)
    ends = np.flatnonzero(np.unpackbits(np.frombuffer(unary, np.uint8)) == 0)[:number]
    if ends.size != number or low_part.nbytes != low_bytes(size, number):
        raise CodedError(f"{ends.size} places came; expected {number}")
    high = np.diff(ends, prepend=-1) - 1
    rest = np.unpackbits(np.frombuffer(low_part, np.uint8), count=number * low)
    below = rest.reshape(number, low).astype(np.int64) @ (1 << np.arange(low, dtype=np.int64))
    places = np.cumsum((high.astype(np.int64) << low) + below + 1) - 1
    if number and not 0 <= places[-1] < size:
        raise CodedError(f"a place is {places[-1]}, in a tensor of {size} elements")
    return places
