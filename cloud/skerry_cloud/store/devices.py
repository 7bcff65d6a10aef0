"""Devices: who is enrolled, with which labels, and who may have a certificate.

Each function takes the writer's connection (`Store.write`) or a reader's (`Store.read`).
"""

import secrets
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from skerry_protos.errors import RejectedError
from skerry_protos.labels import STATED
from skerry_protos.messages import DeviceId
from skerry_protos.tokens import RENEW_GRACE_S

from skerry_cloud.identity import Issued
from skerry_cloud.selectors import LABELS_LIMIT, SelectorError, check_labels
from skerry_cloud.store import invites, tables
from skerry_cloud.store.tables import certificates, devices, labels

LOGS_KEPT = 2000
"""Log lines kept of each device."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """A device as the coordinator knows it; `heartbeat` is the newest, as JSON.

    `given` are the labels that the invite and operators gave it.
    """

    id: DeviceId
    node: int
    profile: str
    invite: str
    given: dict[str, str]
    enrolled_at: float
    revoked_at: float | None
    revoked_why: str | None
    cordoned: bool
    drained_at: float | None
    connected: bool
    transport: str
    last_seen_at: float | None
    last_error: str
    agent_version: str
    heartbeat: dict[str, Any]

    @property
    def state(self) -> str:
        """What the device is to a person: revoked, drained, cordoned, online or offline."""
        if self.revoked_at is not None:
            return "revoked"
        if self.drained_at is not None:
            return "drained"
        if self.cordoned:
            return "cordoned"
        return "online" if self.connected else "offline"

    @property
    def stated(self) -> dict[str, str]:
        """The labels that the device states of itself, as it wrote them."""
        said: dict[str, str] = self.heartbeat.get("labels", {})
        return said

    @property
    def labels(self) -> dict[str, str]:
        """What selectors see: its own labels below `device/`, and over them what it was given."""
        if not self.stated:
            return self.given
        return {**{STATED + key: value for key, value in self.stated.items()}, **self.given}

    @property
    def ready(self) -> bool:
        """Whether the device may be given new work now."""
        return self.state == "online"

    @property
    def capabilities(self) -> frozenset[str]:
        """What the device says it can run."""
        return frozenset(map(str, self.heartbeat.get("capabilities", ())))


@dataclass(frozen=True, slots=True, kw_only=True)
class Enrolment:
    """What a device asks when it joins."""

    invite: str
    secret: str
    name: DeviceId
    profile: str
    agent_version: str


def enrol(
    connection: sa.Connection, asked: Enrolment, issue: Callable[[], Issued]
) -> tuple[Device, Issued]:
    """Admit a device: use the invite, keep device, labels and certificate, all or nothing.

    A device whose answer was lost asks again with the same key and gets a certificate again; a
    name that another key holds is refused. Raise RejectedError with the reason.
    """
    now = time.time()
    issued = issue()
    held = find(connection, asked.name)
    if held is None:
        invite = invites.consume(connection, invite=asked.invite, secret=asked.secret, now=now)
        connection.execute(
            devices.insert().values(
                id=asked.name,
                node=_new_node(connection),
                profile=asked.profile,
                invite=invite.id,
                enrolled_at=now,
                agent_version=asked.agent_version,
            )
        )
        for key, value in invite.labels.items():
            connection.execute(labels.insert().values(device=asked.name, key=key, value=value))
    else:
        invites.prove(connection, invite=asked.invite, secret=asked.secret)
        if held.invite != asked.invite or issued.key_sha256 not in _keys(connection, held.id):
            raise RejectedError(
                "device-taken",
                f"a device is already enrolled as {asked.name!r}: join with another --name",
            )
        require_not_revoked(held)
    keep_certificate(connection, asked.name, issued)
    device = find(connection, asked.name)
    assert device is not None
    return device, issued


def renew(connection: sa.Connection, device: DeviceId, serial: str, issued: Issued) -> None:
    """Keep a new certificate for the holder of certificate `serial`, or raise RejectedError."""
    held = find(connection, device)
    if held is None or not holds_certificate(connection, device, serial):
        raise RejectedError("unknown-device", f"device {device!r} is not enrolled here")
    require_not_revoked(held)
    keep_certificate(connection, device, issued)


def keep_certificate(connection: sa.Connection, device: DeviceId, issued: Issued) -> None:
    """Keep that `device` has this certificate; forget those long past renewing."""
    connection.execute(
        certificates.insert().values(
            serial=issued.serial,
            device=device,
            key_sha256=issued.key_sha256,
            issued_at=issued.issued_at,
            expires_at=issued.expires_at,
        )
    )
    connection.execute(
        certificates.delete().where(
            certificates.c.device == device,
            certificates.c.expires_at < issued.issued_at - RENEW_GRACE_S,
        )
    )


def holds_certificate(connection: sa.Connection, device: DeviceId, serial: str) -> bool:
    """Return whether we gave `device` the certificate with this serial number."""
    return (
        connection.execute(
            sa.select(certificates.c.serial).where(
                certificates.c.serial == serial, certificates.c.device == device
            )
        ).first()
        is not None
    )


def find(connection: sa.Connection, device: str) -> Device | None:
    """Return the device with this id, or None."""
    found = listed(connection, [device])
    return found[0] if found else None


def listed(connection: sa.Connection, only: Iterable[str] | None = None) -> list[Device]:
    """Return all devices (or those with these ids) with their labels, by id."""
    chosen, held = sa.select(devices).order_by(devices.c.id), sa.select(labels)
    if only is not None:
        ids = list(only)
        chosen = chosen.where(devices.c.id.in_(ids))
        held = held.where(labels.c.device.in_(ids))
    by_device: dict[str, dict[str, str]] = {}
    for row in connection.execute(held.order_by(labels.c.key)).mappings():
        by_device.setdefault(row["device"], {})[row["key"]] = row["value"]
    return [
        Device(**row, given=by_device.get(row["id"], {}))
        for row in connection.execute(chosen).mappings()
    ]


def with_prefix(connection: sa.Connection, prefix: str) -> list[str]:
    """Return up to 10 device ids that begin with `prefix`; only itself when it is a whole id."""
    near = devices.c.id.startswith(prefix, autoescape=True)
    rows = connection.execute(
        sa.select(devices.c.id).where(near).order_by(devices.c.id).limit(10)
    ).scalars()
    found = list(rows)
    return [prefix] if prefix in found else found


def relabel(
    connection: sa.Connection, device: DeviceId, changes: Mapping[str, str | None]
) -> dict[str, str]:
    """Set labels, or take those away whose value is None; return what the device has now."""
    check_labels({key: value or "" for key, value in changes.items()})
    for key, value in changes.items():
        connection.execute(labels.delete().where(labels.c.device == device, labels.c.key == key))
        if value is not None:
            connection.execute(labels.insert().values(device=device, key=key, value=value))
    rows = connection.execute(
        sa.select(labels.c.key, labels.c.value)
        .where(labels.c.device == device)
        .order_by(labels.c.key)
    ).all()
    if len(rows) > LABELS_LIMIT:
        raise SelectorError(f"a device has at most {LABELS_LIMIT} labels, not {len(rows)}")
    return {key: value for key, value in rows}  # noqa: C416 - rows are not tuples to mypy


def require_not_revoked(device: Device) -> None:
    """Raise RejectedError for a device that was revoked."""
    if device.revoked_at is not None:
        raise RejectedError(
            "revoked", f"device {device.id!r} was revoked: it cannot come back under this name"
        )


def change(connection: sa.Connection, device: DeviceId, **values: object) -> None:
    """Set columns of a device."""
    connection.execute(devices.update().where(devices.c.id == device).values(**values))


def keep_presence(connection: sa.Connection, rows: Mapping[DeviceId, Mapping[str, object]]) -> None:
    """Set columns of many devices; one statement for all that set the same ones."""
    alike: dict[tuple[str, ...], list[dict[str, object]]] = {}
    for device, values in rows.items():
        row = {f"new_{name}": value for name, value in values.items()}
        alike.setdefault(tuple(values), []).append({"which": device, **row})
    for names, group in alike.items():
        new: dict[str, Any] = {name: sa.bindparam(f"new_{name}") for name in names}
        found = devices.c.id == sa.bindparam("which")
        connection.execute(devices.update().where(found).values(new), group)


def revoke(connection: sa.Connection, device: DeviceId, why: str) -> None:
    """Note that a device is out for good; the first time and reason stay."""
    connection.execute(
        devices.update()
        .where(devices.c.id == device, devices.c.revoked_at.is_(None))
        .values(revoked_at=time.time(), revoked_why=why)
    )


def keep_log(
    connection: sa.Connection,
    device: DeviceId,
    parcel: str,
    lines: Iterable[Mapping[str, object]],
) -> None:
    """Keep the lines that a parcel brought, once, and only the newest LOGS_KEPT of the device."""
    logs = tables.device_logs
    came = sa.select(logs.c.id).where(logs.c.device == device, logs.c.parcel == parcel).limit(1)
    rows = [{**line, "device": device, "parcel": parcel} for line in lines]
    if not rows or connection.execute(came).first() is not None:
        return
    connection.execute(logs.insert(), rows)
    oldest = (
        sa.select(logs.c.id)
        .where(logs.c.device == device)
        .order_by(logs.c.id.desc())
        .offset(LOGS_KEPT)
        .limit(1)
        .scalar_subquery()
    )
    connection.execute(logs.delete().where(logs.c.device == device, logs.c.id <= oldest))


def log_lines(
    connection: sa.Connection, device: DeviceId, *, after: int, limit: int
) -> list[dict[str, Any]]:
    """Return up to `limit` log lines after line `after`; the newest ones when that is 0."""
    logs = tables.device_logs
    chosen = sa.select(logs).where(logs.c.device == device, logs.c.id > after).limit(limit)
    if after:
        return [dict(row) for row in connection.execute(chosen.order_by(logs.c.id)).mappings()]
    newest = connection.execute(chosen.order_by(logs.c.id.desc())).mappings().all()
    return [dict(row) for row in reversed(newest)]


def _keys(connection: sa.Connection, device: DeviceId) -> set[str]:
    rows = connection.execute(
        sa.select(certificates.c.key_sha256).where(certificates.c.device == device)
    ).scalars()
    return set(rows)


def _new_node(connection: sa.Connection) -> int:
    """Return a number for Flower that no device has; 0 and 1 are taken by Flower itself."""
    while True:
        node = secrets.randbits(63)
        taken = connection.execute(sa.select(devices.c.id).where(devices.c.node == node)).first()
        if node > 1 and taken is None:
            return node
