"""A new question to devices: from what a server side wishes to tasks that are stored.

Contents are blobs on disk before the tasks that need them are in the database, and both before
anybody is told of them.
"""

import hashlib
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa
from skerry_protos import steady
from skerry_protos.failpoints import failpoint
from skerry_protos.messages import BlobRef, DeviceId, ParcelId, RunId

from skerry_cloud.runs.codecs import Codecs
from skerry_cloud.runs.exchange import Exchange, Outcome, Part
from skerry_cloud.runs.muster import Muster
from skerry_cloud.runs.plan import RunOptions
from skerry_cloud.runs.recall import Print, fingerprint
from skerry_cloud.runs.tasks import OUTAGE_S, Asked, TaskMaker, parcel_bytes
from skerry_cloud.runs.wishes import Content, Question
from skerry_cloud.runs.world import GoneError, Waiting, World, naming
from skerry_cloud.store import blobs as kept_blobs
from skerry_cloud.store import questions as recorded
from skerry_cloud.store import runs as kept
from skerry_cloud.store import tasks as kept_tasks
from skerry_cloud.store.runs import Event


@dataclass(frozen=True, slots=True, kw_only=True)
class New:
    """A new question: all its task ids in order, and those for nodes that nobody has."""

    exchange: Exchange
    order: list[ParcelId]
    absent: dict[ParcelId, int]


class Asking:
    """Makes and stores a run's questions."""

    def __init__(
        self,
        *,
        run: RunId,
        world: World,
        options: RunOptions,
        muster: Muster,
        codecs: Codecs,
        scratch: Path,
    ) -> None:
        self._run = run
        self._world = world
        self._options = options
        self._muster = muster
        self._codecs = codecs
        self._scratch = scratch

    def print_of(self, question: Question) -> Print:
        """Return a question's print; reads what it asks with, and belongs in a thread."""
        found = []
        for content in question.contents:
            if isinstance(content.data, bytes):
                digest = hashlib.sha256(content.data).hexdigest()
            else:
                with (self._scratch / content.data).open("rb") as file:
                    digest = hashlib.file_digest(file, "sha256").hexdigest()
            found.append(_digest(digest, content))
        return fingerprint(question, found)

    def discard(self, question: Question) -> None:
        """Remove the files of a question that is not asked."""
        for content in question.contents:
            if isinstance(content.data, str):
                (self._scratch / content.data).unlink(missing_ok=True)

    async def ask(self, question: Question, number: int, round_: int, maker: TaskMaker) -> New:
        """Store a question under a number of its own; `round_` is the run's now."""
        while True:
            contents = await self._contents(question)
            failpoint("ask.adopted")
            digests = [
                _digest(
                    hashlib.sha256(one).hexdigest() if isinstance(one, bytes) else one.digest, said
                )
                for one, said in zip(contents, question.contents, strict=True)
            ]
            new = await self._plan(question, number, contents, maker)
            try:
                await self._store(new, question, fingerprint(question, digests), round_)
                break
            except GoneError:
                continue
        for content in question.contents:
            if isinstance(content.data, str):
                self._world.adopted(self._scratch / content.data)
        return new

    async def _contents(self, question: Question) -> list[bytes | BlobRef]:
        """Return what is asked with; a file becomes a blob, on disk before the task is stored."""
        found: list[bytes | BlobRef] = []
        for content in question.contents:
            if isinstance(content.data, bytes):
                found.append(content.data)
            else:
                found.append(await self._world.adopt(self._scratch / content.data, "content"))
        return found

    async def _plan(
        self,
        question: Question,
        number: int,
        contents: list[bytes | BlobRef],
        maker: TaskMaker,
    ) -> New:
        known = await self._muster.find(want.node for want in question.wants)
        exchange = Exchange(
            number=number,
            round=question.round,
            phase=question.phase,
            deadline=steady.unix_s() + min(question.timeout_s, self._options.round_deadline_s),
            quorum=self._options.quorum,
            asked_at=time.time(),
        )
        order: list[ParcelId] = []
        absent: dict[ParcelId, int] = {}
        for want in question.wants:
            device = known.get(want.node)
            if device is None:
                task = ParcelId(f"nobody-{number}-{len(order)}")
                absent[task] = want.node
            else:
                asked = Asked(
                    device=device.id,
                    node=want.node,
                    message_type=want.message_type,
                    group=want.group,
                    ttl_s=want.ttl_s,
                    content=contents[want.content],
                    beside=question.contents[want.content].beside,
                    node_config=self._muster.node_config(device),
                    codec_json=self._codecs.task_json(device, want.message_type),
                )
                deadline = exchange.deadline + OUTAGE_S
                parcel = maker.parcel(asked, round_=question.round, deadline=deadline)
                task = parcel.id
                exchange.parts[task] = Part(
                    task=task, device=device.id, node=want.node, parcel=parcel
                )
            order.append(task)
        return New(exchange=exchange, order=order, absent=absent)

    async def _store(self, new: New, question: Question, print_: Print, round_: int) -> None:
        exchange = new.exchange
        nodes = [want.node for want in question.wants]
        row = recorded.Question(
            run=self._run,
            number=exchange.number,
            side=question.side,
            round=exchange.round,
            phase=exchange.phase,
            digest=print_.digest,
            shape=print_.shape,
            parts=list(zip(new.order, nodes, strict=True)),
            deadline_at=exchange.deadline,
            asked_at=exchange.asked_at,
        )
        refs = {
            ref.digest: ref
            for part in exchange.parts.values()
            if (ref := part.parcel.blob("content")) is not None
        }
        tasks = [self._task(exchange, part, question) for part in exchange.parts.values()]
        data = {
            "phase": exchange.phase,
            "devices": [part.device for part in exchange.parts.values()],
            "until_unix_s": exchange.deadline,
            "needed": exchange.needed,
        }
        lacking = [
            Event(kind="note", round=exchange.round, data={"text": text})
            for text in self._codecs.lacking()
        ]
        waiting = about(exchange, self._world.roster.connected()).to_json()
        partitions = self._muster.partitions

        def write(connection: sa.Connection) -> None:
            for ref in refs.values():
                self._world.require(ref)
                kept_blobs.keep_blob(connection, ref, "task", self._run)
            recorded.keep_question(connection, row)
            kept_tasks.ask(connection, tasks)
            asked = Event(kind="asked", round=exchange.round, data=data)
            kept.note(connection, self._run, asked, *lacking)
            kept.update(connection, self._run, round=round_, waiting=waiting, partitions=partitions)

        await self._world.write(write)

    def _task(self, exchange: Exchange, part: Part, question: Question) -> kept_tasks.Task:
        content = part.parcel.blob("content")
        return kept_tasks.Task(
            id=part.task,
            run=self._run,
            round=exchange.round,
            device=part.device,
            message_type=question.wants[0].message_type,
            parcel=parcel_bytes(part.parcel),
            deadline_at=exchange.deadline,
            bytes_down=len(part.parcel.body) + (content.size if content is not None else 0),
            question=exchange.number,
            content=content.digest if content is not None else "",
        )


def _digest(of_data: str, content: Content) -> str:
    """Return the digest of all that is asked with, from that of its data."""
    if not content.beside:
        return of_data
    return hashlib.sha256(of_data.encode() + content.beside).hexdigest()


def about(exchange: Exchange, here: Collection[DeviceId]) -> Waiting:
    """Return what an open question waits for, in words; `here`: the devices that are connected."""
    text = (
        f"round {exchange.round}, {exchange.phase}: {exchange.count(Outcome.REPLIED)} of "
        f"{len(exchange.parts)} devices replied, {exchange.needed} are needed"
    )
    away = [part.device for part in exchange.open if part.device not in here]
    if away:
        text += f"; not connected: {naming(away)}"
    on = tuple(str(part.device) for part in exchange.open)
    return Waiting(what="replies", why=text, until=exchange.deadline, on=on)
