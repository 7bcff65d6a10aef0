"""One tensor coded and decoded, by each method: values in, parts of bytes out, and back.

How many bytes each part opens to follows from the tensor's shape, so that no header can make a
decoder take more memory than the tensor itself has.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from skerry_protos.codecs import (
    BLOCK_LEAST,
    BLOCK_MOST,
    RANK_MOST,
    Codec,
    CodedError,
    exact,
    lowrank,
    quantized,
    sparse,
)
from skerry_protos.codecs.floats import (
    Floats,
    from_bfloat16,
    require_range,
    to_bfloat16,
)
from skerry_protos.tensors import Tensor

SMALL = 2048
"""topk and powersgd send vectors, and tensors of fewer elements, whole as bfloat16: they weigh
little in a model, and first layers and running means come to harm by parts."""


class Method(IntEnum):
    """How a tensor's parts are to be read; the numbers are on the wire and never reused."""

    EXACT = 1  # the elements' bytes, in planes
    DIFFERENCE = 2  # difference of bit patterns from what the receiver holds, in planes
    FLOAT32 = 3  # from here on the update: as float32, in planes
    BF16 = 4  # as bfloat16, in planes
    INT8 = 5  # scales, levels
    INT4 = 6  # scales, two levels in a byte
    TOPK = 7  # places in unary, their low bits, values as bfloat16 in planes
    LOW_RANK = 8  # the two factors as bfloat16, in planes


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """A coded tensor: its method, that method's one number, and its parts."""

    method: Method
    parts: Sequence[memoryview]
    setting: int = 0
    warm: Floats | None = None  # powersgd: where its next round begins


@dataclass(frozen=True, slots=True)
class Room:
    """How many bytes a part opens to; with `most`, at most so many, and it is never squeezed."""

    nbytes: int
    most: bool = False


# Kept exactly.


def exactly(tensor: Tensor, held: Tensor | None) -> Made:
    """Return the tensor without loss: its bytes, or what they differ by from those held."""
    width = exact.word_of(tensor.dtype)
    new = exact.words(tensor.data, width)
    if held is None:
        return Made(method=Method.EXACT, parts=exact.split(new))
    parts = exact.split(exact.difference(new, exact.words(held.data, width)))
    return Made(method=Method.DIFFERENCE, parts=parts)


def exact_bytes(
    method: Method, parts: Sequence[memoryview], width: int, held: Tensor | None
) -> memoryview:
    """Return the bytes of a tensor that `exactly` coded."""
    words = exact.join(parts, width)
    if method is Method.DIFFERENCE:
        if held is None:
            raise CodedError("a tensor came as a difference from what is not held here")
        words = exact.undo(words, exact.words(held.data, width))
    return words.view(np.uint8).data


# Updates in float32.


def code(
    codec: Codec,
    change: Floats,
    shape: tuple[int, ...],
    *,
    rng: np.random.Generator | None,
    warm: Floats | None = None,
) -> Made:
    """Return the flat update of a tensor of `shape`, coded; CodecError when it cannot be.

    `rng` throws the dice of stochastic rounding (None: round to the nearest) and of powersgd's
    first factor; `warm` is that factor of the round before.
    """
    require_range(change, name="the update")
    name = codec.name
    if name in ("topk", "powersgd") and (len(shape) < 2 or change.size < SMALL):
        name = "bf16"
    match name:
        case "int8" | "int4":
            return _quantized(codec, change, shape, rng)
        case "topk":
            return _sparse(codec, change)
        case "powersgd" if rank := lowrank.rank_for(shape, codec.rank):
            return _low_rank(change, shape, rank, warm, rng)
        case "bf16" | "powersgd":
            return Made(method=Method.BF16, parts=exact.split(to_bfloat16(change)))
    return Made(method=Method.FLOAT32, parts=exact.split(change.view(np.uint32)))


def _quantized(
    codec: Codec, change: Floats, shape: tuple[int, ...], rng: np.random.Generator | None
) -> Made:
    bits = 8 if codec.name == "int8" else 4
    begins = quantized.starts(shape, codec.scale_block)
    scales, levels = quantized.quantize(change, begins, bits, rng)
    packed = _bytes(levels) if bits == 8 else _bytes(quantized.pack_nibbles(levels))
    method = Method.INT8 if bits == 8 else Method.INT4
    return Made(method=method, parts=[_bytes(scales), packed], setting=codec.scale_block)


def _sparse(codec: Codec, change: Floats) -> Made:
    places = sparse.largest(change, sparse.count(change.size, codec.ratio))
    unary, low = sparse.code_places(places, change.size)
    values = exact.split(to_bfloat16(change[places]))
    parts = [memoryview(unary), memoryview(low), *values]
    return Made(method=Method.TOPK, parts=parts, setting=places.size)


def _low_rank(
    change: Floats,
    shape: tuple[int, ...],
    rank: int,
    warm: Floats | None,
    rng: np.random.Generator | None,
) -> Made:
    rows, columns = lowrank.matrix_of(shape)
    matrix = change.reshape(rows, columns)
    if (
        warm is None
        or warm.shape != (columns, rank)
        or not np.isfinite(warm).all()
        or not warm.any()
    ):
        warm = lowrank.start(columns, rank, rng or np.random.default_rng(0))
    left = to_bfloat16(lowrank.basis(matrix, warm))
    right = to_bfloat16(lowrank.against(matrix, from_bfloat16(left)))
    parts = [*exact.split(left.reshape(-1)), *exact.split(right.reshape(-1))]
    return Made(method=Method.LOW_RANK, parts=parts, setting=rank, warm=from_bfloat16(right))


def rooms(
    method: Method, setting: int, shape: tuple[int, ...], size: int, width: int
) -> list[Room]:
    """Return what each part of a coded tensor must open to, or raise CodedError.

    `size` is the number of its elements (of words of `width` bytes, for what is kept exactly).
    """
    match method:
        case Method.EXACT | Method.DIFFERENCE:
            return [Room(size)] * width
        case Method.FLOAT32:
            return [Room(size)] * 4
        case Method.BF16:
            return [Room(size)] * 2
        case Method.INT8 | Method.INT4:
            if not BLOCK_LEAST <= setting <= BLOCK_MOST:
                raise CodedError(f"a tensor came in blocks of {setting}")
            scales = Room(2 * quantized.blocks(shape, size, setting))
            return [scales, Room(size if method is Method.INT8 else (size + 1) // 2)]
        case Method.TOPK:
            if not min(1, size) <= setting <= size:
                raise CodedError(f"{setting} of {size} elements came")
            unary = Room(sparse.most_unary(size, setting), most=True)
            return [unary, Room(sparse.low_bytes(size, setting)), Room(setting), Room(setting)]
        case Method.LOW_RANK:
            rows, columns = lowrank.matrix_of(shape)
            if not 1 <= setting <= min(rows, columns, RANK_MOST):
                raise CodedError(f"a tensor of shape {shape} came with rank {setting}")
            left, right = Room(rows * setting), Room(columns * setting)
            return [left, left, right, right]


def change_of(
    method: Method, setting: int, shape: tuple[int, ...], size: int, parts: Sequence[memoryview]
) -> Floats:
    """Return the flat update that opened parts stand for, or raise CodedError."""
    match method:
        case Method.FLOAT32:
            return exact.join(parts, 4).view(np.float32)
        case Method.BF16:
            return from_bfloat16(exact.join(parts, 2))
        case Method.INT8 | Method.INT4:
            begins = quantized.starts(shape, setting)
            levels = np.frombuffer(parts[1], np.int8)
            if method is Method.INT4:
                levels = quantized.unpack_nibbles(levels.view(np.uint8), size)
            return quantized.dequantize(exact.words(parts[0], 2), levels, begins)
        case Method.TOPK:
            places = sparse.read_places(parts[0], parts[1], size, setting)
            made = np.zeros(size, dtype=np.float32)
            made[places] = from_bfloat16(exact.join(parts[2:], 2))
            return made
        case Method.LOW_RANK:
            rows, columns = lowrank.matrix_of(shape)
            left = from_bfloat16(exact.join(parts[:2], 2)).reshape(rows, setting)
            right = from_bfloat16(exact.join(parts[2:], 2)).reshape(columns, setting)
            with np.errstate(all="ignore"):
                return lowrank.product(left, right)
    raise CodedError(f"{method.name} is no update")


def _bytes(array: "NDArray[np.generic]") -> memoryview:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
