"""Flower's weighted mean, folded in reply by reply: O(model) in memory, for any number of them."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, RecordDict
from numpy.typing import NDArray
from skerry_protos.tensors import Tensor

from skerry_cloud.blocks import BLOCK, blocks, spans
from skerry_cloud.strategies.flower.conversion import NumpyArray

Keep = Callable[[dict[str, Tensor]], ArrayRecord]
"""Puts a finished model where it may stay."""


def flat_blocks(array: Array) -> Iterator[NDArray[Any]]:
    """Yield an array's elements block by block, in C order; TypeError when it is opaque."""
    tensor = array.__dict__.get("tensor") if isinstance(array, NumpyArray) else None
    if tensor is not None:
        yield from blocks(tensor)
        return
    flat = array.numpy().reshape(-1)
    for begin, end in spans(flat.size):
        yield flat[begin:end]


class _Sum:
    """One array's weighted sum, in the type that Flower's has (half precision: in single)."""

    def __init__(self, array: Array) -> None:
        self._kind = np.multiply(np.empty(0, dtype=array.dtype), 1.0).dtype
        self.shape = tuple(array.shape)
        self._total = np.zeros(self.shape, dtype=np.promote_types(self._kind, np.float32))

    def add(self, array: Array, weight: float) -> None:
        if tuple(array.shape) != self.shape:
            raise ValueError(f"an array of shape {tuple(array.shape)}; expected {self.shape}")
        total = self._total.reshape(-1)
        product = np.empty(min(BLOCK, total.size), dtype=total.dtype)
        begin = 0
        for block in flat_blocks(array):
            out = product[: block.size]
            np.multiply(block, weight, out=out, dtype=out.dtype, casting="unsafe")
            total[begin : begin + block.size] += out
            begin += block.size

    def mean(self, weight: float) -> NDArray[Any]:
        self._total /= weight
        return self._total.astype(self._kind, copy=False)


class Fold:
    """The weighted mean of ArrayRecords (McMahan et al. 2017, arXiv:1602.05629).

    Flower scales each array by its share and adds; here the shares are known at the end only, so
    that sums are of arrays times weights, divided once. Both are the same up to rounding.
    """

    def __init__(self) -> None:
        self._sums: dict[str, _Sum] = {}
        self._weight = 0.0

    def add(self, content: RecordDict, weight: float) -> None:
        """Fold all arrays of a reply in."""
        self._weight += weight
        for record in content.array_records.values():
            for key, array in record.items():
                if key not in self._sums:
                    self._sums[key] = _Sum(array)
                self._sums[key].add(array, weight)

    def result(self, keep: Keep) -> ArrayRecord:
        """Return the mean; ZeroDivisionError when all weights were 0, as Flower has it."""
        if not self._weight:
            raise ZeroDivisionError("the weights of all replies are 0")
        means = {key: Tensor.of(one.mean(self._weight)) for key, one in self._sums.items()}
        self._sums.clear()
        return keep(means)


def weighted_mean(contents: Iterable[RecordDict], weighted_by: str, keep: Keep) -> ArrayRecord:
    """Return what `aggregate_arrayrecords` returns."""
    fold = Fold()
    for content in contents:
        fold.add(content, weight_of(content, weighted_by))
    return fold.result(keep)


def weight_of(content: RecordDict, weighted_by: str) -> float:
    """Return how much a reply counts: its first MetricRecord says so."""
    return float(next(iter(content.metric_records.values()))[weighted_by])
