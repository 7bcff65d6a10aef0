"""Devices' tasks in the database: what each was asked, what it answered, what became of it."""

import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from skerry_protos.messages import DeviceId, ParcelId, RunId

from skerry_cloud.runs.lifecycle import OPEN_TASKS, TaskEvent, TaskState, advance_task
from skerry_cloud.store.tables import tasks

WHY_LIMIT = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One device's task; `parcel` is a serialised skerry.v1.Parcel, `content` a blob's digest."""

    id: ParcelId
    run: RunId
    round: int
    device: DeviceId
    message_type: str
    parcel: bytes
    deadline_at: float
    bytes_down: int = 0
    question: int = 0
    content: str = ""


def ask(connection: sa.Connection, new: Iterable[Task]) -> None:
    """Keep tasks before anything is sent."""
    now = time.time()
    rows = [
        {
            **{name: getattr(task, name) for name in Task.__dataclass_fields__},
            "state": TaskState.QUEUED.value,
            "created_at": now,
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
        values["why"] = why[:WHY_LIMIT]
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
    answer: str = ""  # the digest of its reply's blob
    reply: bytes | None = None  # gone once nothing needs it any more


def find_task(connection: sa.Connection, task: str) -> TaskRow | None:
    """Return a task, or None."""
    columns = [tasks.c[name] for name in TaskRow.__dataclass_fields__]
    row = connection.execute(sa.select(*columns).where(tasks.c.id == task)).one_or_none()
    if row is None:
        return None
    return TaskRow(**{**row._mapping, "state": TaskState(row.state)})


def open_tasks(
    connection: sa.Connection, *, run: RunId | None = None, device: str | None = None
) -> list[TaskRow]:
    """Return tasks that wait for a reply, oldest first."""
    columns = [tasks.c[name] for name in TaskRow.__dataclass_fields__]
    chosen = sa.select(*columns).where(tasks.c.state.in_([state.value for state in OPEN_TASKS]))
    if run is not None:
        chosen = chosen.where(tasks.c.run == run)
    if device is not None:
        chosen = chosen.where(tasks.c.device == device)
    return [
        TaskRow(**{**row._mapping, "state": TaskState(row.state)})
        for row in connection.execute(chosen.order_by(tasks.c.created_at, tasks.c.id))
    ]


def cancel_open(connection: sa.Connection, run: RunId, why: str) -> list[TaskRow]:
    """Take away what is open of a run and return it."""
    found = open_tasks(connection, run=run)
    for task in found:
        move(connection, task.id, TaskEvent.CANCEL, why)
    return found


def task_table(connection: sa.Connection, run: RunId) -> list[dict[str, Any]]:
    """Return every task of a run without its parcels, for people."""
    hidden = {"parcel", "reply"}
    columns = [column for column in tasks.c if column.name not in hidden]
    found = connection.execute(
        sa.select(*columns).where(tasks.c.run == run).order_by(tasks.c.created_at, tasks.c.id)
    )
    return [dict(row._mapping) for row in found]
