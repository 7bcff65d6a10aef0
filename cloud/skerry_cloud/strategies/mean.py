"""The streaming weighted mean: federated averaging in O(model) memory, without flwr.

A reply is folded in as it arrives and dropped. Floating-point sums depend on their order, so
replies are folded in the order of the tasks: the same replies give the same weights, bit for bit,
whichever came first. One that comes early waits as a mapped file, which costs no memory of ours.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from skerry_protos.errors import ConfigError
from skerry_protos.records import Records
from skerry_protos.tensors import DType, Tensor

from skerry_cloud.blocks import BLOCK, blocks
from skerry_cloud.runs.asker import Answer, Ask, Asker, Node
from skerry_cloud.runs.replies import in_order
from skerry_cloud.strategies import ARRAYS, CONFIG, EXAMPLES, METRICS, ROUND, RoundPlan

Weights = Mapping[str, Tensor]


class Mean:
    """A weighted mean of models, accumulated in float64."""

    def __init__(self, like: Weights) -> None:
        for name, tensor in like.items():
            if tensor.stype or tensor.dtype in {DType.FLOAT8_E4M3FN, DType.FLOAT8_E5M2}:
                kind = tensor.stype or tensor.dtype.name
                raise ConfigError(
                    f"the weight {name!r} is {kind}, which has no mean",
                    hint="keep the model in float32 and convert where it is used",
                )
        self._like = like
        self._sums: dict[str, NDArray[Any]] = {}
        self.weight = 0.0

    def add(self, weights: Weights, weight: float) -> None:
        """Fold one model in; its names and shapes have been screened."""
        self.weight += weight
        for name in self._like:
            tensor = weights[name]
            if name not in self._sums:
                complex_ = tensor.dtype in {DType.COMPLEX64, DType.COMPLEX128}
                wide = np.complex128 if complex_ else np.float64
                self._sums[name] = np.zeros(tensor.shape, dtype=wide)
            _fold(self._sums[name].reshape(-1), tensor, weight)

    def result(self) -> dict[str, Tensor] | None:
        """Return the mean in the model's own types, or None when nothing was folded in."""
        if not self.weight:
            return None
        made = {}
        for name, tensor in self._like.items():
            mean = self._sums[name]
            mean /= self.weight
            made[name] = _as(tensor.dtype, mean)
        self._sums = {}
        return made


def _fold(total: NDArray[Any], tensor: Tensor, weight: float) -> None:
    product = np.empty(min(BLOCK, total.size), dtype=total.dtype)
    begin = 0
    for block in blocks(tensor):
        out = product[: block.size]
        # Without dtype the product would be rounded to the values' own type first.
        np.multiply(block, weight, out=out, dtype=out.dtype, casting="unsafe")
        total[begin : begin + block.size] += out
        begin += block.size


def _as(dtype: DType, mean: NDArray[Any]) -> Tensor:
    if dtype is DType.BFLOAT16:
        bits = mean.astype(np.float32).view(np.uint32)
        # Round to the nearest, ties to even, as hardware does.
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        return Tensor.of_bits(dtype, rounded.astype(np.uint16))
    if np.dtype(dtype.numpy_code).kind in "iub":
        mean = np.rint(mean)  # counters, as batch normalisation has them
    return Tensor.of(mean.astype(dtype.numpy_code))


class MetricMean:
    """Weighted means of metrics, each over the devices that have it."""

    def __init__(self) -> None:
        self._sums: dict[str, float] = {}
        self._weights: dict[str, float] = {}

    def add(self, metrics: Mapping[str, Any], weight: float) -> None:
        """Fold one device's numbers in."""
        for name, value in metrics.items():
            if name != EXAMPLES and isinstance(value, int | float) and np.isfinite(value):
                self._sums[name] = self._sums.get(name, 0.0) + value * weight
                self._weights[name] = self._weights.get(name, 0.0) + weight

    def result(self) -> dict[str, float]:
        """Return the means by name."""
        return {name: total / self._weights[name] for name, total in self._sums.items()}


def weight_of(metrics: Mapping[str, Any]) -> float:
    """Return how much a reply counts."""
    value = metrics.get(EXAMPLES, 1.0)
    return float(value) if isinstance(value, int | float) else 1.0


def train_round(asker: Asker, plan: RoundPlan, number: int, weights: Weights) -> dict[str, Tensor]:
    """Ask devices to train and return the mean of what they return, or the weights as they were."""
    nodes = asker.sample(plan.fraction, plan.seed, number)
    content = _content(plan, number, weights)
    mean, metrics = Mean(weights), MetricMean()
    device_metrics: dict[int, Mapping[str, Any]] = {}
    for answer in _answers(asker, nodes, content, number, "train"):
        if answer.content is None:
            continue
        said = answer.content.metrics.get(METRICS, {})
        mean.add(next(iter(answer.content.arrays.values())), weight_of(said))
        metrics.add(said, weight_of(said))
        device_metrics[answer.node] = said
    asker.measure_all(number, "train", {0: metrics.result(), **device_metrics})
    made = mean.result()
    if made is None:
        asker.note(f"round {number}: no usable reply, the model stays as it was")
    return dict(weights) if made is None else made


def evaluate_round(asker: Asker, plan: RoundPlan, number: int, weights: Weights) -> None:
    """Ask devices to evaluate and report their metrics and the mean of them."""
    nodes = asker.sample(plan.fraction, plan.seed, number)
    content = _content(plan, number, weights)
    metrics = MetricMean()
    device_metrics: dict[int, Mapping[str, Any]] = {}
    for answer in _answers(asker, nodes, content, number, "evaluate"):
        if answer.content is not None:
            said = answer.content.metrics.get(METRICS, {})
            metrics.add(said, weight_of(said))
            device_metrics[answer.node] = said
    asker.measure_all(number, "evaluate", {0: metrics.result(), **device_metrics})


def _content(plan: RoundPlan, number: int, weights: Weights) -> Records:
    config = {**plan.run_config, ROUND: number}
    return Records(arrays={ARRAYS: dict(weights)}, configs={CONFIG: dict(config)})


def _answers(
    asker: Asker, nodes: Sequence[Node], content: Records, number: int, phase: str
) -> Iterable[Answer]:
    """Ask, and yield the answers in the order of the tasks, each as soon as its turn has come."""
    asks = [Ask(node=one.node, message_type=phase, content=content) for one in nodes]
    tasks = asker.ask(asks, round_=number, phase=phase)
    ids = [one.node for one in nodes]
    return in_order(asker, tasks, ids, [content] * len(tasks), phase=phase, exact=True)
