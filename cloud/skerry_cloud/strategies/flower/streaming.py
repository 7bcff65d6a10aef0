"""Flower's own strategies in little memory, for apps that know nothing of it.

While a run's app is driven, the aggregations of Flower's strategies are ours: FedAvg's, and with
it that of all that build on it, folds replies in as they come (folding.py); the robust ones work
by blocks over replies on disk (robust.py). Their results are Flower's. A strategy of the app's own
that overrides an aggregation keeps it.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from logging import INFO, WARN
from types import ModuleType
from typing import Any

from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.exception import AggregationError
from flwr.serverapp.strategy import (
    Bulyan,
    FedAvg,
    FedMedian,
    FedTrimmedAvg,
    dp_adaptive_clipping,
    dp_fixed_clipping,
    fedavg,
    multikrum,
    strategy_utils,
)
from flwr.serverapp.strategy.fedtrimmedavg import trim_mean
from flwr.supercore import log
from skerry_protos.records import Records
from skerry_protos.tensors import Tensor

from skerry_cloud.runs.asker import Asker
from skerry_cloud.strategies.flower.conversion import NPY, arrays_of, tensors_of
from skerry_cloud.strategies.flower.folding import Fold, Keep, weight_of, weighted_mean
from skerry_cloud.strategies.flower.replies import Replies
from skerry_cloud.strategies.flower.robust import (
    Rule,
    by_blocks,
    closest_to_median,
    distances,
    median,
)

Result = tuple[ArrayRecord | None, MetricRecord | None]
Aggregate = Callable[[Any, int, Iterable[Message]], Result]

REFUSED = 0
"""The code of a reply that came and was not taken, or was screened out; failures have others."""


@contextmanager
def streaming(asker: Asker, memory: int) -> Iterator[None]:
    """Let Flower's strategies aggregate our way; `memory` bytes for blocks of all replies."""

    def keep(tensors: dict[str, Tensor]) -> ArrayRecord:
        return arrays_of(asker.on_disk(Records(arrays={"arrays": tensors})).arrays["arrays"])

    def mean(records: Iterable[RecordDict], weighting_metric_name: str) -> ArrayRecord:
        return weighted_mean(records, weighting_metric_name, keep)

    def kept(arrays: Mapping[str, Array] | None = None) -> ArrayRecord:
        return keep(tensors_of(ArrayRecord(dict(arrays)))) if arrays else ArrayRecord()

    ours: list[tuple[type | ModuleType, str, object]] = [
        (FedAvg, "aggregate_train", _fold_train(FedAvg.aggregate_train, keep)),
        (FedMedian, "aggregate_train", _median_train(memory, keep)),
        (FedTrimmedAvg, "aggregate_train", _trimmed_train(memory, keep)),
        (Bulyan, "aggregate_train", _bulyan_train(memory, keep)),
        (multikrum, "compute_distances", lambda records: distances(records, memory)),
        *((module, "aggregate_arrayrecords", mean) for module in (fedavg, multikrum)),
        # What they clip would be in memory for all devices at once.
        *((module, "ArrayRecord", kept) for module in (dp_fixed_clipping, dp_adaptive_clipping)),
    ]
    theirs = [(where, name, getattr(where, name)) for where, name, _ in ours]
    for where, name, made in ours:
        setattr(where, name, made)
    try:
        yield
    finally:
        for where, name, original in theirs:
            setattr(where, name, original)


def _fold_train(original: Aggregate, keep: Keep) -> Aggregate:
    check = FedAvg._check_and_log_replies

    def aggregate_train(self: FedAvg, server_round: int, replies: Iterable[Message]) -> Result:
        """Aggregate ArrayRecords and MetricRecords in the received Messages, as they come."""
        if type(self)._check_and_log_replies is not check:
            return original(self, server_round, replies)
        measures = self.train_metrics_aggr_fn
        plain = measures is strategy_utils.aggregate_metricrecords
        # A function of the app's own may look at the arrays too: they stay, on disk.
        messages = replies.each_once() if plain and isinstance(replies, Replies) else replies
        fold, first = Fold(), None
        contents: list[RecordDict] = []
        errors: list[Message] = []
        for message in messages:
            if message.has_error():
                errors.append(message)
                continue
            content = message.content
            strategy_utils.validate_message_reply_consistency(
                replies=[content if first is None else first, content],
                weighted_by_key=self.weighted_by_key,
                check_arrayrecord=True,
            )
            first = first or _outline(content)
            fold.add(content, weight_of(content, self.weighted_by_key))
            contents.append(RecordDict(dict(content.metric_records)) if plain else content)
        _log("aggregate_train", len(contents), errors)
        if not contents:
            return None, None
        return fold.result(keep), measures(contents, self.weighted_by_key)

    return aggregate_train


def _outline(content: RecordDict) -> RecordDict:
    """Return a content with the same names and no arrays behind them."""
    made = RecordDict(dict(content.metric_records))
    for name, record in content.array_records.items():
        made[name] = ArrayRecord({key: Array("float32", (0,), NPY, b"") for key in record})
    return made


def _log(what: str, results: int, errors: list[Message]) -> None:
    """Say what Flower says."""
    log(INFO, "%s: Received %s results and %s failures", what, results, len(errors))
    for message in errors:
        node, why = message.metadata.src_node_id, message.error.reason
        log(INFO, "\t> Received error in reply from node %d: %s", node, why)


def _median_train(memory: int, keep: Keep) -> Aggregate:
    def aggregate_train(self: FedMedian, server_round: int, replies: Iterable[Message]) -> Result:  # noqa: ARG001 - Flower's signature
        """Aggregate by the median of each parameter."""
        return _elementwise(self, replies, median, memory, keep)

    return aggregate_train


def _trimmed_train(memory: int, keep: Keep) -> Aggregate:
    def aggregate_train(
        self: FedTrimmedAvg,
        server_round: int,  # noqa: ARG001 - Flower's signature
        replies: Iterable[Message],
    ) -> Result:
        """Aggregate by the mean of each parameter without its extremes."""
        try:
            return _elementwise(
                self, replies, lambda block: trim_mean(block, self.beta), memory, keep
            )
        except ValueError as error:
            raise AggregationError(
                f"Trimmed mean could not be computed. Likely cause: beta={self.beta} is too large."
            ) from error

    return aggregate_train


def _elementwise(
    strategy: FedAvg, replies: Iterable[Message], rule: Rule, memory: int, keep: Keep
) -> Result:
    messages, _ = strategy._check_and_log_replies(replies, is_train=True)
    if not messages:
        return None, None
    contents = [message.content for message in messages]
    records = [next(iter(content.array_records.values())) for content in contents]
    arrays = by_blocks(records, rule, memory, keep)
    return arrays, strategy.train_metrics_aggr_fn(contents, strategy.weighted_by_key)


def _bulyan_train(memory: int, keep: Keep) -> Aggregate:
    def aggregate_train(self: Bulyan, server_round: int, replies: Iterable[Message]) -> Result:  # noqa: ARG001 - Flower's signature
        """Aggregate those that a rule selects by the mean of what is closest to their median."""
        heard = list(replies)
        messages, _ = self._check_and_log_replies(heard, is_train=True)
        malicious = _left(self.num_malicious_nodes, heard)
        needed = 4 * malicious + 3
        if len(messages) < needed:
            log(
                WARN,
                "Insufficient replies, skipping Bulyan aggregation: "
                "Required at least %d (4*num_malicious_nodes + 3), but received %d.",
                needed,
                len(messages),
            )
            return None, None
        theta = len(messages) - 2 * malicious
        beta = theta - 2 * malicious
        contents = [message.content for message in messages]
        selected = self.selection_rule(contents, malicious, theta)
        records = [next(iter(content.array_records.values())) for content in selected]
        arrays = by_blocks(records, closest_to_median(beta), memory, keep)
        return arrays, self.train_metrics_aggr_fn(selected, self.weighted_by_key)

    return aggregate_train


def _left(malicious: int, replies: Sequence[Message]) -> int:
    """Return how many malicious replies may be among those that are left.

    Screening takes bad replies out before Bulyan counts, and Bulyan wants 4 f + 3: with 20 % of
    the devices malicious and refused, it would skip every round. Where too few are left, what was
    refused counts as found: there are at most f, and so many fewer remain.
    """
    errors = [message.error for message in replies if message.has_error()]
    if len(replies) - len(errors) >= 4 * malicious + 3:
        return malicious
    return max(0, malicious - len([one for one in errors if one.code == REFUSED]))
