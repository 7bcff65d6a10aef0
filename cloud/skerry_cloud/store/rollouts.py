"""Rollouts in the database: the row, its devices, its journal.

Every function takes the writer's connection (`Store.write`) or a reader's (`Store.read`).
"""

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa
from skerry_protos.messages import DeviceId

from skerry_cloud.rollouts.lifecycle import (
    OPEN,
    DeviceState,
    RolloutEvent,
    RolloutState,
    advance,
    follows,
)
from skerry_cloud.store.tables import assignments, rollout_devices, rollout_events, rollouts

EVENTS_PAGE = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """A rollout's row."""

    id: str
    model: str
    version: int
    channel: str
    state: RolloutState
    why: str
    plan: Mapping[str, Any]
    wave: int
    wave_at: float | None
    behind: str
    created_at: float
    created_by: str
    ended_at: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutDevice:
    """A device in a rollout."""

    rollout: str
    device: DeviceId
    wave: int
    state: DeviceState
    why: str = ""
    target: str = ""
    digest: str = ""
    previous: str = ""
    readings: Mapping[str, Any] = field(default_factory=dict)  # "now" and "before"
    asked_at: float | None = None
    changed_at: float | None = None


def _rollout(row: sa.Row[Any]) -> Rollout:
    values = dict(row._mapping)
    return Rollout(**{**values, "state": RolloutState(values["state"])})


def _device(row: sa.Row[Any]) -> RolloutDevice:
    values = dict(row._mapping)
    return RolloutDevice(**{**values, "state": DeviceState(values["state"])})


def create(connection: sa.Connection, rollout: Rollout, members: Iterable[RolloutDevice]) -> None:
    """Keep a new rollout with its devices."""
    values = {name: getattr(rollout, name) for name in Rollout.__dataclass_fields__}
    connection.execute(
        rollouts.insert().values(
            **{**values, "state": rollout.state.value, "plan": dict(rollout.plan)}
        )
    )
    if rows := [_row(each) for each in members]:
        connection.execute(rollout_devices.insert(), rows)
    note(connection, rollout.id, "created", data={"by": rollout.created_by, "why": rollout.why})


def add_member(connection: sa.Connection, member: RolloutDevice) -> None:
    """Let one more device be in a rollout."""
    connection.execute(rollout_devices.insert(), [_row(member)])


def _row(member: RolloutDevice) -> dict[str, Any]:
    values = {name: getattr(member, name) for name in RolloutDevice.__dataclass_fields__}
    return {**values, "state": member.state.value, "readings": dict(member.readings)}


def find(connection: sa.Connection, rollout: str) -> Rollout | None:
    """Return the rollout with this id, or None."""
    row = connection.execute(sa.select(rollouts).where(rollouts.c.id == rollout)).one_or_none()
    return None if row is None else _rollout(row)


def starting_with(connection: sa.Connection, prefix: str, limit: int = 3) -> list[str]:
    """Return ids that begin so."""
    chosen = (
        sa.select(rollouts.c.id)
        .where(rollouts.c.id.startswith(prefix, autoescape=True))
        .order_by(rollouts.c.id)
        .limit(limit)
    )
    return list(connection.execute(chosen).scalars())


def listed(
    connection: sa.Connection, model: str | None = None, *, limit: int = 200
) -> list[Rollout]:
    """Return the newest rollouts first."""
    chosen = sa.select(rollouts).order_by(rollouts.c.created_at.desc(), rollouts.c.id.desc())
    if model is not None:
        chosen = chosen.where(rollouts.c.model == model)
    return [_rollout(row) for row in connection.execute(chosen.limit(limit))]


def open_ones(connection: sa.Connection, model: str | None = None) -> list[Rollout]:
    """Return the rollouts that have a claim on devices, oldest first."""
    chosen = (
        sa.select(rollouts)
        .where(rollouts.c.state.in_([state.value for state in OPEN]))
        .order_by(rollouts.c.created_at, rollouts.c.id)
    )
    if model is not None:
        chosen = chosen.where(rollouts.c.model == model)
    return [_rollout(row) for row in connection.execute(chosen)]


def newest_completed(connection: sa.Connection, channel: str) -> list[Rollout]:
    """Return the newest completed rollout of each model from a channel."""
    mine = (rollouts.c.state == RolloutState.COMPLETED.value, rollouts.c.channel == channel)
    newest = (
        sa.select(rollouts.c.model, sa.func.max(rollouts.c.created_at).label("at"))
        .where(*mine)
        .group_by(rollouts.c.model)
        .subquery()
    )
    chosen = (
        sa.select(rollouts)
        .join(
            newest,
            sa.and_(rollouts.c.model == newest.c.model, rollouts.c.created_at == newest.c.at),
        )
        .where(*mine)
        .order_by(rollouts.c.model)
    )
    return [_rollout(row) for row in connection.execute(chosen)]


def is_member_since(connection: sa.Connection, rollout: Rollout, device: DeviceId) -> bool:
    """Return whether a device is in this rollout or in one of the same model begun since."""
    chosen = (
        sa.select(rollout_devices.c.rollout)
        .join(rollouts, rollouts.c.id == rollout_devices.c.rollout)
        .where(
            rollout_devices.c.device == device,
            rollouts.c.model == rollout.model,
            rollouts.c.created_at >= rollout.created_at,
        )
        .limit(1)
    )
    return connection.execute(chosen).first() is not None


def unsettled_in_completed(connection: sa.Connection) -> list[RolloutDevice]:
    """Return the devices of completed rollouts that have not settled in them."""
    # a refusal may pass, as that of a clock which is set right
    unsettled = (DeviceState.ASKED, DeviceState.TRIAL, DeviceState.REFUSED)
    chosen = (
        sa.select(rollout_devices)
        .join(rollouts, rollouts.c.id == rollout_devices.c.rollout)
        .where(
            rollouts.c.state == RolloutState.COMPLETED.value,
            rollout_devices.c.state.in_([each.value for each in unsettled]),
        )
    )
    return [_device(row) for row in connection.execute(chosen)]


def members(connection: sa.Connection, rollout: str) -> list[RolloutDevice]:
    """Return the devices of a rollout, by wave and id."""
    chosen = (
        sa.select(rollout_devices)
        .where(rollout_devices.c.rollout == rollout)
        .order_by(rollout_devices.c.wave, rollout_devices.c.device)
    )
    return [_device(row) for row in connection.execute(chosen)]


def change(
    connection: sa.Connection, rollout: str, event: RolloutEvent, why: str = "", **values: Any
) -> RolloutState:
    """Take a rollout to its next state and journal it; an event out of place changes nothing."""
    row = connection.execute(
        sa.select(rollouts.c.state, rollouts.c.wave).where(rollouts.c.id == rollout)
    ).one()
    state = RolloutState(row.state)
    after = advance(state, event)
    if after == state:
        return state
    now = time.time()
    values = {"wave_at": now, "why": why, **values}
    values["ended_at"] = None if after in OPEN else now
    connection.execute(
        rollouts.update().where(rollouts.c.id == rollout).values(state=after.value, **values)
    )
    data = {"state": after.value, "why": why}
    note(connection, rollout, "state", wave=values.get("wave", row.wave), data=data)
    return after


def move(
    connection: sa.Connection,
    member: RolloutDevice,
    state: DeviceState,
    why: str = "",
    **values: Any,
) -> bool:
    """Take a device to another state, if it may; return whether anything changed."""
    now = time.time()
    fresh = {"why": why[:500], **values}
    if state is not member.state:
        if not follows(member.state, state):
            return False
        fresh |= {"state": state.value, "changed_at": now}
        if state in {DeviceState.ASKED, DeviceState.REVERTING}:
            fresh["asked_at"] = None  # it has yet to be told
        data = {"from": member.state.value, "to": state.value, "why": why[:500]}
        note(
            connection,
            member.rollout,
            "device",
            wave=member.wave,
            device=member.device,
            data=data,
        )
    elif all(getattr(member, name) == value for name, value in fresh.items()):
        return False
    connection.execute(
        rollout_devices.update()
        .where(
            rollout_devices.c.rollout == member.rollout,
            rollout_devices.c.device == member.device,
        )
        .values(**fresh)
    )
    return True


def note_asked(connection: sa.Connection, told: Mapping[DeviceId, float]) -> None:
    """Note when devices took the word that asks them, where that is not known yet."""
    if not told:
        return
    assigned = sa.exists().where(
        assignments.c.device == rollout_devices.c.device,
        assignments.c.rollout == rollout_devices.c.rollout,
    )
    connection.execute(
        rollout_devices.update()
        .where(
            rollout_devices.c.device == sa.bindparam("which"),
            rollout_devices.c.state != DeviceState.WAITING.value,
            rollout_devices.c.asked_at.is_(None),
            # It may be further by now than when it was told; what it goes back to is another's.
            sa.or_(assigned, rollout_devices.c.state == DeviceState.REVERTING.value),
        )
        .values(asked_at=sa.bindparam("told_at")),
        [{"which": device, "told_at": at} for device, at in told.items()],
    )


def owner(connection: sa.Connection, member: RolloutDevice) -> str:
    """Return the rollout that had brought a device what it served before; empty: none."""
    if not member.previous:
        return ""
    found = connection.execute(
        sa.select(rollout_devices.c.rollout)
        .join(rollouts, rollouts.c.id == rollout_devices.c.rollout)
        .where(
            rollout_devices.c.device == member.device,
            rollout_devices.c.target == member.previous,
            rollout_devices.c.rollout != member.rollout,
        )
        .order_by(rollouts.c.created_at.desc())
        .limit(1)
    ).scalar()
    return str(found or "")


def note(
    connection: sa.Connection,
    rollout: str,
    kind: str,
    *,
    wave: int = 0,
    device: str = "",
    data: Mapping[str, Any] | None = None,
) -> None:
    """Append to the rollout's journal."""
    connection.execute(
        rollout_events.insert().values(
            rollout=rollout,
            at=time.time(),
            kind=kind,
            wave=wave,
            device=device,
            data=dict(data or {}),
        )
    )


def orders(connection: sa.Connection, rollout: str) -> dict[str, float]:
    """Return when each device was first told to take the version, unix seconds."""
    chosen = (
        sa.select(rollout_events.c.device, rollout_events.c.at, rollout_events.c.data)
        .where(rollout_events.c.rollout == rollout, rollout_events.c.kind == "device")
        .order_by(rollout_events.c.id.desc())
    )
    asked = DeviceState.ASKED.value
    return {row.device: row.at for row in connection.execute(chosen) if row.data.get("to") == asked}


def journal(
    connection: sa.Connection, rollout: str, after: int = 0, *, limit: int = EVENTS_PAGE
) -> list[dict[str, Any]]:
    """Return events after an id, oldest first."""
    chosen = (
        sa.select(rollout_events)
        .where(rollout_events.c.rollout == rollout, rollout_events.c.id > after)
        .order_by(rollout_events.c.id)
        .limit(min(limit, EVENTS_PAGE))
    )
    return [dict(row._mapping) for row in connection.execute(chosen)]
