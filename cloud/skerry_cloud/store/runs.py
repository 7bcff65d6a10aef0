"""Runs in the database: the row, the journal of events, and metrics.

Every function takes the writer's connection (`Store.write`) or a reader's (`Store.read`).
"""

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa
from skerry_protos.messages import Digest, RunId

from skerry_cloud.runs.lifecycle import OPEN_RUNS, RunEvent, RunState, advance_run
from skerry_cloud.store.tables import events, metrics, runs

LOGS_KEPT = 5000
"""Lines kept of what a run's server side printed, the newest."""
EVENTS_PAGE = 1000


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
    journal: int = 0
    written_by: str = ""
    partitions: dict[str, int] = field(default_factory=dict)
    checkpoint: Digest | None = None
    checkpoint_at: dict[str, int] | None = None


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
    columns = (runs.c.state, runs.c.round, runs.c.started_at)
    row = connection.execute(sa.select(*columns).where(runs.c.id == run)).one()
    state = RunState(row.state)
    after = advance_run(state, event)
    if after == state:
        return state
    now = time.time()
    if after is RunState.STARTING and row.started_at is None:
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


def journal_of(connection: sa.Connection, run: RunId, kinds: Iterable[str]) -> list[dict[str, Any]]:
    """Return every event of these kinds, oldest first."""
    found = connection.execute(
        sa.select(events)
        .where(events.c.run == run, events.c.kind.in_(list(kinds)))
        .order_by(events.c.id)
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


def noted(connection: sa.Connection, run: RunId, event: Event) -> bool:
    """Return whether the journal has just this line."""
    found = connection.execute(
        sa.select(events.c.data).where(
            events.c.run == run, events.c.kind == event.kind, events.c.round == event.round
        )
    )
    return any(data == dict(event.data) for data in found.scalars())


def keep_metrics(
    connection: sa.Connection, run: RunId, new: Iterable[Metric], *, again: bool = False
) -> bool:
    """Keep numbers but those not finite: neither the database nor JSON has a word for them.

    With `again` they may be known: then only what differs is kept. Return whether anything was.
    """
    now = time.time()
    finite = [metric for metric in new if math.isfinite(metric.value)]
    known = _known(connection, run, {metric.round for metric in finite}) if again else {}
    rows = []
    for metric in finite:
        values = {
            "round": metric.round,
            "device": metric.device,
            "phase": metric.phase,
            "name": metric.name[:200],
        }
        found = known.get(tuple(values.values()))
        if found is None:
            rows.append({**values, "run": run, "value": metric.value, "at": now})
        elif found[1] != metric.value:
            changed = metrics.update().where(metrics.c.id == found[0])
            connection.execute(changed.values(value=metric.value))
    if rows:
        connection.execute(metrics.insert(), rows)
    return bool(rows)


def _known(
    connection: sa.Connection, run: RunId, rounds: Iterable[int]
) -> dict[tuple[Any, ...], tuple[int, float]]:
    """Return the numbers of these rounds: id and value by round, device, phase and name."""
    found = connection.execute(
        sa.select(metrics)
        .where(metrics.c.run == run, metrics.c.round.in_(list(rounds)))
        .order_by(metrics.c.id)
    )
    return {(one.round, one.device, one.phase, one.name): (one.id, one.value) for one in found}


def metric_table(connection: sa.Connection, run: RunId) -> list[dict[str, Any]]:
    """Return every metric of a run in order."""
    columns = [metrics.c[name] for name in ("round", "device", "phase", "name", "value", "at")]
    found = connection.execute(
        sa.select(*columns).where(metrics.c.run == run).order_by(metrics.c.id)
    )
    return [dict(row._mapping) for row in found]
