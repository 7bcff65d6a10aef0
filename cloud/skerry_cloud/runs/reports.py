"""What a run's server side reports: rounds, metrics, refusals, models, checkpoints; journalled.

A server side that begins again reports again what the one before it did: while it may
(`Recall.again`), what is known already changes nothing.
"""

import asyncio
import contextlib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from skerry_protos.errors import SkerryError
from skerry_protos.failpoints import failpoint
from skerry_protos.messages import BlobRef, RunId

from skerry_cloud.runs import wishes
from skerry_cloud.runs.lifecycle import TaskEvent
from skerry_cloud.runs.muster import Muster
from skerry_cloud.runs.questions import Questions
from skerry_cloud.runs.world import GoneError, World
from skerry_cloud.store import blobs as kept_blobs
from skerry_cloud.store import questions as recorded
from skerry_cloud.store import runs as kept
from skerry_cloud.store import tasks as kept_tasks
from skerry_cloud.store.questions import Checkpoint
from skerry_cloud.store.runs import Event, Metric

log = logging.getLogger(__name__)


class Reports:
    """A run's reports on their way into the database."""

    def __init__(
        self, run: RunId, world: World, muster: Muster, questions: Questions, scratch: Path
    ) -> None:
        self._run = run
        self._world = world
        self._muster = muster
        self._questions = questions
        self._scratch = scratch
        self._pulled = 0
        self._checkpoints = asyncio.Lock()
        self._newest = 0

    def begin(self, pulled: int) -> None:
        """Hear a new server side, which has `pulled` so often before."""
        self._pulled = pulled

    @property
    def _again(self) -> bool:
        return self._questions.recall.again

    async def take(self, said: Mapping[str, Any]) -> bool:
        """Keep a report; return whether it was one."""
        match said["do"]:
            case "refused":
                await self._refuse(wishes.refusals(said))
            case "round":
                await self._begin_round(wishes.whole(said, "round"), wishes.whole(said, "rounds"))
            case "metrics":
                await self._keep_metrics(wishes.metrics(said))
            case "model":
                await self._keep_model(self._scratch / wishes.file_name(said))
            case "took":
                await self._keep_pull(wishes.pulled(said))
            case "note":
                data = {"text": wishes.text(said, "text", 500)}
                await self._note(Event(kind="note", round=self._questions.round, data=data))
            case _:
                return False
        return True

    async def _refuse(self, refused: list[tuple[str, str]]) -> None:
        """Journal the replies that screening left out."""

        def write(connection: sa.Connection) -> None:
            for task, why in refused:
                row = kept_tasks.find_task(connection, task)
                if row is None or row.run != self._run:
                    continue
                if kept_tasks.move(connection, task, TaskEvent.REFUSE, why):
                    data = {"task": task, "phase": row.message_type.partition(".")[0], "why": why}
                    event = Event(kind="refused", round=row.round, device=row.device, data=data)
                    kept.note(connection, self._run, event)

        await self._world.write(write)

    async def _begin_round(self, number: int, rounds: int) -> None:
        event = Event(kind="round", round=number, data={"rounds": rounds})

        def write(connection: sa.Connection) -> None:
            if self._again and kept.noted(connection, self._run, event):
                return
            kept.update(connection, self._run, round=number, rounds=rounds)
            kept.note(connection, self._run, event)

        await self._world.write(write)

    async def _keep_metrics(self, new: list[wishes.Measured]) -> None:
        rows, whole = [], dict[tuple[int, str], dict[str, float]]()
        for one in new:
            device = self._muster.device_of(one.node) if one.node else ""
            if one.node and not device:
                continue
            if not one.node:
                whole.setdefault((one.round, one.phase), {})[one.name] = one.value
            rows.append(
                Metric(
                    round=one.round, phase=one.phase, name=one.name, value=one.value, device=device
                )
            )
        events = [
            Event(kind="metrics", round=number, data={"phase": phase, "values": values})
            for (number, phase), values in whole.items()
        ]

        def write(connection: sa.Connection) -> None:
            if kept.keep_metrics(connection, self._run, rows, again=self._again):
                kept.note(connection, self._run, *events)

        await self._world.write(write)

    async def _keep_model(self, path: Path) -> None:
        while True:
            with contextlib.suppress(GoneError):
                await self._adopt_model(path)
                self._world.adopted(path)
                return

    async def _adopt_model(self, path: Path) -> None:
        ref = await self._world.adopt(path, "model")
        failpoint("model.adopted")
        data = {"digest": ref.digest, "bytes": ref.size}
        event = Event(kind="model", round=self._questions.round, data=data)

        def write(connection: sa.Connection) -> None:
            self._world.require(ref)
            kept_blobs.keep_blob(connection, ref, "model", self._run)
            kept.update(connection, self._run, model=ref.digest)
            if not (self._again and kept.noted(connection, self._run, event)):
                kept.note(connection, self._run, event)

        await self._world.write(write)
        failpoint("model.committed")

    async def _keep_pull(self, tasks: list[str]) -> None:
        self._pulled += 1
        number = self._pulled
        await self._world.write(lambda c: recorded.keep_pull(c, self._run, number, tasks))

    async def _note(self, event: Event) -> None:
        def write(connection: sa.Connection) -> None:
            if not (self._again and kept.noted(connection, self._run, event)):
                kept.note(connection, self._run, event)

        await self._world.write(write)

    # Checkpoints.

    async def checkpoint(self, said: wishes.Kept) -> None:
        """Keep a checkpoint, and forget what it makes superfluous; a newer one has precedence.

        One that cannot be kept costs only the way: the replies that it would replace stay.
        """
        numbers = self._questions.numbers(said.first.asked, said.last.asked)
        checkpoint = Checkpoint(
            round=said.round,
            asked=said.last.asked,
            mustered=said.last.mustered,
            numbers=numbers,
            musters=(said.first.mustered, said.last.mustered),
        )
        path = self._scratch / said.file
        self._newest = max(self._newest, said.last.asked)
        async with self._checkpoints:
            if said.last.asked == self._newest:
                try:
                    await self._adopt_checkpoint(path, checkpoint)
                except SkerryError as error:
                    log.warning("run %s keeps no checkpoint now: %s", self._run, error)
            self._world.adopted(path)
            await asyncio.to_thread(path.unlink, missing_ok=True)

    async def _adopt_checkpoint(self, path: Path, checkpoint: Checkpoint) -> None:
        while True:
            ref = await self._world.adopt(path, "checkpoint")
            failpoint("checkpoint.adopted")
            with contextlib.suppress(GoneError):
                await self._keep_checkpoint(ref, checkpoint)
                break
        failpoint("checkpoint.committed")
        await self._world.sweep()

    async def _keep_checkpoint(self, ref: BlobRef, checkpoint: Checkpoint) -> None:
        event = Event(
            kind="checkpoint",
            round=checkpoint.round,
            data={"digest": ref.digest, "bytes": ref.size},
        )

        def write(connection: sa.Connection) -> None:
            self._world.require(ref)
            recorded.keep_checkpoint(connection, self._run, ref, checkpoint)
            kept.note(connection, self._run, event)

        await self._world.write(write)
