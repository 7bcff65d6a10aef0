"""Questions to devices: stored, sent, sent again, answered, closed. One `Questions` per run.

What is told to the server side is in the database first. A device that is away gets its task when
it is present again; one that is late is named, and told to stop. A question outlives the server
side that asked it, and this process: `load` takes up what is recorded, replies to it are kept, and
a server side that asks it again hears what came of it (recall.py).
"""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from skerry_protos import steady
from skerry_protos.failpoints import failpoint
from skerry_protos.messages import BlobRef, DeviceId, Parcel, ParcelId

from skerry_cloud.runs import clocks, closing, hearing
from skerry_cloud.runs.asking import Asking, about
from skerry_cloud.runs.codecs import Codecs
from skerry_cloud.runs.deliveries import Deliveries, Spawn
from skerry_cloud.runs.exchange import Exchange, Outcome, Part
from skerry_cloud.runs.lifecycle import TaskEvent
from skerry_cloud.runs.muster import Muster
from skerry_cloud.runs.plan import RunOptions
from skerry_cloud.runs.recall import Claim, Recall
from skerry_cloud.runs.tasks import (
    NODE_UNAVAILABLE,
    Answer,
    TaskMaker,
    parcel_bytes,
)
from skerry_cloud.runs.traces import Traces
from skerry_cloud.runs.wishes import Question
from skerry_cloud.runs.world import Waiting, World
from skerry_cloud.store import blobs as kept_blobs
from skerry_cloud.store import questions as recorded
from skerry_cloud.store import runs as kept
from skerry_cloud.store import tasks as kept_tasks
from skerry_cloud.store.runs import Event, Run

Say = Callable[[dict[str, Any], bytes], None]


class Questions:
    """What a run has asked its devices and not closed yet."""

    def __init__(
        self,
        *,
        run: Run,
        world: World,
        options: RunOptions,
        muster: Muster,
        scratch: Path,
        say: Say,
        spawn: Spawn,
    ) -> None:
        self._run = run.id
        self._world = world
        self._options = options
        self._say = say
        self._spawn = spawn
        self._open: dict[int, Exchange] = {}
        self._where: dict[ParcelId, Exchange] = {}
        self._timers: dict[int, asyncio.Task[None]] = {}
        self._numbers: dict[int, int] = {}  # as the server side counts, as the database does
        self._last = 0
        self.deliveries = Deliveries(run.id, world, spawn, self.fail)
        self.traces = Traces(run)
        self.recall = Recall()
        self.codecs = Codecs(options)
        self._asking = Asking(
            run=run.id,
            world=world,
            options=options,
            muster=muster,
            codecs=self.codecs,
            scratch=scratch,
        )
        self.round = run.round

    @property
    def open(self) -> bool:
        """Return whether any question waits for devices."""
        return bool(self._open)

    def find(self, task: ParcelId) -> tuple[Exchange, Part] | None:
        """Return an open question's part, or None."""
        exchange = self._where.get(task)
        return None if exchange is None else (exchange, exchange.parts[task])

    def progress_of(self, device: str) -> tuple[float, str]:
        """Return how far a device says it is."""
        for exchange in self._open.values():
            for part in exchange.open_of(DeviceId(device)):
                return part.progress, part.text
        return 0.0, ""

    def waits_for(self, device: DeviceId) -> bool:
        """Return whether an open question waits for a device."""
        return any(one.open_of(device) for one in self._open.values())

    def waiting(self) -> Waiting | None:
        """Return what the oldest open question waits for, in words."""
        exchange = next(iter(self._open.values()), None)
        if exchange is None:
            return None
        return about(exchange, self._world.roster.connected())

    # Taking up what is recorded.

    def take_up(self, exchanges: Sequence[Exchange]) -> None:
        """Go on with open questions of an earlier life: replies to them count from now on."""
        for exchange in exchanges:
            self._open[exchange.number] = exchange
            self._where |= dict.fromkeys(exchange.parts, exchange)
            self.round = max(self.round, exchange.round)

    def begin(self, recall: Recall, last: int) -> None:
        """Hear a new server side: all that is recorded is what it is expected to repeat."""
        self.recall, self._last = recall, last
        self._numbers.clear()
        for exchange in self._open.values():
            exchange.asked_as = None
            exchange.told.clear()

    async def go(self) -> None:
        """Let open questions go on: their clocks run, and devices get what they have not."""
        self.deliveries.go()
        exchanges = list(self._open.values())
        for exchange in exchanges:
            exchange.deadline = clocks.deadline_of(exchange, self._options, steady.unix_s())
            exchange.left_s = None
        if exchanges:
            await self._world.write(clocks.of(exchanges, self._run))
        for exchange in exchanges:
            self._start(exchange)
            await self._look(exchange)

    async def hold(self) -> None:
        """Stop all clocks and send nothing; replies that come are kept."""
        self.deliveries.hold()
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        exchanges = list(self._open.values())
        for exchange in exchanges:
            exchange.left_s = exchange.deadline - steady.unix_s()
        if exchanges:
            await self._world.write(clocks.of(exchanges, self._run))

    @property
    def exchanges(self) -> list[Exchange]:
        """Return the open questions, the oldest first."""
        return list(self._open.values())

    def numbers(self, first: int, last: int) -> list[int]:
        """Return the recorded numbers of what the server side counts as first+1 to last."""
        return [number for said, number in self._numbers.items() if first < said <= last]

    # Asking.

    async def ask(self, question: Question, maker: TaskMaker) -> None:
        """Store a question's tasks, then send them; one that is repeated is only answered."""
        if self.recall.questions:
            print_ = await asyncio.to_thread(self._asking.print_of, question)
            claim = self.recall.claim(question, print_)
            if claim is not None:
                await self._repeat(question, claim)
                return
        self.traces.asks(self.round)
        self._last += 1
        self.round = max(self.round, question.round)
        new = await self._asking.ask(question, self._last, self.round, maker)
        exchange = new.exchange
        failpoint("ask.committed")
        self._open[exchange.number] = exchange
        self._where |= dict.fromkeys(exchange.parts, exchange)
        self._numbers[question.number] = exchange.number
        exchange.asked_as = question.number
        self._say({"do": "asked", "ask": question.number, "tasks": new.order}, b"")
        for task, node in new.absent.items():
            self._tell(exchange, task, hearing.absent(node))
        failpoint("ask.told")
        self._start(exchange)
        await self._look(exchange)

    async def _repeat(self, question: Question, claim: Claim) -> None:
        """Answer a question that is recorded with what came of it, and from now on comes."""
        row = claim.question
        self._asking.discard(question)
        if not claim.same:
            text = f"round {row.round}, {row.phase}: asked with other contents than before the "
            text += "coordinator stopped; the replies that were given then are used"
            event = Event(kind="note", round=row.round, data={"text": text})
            await self._world.write(lambda c: kept.note(c, self._run, event))
        exchange = self._open.get(row.number)
        self._numbers[question.number] = row.number
        order = [task for task, _ in row.parts]
        self._say({"do": "asked", "ask": question.number, "tasks": order}, b"")
        told: set[ParcelId] = set()
        if exchange is not None:
            # From here on what comes is told as it comes; below, what came before.
            exchange.asked_as, told = question.number, exchange.told
        rows = await self._world.store.read(lambda c: recorded.asked(c, self._run, row.number))
        for task, node in row.parts:
            heard = hearing.heard(rows.get(task), node, self._world.blobs)
            if heard is not None and task not in told:
                told.add(task)
                hearing.say(self._say, task, heard)
        if exchange is None:
            self._say({"do": "closed", "ask": question.number}, b"")
        failpoint("resume.attached")

    def _start(self, exchange: Exchange) -> None:
        """Send what is open of a question, and run its clock."""
        self.deliveries.announce(exchange)
        for part in exchange.open:
            self.deliveries.send(exchange, part)
        if exchange.number not in self._timers:
            timer = self._spawn(self._close_at_deadline(exchange))
            self._timers[exchange.number] = timer
            timer.add_done_callback(lambda done: self._timed(exchange.number, done))

    def _timed(self, number: int, timer: "asyncio.Task[None]") -> None:
        if self._timers.get(number) is timer:
            del self._timers[number]

    def present(self, device: DeviceId) -> None:
        """Send a device that is here again what it has not answered."""
        for exchange in self._open.values():
            for part in exchange.open_of(device):
                self.deliveries.send(exchange, part)

    # Answers.

    async def replied(self, exchange: Exchange, part: Part, answer: Answer, parcel: Parcel) -> bool:
        """Store a reply, then tell the server side; return False when it came too late."""
        content, size = answer.content, len(parcel.body)
        if isinstance(content, BlobRef):
            size += content.size
        now = time.time()
        data = {"task": part.task, "phase": exchange.phase, "bytes": size, **answer.report}
        event = Event(kind="reply", round=exchange.round, device=part.device, data=data)
        values: Mapping[str, Any] = {
            "reply": parcel_bytes(parcel),
            "replied_at": now,
            "bytes_up": size,
            "bytes_down": _crossed(part, answer),
            "answer": content.digest if isinstance(content, BlobRef) else "",
        }

        def write(connection: sa.Connection) -> bool:
            if not kept_tasks.move(connection, part.task, TaskEvent.REPLY, "", **values):
                if isinstance(content, BlobRef):
                    kept_blobs.leave(connection, content)
                return False
            if isinstance(content, BlobRef):
                self._world.require(content)  # if not, the device sends it again
                kept_blobs.keep_blob(connection, content, "reply", self._run)
            kept.note(connection, self._run, event)
            return True

        if not await self._world.write(write):
            return False
        failpoint("reply.committed")
        exchange.settle(part.task, Outcome.REPLIED)
        self.traces.settled(exchange, part)
        self._tell(exchange, part.task, hearing.replied(content, now, self._world.blobs))
        failpoint("reply.told")
        await self._look(exchange)
        return True

    async def fail(self, task: ParcelId, code: int, why: str, *, log_tail: str = "") -> None:
        """Note that a device will not answer a task, and tell the server side."""
        found = self.find(task)
        if found is None:
            return
        exchange, part = found
        why = why[: kept_tasks.WHY_LIMIT]
        data = {"task": task, "phase": exchange.phase, "code": code, "why": why, "log": log_tail}
        event = Event(kind="failure", round=exchange.round, device=part.device, data=data)
        now = time.time()

        def write(connection: sa.Connection) -> bool:
            moved = kept_tasks.move(
                connection, task, TaskEvent.FAILURE, why, replied_at=now, code=code
            )
            if moved:
                kept.note(connection, self._run, event)
            return moved

        if await self._world.write(write):
            exchange.settle(task, Outcome.FAILED)
            self.traces.settled(exchange, part, why)
            self._tell(exchange, task, hearing.Failed(code=code, why=why, at=now))
            await self._look(exchange)

    def _tell(self, exchange: Exchange, task: ParcelId, heard: hearing.Heard) -> None:
        """Tell the server side what came of a task, once, if it has asked for it."""
        if exchange.asked_as is not None and task not in exchange.told:
            exchange.told.add(task)
            hearing.say(self._say, task, heard)

    async def withdraw(self, device: DeviceId, why: str) -> None:
        """Take a device's open tasks away."""
        parts = [part for one in self._open.values() for part in one.open_of(device)]
        self.deliveries.cancel(parts, why)
        for part in parts:
            await self.fail(part.task, NODE_UNAVAILABLE, why)

    # Closing.

    async def _close_at_deadline(self, exchange: Exchange) -> None:
        await asyncio.sleep(max(0.0, exchange.deadline - steady.unix_s()))
        await self._close(exchange)

    async def _look(self, exchange: Exchange) -> None:
        """Close the exchange if nothing more is needed."""
        if exchange.settled:
            await self._close(exchange)

    async def _close(self, exchange: Exchange) -> None:
        """End a question: name who is late, tell the server side, and tell the late to stop."""
        if exchange.over:
            return
        exchange.over = True
        here = self._world.roster.connected()
        failpoint("close.before-commit")
        late = await self._world.write(closing.of(exchange, self._run, here))
        failpoint("close.committed")
        for task, why in late.items():
            exchange.settle(task, Outcome.LATE)
            self.traces.settled(exchange, exchange.parts[task], why)
            self._tell(exchange, task, hearing.Failed(code=NODE_UNAVAILABLE, why=why, at=0.0))
        self.traces.closed(exchange)
        if exchange.asked_as is not None:
            self._say({"do": "closed", "ask": exchange.asked_as}, b"")
        self._forget(exchange)
        self.deliveries.cancel([exchange.parts[task] for task in late], "its round has closed")

    def end(self) -> list[Part]:
        """Close everything without a word; return the parts that were open."""
        parts = [part for exchange in self._open.values() for part in exchange.open]
        for exchange in list(self._open.values()):
            exchange.over = True
            self._forget(exchange)
        return parts

    def _forget(self, exchange: Exchange) -> None:
        for task in exchange.parts:
            self._where.pop(task, None)
        self.deliveries.forget(exchange)
        self._open.pop(exchange.number, None)


def _crossed(part: Part, answer: Answer) -> int:
    """Return the bytes that a task took to a device, less those that it says it had already."""
    content = part.parcel.blob("content")
    size = 0 if content is None else content.size
    held = int(answer.report.get("held_bytes", 0))
    return len(part.parcel.body) + size - min(held, size)
