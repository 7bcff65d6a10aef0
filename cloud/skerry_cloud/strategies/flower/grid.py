"""`SkerryGrid`: what a ServerApp or Strategy takes for Flower's own network."""

import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

from flwr.app import ArrayRecord, Error, Message, Metadata, RecordDict
from flwr.serverapp import Grid
from skerry_protos.messages import new_id
from skerry_protos.records import Records

from skerry_cloud.runs.asker import Answer, Ask, Asker
from skerry_cloud.strategies import ROUND, RoundPlan
from skerry_cloud.strategies.flower.conversion import from_flower, to_flower
from skerry_cloud.strategies.mean import MetricMean

SERVER_NODE = 1
"""The server's node id, by Flower's convention."""
WEIGHTS = ("num-examples", "num_examples")


class SkerryGrid(Grid):  # type: ignore[misc]
    """Flower's network, over our fleet: every wait ends, every silence is an error reply."""

    def __init__(self, asker: Asker, plan: RoundPlan, number: int) -> None:
        self.asker = asker
        self._plan = plan
        self._number = number
        self._run: Any = SimpleNamespace(run_id=number, fab_id="", fab_version="")
        self._sent: dict[str, tuple[Message, Records]] = {}
        self._noting = threading.Lock()  # Flower's older API asks each device from its own thread
        self._means: dict[tuple[int, str], MetricMean] = {}
        self._round = 0
        self.watched = False
        self.model: ArrayRecord | None = None

    # What Flower's strategies call.

    def set_run(self, run: Any) -> None:
        """Take what Flower's own runtime would know of the run; ours is its number."""
        self._run = run

    @property
    def run(self) -> Any:
        """The run, with its number as `run_id`."""
        return self._run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Return a new message (Flower's older way)."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """Return the nodes, once there are enough; the run ends when there never are."""
        nodes = self.asker.sample(self._plan.fraction, self._plan.seed, self._round)
        return [one.node for one in nodes]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Send messages; return their ids."""
        return self._push(list(messages), None)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies that are here, each once."""
        return self._taken(self.asker.here(message_ids))

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Send messages and return a reply for each: the device's, or an error that says why."""
        # A list: secure aggregation goes over it twice.
        sent = list(messages)
        nodes = [message.metadata.dst_node_id for message in sent]
        return self._taken(list(self.asker.answers(self._push(sent, timeout), nodes)))

    def _push(self, messages: Sequence[Message], timeout: float | None) -> list[str]:
        if not messages:
            return []
        records: dict[int, Records] = {}
        asks = []
        for message in messages:
            content = message.content
            if id(content) not in records:
                records[id(content)] = from_flower(content)
            meta = message.metadata
            asks.append(
                Ask(
                    node=meta.dst_node_id,
                    message_type=meta.message_type,
                    content=records[id(content)],
                    group=meta.group_id,
                    ttl_s=meta.ttl,
                )
            )
        phase = _phase(asks[0].message_type)
        with self._noting:
            self._notice_round(messages[0], phase)
        limit = max(one.ttl_s for one in asks)
        tasks = self.asker.ask(
            asks,
            round_=self._round,
            phase=phase,
            timeout_s=limit if timeout is None else min(limit, timeout),
        )
        for task, message, ask in zip(tasks, messages, asks, strict=True):
            message.metadata.__dict__["_message_id"] = task
            self._sent[task] = message, ask.content
        return tasks

    def _taken(self, answers: list[Answer]) -> list[Message]:
        """Return answers as messages, those not fit to be used as errors; report the rest."""
        if not answers:
            return []
        sent = {one.task: self._sent.pop(one.task) for one in answers}
        for answer in answers:
            answer.node = sent[answer.task][0].metadata.dst_node_id
        message, asked = sent[answers[0].task]
        phase = _phase(message.metadata.message_type)
        self.asker.screen(asked, answers, phase=phase)
        self._measure(answers, phase)
        return [self._message(one, sent[one.task][0]) for one in answers]

    def _message(self, answer: Answer, to: Message) -> Message:
        asked = to.metadata
        metadata = Metadata(
            run_id=self._number,
            message_id=new_id("reply-"),
            src_node_id=answer.node,
            dst_node_id=SERVER_NODE,
            reply_to_message_id=answer.task,
            group_id=asked.group_id,
            created_at=answer.at,
            ttl=max(0.0, asked.created_at + asked.ttl - answer.at),
            message_type=asked.message_type,
        )
        metadata.delivered_at = str(time.time())
        if answer.content is None:
            error = Error(answer.code, answer.why)
            return Message(error=error, metadata=metadata)
        content = to_flower(answer.content)
        return Message(content=content, metadata=metadata)

    # What we report.

    def _notice_round(self, message: Message, phase: str) -> None:
        """Learn the round from what is sent, where no strategy tells us."""
        content = message.content
        if phase in {"train", "evaluate"} and not self.watched:
            if (arrays := next(iter(content.array_records.values()), None)) is not None:
                self.model = arrays
            if phase == "train" and (number := _round_of(message)) != self._round:
                self.begin(number or self._round + 1, max(self._plan.rounds, number))

    def begin(self, number: int, rounds: int) -> None:
        """Note that a round begins, and report it."""
        self._round = number
        self._means.clear()
        self.asker.begin_round(number, rounds)

    def _measure(self, answers: list[Answer], phase: str) -> None:
        by_node: dict[int, Mapping[str, Any]] = {}
        with self._noting:
            mean = self._mean(answers, phase, by_node)
        if not self.watched:
            by_node[0] = {k: v for k, v in mean.items() if k not in WEIGHTS}
        self.asker.measure_all(self._round, phase, by_node)

    def _mean(
        self, answers: list[Answer], phase: str, by_node: dict[int, Mapping[str, Any]]
    ) -> dict[str, float]:
        """Put each answer's numbers into `by_node`; return the means of the phase so far."""
        mean = self._means.setdefault((self._round, phase), MetricMean())
        for answer in answers:
            if answer.content is not None:
                said = _metrics(answer.content)
                by_node[answer.node] = said
                weight = next((said[name] for name in WEIGHTS if name in said), 1.0)
                mean.add(said, weight if isinstance(weight, int | float) else 1.0)
        return mean.result()


def _metrics(content: Records) -> dict[str, Any]:
    """Return a reply's numbers; Flower's older clients send theirs as settings."""
    found: dict[str, Any] = {}
    for metrics in content.metrics.values():
        found |= metrics
    for name in ("fitres.metrics", "evaluateres.metrics"):
        found |= content.configs.get(name, {})
    return found


def _phase(message_type: str) -> str:
    return message_type.partition(".")[0]


def _round_of(message: Message) -> int:
    """Return the round that a message says it belongs to, or 0."""
    for record in message.content.config_records.values():
        for name in (ROUND, "server_round"):
            if isinstance(number := record.get(name), int) and 0 < number < 2**31:
                return number
    group = message.metadata.group_id
    return int(group) if group.isdecimal() and len(group) < 10 else 0
