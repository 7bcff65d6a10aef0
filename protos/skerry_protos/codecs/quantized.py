"""int8 and int4: a scale for each channel's block, and stochastic rounding, which has no bias.

For a block x with scale s = max|x| / L (L = 127 or 7), q = floor(x / s + u) with u uniform on
[0, 1): E[q s] = x, and the variance of an element is at most s^2 / 4. QSGD (Alistarh et al. 2017)
rounds so; scales by channel and block keep s small where rows are of unlike magnitude.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from skerry_protos.codecs import CodedError
from skerry_protos.codecs.exact import BLOCK
from skerry_protos.codecs.floats import Floats, from_bfloat16, to_bfloat16_above

LEVELS = {8: 127, 4: 7}
SHORT = 32
"""Channels shorter than this share a scale with their neighbours: scales must stay few."""


def starts(shape: tuple[int, ...], block: int) -> NDArray[np.intp]:
    """Return where blocks begin in the flat tensor: channels (axis 0), long ones cut at `block`."""
    size = int(np.prod(shape, dtype=np.int64))
    if not size:
        return np.empty(0, dtype=np.intp)
    width = _width(shape, size)
    found = np.arange(0, size, width)[:, None] + np.arange(0, min(width, size), block)[None, :]
    flat: NDArray[np.intp] = found.reshape(-1)
    return flat[flat < size]


def blocks(shape: tuple[int, ...], size: int, block: int) -> int:
    """Return how many blocks `starts` gives for a tensor of `size` elements."""
    if not size:
        return 0
    width = _width(shape, size)
    return size // width * -(-width // block) + -(-(size % width) // block)


def _width(shape: tuple[int, ...], size: int) -> int:
    """Return the elements of a channel, or of as many short ones as share a scale."""
    width = size // shape[0] if len(shape) > 1 else size
    return width * -(-SHORT // width) if width < SHORT else width


def quantize(
    change: Floats, begins: NDArray[np.intp], bits: int, rng: np.random.Generator | None
) -> tuple[NDArray[np.uint16], NDArray[np.int8]]:
    """Return each block's scale (bfloat16 bits) and each element's level.

    With `rng` rounding is stochastic and unbiased, without to the nearest.
    """
    most = LEVELS[bits]
    scales = np.empty(begins.size, np.uint16)
    levels = np.empty(change.size, np.int8)
    for first, last, begin, end in _spans(begins, change.size):
        part, own = change[begin:end], begins[first:last] - begin
        peaks = np.maximum.reduceat(np.abs(part), own)
        # Rounded up twice: no element then passes the last level, which would be cut and so biased.
        fine = np.nextafter(peaks / np.float32(most), np.float32(np.inf), dtype=np.float32)
        scale = to_bfloat16_above(np.where(peaks > 0, fine, np.float32(0)).astype(np.float32))
        step = _spread(from_bfloat16(scale), own, part.size)
        np.copyto(step, 1, where=step == 0)
        level = part / step
        if rng is None:
            np.rint(level, out=level)
        else:
            level += rng.random(part.size, dtype=np.float32)
            np.floor(level, out=level)
        levels[begin:end] = np.clip(level, -most, most, out=level)
        scales[first:last] = scale
    return scales, levels


def dequantize(
    scales: NDArray[np.unsignedinteger], levels: NDArray[np.int8], begins: NDArray[np.intp]
) -> Floats:
    """Return the values that scales and levels stand for."""
    if scales.size != begins.size:
        raise CodedError(f"a tensor came with {scales.size} scales; expected {begins.size}")
    steps = from_bfloat16(scales)
    if not np.isfinite(steps).all():
        raise CodedError("a tensor came with a scale that is not finite")
    made = np.empty(levels.size, np.float32)
    for first, last, begin, end in _spans(begins, levels.size):
        step = _spread(steps[first:last], begins[first:last] - begin, end - begin)
        np.multiply(levels[begin:end], step, out=made[begin:end])
    return made


def _spans(begins: NDArray[np.intp], size: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield runs of blocks, first to before last, and the elements that they hold."""
    many = max(1, BLOCK * begins.size // max(1, size))
    for first in range(0, begins.size, many):
        last = min(first + many, begins.size)
        yield first, last, int(begins[first]), int(begins[last]) if last < begins.size else size


def _spread(scales: Floats, begins: NDArray[np.intp], size: int) -> Floats:
    return np.repeat(scales, np.diff(begins, append=size))


def pack_nibbles(levels: NDArray[np.int8]) -> NDArray[np.uint8]:
    """Return two levels in each byte, the first in its lower half."""
    plain = (levels & 0x0F).astype(np.uint8)
    if plain.size % 2:
        plain = np.append(plain, np.uint8(0))
    return plain[0::2] | np.left_shift(plain[1::2], np.uint8(4))


def unpack_nibbles(packed: NDArray[np.uint8], size: int) -> NDArray[np.int8]:
    """Return `size` levels from their bytes."""
    made = np.empty(2 * packed.size, dtype=np.int8)
    made[0::2] = (packed << 4).view(np.int8) >> 4
    made[1::2] = packed.view(np.int8) >> 4
    return made[:size]
