"""Flower's robust rules over replies that lie on disk, by blocks of parameters.

The median, the trimmed mean and Bulyan look at each parameter by itself, so a block of parameters
of all replies is enough at a time: the result is Flower's, element by element. Krum needs the
distances between replies, which are sums over blocks.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord
from numpy.typing import NDArray
from skerry_protos.tensors import Tensor

from skerry_cloud.blocks import give_back, part, spans, values
from skerry_cloud.strategies.flower.conversion import tensor_of
from skerry_cloud.strategies.flower.folding import Keep

Rule = Callable[[NDArray[Any]], NDArray[Any]]
"""Turns [replies, parameters] into [parameters]."""

COPIES = 6
"""How often a rule may hold a block: as it came, sorted, as distances and as their order."""
LARGEST = 1 << 15
"""Most parameters in a block: larger ones are not faster."""


def by_blocks(records: Sequence[ArrayRecord], rule: Rule, memory: int, keep: Keep) -> ArrayRecord:
    """Apply a rule to every parameter of all records; a block of it takes at most `memory` bytes.

    Records have the same keys and shapes. ValueError when shapes differ, or from the rule.
    """
    made: dict[str, Tensor] = {}
    for key, array in records[0].items():
        tensors = [_tensor(record[key]) for record in records]
        shape = tuple(array.shape)
        if any(tensor.shape != shape for tensor in tensors):
            raise ValueError(f"the replies' arrays {key!r} differ in shape; expected {shape}")
        made[key] = Tensor.of(_apply(tensors, rule, memory).reshape(shape))
    return keep(made)


def _apply(tensors: list[Tensor], rule: Rule, memory: int) -> NDArray[Any]:
    size = tensors[0].nbytes // tensors[0].dtype.itemsize
    result: NDArray[Any] | None = None
    for begin, block in stacks(tensors, memory):
        found = rule(block)
        if result is None:
            result = np.empty(size, dtype=found.dtype)
        result[begin : begin + found.size] = found
    if result is None:
        return np.empty(0, dtype=rule(np.ones((len(tensors), 1), tensors[0].numpy().dtype)).dtype)
    return result


def stacks(tensors: Sequence[Tensor], memory: int) -> Iterator[tuple[int, NDArray[Any]]]:
    """Yield blocks of the same parameters of all tensors, [replies, parameters], and their place.

    The next block overwrites the last.
    """
    first = tensors[0].numpy()
    width = max(8, first.dtype.itemsize)  # a rule may count in 8 bytes
    block = max(1, min(LARGEST, memory // (COPIES * width * len(tensors))))
    stack = np.empty((len(tensors), min(block, max(first.size, 1))), dtype=first.dtype)
    for begin, end in spans(first.size, block):
        for row, tensor in zip(stack, tensors, strict=True):
            row[: end - begin] = values(tensor, begin, end)
            give_back(part(tensor, begin, end))
        yield begin, stack[:, : end - begin]


def distances(records: Sequence[ArrayRecord], memory: int) -> NDArray[Any]:
    """Return the squared L2 distances between records, [replies, replies].

    Blocks are centred on the first reply and summed in double precision. Flower takes the norms
    and products of whole models in single, which loses what is small beside the models themselves.
    """
    count = len(records)
    gram: NDArray[Any] = np.zeros((count, count))
    for key in records[0]:
        for _, block in stacks([_tensor(record[key]) for record in records], memory):
            wide = np.dtype("f4" if block.dtype in {np.dtype("f2"), np.dtype("f4")} else "f8")
            centred: NDArray[Any] = block.astype(wide) - block[0].astype(wide)
            gram += centred @ centred.T
    squares = np.diag(gram)
    found: NDArray[Any] = np.maximum(squares[:, None] + squares[None, :] - 2 * gram, 0.0)
    np.fill_diagonal(found, 0.0)
    return found


def median(block: NDArray[Any]) -> NDArray[Any]:
    """Return the median of each parameter (Yin et al. 2018, arXiv:1803.01498)."""
    return np.asarray(np.median(block, axis=0))


def closest_to_median(beta: int) -> Rule:
    """Return Bulyan's rule: the mean of the `beta` values closest to the median (arXiv:1802.07927).

    ValueError from the rule when there are fewer values.
    """

    def rule(block: NDArray[Any]) -> NDArray[Any]:
        away = np.abs(block - np.median(block, axis=0))
        places = np.argpartition(away, beta - 1, axis=0)[:beta]
        return np.asarray(np.mean(np.take_along_axis(block, places, axis=0), axis=0))

    return rule


def _tensor(array: Array) -> Tensor:
    """Return an array as a tensor; TypeError when it is opaque, as Flower has it."""
    tensor = tensor_of(array)
    if tensor.stype:
        return Tensor.of(array.numpy())
    return tensor
