"""How far a reply is from the model it was asked with: one pass over it, block by block."""

import math
from collections.abc import Mapping

import numpy as np
from skerry_protos.errors import PeerError
from skerry_protos.records import Records
from skerry_protos.tensors import DType, Tensor

from skerry_cloud.blocks import give_back, part, spans, values
from skerry_cloud.screening.looks import WEIGHTS, group_look

_BITS_ONLY = frozenset({DType.FLOAT8_E4M3FN, DType.FLOAT8_E5M2})


def own_flaw(reply: Records, *, arrays: bool = True) -> str | None:
    """Return what is wrong with a reply by itself, or None."""
    return measured(reply, None, arrays=arrays)[0]


def measured(
    reply: Records, asked: Records | None, *, arrays: bool = True
) -> tuple[str | None, float | None]:
    """Return what is wrong with a reply by itself, and the norm of its update.

    The norm is that of the reply's floating-point arrays less the task's, where the two look
    alike, else of the arrays themselves; None when there are none, or `arrays` is false.
    """
    for metrics in reply.metrics.values():
        for name in WEIGHTS:
            weight = metrics.get(name)
            if isinstance(weight, int | float) and not 0 < weight < float("inf"):
                return f"its metric {name!r} is {weight}; expected more than 0", None
    if not arrays:
        return None, None
    sent = {group_look(group): group for group in asked.arrays.values()} if asked else {}
    squares: float | None = None
    for group in reply.arrays.values():
        base: Mapping[str, Tensor] = sent.get(group_look(group), {})
        for name, tensor in group.items():
            try:
                found = _squares(tensor, base.get(name))
            except PeerError as error:
                return f"its array {name!r}: {error.message}", None
            if found is not None:
                if not math.isfinite(found):
                    return f"its array {name!r} has NaN or infinity", None
                squares = (squares or 0.0) + found
    return None, None if squares is None else math.sqrt(squares)


def _squares(tensor: Tensor, base: Tensor | None) -> float | None:
    """Return the sum of squares of a tensor less its base: infinite when an element is not finite.

    None for what has no distance: counters, flags, opaque bytes.
    """
    if tensor.stype or not tensor.nbytes:
        return None
    if tensor.dtype is DType.BOOL:
        tensor.numpy()  # raises for what is neither 0 nor 1
    if not tensor.dtype.floating:
        return None
    if tensor.dtype in _BITS_ONLY:
        return None if tensor.finite() else math.inf
    total = 0.0
    for begin, end in spans(tensor.nbytes // tensor.dtype.itemsize):
        total += _block_squares(tensor, base, begin, end)
        give_back(part(tensor, begin, end))
        if base is not None:
            give_back(part(base, begin, end))
        if not math.isfinite(total):
            return math.inf
    return total


def _block_squares(tensor: Tensor, base: Tensor | None, begin: int, end: int) -> float:
    found = values(tensor, begin, end)
    wide = {2: np.float32, 4: np.float32, 8: np.float64}.get(found.dtype.itemsize, np.float64)
    if found.dtype.kind == "c":
        real = np.float64 if found.dtype.itemsize == 16 else np.float32
        found, wide = found.view(real), real
    with np.errstate(all="ignore"):
        difference = found.astype(wide)
        if base is not None:
            other = values(base, begin, end)
            difference -= other.view(wide) if other.dtype.kind == "c" else other
        total = float(np.dot(difference, difference))
        if math.isfinite(total):
            return total
        if not np.isfinite(found).all():
            return math.inf
        # Finite numbers whose squares are not: as far away as a number can say.
        squares = float(np.square(difference.astype(np.float64)).sum())
    return 1e300 if math.isnan(squares) else min(squares, 1e300)  # NaN: the base was not finite
