"""`SkerryGrid`: what a ServerApp or Strategy takes for Flower's own network."""

import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

from flwr.app import ArrayRecord, Error, Message, Metadata, RecordDict
from flwr.serverapp import Grid
from skerry_protos.errors import SkerryError
from skerry_protos.messages import new_id
from skerry_protos.records import Records

from skerry_cloud.runs.asker import Answer, Ask, Asker
from skerry_cloud.runs.replies import in_order, screen_together
from skerry_cloud.strategies import ROUND, RoundPlan
from skerry_cloud.strategies.flower.conversion import from_flower, to_flower
from skerry_cloud.strategies.flower.replies import Replies
from skerry_cloud.strategies.mean import MetricMean

SERVER_NODE = 1
"""The server's node id, by Flower's convention."""
WEIGHTS = ("num-examples", "num_examples")


class UnheardError(SkerryError):
    """Every device that was asked failed at everything."""

    code = "run"


class SkerryGrid(Grid):  # type: ignore[misc]
    """Flower's network, over our fleet: every wait ends, every silence is an error reply."""

    def __init__(self, asker: Asker, plan: RoundPlan, number: int) -> None:
        self.asker = asker
        self._plan = plan
        self._number = number
        self._run: Any = SimpleNamespace(run_id=number, fab_id="", fab_version="")
        self._sent: dict[str, tuple[Message, Records]] = {}
        self._noting = threading.Lock()  # Flower's older API asks each device from its own thread
        self._unread = threading.local()
        self._means: dict[tuple[int, str], MetricMean] = {}
        self._round = 0
        self._heard = False
        self._failure = ""
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
        self.settle()
        return self._push(list(messages), None)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies that are here, each once."""
        return self._taken(self.asker.here(message_ids))

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Send messages and return a reply for each: the device's, or an error that says why.

        The list is filled as it is read (replies.py): a strategy may work while devices do.
        """
        self.settle()
        sent = list(messages)
        tasks = self._push(sent, timeout)
        # Not the messages: they hold the model.
        asked = {task: self._sent.pop(task) for task in tasks}
        about = {task: message.metadata for task, (message, _) in asked.items()}

        def make(answer: Answer) -> Message:
            return self._message(answer, about[answer.task])

        replies = Replies(self.asker, len(tasks), self._answers(asked), make)
        self._unread.replies = replies
        return replies

    def settle(self) -> None:
        """Wait for the replies that this thread asked for and did not read.

        An app may count on it that devices have answered before it asks them again, or ends.
        """
        replies: Replies | None = getattr(self._unread, "replies", None)
        self._unread.replies = None
        if replies is not None and not replies.settled:
            replies.settle()

    def check_heard(self) -> None:
        """Raise UnheardError when devices were asked and not one reply of any could be used.

        Flower's strategies go on over failures, and would end with the model they began with.
        """
        if self._failure and not self._heard and not self.asker.goes_on:
            raise UnheardError(
                f"no device gave a reply that can be used; the last: {self._failure}"
            )

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

    def _answers(self, asked: Mapping[str, tuple[Message, Records]]) -> Iterator[Answer]:
        """Yield each task's answer in order, screened; report behind the last."""
        if not asked:
            return
        tasks = list(asked)
        messages, contents = zip(*asked.values(), strict=True)
        nodes = [message.metadata.dst_node_id for message in messages]
        phase = _phase(messages[0].metadata.message_type)
        number = self._round
        by_node: dict[int, dict[str, Any]] = {}
        for answer in in_order(self.asker, tasks, nodes, contents, phase=phase):
            if answer.content is not None:
                by_node[answer.node] = _metrics(answer.content)
            yield answer
        self._measure(number, phase, by_node)

    def _taken(self, answers: list[Answer]) -> list[Message]:
        """Return answers as messages, those not fit to be used as errors; report the rest."""
        if not answers:
            return []
        sent = {one.task: self._sent.pop(one.task) for one in answers}
        for answer in answers:
            answer.node = sent[answer.task][0].metadata.dst_node_id
        message, asked = sent[answers[0].task]
        phase = _phase(message.metadata.message_type)
        screen_together(self.asker, asked, answers, phase=phase)
        by_node = {one.node: _metrics(one.content) for one in answers if one.content is not None}
        self._measure(self._round, phase, by_node)
        return [self._message(one, sent[one.task][0].metadata) for one in answers]

    def _message(self, answer: Answer, asked: Metadata) -> Message:
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
            self._failure = answer.why
            error = Error(answer.code, answer.why)
            return Message(error=error, metadata=metadata)
        self._heard = True
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

    def _measure(self, number: int, phase: str, by_node: dict[int, dict[str, Any]]) -> None:
        """Report what devices measured, and where no strategy does, the means of it so far."""
        with self._noting:
            mean = self._means.setdefault((number, phase), MetricMean())
            for said in by_node.values():
                weight = next((said[name] for name in WEIGHTS if name in said), 1.0)
                mean.add(said, weight if isinstance(weight, int | float) else 1.0)
            whole = {k: v for k, v in mean.result().items() if k not in WEIGHTS}
        self.asker.measure_all(number, phase, by_node if self.watched else {**by_node, 0: whole})


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
