"""The server side's view of its devices: ask them, hear what they answer. Runs in the child.

No framework here: native apps use it as it is, Flower apps through strategies/flower. Any
thread may call (Flower's older API asks each device from its own); one thread of ours reads. The
coordinator at the other end keeps all deadlines.
"""

import random
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from skerry_protos import records as codec
from skerry_protos.errors import PeerError, SkerryError
from skerry_protos.messages import INLINE_LIMIT
from skerry_protos.records import Records

from skerry_cloud.blocks import give_back, mapped
from skerry_cloud.runs.channel import BODY_LIMIT, ChildEnd
from skerry_cloud.runs.coding import Coding

INLINE_TOGETHER = BODY_LIMIT - 64 * 1024
PIECE = 1024 * 1024
BESIDE_LIMIT = 4 * 1024
"""A task has its run's configuration and more beside this (messages.BODY_LIMIT)."""
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """How often devices were asked, and how often which there are: where a server side is."""

    asked: int = 0
    mustered: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Before:
    """What a server side that goes on has from the one before it."""

    checkpoint: Path | None = None
    counts: Counts = field(default_factory=Counts)  # at that checkpoint
    pulls: Sequence[Sequence[str]] = ()
    every_s: float = 0.0  # how often a checkpoint is worth its time


@dataclass(slots=True)
class Answer:
    """What a task came to: a reply, or a code and a reason.

    A reply waits as a file, or as the bytes of a small one; `content` is there once it is loaded.
    """

    task: str
    node: int = 0
    source: Path | bytes | None = None
    asked: Records | None = None  # what it answers, where a coded update is relative to it
    content: Records | None = None
    code: int = 0
    why: str = ""
    at: float = field(default_factory=time.time)


class Asker:
    """The child's end of a run."""

    def __init__(
        self,
        end: ChildEnd,
        scratch: Path,
        *,
        round_deadline_s: float,
        max_norm_ratio: float = 0.0,
        before: Before | None = None,
        coding: Coding | None = None,
    ) -> None:
        self._end = end
        self._scratch = scratch
        self._before = before or Before()
        self._coding = coding or Coding()
        self._pulls = [list(one) for one in self._before.pulls]
        self._kept_at = time.monotonic()
        self._mustered = 0
        self.max_norm_ratio = max_norm_ratio
        self._round_deadline_s = round_deadline_s
        self._sending = threading.Lock()
        self._counting = threading.Lock()
        self._mustering = threading.Lock()
        self._changed = threading.Condition()
        self._gone = False
        self._asked = 0
        self._files = 0
        self._nodes: list[Node] | None = None
        self._tasks: dict[int, list[str]] = {}
        self._answers: dict[str, Answer] = {}
        threading.Thread(target=self._read, name="asker", daemon=True).start()

    def nodes(self) -> list[Node]:
        """Return the devices of this run, once there are enough; the wait has its deadline."""
        with self._mustering:
            self._nodes = None
            self._mustered += 1
            self._send({"do": "nodes", "number": self._mustered})
            with self._changed:
                self._wait(lambda: self._nodes is not None, None)
                assert self._nodes is not None
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
        with self._counting:
            self._asked += 1
            number = self._asked
        sent = self._coding.sent(asks)
        # All or none: a fleet that has both would be sent the same model twice.
        two = all(one.node in self._coding.beside for one in asks)
        contents, body, place = self._contents(sent, two_parts=two)
        wants = [
            {
                "node": one.node,
                "type": one.message_type,
                "group": one.group,
                "ttl_s": one.ttl_s,
                "content": place[id(content)],
            }
            for one, content in zip(asks, sent, strict=True)
        ]
        limit = self._round_deadline_s if timeout_s is None else max(0.0, timeout_s)
        side = threading.current_thread() is not threading.main_thread()
        said = {"do": "ask", "ask": number, "side": side, "round": round_, "phase": phase}
        self._send({**said, "timeout_s": limit, "wants": wants, "contents": contents}, body)
        with self._changed:
            self._wait(lambda: number in self._tasks, None)
            tasks = self._tasks.pop(number)
        self._coding.remember(tasks, asks)
        return tasks

    def answers(self, tasks: Sequence[str], nodes: Sequence[int]) -> Iterator[Answer]:
        """Yield each task's answer as it comes; the last when the question has closed."""
        left = dict(zip(tasks, nodes, strict=True))
        until = time.monotonic() + self._round_deadline_s + GRACE_S
        while left:
            with self._changed:
                if not self._wait(lambda: any(task in self._answers for task in left), until):
                    raise EndedError("the coordinator did not close the round")
                found = [self._taken(task) for task in left if task in self._answers]
            for answer in found:
                answer.node = left.pop(answer.task)
                yield answer

    def here(self, tasks: Iterable[str]) -> list[Answer]:
        """Return the answers that are here now, each once; after a restart, those taken before.

        Which answers were here together is recorded before anything can depend on it.
        """
        wanted = list(tasks)
        with self._changed:
            if self._gone:
                raise EndedError("the coordinator has gone away")
            before = next((one for one in self._pulls if set(one) <= set(wanted)), None)
            if before is not None:
                self._pulls.remove(before)
                self._wait(lambda: all(task in self._answers for task in before), None)
                return [self._taken(task) for task in before]
            later = {task for one in self._pulls for task in one}
            taken = [task for task in wanted if task in self._answers and task not in later]
            found = [self._taken(task) for task in taken]
        if taken:
            self._send({"do": "took", "tasks": taken})
        return found

    def _taken(self, task: str) -> Answer:
        """Return an answer, once, with what it answers (held: `_changed`)."""
        answer = self._answers.pop(task)
        answer.asked = self._coding.asked.pop(task, None)
        return answer

    # Checkpoints.

    @property
    def counts(self) -> Counts:
        """Return where this server side is."""
        return Counts(asked=self._asked, mustered=self._mustered)

    @property
    def goes_on(self) -> bool:
        """Return whether a server side before this one kept a checkpoint."""
        return self._before.checkpoint is not None

    def checkpoint(self) -> Records | None:
        """Return the checkpoint to go on from, or None; whoever uses it calls `go_on`."""
        path = self._before.checkpoint
        return None if path is None else codec.read(path)

    def go_on(self) -> None:
        """Count on from where the checkpoint was made."""
        self._asked = self._before.counts.asked
        self._mustered = self._before.counts.mustered

    def due(self) -> bool:
        """Return whether a checkpoint is worth its time now."""
        return time.monotonic() - self._kept_at >= self._before.every_s

    def keep(self, state: Records, *, round_: int, first: Counts) -> None:
        """Hand over a checkpoint: all that was asked since `first` is not needed any more."""
        self._kept_at = time.monotonic()
        counts = {
            "first_asked": first.asked,
            "first_mustered": first.mustered,
            "asked": self._asked,
            "mustered": self._mustered,
        }
        file = self._file(codec.encode(state))
        self._send({"do": "checkpoint", "round": round_, "file": file, **counts})

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

    def load(self, answer: Answer) -> Records:
        """Return a reply's records, or raise PeerError; tensors of a file are views of its mapping.

        Whoever calls decides how many are held at a time.
        """
        assert answer.source is not None
        try:
            source = answer.source
            said = codec.decode(source) if isinstance(source, bytes) else codec.read(source)
            return self._coding.plain(said, answer.asked, self._place)
        except OSError as error:
            raise PeerError(f"its file cannot be read: {error.strerror}") from error

    def on_disk(self, records: Records) -> Records:
        """Return the same records over a file that goes when they do; small ones stay as they are.

        What is held for long belongs there: mapped bytes are not memory of ours.
        """
        tensors = [one for group in records.arrays.values() for one in group.values()]
        if all(mapped(one) or not one.nbytes for one in tensors) or records.nbytes <= INLINE_LIMIT:
            return records
        path = self._scratch / self._file(codec.encode(records))
        try:
            return codec.read(path)
        finally:
            path.unlink()

    # Below: the channel.

    def _contents(
        self, contents: Sequence[Records], *, two_parts: bool
    ) -> tuple[list[dict[str, Any]], bytes, dict[int, int]]:
        """Return each distinct content once: small ones in the body, larger ones as files.

        With `two_parts` such a file is of the tensors alone, and what goes with them is in the
        body: the model that devices evaluate is the one that they train next.
        """
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
                continue
            rest = b""
            if two_parts:
                tensors, others = codec.apart(content)
                rest = codec.to_bytes(others)
                if len(rest) <= BESIDE_LIMIT and len(body) + len(rest) <= INLINE_TOGETHER:
                    parts = codec.encode(tensors)
                else:
                    rest = b""
            said.append(
                {"file": self._file(parts), "begin": len(body), "end": len(body) + len(rest)}
            )
            body += rest
        return said, bytes(body), place

    def _place(self) -> Path:
        """Return where a new file may be."""
        with self._counting:
            self._files += 1
            return self._scratch / f"f{self._files}"

    def _file(self, parts: Iterable[bytes | memoryview]) -> str:
        path = self._place()
        with path.open("xb", buffering=0) as file:
            for part in parts:
                view = memoryview(part).cast("B")
                while view:
                    written = file.write(view[:PIECE])
                    give_back(view[:written])
                    view = view[written:]
        return path.name

    def _send(self, said: dict[str, Any], body: bytes = b"") -> None:
        with self._sending:
            try:
                self._end.send(said, body)
            except OSError as error:
                raise EndedError("the coordinator has gone away") from error

    def _wait(self, ready: Callable[[], bool], until: float | None) -> bool:
        """Wait, with `_changed` held, until `ready`; return whether it is by then."""
        left = None if until is None else max(0.0, until - time.monotonic())
        done = self._changed.wait_for(lambda: self._gone or ready(), left)
        if self._gone and not ready():
            raise EndedError("the coordinator has gone away")
        return done

    def _read(self) -> None:
        """Take what the coordinator says, until it has gone."""
        try:
            while True:
                said, body = self._end.receive()
                self._take(said, body)
        except (EOFError, OSError, PeerError):
            pass
        finally:
            with self._changed:
                self._gone = True
                self._changed.notify_all()

    def _take(self, said: Mapping[str, Any], body: bytes) -> None:
        answer: Answer | None = None
        if said["do"] == "reply":
            file = said.get("file")
            answer = Answer(task=said["task"], source=Path(file) if file else body)
            answer.at = said.get("at") or answer.at
        elif said["do"] == "failure":
            answer = Answer(task=said["task"], code=said["code"], why=said["why"])
            answer.at = said.get("at") or answer.at
        with self._changed:
            if answer is not None:
                self._answers[answer.task] = answer
            elif said["do"] == "nodes":
                found = said["nodes"]
                self._coding.decodes |= set(said["decodes"])
                self._coding.beside |= set(said["beside"])
                self._nodes = [Node(node=one["node"], device=one["device"]) for one in found]
            elif said["do"] == "asked":
                self._tasks[said["ask"]] = list(said["tasks"])
            self._changed.notify_all()
