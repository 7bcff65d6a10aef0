"""Taking up a run that an earlier coordinator, or server side, left: what is recorded of it.

What can be taken up, and what cannot and why, is decided here; docs/runs.md says it for people.
"""

import asyncio
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa
from google.protobuf.message import DecodeError
from skerry_protos.errors import SkerryError
from skerry_protos.messages import Digest, RunId
from skerry_protos.session.frames import read_parcel
from skerry_protos.v1 import fleet_pb2
from skerry_protos.versions import installed_version

from skerry_cloud.runs.exchange import Exchange, Part, outcome_of
from skerry_cloud.runs.lifecycle import TaskState
from skerry_cloud.runs.plan import RunOptions
from skerry_cloud.runs.recall import JOURNAL, Recall
from skerry_cloud.runs.world import DamagedError, World
from skerry_cloud.store import questions as recorded
from skerry_cloud.store.runs import Run

OLDER = "it was begun by an earlier version, which could not go on with a run: start it again"


@dataclass(frozen=True, slots=True, kw_only=True)
class Resume:
    """What a new server side begins with."""

    recall: Recall
    last: int  # the highest number of a question
    pulls: list[list[str]]
    checkpoint: Path | None
    asked: int
    mustered: int


def too_new(run: Run) -> str | None:
    """Return why a run has to be left to a newer coordinator, or None."""
    if run.journal <= JOURNAL:
        return None
    return (
        f"its journal was written by skerry-cloud {run.written_by or '?'} in form {run.journal}; "
        f"this coordinator ({installed_version('skerry-cloud')}) reads up to form {JOURNAL}: start "
        f"the newer one again and it goes on, or end it with: skerry runs stop {run.id}"
    )


def require_whole(run: Run) -> None:
    """Raise DamagedError for a run whose journal is not whole, or was never kept."""
    if run.journal == 0:
        raise DamagedError(OLDER)
    if run.journal < 0:
        raise DamagedError("a part of its journal was lost: the database had damaged pages")


async def open_exchanges(world: World, run: Run, options: RunOptions) -> list[Exchange]:
    """Return the questions that were open, with what has come of them; their clocks stand still."""

    def read(connection: sa.Connection) -> list[Exchange]:
        away_from = recorded.last_sign(connection, run.id)
        return [
            _exchange(connection, row, options, away_from)
            for row in recorded.every_question(connection, run.id)
            if row.closed_at is None
        ]

    return await world.store.read(read)


def _exchange(
    connection: sa.Connection, row: recorded.Question, options: RunOptions, away_from: float
) -> Exchange:
    exchange = Exchange(
        number=row.number,
        round=row.round,
        phase=row.phase,
        deadline=row.deadline_at,
        quorum=options.quorum,
        left_s=row.deadline_at - away_from if row.left_s is None else row.left_s,
        asked_at=row.asked_at,
    )
    tasks = recorded.asked(connection, row.run, row.number)
    for name, node in row.parts:
        task = tasks.get(name)
        if task is None:
            continue  # for a node that nobody had
        try:
            parcel = read_parcel(fleet_pb2.Parcel.FromString(task.parcel))
        except (DecodeError, SkerryError) as error:
            raise DamagedError(f"task {name} in the journal does not parse: {error}") from error
        exchange.parts[name] = Part(
            task=name,
            device=task.device,
            node=node,
            parcel=parcel,
            outcome=outcome_of(task.state),
            stored=task.state is TaskState.SENT,
        )
    return exchange


async def resume(world: World, run: RunId) -> Resume:
    """Return what is recorded of a run for a server side that begins now."""

    def read(connection: sa.Connection) -> Resume:
        questions = recorded.every_question(connection, run)
        musters = recorded.every_muster(connection, run)
        checkpoint, at = recorded.checkpoint_of(connection, run)
        path = world.blobs.path(Digest(checkpoint)) if checkpoint else None
        if checkpoint and path is None:
            raise DamagedError(f"the checkpoint, blob {checkpoint[:12]}, is gone")
        return Resume(
            recall=Recall(questions, musters, again=bool(questions or musters or checkpoint)),
            last=recorded.last_number(connection, run),
            pulls=recorded.every_pull(connection, run),
            checkpoint=path,
            asked=at.get("asked", 0),
            mustered=at.get("mustered", 0),
        )

    return await world.store.read(read)


async def check_blobs(world: World, run: Run) -> None:
    """Raise DamagedError naming a blob of the run that is damaged or gone."""
    needed = await world.store.read(lambda c: recorded.needed_blobs(c, run.id))
    every = [("the app", run.app)]
    if run.checkpoint:
        every.append(("the checkpoint", run.checkpoint))
    every += [("a task's or reply's content", Digest(one)) for one in sorted(needed)]
    await asyncio.to_thread(_check, world, every)


def _check(world: World, every: Iterable[tuple[str, Digest]]) -> None:
    for what, digest in every:
        try:
            path = world.blobs.path(digest)
            if path is None:
                raise DamagedError(f"{what}, blob {digest[:12]}, is gone")
            with path.open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise DamagedError(f"{what}, blob {digest[:12]}, cannot be read: {error}") from error
        if found != digest:
            raise DamagedError(
                f"{what}, blob {digest[:12]}, is damaged: its bytes are {found[:12]}"
            )
