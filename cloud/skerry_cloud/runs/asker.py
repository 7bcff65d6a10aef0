"""The server side's view of its devices: ask them, hear what they answer. Runs in the child.

No framework here: native apps use it as it is, Flower apps through strategies/flower.py. Every
call is for one thread at a time; the coordinator at the other end keeps all deadlines.
"""

import random
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from skerry_protos import records as codec
from skerry_protos.errors import PeerError, SkerryError
from skerry_protos.messages import INLINE_LIMIT
from skerry_protos.records import Records

from skerry_cloud import screening
from skerry_cloud.runs.channel import BODY_LIMIT, ChildEnd

INLINE_TOGETHER = BODY_LIMIT - 64 * 1024
GRACE_S = 60.0
"""How long after a question's deadline the coordinator may take to say so."""


class EndedError(SkerryError):
    """The coordinator has gone away or stopped answering: there is nothing left to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A device as the server side knows it."""

    node: int
    device: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """One device's part of a question; those who share `content` share its bytes."""

    node: int
    message_type: str
    content: Records
    group: str = ""
    ttl_s: float = 0.0


@dataclass(slots=True)
class Answer:
    """What a task came to: content, or a code and a reason."""

    task: str
    node: int
    content: Records | None = None
    code: int = 0
    why: str = ""
    at: float = field(default_factory=time.time)


class Asker:
    """The child's end of a run."""

    def __init__(self, end: ChildEnd, scratch: Path, *, round_deadline_s: float) -> None:
        self._end = end
        self._scratch = scratch
        self._round_deadline_s = round_deadline_s
        self._lock = threading.RLock()
        self._asked = 0
        self._files = 0
        self._nodes: list[Node] | None = None
        self._tasks: dict[int, list[str]] = {}
        self._node_of: dict[str, int] = {}
        self._answers: dict[str, Answer] = {}

    def nodes(self) -> list[Node]:
        """Return the devices of this run, once there are enough; the wait has its deadline."""
        with self._lock:
            self._nodes = None
            self._end.send({"do": "nodes"})
            while self._nodes is None:
                self._take(None)
            return self._nodes

    def sample(self, fraction: float, seed: int, turn: int) -> list[Node]:
        """Return a share of the devices, the same for the same devices, seed and turn."""
        nodes = sorted(self.nodes(), key=lambda one: one.node)
        if fraction >= 1:
            return nodes
        count = max(1, round(len(nodes) * fraction))
        return random.Random(f"{seed}/{turn}").sample(nodes, count)  # noqa: S311 - no secret

    def ask(
        self, asks: Sequence[Ask], *, round_: int, phase: str, timeout_s: float | None = None
    ) -> list[str]:
        """Ask devices; return a task id for each, in order."""
        if not asks:
            return []
        with self._lock:
            self._asked += 1
            number = self._asked
            contents, body, place = self._contents([one.content for one in asks])
            wants = [
                {
                    "node": one.node,
                    "type": one.message_type,
                    "group": one.group,
                    "ttl_s": one.ttl_s,
                    "content": place[id(one.content)],
                }
                for one in asks
            ]
            limit = self._round_deadline_s if timeout_s is None else max(0.0, timeout_s)
            said = {"do": "ask", "ask": number, "round": round_, "phase": phase}
            self._end.send({**said, "timeout_s": limit, "wants": wants, "contents": contents}, body)
            while number not in self._tasks:
                self._take(None)
            tasks = self._tasks.pop(number)
            self._node_of |= dict(zip(tasks, (one.node for one in asks), strict=True))
            return tasks

    def answers(self, tasks: Iterable[str]) -> Iterator[Answer]:
        """Yield each task's answer as it comes; the last when the question has closed."""
        left = dict.fromkeys(tasks)
        until = time.monotonic() + self._round_deadline_s + GRACE_S
        while left:
            with self._lock:
                here = [task for task in left if task in self._answers]
                if not here:
                    if time.monotonic() > until:
                        raise EndedError("the coordinator did not close the round")
                    self._take(until)
                    continue
                found = [self._answers.pop(task) for task in here]
            for answer in found:
                del left[answer.task]
                yield answer

    def here(self, tasks: Iterable[str]) -> list[Answer]:
        """Return the answers that are here now, each once."""
        with self._lock:
            while self._take(time.monotonic()):
                pass
            return [self._answers.pop(task) for task in tasks if task in self._answers]

    def refuse(self, reasons: Mapping[str, str]) -> None:
        """Report which replies were left out, and why."""
        if reasons:
            tasks = [{"task": task, "why": why} for task, why in reasons.items()]
            self._send({"do": "refused", "tasks": tasks})

    def begin_round(self, number: int, rounds: int) -> None:
        """Report that a round begins."""
        self._send({"do": "round", "round": number, "rounds": rounds})

    def measure(self, round_: int, phase: str, values: Mapping[str, Any], *, node: int = 0) -> None:
        """Report metrics of a device, or of the whole round."""
        self.measure_all(round_, phase, {node: values})

    def measure_all(
        self, round_: int, phase: str, by_node: Mapping[int, Mapping[str, Any]]
    ) -> None:
        """Report metrics of several devices at once."""
        metrics = [
            {"node": node, "round": round_, "phase": phase, "name": name, "value": float(value)}
            for node, values in by_node.items()
            for name, value in values.items()
            if isinstance(value, int | float) and abs(value) < 1e300
        ]
        if metrics:
            self._send({"do": "metrics", "metrics": metrics})

    def keep_model(self, model: Records) -> None:
        """Hand over the model as it is now; the last one is the run's."""
        self._send({"do": "model", "file": self._file(codec.encode(model))})

    def note(self, text: str) -> None:
        """Put a line into the run's journal."""
        self._send({"do": "note", "text": text})

    def screen(
        self,
        asked: Records | None,
        answers: Sequence[Answer],
        *,
        phase: str,
        arrays: Mapping[str, Any] | None = None,
    ) -> None:
        """Turn answers that are not fit to be used into failures, and report them."""
        replies = {one.task: one.content for one in answers if one.content is not None}
        if phase not in {"train", "evaluate"}:
            return
        found = screening.flaws(asked, replies, arrays=phase == "train")
        if arrays is not None and phase == "train":
            for task, reply in replies.items():
                if task not in found and (why := screening.unlike(arrays, _only(reply))):
                    found[task] = why
        for answer in answers:
            if answer.task in found:
                answer.content, answer.why = None, found[answer.task]
        self.refuse(found)

    # Below: the channel.

    def _contents(
        self, contents: Sequence[Records]
    ) -> tuple[list[dict[str, Any]], bytes, dict[int, int]]:
        """Return each distinct content once: small ones in the body, larger ones as files."""
        said: list[dict[str, Any]] = []
        place: dict[int, int] = {}
        body = bytearray()
        for content in contents:
            if id(content) in place:
                continue
            place[id(content)] = len(said)
            parts = codec.encode(content)
            size = codec.size_of(parts)
            if size <= INLINE_LIMIT and len(body) + size <= INLINE_TOGETHER:
                said.append({"begin": len(body), "end": len(body) + size})
                body += b"".join(parts)
            else:
                said.append({"file": self._file(parts)})
        return said, bytes(body), place

    def _file(self, parts: Iterable[bytes | memoryview]) -> str:
        with self._lock:
            self._files += 1
            name = f"f{self._files}"
        with (self._scratch / name).open("xb", buffering=0) as file:
            for part in parts:
                view = memoryview(part).cast("B")
                while view:
                    view = view[file.write(view) :]
        return name

    def _send(self, said: dict[str, Any]) -> None:
        with self._lock:
            self._end.send(said)

    def _take(self, until: float | None) -> bool:
        """Take the coordinator's next message; return False when none came by `until`."""
        try:
            message = self._end.receive(until)
        except (EOFError, OSError) as error:
            raise EndedError("the coordinator has gone away") from error
        if message is None:
            return False
        said, body = message
        match said["do"]:
            case "nodes":
                self._nodes = [
                    Node(node=one["node"], device=one["device"]) for one in said["nodes"]
                ]
            case "asked":
                self._tasks[said["ask"]] = list(said["tasks"])
            case "reply":
                self._keep(said, body)
            case "failure":
                self._answers[said["task"]] = Answer(
                    task=said["task"],
                    node=self._node_of.get(said["task"], 0),
                    code=said["code"],
                    why=said["why"],
                )
        return True

    def _keep(self, said: Mapping[str, Any], body: bytes) -> None:
        """Keep a reply; one that cannot be read is a failure of its device."""
        task = said["task"]
        answer = Answer(task=task, node=self._node_of.get(task, 0))
        try:
            answer.content = (
                codec.read(Path(said["file"])) if "file" in said else codec.decode(body)
            )
        except (PeerError, OSError) as error:
            answer.why = f"its reply cannot be read: {error}"
            self.refuse({task: answer.why})
        self._answers[task] = answer


def _only(reply: Records) -> Mapping[str, Any]:
    """Return the arrays of a reply's one group."""
    return next(iter(reply.arrays.values()), {})
