"""Questions to devices: stored, sent, sent again, answered, closed. One `Questions` per run.

What is told to the server side is in the database first. A device that is away gets its task when
it is present again; one that is late is named, and told to stop.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Coroutine, Iterable
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from skerry_protos.errors import LinkError, PeerError, RejectedError, SkerryError
from skerry_protos.messages import BlobRef, DeviceId, Parcel, ParcelId, RunId

from skerry_cloud.runs.exchange import Exchange, Outcome, Part
from skerry_cloud.runs.lifecycle import TaskEvent
from skerry_cloud.runs.muster import Muster
from skerry_cloud.runs.plan import RunOptions
from skerry_cloud.runs.tasks import (
    NODE_UNAVAILABLE,
    Answer,
    Asked,
    TaskMaker,
    cancel_parcel,
    parcel_bytes,
)
from skerry_cloud.runs.wishes import Question
from skerry_cloud.runs.world import GoneError, Waiting, World, naming
from skerry_cloud.store import runs as kept
from skerry_cloud.store.runs import Event

log = logging.getLogger(__name__)

CANCEL_DEADLINE_S = 10.0

Say = Callable[[dict[str, Any], bytes], None]
Spawn = Callable[[Coroutine[Any, Any, None]], "asyncio.Task[None]"]


class Questions:
    """What a run has asked its devices and not closed yet."""

    def __init__(
        self,
        *,
        run: RunId,
        world: World,
        options: RunOptions,
        muster: Muster,
        scratch: Path,
        say: Say,
        spawn: Spawn,
    ) -> None:
        self._run = run
        self._world = world
        self._options = options
        self._muster = muster
        self._scratch = scratch
        self._say = say
        self._spawn = spawn
        self._open: dict[int, Exchange] = {}
        self._where: dict[ParcelId, Exchange] = {}
        self._delivering: dict[ParcelId, asyncio.Task[None]] = {}
        self.round = 0

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
            for part in exchange.open:
                if part.device == device:
                    return part.progress, part.text
        return 0.0, ""

    def waiting(self) -> Waiting | None:
        """Return what the oldest open question waits for, in words."""
        exchange = next(iter(self._open.values()), None)
        return None if exchange is None else self._about(exchange)

    def _about(self, exchange: Exchange) -> Waiting:
        here = self._world.roster.connected()
        text = (
            f"round {exchange.round}, {exchange.phase}: {exchange.count(Outcome.REPLIED)} of "
            f"{len(exchange.parts)} devices replied, {exchange.needed} are needed"
        )
        away = [part.device for part in exchange.open if part.device not in here]
        if away:
            text += f"; not connected: {naming(away)}"
        on = tuple(str(part.device) for part in exchange.open)
        return Waiting(what="replies", why=text, until=exchange.deadline, on=on)

    # Asking.

    async def ask(self, question: Question, maker: TaskMaker) -> None:
        """Store a question's tasks, then send them."""
        if question.number in self._open:
            raise PeerError("the run's server side used a question's number twice")
        while True:
            contents = await self._contents(question)
            exchange, order, absent = await self._plan(question, contents, maker)
            try:
                await self._store(exchange, question, contents)
                break
            except GoneError:
                continue
        for content in question.contents:
            if isinstance(content, str):
                self._world.adopted(self._scratch / content)
        self._open[exchange.number] = exchange
        self._where |= dict.fromkeys(exchange.parts, exchange)
        self._say({"do": "asked", "ask": exchange.number, "tasks": order}, b"")
        for task, node in absent.items():
            why = f"no device of this run has the node id {node}"
            self._tell_failure(exchange, task, NODE_UNAVAILABLE, why)
        self._announce(exchange)
        for part in exchange.parts.values():
            self._send(exchange, part)
        self._spawn(self._close_at_deadline(exchange))
        await self._look(exchange)

    async def _contents(self, question: Question) -> list[bytes | BlobRef]:
        """Return what is asked with; a file becomes a blob, on disk before the task is stored."""
        found: list[bytes | BlobRef] = []
        for content in question.contents:
            if isinstance(content, bytes):
                found.append(content)
            else:
                found.append(await self._world.adopt(self._scratch / content, "content"))
        return found

    async def _plan(
        self, question: Question, contents: list[bytes | BlobRef], maker: TaskMaker
    ) -> tuple[Exchange, list[ParcelId], dict[ParcelId, int]]:
        """Return the exchange, all task ids in order, and those that nobody can be asked."""
        known = await self._muster.find(want.node for want in question.wants)
        exchange = Exchange(
            number=question.number,
            round=question.round,
            phase=question.phase,
            deadline=time.time() + min(question.timeout_s, self._options.round_deadline_s),
            quorum=self._options.quorum,
        )
        order: list[ParcelId] = []
        absent: dict[ParcelId, int] = {}
        for want in question.wants:
            device = known.get(want.node)
            if device is None:
                task = ParcelId(f"nobody-{question.number}-{len(order)}")
                absent[task] = want.node
            else:
                asked = Asked(
                    device=device.id,
                    node=want.node,
                    message_type=want.message_type,
                    group=want.group,
                    ttl_s=want.ttl_s,
                    content=contents[want.content],
                    node_config=self._muster.node_config(device),
                )
                parcel = maker.parcel(asked, round_=question.round, deadline=exchange.deadline)
                task = parcel.id
                exchange.parts[task] = Part(
                    task=task, device=device.id, node=want.node, parcel=parcel
                )
            order.append(task)
        return exchange, order, absent

    async def _store(
        self, exchange: Exchange, question: Question, contents: list[bytes | BlobRef]
    ) -> None:
        self.round = max(self.round, exchange.round)
        tasks = [
            kept.Task(
                id=part.task,
                run=self._run,
                round=exchange.round,
                device=part.device,
                message_type=question.wants[0].message_type,
                parcel=parcel_bytes(part.parcel),
                deadline_at=exchange.deadline,
                bytes_down=len(part.parcel.body)
                + sum(ref.size for ref in part.parcel.blobs if ref.role == "content"),
            )
            for part in exchange.parts.values()
        ]
        data = {
            "phase": exchange.phase,
            "devices": [part.device for part in exchange.parts.values()],
            "until_unix_s": exchange.deadline,
            "needed": exchange.needed,
        }
        waiting = self._about(exchange).to_json()

        def write(connection: sa.Connection) -> None:
            for content in contents:
                if isinstance(content, BlobRef):
                    self._world.require(content)
                    kept.keep_blob(connection, content, "task", self._run)
            kept.ask(connection, tasks)
            asked = Event(kind="asked", round=exchange.round, data=data)
            kept.note(connection, self._run, asked)
            kept.update(connection, self._run, round=self.round, waiting=waiting)

        await self._world.write(write)

    def _announce(self, exchange: Exchange) -> None:
        """Let a transport with broadcast send what several devices are about to want, once."""
        wanted: dict[str, tuple[BlobRef, list[DeviceId]]] = {}
        for part in exchange.parts.values():
            for ref in part.parcel.blobs:
                wanted.setdefault(ref.digest, (ref, []))[1].append(part.device)
        for ref, devices in wanted.values():
            if len(devices) > 1:
                self._world.fleet.cast(ref, devices)

    # Sending.

    def present(self, device: DeviceId) -> None:
        """Send a device that is here again what it has not answered."""
        for exchange in self._open.values():
            for part in exchange.open:
                if part.device == device:
                    self._send(exchange, part)

    def _send(self, exchange: Exchange, part: Part) -> None:
        if part.task not in self._delivering:
            task = self._spawn(self._deliver(exchange, part))
            self._delivering[part.task] = task
            task.add_done_callback(lambda _: self._delivering.pop(part.task, None))

    async def _deliver(self, exchange: Exchange, part: Part) -> None:
        """Send one task; a device that is away gets it when it is present again."""
        try:
            async with asyncio.timeout(max(0.0, exchange.deadline - time.time())):
                await self._world.fleet.deliver(part.device, part.parcel)
        except RejectedError as error:
            await self.fail(part.task, NODE_UNAVAILABLE, f"the device rejects it: {error.message}")
        except (LinkError, TimeoutError) as error:
            log.debug("task %s is not at %s yet: %s", part.task, part.device, error)
        else:
            if not part.stored:
                part.stored = True
                await self._world.write(
                    lambda c: kept.move(c, part.task, TaskEvent.STORED, sent_at=time.time())
                )

    # Answers.

    async def replied(self, exchange: Exchange, part: Part, answer: Answer, parcel: Parcel) -> None:
        """Store a reply, then tell the server side; what comes too late is only noted."""
        content, size = answer.content, len(parcel.body)
        if isinstance(content, BlobRef):
            size += content.size
        data = {"task": part.task, "phase": exchange.phase, "bytes": size, **answer.report}
        event = Event(kind="reply", round=exchange.round, device=part.device, data=data)
        values: dict[str, Any] = {
            "reply": parcel_bytes(parcel),
            "replied_at": time.time(),
            "bytes_up": size,
        }

        def write(connection: sa.Connection) -> bool:
            if not kept.move(connection, part.task, TaskEvent.REPLY, "", **values):
                return False
            if isinstance(content, BlobRef):
                self._world.require(content)  # if not, the device sends it again
                kept.keep_blob(connection, content, "reply", self._run)
            kept.note(connection, self._run, event)
            return True

        if await self._world.write(write) and exchange.settle(part.task, Outcome.REPLIED):
            said = {"do": "reply", "ask": exchange.number, "task": part.task}
            if isinstance(content, BlobRef):
                said["file"] = str(self._world.blobs.path(content.digest))
                content = b""
            self._say(said, content)
            await self._look(exchange)

    async def fail(self, task: ParcelId, code: int, why: str, *, log_tail: str = "") -> None:
        """Note that a device will not answer a task, and tell the server side."""
        found = self.find(task)
        if found is None:
            return
        exchange, part = found
        data = {"task": task, "phase": exchange.phase, "code": code, "why": why, "log": log_tail}
        event = Event(kind="failure", round=exchange.round, device=part.device, data=data)

        def write(connection: sa.Connection) -> bool:
            moved = kept.move(connection, task, TaskEvent.FAILURE, why, replied_at=time.time())
            if moved:
                kept.note(connection, self._run, event)
            return moved

        if await self._world.write(write) and exchange.settle(task, Outcome.FAILED):
            self._tell_failure(exchange, task, code, why)
            await self._look(exchange)

    async def withdraw(self, device: DeviceId, why: str) -> None:
        """Take a device's open tasks away."""
        parts = [p for one in self._open.values() for p in one.open if p.device == device]
        self._cancel(parts, why)
        for part in parts:
            await self.fail(part.task, NODE_UNAVAILABLE, why)

    # Closing.

    async def _close_at_deadline(self, exchange: Exchange) -> None:
        await asyncio.sleep(max(0.0, exchange.deadline - time.time()))
        await self._close(exchange)

    async def _look(self, exchange: Exchange) -> None:
        """Close the exchange if nothing more is needed."""
        if exchange.settled:
            await self._close(exchange)

    async def _close(self, exchange: Exchange) -> None:
        """End a question: name who is late, tell the server side, and tell the late to stop."""
        if exchange.over:
            return
        late, early = exchange.open, time.time() < exchange.deadline
        here = self._world.roster.connected()
        for part in late:
            part.outcome = Outcome.LATE
        exchange.over = True
        reasons = {part.task: _why_late(part, part.device in here, early) for part in late}
        closed = {
            "phase": exchange.phase,
            "asked": len(exchange.parts),
            "replied": exchange.count(Outcome.REPLIED),
            "failed": exchange.count(Outcome.FAILED),
            "late": len(late),
        }

        def write(connection: sa.Connection) -> None:
            for part in late:
                why = reasons[part.task]
                if kept.move(connection, part.task, TaskEvent.CLOSE, why):
                    data = {"task": part.task, "phase": exchange.phase, "why": why}
                    event = Event(kind="late", round=exchange.round, device=part.device, data=data)
                    kept.note(connection, self._run, event)
            event = Event(kind="closed", round=exchange.round, data=closed)
            kept.note(connection, self._run, event)

        await self._world.write(write)
        for task, why in reasons.items():
            self._tell_failure(exchange, task, NODE_UNAVAILABLE, why)
        self._say({"do": "closed", "ask": exchange.number}, b"")
        self._forget(exchange)
        self._cancel(late, "its round has closed")

    def end(self) -> list[Part]:
        """Close everything without a word; return the parts that were open."""
        parts = [part for exchange in self._open.values() for part in exchange.open]
        for exchange in list(self._open.values()):
            exchange.over = True
            self._forget(exchange)
        return parts

    def cancel(self, parts: Iterable[Part], why: str) -> list[asyncio.Task[None]]:
        """Tell devices to stop working on these."""
        return self._cancel(parts, why)

    def _cancel(self, parts: Iterable[Part], why: str) -> list[asyncio.Task[None]]:
        by_device: dict[DeviceId, list[ParcelId]] = {}
        for part in parts:
            by_device.setdefault(part.device, []).append(part.task)
        return [
            self._spawn(self._deliver_cancel(device, cancel_parcel(self._run, tasks, why)))
            for device, tasks in by_device.items()
        ]

    async def _deliver_cancel(self, device: DeviceId, parcel: Parcel) -> None:
        """Tell one device to stop; one that is away learns it from the task's deadline."""
        with contextlib.suppress(SkerryError, TimeoutError):
            async with asyncio.timeout(CANCEL_DEADLINE_S):
                await self._world.fleet.deliver(device, parcel)

    def _forget(self, exchange: Exchange) -> None:
        for task in exchange.parts:
            self._where.pop(task, None)
            delivering = self._delivering.get(task)
            if delivering is not None and delivering is not asyncio.current_task():
                delivering.cancel()
        self._open.pop(exchange.number, None)

    def _tell_failure(self, exchange: Exchange, task: ParcelId, code: int, why: str) -> None:
        said = {"do": "failure", "ask": exchange.number, "task": task, "code": code}
        self._say({**said, "why": why[:1000]}, b"")


def _why_late(part: Part, connected: bool, early: bool) -> str:
    """Return why a device is left out of a round that has closed."""
    end = "before the quorum was reached" if early else "by the round's deadline"
    if not connected:
        return f"no reply {end}: the device is not connected"
    if not part.stored:
        return f"no reply {end}: the device has not taken the task yet"
    return f"no reply {end}" + (f"; it was at {part.progress:.0%}" if part.progress else "")
