"""Runs in the database: the row, the journal of events, tasks with their replies, and metrics.

Every function takes the writer's connection (`Store.write`) or a reader's (`Store.read`).
"""

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa
from skerry_protos.messages import BlobRef, DeviceId, Digest, ParcelId, RunId

from skerry_cloud.runs.lifecycle import (
    OPEN_RUNS,
    OPEN_TASKS,
    RunEvent,
    RunState,
    TaskEvent,
    TaskState,
    advance_run,
    advance_task,
)
from skerry_cloud.store.tables import blobs, events, metrics, runs, tasks

LOGS_KEPT = 5000
"""Lines kept of what a run's server side printed, the newest."""
EVENTS_PAGE = 1000
LASTING = frozenset({"app", "model"})
"""Roles of blobs that outlive their run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A run's row."""

    id: RunId
    number: int
    name: str
    app: Digest
    app_kind: str
    state: RunState
    why: str
    waiting: dict[str, Any] | None
    options: dict[str, Any]
    round: int
    rounds: int
    created_at: float
    created_by: str
    started_at: float | None
    ended_at: float | None
    model: Digest | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One device's task; `parcel` is a serialised skerry.v1.Parcel."""

    id: ParcelId
    run: RunId
    round: int
    device: DeviceId
    message_type: str
    parcel: bytes
    deadline_at: float
    bytes_down: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One line of a run's journal."""

    kind: str
    round: int = 0
    device: str = ""
    data: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """One number; without a device it is of the whole round."""

    round: int
    phase: str
    name: str
    value: float
    device: str = ""


_RUN = [runs.c[name] for name in Run.__dataclass_fields__]


def _run(row: sa.Row[Any]) -> Run:
    values = dict(row._mapping)
    values["state"] = RunState(values["state"])
    return Run(**values)


def create(connection: sa.Connection, run: Run) -> None:
    """Keep a new run."""
    values = {name: getattr(run, name) for name in Run.__dataclass_fields__}
    connection.execute(runs.insert().values(**{**values, "state": run.state.value}))
    note(
        connection,
        run.id,
        Event(kind="created", data={"by": run.created_by, "app": run.app, "name": run.name}),
    )


def find(connection: sa.Connection, run: str) -> Run | None:
    """Return the run with this id, or None."""
    row = connection.execute(sa.select(*_RUN).where(runs.c.id == run)).one_or_none()
    return None if row is None else _run(row)


def starting_with(connection: sa.Connection, prefix: str, limit: int = 3) -> list[RunId]:
    """Return ids that begin so."""
    found = connection.execute(
        sa.select(runs.c.id)
        .where(runs.c.id.startswith(prefix, autoescape=True))
        .order_by(runs.c.id)
        .limit(limit)
    )
    return [RunId(one) for one in found.scalars()]


def listed(connection: sa.Connection, limit: int = 200) -> list[Run]:
    """Return the newest runs first."""
    chosen = sa.select(*_RUN).order_by(runs.c.created_at.desc(), runs.c.id.desc()).limit(limit)
    return [_run(row) for row in connection.execute(chosen)]


def open_runs(connection: sa.Connection) -> list[Run]:
    """Return the runs that have not ended."""
    states = [state.value for state in OPEN_RUNS]
    chosen = sa.select(*_RUN).where(runs.c.state.in_(states)).order_by(runs.c.created_at)
    return [_run(row) for row in connection.execute(chosen)]


def change(
    connection: sa.Connection, run: RunId, event: RunEvent, why: str = "", **values: Any
) -> RunState:
    """Take the run to its next state and journal it; an event out of place changes nothing."""
    row = connection.execute(sa.select(runs.c.state, runs.c.round).where(runs.c.id == run)).one()
    state = RunState(row.state)
    after = advance_run(state, event)
    if after == state:
        return state
    now = time.time()
    if after is RunState.STARTING:
        values["started_at"] = now
    if after not in OPEN_RUNS:
        values |= {"ended_at": now, "waiting": None}
    if why:
        values["why"] = why
    connection.execute(runs.update().where(runs.c.id == run).values(state=after.value, **values))
    note(
        connection,
        run,
        Event(kind="state", round=row.round, data={"state": after.value, "why": why}),
    )
    return after


def update(connection: sa.Connection, run: RunId, **values: Any) -> None:
    """Set columns of a run that is no state."""
    connection.execute(runs.update().where(runs.c.id == run).values(**values))


def note(connection: sa.Connection, run: RunId, *new: Event) -> None:
    """Append to the run's journal."""
    now = time.time()
    if new:
        connection.execute(
            events.insert(),
            [
                {
                    "run": run,
                    "at": now,
                    "kind": event.kind,
                    "round": event.round,
                    "device": event.device,
                    "data": dict(event.data),
                }
                for event in new
            ],
        )


def journal(
    connection: sa.Connection,
    run: RunId,
    after: int = 0,
    *,
    logs: bool = False,
    limit: int = EVENTS_PAGE,
) -> list[dict[str, Any]]:
    """Return events after an id, oldest first: what the app printed, or everything else."""
    is_log = events.c.kind == "log"
    found = connection.execute(
        sa.select(events)
        .where(events.c.run == run, events.c.id > after, is_log if logs else ~is_log)
        .order_by(events.c.id)
        .limit(min(limit, EVENTS_PAGE))
    )
    return [dict(row._mapping) for row in found]


def keep_lines(connection: sa.Connection, run: RunId, lines: Sequence[str]) -> None:
    """Keep printed lines, and of all of them only the newest."""
    note(connection, run, *(Event(kind="log", data={"text": line}) for line in lines))
    oldest = connection.execute(
        sa.select(events.c.id)
        .where(events.c.run == run, events.c.kind == "log")
        .order_by(events.c.id.desc())
        .offset(LOGS_KEPT)
        .limit(1)
    ).scalar()
    if oldest is not None:
        connection.execute(
            events.delete().where(
                events.c.run == run, events.c.kind == "log", events.c.id <= oldest
            )
        )


def ask(connection: sa.Connection, new: Iterable[Task]) -> None:
    """Keep tasks before anything is sent."""
    now = time.time()
    rows = [
        {
            "id": task.id,
            "run": task.run,
            "round": task.round,
            "device": task.device,
            "message_type": task.message_type,
            "state": TaskState.QUEUED.value,
            "parcel": task.parcel,
            "deadline_at": task.deadline_at,
            "created_at": now,
            "bytes_down": task.bytes_down,
        }
        for task in new
    ]
    if rows:
        connection.execute(tasks.insert(), rows)


def move(
    connection: sa.Connection, task: str, event: TaskEvent, why: str = "", **values: Any
) -> bool:
    """Take a task to its next state; return whether that changed anything."""
    row = connection.execute(sa.select(tasks.c.state).where(tasks.c.id == task)).one_or_none()
    if row is None:
        return False
    state = TaskState(row.state)
    after = advance_task(state, event)
    if after == state:
        return False
    if why:
        values["why"] = why[:500]
    connection.execute(tasks.update().where(tasks.c.id == task).values(state=after.value, **values))
    return True


def reply_out_of_place(connection: sa.Connection, task: str) -> bool:
    """Note that a task was answered after its end; return whether that is news."""
    done = connection.execute(
        tasks.update()
        .where(tasks.c.id == task, tasks.c.replied_at.is_(None))
        .values(replied_at=time.time())
    )
    return done.rowcount == 1


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskRow:
    """What handling a device's answer needs to know of its task."""

    id: ParcelId
    run: RunId
    round: int
    device: DeviceId
    message_type: str
    state: TaskState


def find_task(connection: sa.Connection, task: str) -> TaskRow | None:
    """Return a task, or None."""
    columns = [tasks.c[name] for name in TaskRow.__dataclass_fields__]
    row = connection.execute(sa.select(*columns).where(tasks.c.id == task)).one_or_none()
    if row is None:
        return None
    return TaskRow(**{**row._mapping, "state": TaskState(row.state)})


def open_tasks(
    connection: sa.Connection, *, run: RunId | None = None, device: str | None = None
) -> list[tuple[TaskRow, bytes]]:
    """Return tasks that wait for a reply, with their parcels, oldest first."""
    columns = [tasks.c[name] for name in TaskRow.__dataclass_fields__]
    chosen = sa.select(*columns, tasks.c.parcel).where(
        tasks.c.state.in_([state.value for state in OPEN_TASKS])
    )
    if run is not None:
        chosen = chosen.where(tasks.c.run == run)
    if device is not None:
        chosen = chosen.where(tasks.c.device == device)
    found = []
    for row in connection.execute(chosen.order_by(tasks.c.created_at, tasks.c.id)):
        values = dict(row._mapping)
        parcel = values.pop("parcel")
        found.append((TaskRow(**{**values, "state": TaskState(values["state"])}), parcel))
    return found


def task_table(connection: sa.Connection, run: RunId) -> list[dict[str, Any]]:
    """Return every task of a run without its parcels, for people."""
    hidden = {"parcel", "reply"}
    columns = [column for column in tasks.c if column.name not in hidden]
    found = connection.execute(
        sa.select(*columns).where(tasks.c.run == run).order_by(tasks.c.created_at, tasks.c.id)
    )
    return [dict(row._mapping) for row in found]


def keep_blob(connection: sa.Connection, ref: BlobRef, role: str, run: str = "") -> None:
    """Note a blob that is here and why.

    One that several runs use belongs to none of them, so that no run's end takes it away.
    """
    known = connection.execute(
        sa.select(blobs.c.role, blobs.c.run).where(blobs.c.digest == ref.digest)
    ).one_or_none()
    if known is None:
        connection.execute(
            blobs.insert().values(
                digest=ref.digest, size=ref.size, created_at=time.time(), role=role, run=run
            )
        )
        return
    lasting = role if role in LASTING else known.role
    owner = run if known.run == run else ""
    if (lasting, owner) != (known.role, known.run):
        connection.execute(
            blobs.update().where(blobs.c.digest == ref.digest).values(role=lasting, run=owner)
        )


def find_blob(connection: sa.Connection, digest: str, role: str) -> Digest | None:
    """Return the digest when such a blob is kept in this role."""
    found = connection.execute(
        sa.select(blobs.c.digest).where(blobs.c.digest == digest, blobs.c.role == role)
    ).scalar()
    return None if found is None else Digest(found)


def apps_starting_with(connection: sa.Connection, prefix: str, limit: int = 3) -> list[Digest]:
    """Return the digests of apps that begin so."""
    found = connection.execute(
        sa.select(blobs.c.digest)
        .where(blobs.c.role == "app", blobs.c.digest.startswith(prefix, autoescape=True))
        .limit(limit)
    )
    return [Digest(one) for one in found.scalars()]


def forget_blobs(connection: sa.Connection, run: RunId, roles: Sequence[str]) -> list[Digest]:
    """Forget a run's blobs in these roles; return those nobody needs any more."""
    chosen = sa.and_(blobs.c.run == run, blobs.c.role.in_(roles))
    found = connection.execute(sa.select(blobs.c.digest).where(chosen)).scalars()
    gone = [Digest(one) for one in found]
    connection.execute(blobs.delete().where(chosen))
    return gone


def keep_metrics(connection: sa.Connection, run: RunId, new: Iterable[Metric]) -> None:
    """Keep numbers but those not finite: neither the database nor JSON has a word for them."""
    now = time.time()
    rows = [
        {
            "run": run,
            "round": metric.round,
            "device": metric.device,
            "phase": metric.phase,
            "name": metric.name[:200],
            "value": metric.value,
            "at": now,
        }
        for metric in new
        if math.isfinite(metric.value)
    ]
    if rows:
        connection.execute(metrics.insert(), rows)


def metric_table(connection: sa.Connection, run: RunId) -> list[dict[str, Any]]:
    """Return every metric of a run in order."""
    columns = [metrics.c[name] for name in ("round", "device", "phase", "name", "value", "at")]
    found = connection.execute(
        sa.select(*columns).where(metrics.c.run == run).order_by(metrics.c.id)
    )
    return [dict(row._mapping) for row in found]
