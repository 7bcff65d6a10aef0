"""Flower's strategies over replies on disk, as they come: what Flower itself comes to.

The reference is stock Flower on the same numbers, in memory, in one list.
"""

import threading
from collections.abc import Callable, Iterable, Iterator
from logging import getLogger
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp import strategy as s
from flwr.serverapp.exception import AggregationError, InconsistentMessageReplies
from flwr.supercore.task_identity import TaskIdentity
from skerry_cloud.strategies import RoundPlan
from skerry_cloud.strategies.flower import SkerryGrid, from_flower, to_flower
from skerry_cloud.strategies.flower.grid import UnheardError
from skerry_cloud.strategies.flower.replies import Replies
from skerry_cloud.strategies.flower.streaming import streaming
from skerry_protos.records import Records

from tests.cloud.strategies.shore import Shore, asking

NODES = tuple(range(100, 109))
MEMORY = 1024**2
"""So little that models are worked at in many blocks."""
PLAN = RoundPlan(
    rounds=2,
    fraction=1.0,
    min_devices=1,
    seed=0,
    run_config={},
    round_deadline_s=30,
    strategy="",
    strategy_options={},
)


@pytest.fixture(autouse=True)
def identity() -> Iterator[None]:
    TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1
    getLogger("flwr").setLevel("ERROR")
    yield


def model() -> ArrayRecord:
    """Return a model of every kind of array that Flower's strategies take."""
    chance = np.random.default_rng(0)
    record = ArrayRecord(
        [
            chance.normal(size=(211, 103)).astype(np.float32),
            chance.normal(size=20_011).astype(np.float64),
            chance.normal(size=(3, 5)).astype(np.float16),
            np.asarray(chance.normal(), dtype=np.float32),
        ]
    )
    assert len(record["0"].data) > 64 * 1024
    return record


def device(node: int, asked: Records) -> Records:
    """Train: move away from what is asked with, each device in its own direction."""
    content = to_flower(asked)
    arrays = next(iter(content.array_records.values()))
    chance = np.random.default_rng([node, content["config"]["server-round"]])
    moved = [
        np.asarray(array + 0.1 * chance.normal(size=array.shape), dtype=array.dtype)
        for array in arrays.to_numpy_ndarrays()
    ]
    metrics: dict[str, Any] = {
        "num-examples": node - 95,
        "train_loss": float(chance.uniform(0.5, 1)),
        "norm_bit": 1,
        "several": [float(node), 1.0],
    }
    return from_flower(RecordDict({"arrays": ArrayRecord(moved), "metrics": MetricRecord(metrics)}))


class StockGrid(Grid):  # type: ignore[misc]
    """Flower's Grid as Flower has it: all replies in one list, in memory."""

    def set_run(self, run: Any) -> None:
        raise NotImplementedError

    run = None

    def create_message(self, *args: Any, **kwargs: Any) -> Message:
        raise NotImplementedError

    def get_node_ids(self) -> Iterable[int]:
        return list(NODES)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        raise NotImplementedError

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        raise NotImplementedError

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        replies = []
        for message in messages:
            answer = device(message.metadata.dst_node_id, from_flower(message.content))
            content = RecordDict(
                {
                    "arrays": ArrayRecord(
                        [t.numpy().copy() for t in answer.arrays["arrays"].values()]
                    ),
                    "metrics": MetricRecord(dict(answer.metrics["metrics"])),
                }
            )
            replies.append(Message(content, reply_to=message))
        return replies


def train(strategy: s.Strategy, grid: Grid, rounds: int = 2) -> Any:
    # The order in which nodes are drawn must be the same, whoever asks.
    s.fedavg.sample_nodes = lambda grid, _least, _size: (list(NODES), list(NODES))
    return strategy.start(grid, model(), num_rounds=rounds, timeout=30)


@pytest.fixture(autouse=True)
def in_order() -> Iterator[None]:
    original = s.fedavg.sample_nodes
    yield
    s.fedavg.sample_nodes = original


def everyone(**kwargs: Any) -> dict[str, Any]:
    return {"fraction_evaluate": 0.0, "min_evaluate_nodes": 0, **kwargs}


def dp(kind: str, inner: type[s.FedAvg] = s.FedAvg) -> Callable[[], s.Strategy]:
    made = getattr(s, f"DifferentialPrivacy{kind}")
    if "Fixed" in kind:
        return lambda: made(inner(**everyone()), 0.0, 2.0, len(NODES))
    options = {"initial_clipping_norm": 2.0, "clipped_count_stddev": 0.0}
    return lambda: made(inner(**everyone()), 0.0, len(NODES), **options)


# The strategy, and whether its result is Flower's bit for bit.
CASES: dict[str, tuple[Callable[[], s.Strategy], bool]] = {
    "FedAvg": (lambda: s.FedAvg(**everyone()), False),
    "FedProx": (lambda: s.FedProx(**everyone(proximal_mu=0.1)), False),
    "FedAvgM": (lambda: s.FedAvgM(**everyone(server_momentum=0.5)), False),
    "FedAdagrad": (lambda: s.FedAdagrad(**everyone(tau=0.1)), False),
    "FedAdam": (lambda: s.FedAdam(**everyone(tau=0.1)), False),
    "FedYogi": (lambda: s.FedYogi(**everyone(tau=0.1)), False),
    "QFedAvg": (lambda: s.QFedAvg(**everyone(client_learning_rate=0.1, q=0.2)), True),
    "FedMedian": (lambda: s.FedMedian(**everyone()), True),
    "FedTrimmedAvg": (lambda: s.FedTrimmedAvg(**everyone(beta=0.2)), True),
    "Krum": (lambda: s.Krum(**everyone(num_malicious_nodes=2)), False),
    "MultiKrum": (
        lambda: s.MultiKrum(**everyone(num_malicious_nodes=2, num_nodes_to_select=4)),
        False,
    ),
    "Bulyan": (lambda: s.Bulyan(**everyone(num_malicious_nodes=1)), True),
    "DP-server-fixed": (dp("ServerSideFixedClipping"), False),
    "DP-client-fixed": (dp("ClientSideFixedClipping"), False),
    "DP-server-adaptive": (dp("ServerSideAdaptiveClipping"), False),
    "DP-client-adaptive": (dp("ClientSideAdaptiveClipping"), False),
    "DP-server-fixed-median": (dp("ServerSideFixedClipping", s.FedMedian), True),
}


@pytest.mark.parametrize("case", CASES)
def test_every_strategy_comes_to_what_flower_comes_to(case: str, tmp_path: Path) -> None:
    make, exact = CASES[case]
    stock = train(make(), StockGrid())
    shore = Shore(tmp_path, NODES, device, order=lambda places: places[::-1])
    strategy = make()
    with asking(shore, max_norm_ratio=10) as asker, streaming(asker, MEMORY):
        ours = train(strategy, SkerryGrid(asker, PLAN, 1))
    assert list(ours.arrays) == list(stock.arrays)
    for key, array in stock.arrays.items():
        expected, found = array.numpy(), ours.arrays[key].numpy()
        assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
        if exact:
            assert found.tobytes() == expected.tobytes(), key
        else:
            tolerance = 2e-3 if model()[key].dtype == "float16" else 1e-5
            np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance / 10)
    assert ours.train_metrics_clientapp == stock.train_metrics_clientapp
    assert not shore.refused()


def test_the_order_of_arrival_changes_no_bit(tmp_path: Path) -> None:
    results = []
    for place, order in enumerate((lambda p: p, lambda p: p[::-1], lambda p: p[1::2] + p[::2])):
        (folder := tmp_path / str(place)).mkdir()
        with asking(Shore(folder, NODES, device, order=order)) as asker, streaming(asker, MEMORY):
            found = train(s.FedAvg(**everyone()), SkerryGrid(asker, PLAN, 1))
        results.append([array.numpy().tobytes() for array in found.arrays.values()])
    assert results[0] == results[1] == results[2]


def test_replies_are_read_while_others_are_on_their_way(tmp_path: Path) -> None:
    read = threading.Event()
    waited: list[bool] = []

    def may(place: int) -> None:
        if place == len(NODES) - 1:
            waited.append(read.wait(20))

    with asking(Shore(tmp_path, NODES, device, may=may)) as asker:
        grid = SkerryGrid(asker, PLAN, 1)
        replies = grid.send_and_receive(messages())
        assert isinstance(replies, Replies)
        for place, reply in enumerate(replies.each_once()):
            assert reply.has_content()
            if place == 2:
                read.set()
    assert waited == [True]


def messages(phase: str = "train") -> list[Message]:
    content = RecordDict({"arrays": model(), "config": ConfigRecord({"server-round": 1})})
    return [Message(content, node, phase) for node in NODES]


def test_the_list_may_be_gone_over_again_and_again(tmp_path: Path) -> None:
    def some(node: int, asked: Records) -> Records | str:
        return "no battery" if node == 102 else device(node, asked)

    with asking(Shore(tmp_path, NODES, some)) as asker:
        grid = SkerryGrid(asker, PLAN, 1)
        replies: Any = grid.send_and_receive(messages())
        assert len(replies) == len(NODES)
        assert bool(replies)
        assert [one.metadata.src_node_id for one in replies.each_once()] == list(NODES)
        again = list(replies)
        assert again == list(replies), "the same messages"
        assert replies[2].error == Error(2, "no battery")
        assert replies[-1] is again[-1]
        assert replies[1:3] == again[1:3]
        assert replies + again == again + list(replies) == [*again, *again]
        again[0].content["metrics"]["num-examples"] = 7
        assert replies[0].content["metrics"]["num-examples"] == 7
        with pytest.raises(IndexError):
            replies[len(NODES)]
        assert not grid.send_and_receive([])


def test_what_is_not_read_is_still_waited_for(tmp_path: Path) -> None:
    done: list[int] = []

    def counted(node: int, asked: Records) -> Records:
        done.append(node)
        return device(node, asked)

    with asking(Shore(tmp_path, NODES, counted)) as asker:
        grid = SkerryGrid(asker, PLAN, 1)
        grid.send_and_receive(messages())
        grid.send_and_receive(messages("query"))
        assert len(done) >= len(NODES)
        grid.settle()
        assert len(done) == 2 * len(NODES)


class Own(s.FedAvg):  # type: ignore[misc]
    """An app's strategy that does its own arithmetic before and after Flower's."""

    seen = 0

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Any:
        for reply in replies:
            self.seen += len(reply.content["arrays"])
        arrays, metrics = super().aggregate_train(server_round, replies)
        self.seen += sum(1 for reply in replies if reply.has_content())
        return arrays, metrics


def arrays_too(contents: list[RecordDict], weighted_by: str) -> MetricRecord:
    """Measure what only the arrays show."""
    return MetricRecord({"mean": float(np.mean([c["arrays"]["0"].numpy() for c in contents]))})


def test_an_app_s_own_strategy_gets_what_it_expects(tmp_path: Path) -> None:
    def make() -> Own:
        return Own(**everyone(train_metrics_aggr_fn=arrays_too))

    stock, expected = make(), None
    expected = train(stock, StockGrid())
    ours = make()
    with asking(Shore(tmp_path, NODES, device)) as asker, streaming(asker, MEMORY):
        found = train(ours, SkerryGrid(asker, PLAN, 1))
    assert ours.seen == stock.seen > 0
    for number in (1, 2):
        assert found.train_metrics_clientapp[number]["mean"] == pytest.approx(
            expected.train_metrics_clientapp[number]["mean"], rel=1e-5
        )


def test_flower_is_as_it_was_when_the_run_is_over(tmp_path: Path) -> None:
    before = s.FedAvg.aggregate_train, s.Bulyan.aggregate_train
    with asking(Shore(tmp_path, NODES, device)) as asker, streaming(asker, MEMORY):
        assert s.FedAvg.aggregate_train is not before[0]
    assert (s.FedAvg.aggregate_train, s.Bulyan.aggregate_train) == before


def test_errors_are_flower_s(tmp_path: Path) -> None:
    with asking(Shore(tmp_path, NODES, device)) as asker, streaming(asker, MEMORY):
        with pytest.raises(AggregationError, match="beta"):
            trimmed = s.FedTrimmedAvg(**everyone())
            trimmed.beta = 0.5
            train(trimmed, SkerryGrid(asker, PLAN, 1))
        replies = list(StockGrid().send_and_receive(messages()))
        replies[1].content["metrics"].pop("num-examples")
        with pytest.raises(InconsistentMessageReplies, match="same keys"):
            s.FedAvg(**everyone()).aggregate_train(1, replies)
        assert s.FedAvg(**everyone()).aggregate_train(1, []) == (None, None)
        assert s.FedMedian(**everyone()).aggregate_train(1, []) == (None, None)


def test_a_run_in_which_every_device_fails_says_so_and_one_reply_is_enough(tmp_path: Path) -> None:
    def broken(node: int, asked: Records) -> str:
        return f"node {node}: ValueError: no data"

    def one(node: int, asked: Records) -> Records | str:
        return device(node, asked) if node == NODES[0] else broken(node, asked)

    for name in ("none", "one"):
        (tmp_path / name).mkdir()
    with asking(Shore(tmp_path / "none", NODES, broken)) as asker, streaming(asker, MEMORY):
        grid = SkerryGrid(asker, PLAN, 1)
        train(s.FedAvg(**everyone()), grid, rounds=1)
        with pytest.raises(UnheardError, match=r"no device gave .* ValueError: no data"):
            grid.check_heard()
    with asking(Shore(tmp_path / "one", NODES, one)) as asker, streaming(asker, MEMORY):
        grid = SkerryGrid(asker, PLAN, 1)
        train(s.FedAvg(**everyone()), grid, rounds=1)
        grid.check_heard()
