"""Operators: the people and scripts that use the API, known by the hash of a bearer token."""

import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import sqlalchemy as sa
from skerry_protos.errors import RejectedError

from skerry_cloud.store.invites import hash_secret
from skerry_cloud.store.tables import operators

TOKEN_PREFIX = "sko1."  # noqa: S105 - tells what kind of secret this is, and is none


class Role(StrEnum):
    """What an operator may do; each may do all that those before it may."""

    VIEWER = "viewer"  # reads
    OPERATOR = "operator"  # runs, labels, invites, cordons, drains
    ADMIN = "admin"  # revokes, manages operators

    def includes(self, other: "Role") -> bool:
        """Return whether this role may do what `other` may."""
        order = list(Role)
        return order.index(self) >= order.index(other)


@dataclass(frozen=True, slots=True, kw_only=True)
class Operator:
    """One operator."""

    name: str
    role: Role
    created_at: float
    revoked_at: float | None


def new_token() -> str:
    """Return a new bearer token of 256 random bits."""
    return TOKEN_PREFIX + secrets.token_urlsafe(32)


def keep(connection: sa.Connection, *, name: str, role: Role, token: str) -> Operator:
    """Keep a new operator, or raise RejectedError when the name was ever taken.

    Names are not given twice, so that the audit log says who did what.
    """
    if connection.execute(sa.select(operators.c.name).where(operators.c.name == name)).first():
        raise RejectedError("operator-taken", f"there is, or was, an operator called {name!r}")
    row = {"name": name, "role": role.value, "created_at": time.time(), "revoked_at": None}
    connection.execute(operators.insert().values(**row, token_sha256=hash_secret(token)))
    return _operator(row)


def replace_token(connection: sa.Connection, *, name: str, token: str) -> bool:
    """Give an operator another token; return whether there is one that is not revoked."""
    done = connection.execute(
        operators.update()
        .where(operators.c.name == name, operators.c.revoked_at.is_(None))
        .values(token_sha256=hash_secret(token))
    )
    return done.rowcount == 1


def restore_admin(connection: sa.Connection, token: str) -> None:
    """Let `token` be the operator "admin"'s, made, made admin or let in again if need be."""
    row = {"role": Role.ADMIN.value, "revoked_at": None, "token_sha256": hash_secret(token)}
    done = connection.execute(operators.update().where(operators.c.name == "admin").values(**row))
    if done.rowcount == 0:
        connection.execute(operators.insert().values(name="admin", created_at=time.time(), **row))


def by_token(connection: sa.Connection, token: str) -> Operator | None:
    """Return who this token belongs to, unless revoked."""
    row = (
        connection.execute(
            sa.select(operators).where(
                operators.c.token_sha256 == hash_secret(token), operators.c.revoked_at.is_(None)
            )
        )
        .mappings()
        .first()
    )
    return None if row is None else _operator(row)


def listed(connection: sa.Connection) -> list[Operator]:
    """Return all operators, also revoked ones, by name."""
    rows = connection.execute(sa.select(operators).order_by(operators.c.name)).mappings()
    return [_operator(row) for row in rows]


def revoke(connection: sa.Connection, name: str) -> bool:
    """Let an operator's token open nothing any more; return whether there is such an operator.

    Raise RejectedError for the last admin: nobody could make another.
    """
    held = {operator.name: operator for operator in listed(connection)}
    if name not in held or held[name].revoked_at is not None:
        return False
    admins = [o for o in held.values() if o.role is Role.ADMIN and o.revoked_at is None]
    if held[name] in admins and len(admins) == 1:
        raise RejectedError("last-admin", f"{name!r} is the last admin: make another one first")
    connection.execute(
        operators.update().where(operators.c.name == name).values(revoked_at=time.time())
    )
    return True


def _operator(row: Mapping[str, Any] | sa.RowMapping) -> Operator:
    return Operator(
        name=row["name"],
        role=Role(row["role"]),
        created_at=row["created_at"],
        revoked_at=row["revoked_at"],
    )
