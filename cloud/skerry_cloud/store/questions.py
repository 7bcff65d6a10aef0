"""What a run's server side asked and heard, in the database: what a new one hears again.

Questions with their tasks, the answers to "which devices are there", and what was pulled together.
A checkpoint makes what came before it superfluous: it is forgotten here.
"""

import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from skerry_protos.messages import BlobRef, DeviceId, ParcelId, RunId

from skerry_cloud.runs.lifecycle import TaskState
from skerry_cloud.store.blobs import keep_blob, release
from skerry_cloud.store.tables import devices, events, musters, pulls, questions, runs, tasks

Parts = list[tuple[ParcelId, int]]
"""Task and node, in the order asked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A question's row."""

    run: RunId
    number: int
    side: bool
    round: int
    phase: str
    digest: str
    shape: str
    parts: Parts
    deadline_at: float
    left_s: float | None = None
    closed_at: float | None = None
    asked_at: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What came of one task, with the parcels."""

    id: ParcelId
    device: DeviceId
    state: TaskState
    parcel: bytes
    reply: bytes | None
    replied_at: float | None
    code: int
    why: str


_ROW = [questions.c[name] for name in Question.__dataclass_fields__]
_TASK = [tasks.c[name] for name in Asked.__dataclass_fields__]


def keep_question(connection: sa.Connection, question: Question) -> None:
    """Keep a new question; its tasks are kept by `tasks.ask`."""
    values = {name: getattr(question, name) for name in Question.__dataclass_fields__}
    values["parts"] = [list(part) for part in question.parts]
    values["asked_at"] = question.asked_at or time.time()
    connection.execute(questions.insert().values(**values))


def close_question(connection: sa.Connection, run: RunId, number: int) -> None:
    """Note that a question is over."""
    connection.execute(
        questions.update()
        .where(questions.c.run == run, questions.c.number == number)
        .values(closed_at=time.time())
    )


def every_question(connection: sa.Connection, run: RunId) -> list[Question]:
    """Return a run's questions in order."""
    chosen = sa.select(*_ROW).where(questions.c.run == run).order_by(questions.c.number)
    return [_question(row) for row in connection.execute(chosen)]


def _question(row: sa.Row[Any]) -> Question:
    values = dict(row._mapping)
    values["parts"] = [(ParcelId(task), node) for task, node in values["parts"]]
    return Question(**values)


def asked(connection: sa.Connection, run: RunId, number: int) -> dict[ParcelId, Asked]:
    """Return what came of a question's tasks."""
    chosen = sa.select(*_TASK).where(tasks.c.run == run, tasks.c.question == number)
    return {
        ParcelId(row.id): Asked(**{**row._mapping, "state": TaskState(row.state)})
        for row in connection.execute(chosen)
    }


def outcomes(connection: sa.Connection, run: RunId, number: int) -> dict[TaskState, int]:
    """Return how many of a question's tasks came to what."""
    chosen = (
        sa.select(tasks.c.state, sa.func.count())
        .where(tasks.c.run == run, tasks.c.question == number)
        .group_by(tasks.c.state)
    )
    return {TaskState(state): count for state, count in connection.execute(chosen)}


def last_number(connection: sa.Connection, run: RunId) -> int:
    """Return the highest number that a question of the run has, or had."""
    highest = [
        connection.execute(sa.select(sa.func.max(column)).where(table.c.run == run)).scalar()
        for table, column in ((questions, questions.c.number), (tasks, tasks.c.question))
    ]
    return max(one or 0 for one in highest)


def prolong(
    connection: sa.Connection, run: RunId, number: int, deadline_at: float, left_s: float | None
) -> None:
    """Move a question's deadline, or stop its clock with so much left."""
    connection.execute(
        questions.update()
        .where(questions.c.run == run, questions.c.number == number)
        .values(deadline_at=deadline_at, left_s=left_s)
    )
    connection.execute(
        tasks.update()
        .where(tasks.c.run == run, tasks.c.question == number, tasks.c.replied_at.is_(None))
        .values(deadline_at=deadline_at)
    )


def last_sign(connection: sa.Connection, run: RunId) -> float:
    """Return when this run's coordinator, or a device of it, last wrote something down."""
    newest = [
        connection.execute(sa.select(sa.func.max(events.c.at)).where(events.c.run == run)).scalar(),
        connection.execute(sa.select(sa.func.max(devices.c.last_seen_at))).scalar(),
    ]
    return max((float(one) for one in newest if one is not None), default=0.0)


# Which devices there were, and what was pulled together.


def keep_muster(
    connection: sa.Connection, run: RunId, number: int, nodes: Sequence[tuple[int, DeviceId]]
) -> None:
    """Keep an answer to "which devices are there"."""
    connection.execute(
        musters.insert().values(run=run, number=number, nodes=[list(one) for one in nodes])
    )


def every_muster(connection: sa.Connection, run: RunId) -> dict[int, list[tuple[int, DeviceId]]]:
    """Return those answers by number."""
    chosen = sa.select(musters.c.number, musters.c.nodes).where(musters.c.run == run)
    return {
        row.number: [(node, DeviceId(device)) for node, device in row.nodes]
        for row in connection.execute(chosen)
    }


def keep_pull(connection: sa.Connection, run: RunId, number: int, pulled: Sequence[str]) -> None:
    """Keep which answers the app took together."""
    connection.execute(pulls.insert().values(run=run, number=number, tasks=list(pulled)))


def every_pull(connection: sa.Connection, run: RunId) -> list[list[str]]:
    """Return what was taken together, in order."""
    chosen = sa.select(pulls.c.tasks).where(pulls.c.run == run).order_by(pulls.c.number)
    return [list(one) for one in connection.execute(chosen).scalars()]


# Checkpoints.


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """What a checkpoint stands for: the counts of its server side, and what it makes superfluous.

    `numbers` are questions, `musters` a range of answers (after the first, up to the second).
    """

    round: int
    asked: int
    mustered: int
    numbers: Collection[int]
    musters: tuple[int, int]


def keep_checkpoint(
    connection: sa.Connection, run: RunId, ref: BlobRef, checkpoint: Checkpoint
) -> None:
    """Point the run at a checkpoint, and forget what it makes superfluous."""
    before = connection.execute(sa.select(runs.c.checkpoint).where(runs.c.id == run)).scalar()
    keep_blob(connection, ref, "checkpoint", run)
    at = {
        "round": checkpoint.round,
        "asked": checkpoint.asked,
        "mustered": checkpoint.mustered,
    }
    connection.execute(
        runs.update().where(runs.c.id == run).values(checkpoint=ref.digest, checkpoint_at=at)
    )
    if before and before != ref.digest:
        release(connection, run, [before])
    every = sorted(checkpoint.numbers)
    for begin in range(0, len(every), 500):
        _forget(connection, run, every[begin : begin + 500])
    first, last = checkpoint.musters
    connection.execute(
        musters.delete().where(
            musters.c.run == run, musters.c.number > first, musters.c.number <= last
        )
    )


def checkpoint_of(connection: sa.Connection, run: RunId) -> tuple[str | None, dict[str, int]]:
    """Return a run's checkpoint's digest and counts."""
    chosen = sa.select(runs.c.checkpoint, runs.c.checkpoint_at).where(runs.c.id == run)
    row = connection.execute(chosen).one()
    return row.checkpoint, (row.checkpoint_at or {}) if row.checkpoint else {}


def _forget(connection: sa.Connection, run: RunId, numbers: Sequence[int]) -> None:
    """Forget questions, the parcels of their tasks, and the blobs that only they needed."""
    mine = sa.and_(tasks.c.run == run, tasks.c.question.in_(numbers))
    needed: set[str] = set()
    for row in connection.execute(sa.select(tasks.c.content, tasks.c.answer).where(mine)):
        needed |= {row.content, row.answer}
    left = sa.select(questions.c.number).where(
        questions.c.run == run, questions.c.number.not_in(numbers)
    )
    others = sa.and_(tasks.c.run == run, tasks.c.question.in_(left))
    for row in connection.execute(sa.select(tasks.c.content, tasks.c.answer).where(others)):
        needed -= {row.content, row.answer}
    release(connection, run, needed)
    connection.execute(tasks.update().where(mine).values(parcel=b"", reply=None))
    connection.execute(
        questions.delete().where(questions.c.run == run, questions.c.number.in_(numbers))
    )


def needed_blobs(connection: sa.Connection, run: RunId) -> set[str]:
    """Return the blobs that the run's questions were asked or answered with."""
    mine = sa.select(questions.c.number).where(questions.c.run == run)
    kept = sa.and_(tasks.c.run == run, tasks.c.question.in_(mine))
    found: set[str] = set()
    for row in connection.execute(sa.select(tasks.c.content, tasks.c.answer).where(kept)):
        found |= {row.content, row.answer}
    return found - {""}


def forget_run(connection: sa.Connection, run: RunId) -> None:
    """Forget what only a run under way needs: it has ended."""
    for table in (questions, musters, pulls):
        connection.execute(table.delete().where(table.c.run == run))
    connection.execute(tasks.update().where(tasks.c.run == run).values(parcel=b"", reply=None))
    connection.execute(runs.update().where(runs.c.id == run).values(checkpoint=None))
