"""Invites: what a join token is good for, and using one up in the same transaction as the device.

Each function takes the writer's connection (`Store.write`) or a reader's; the secret is known here
only by its hash.
"""

import hashlib
import hmac
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from skerry_protos.errors import RejectedError

from skerry_cloud.store.tables import invites

USES_LIMIT = 100_000
LIFE_LIMIT_S = 365 * 86400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Invite:
    """An invite as an operator sees it."""

    id: str
    created_at: float
    created_by: str
    expires_at: float
    uses: int
    uses_left: int
    labels: dict[str, str]
    revoked_at: float | None

    def state(self, now: float) -> str:
        """Return "open", or why the invite admits nobody any more."""
        if self.revoked_at is not None:
            return "revoked"
        if now >= self.expires_at:
            return "expired"
        return "open" if self.uses_left else "used"


def create(
    connection: sa.Connection,
    *,
    uses: int,
    life_s: float,
    labels: Mapping[str, str],
    operator: str,
) -> tuple[Invite, str]:
    """Keep a new invite; return it and its secret, which is told once."""
    now, secret = time.time(), secrets.token_urlsafe(24)
    row = {
        "id": secrets.token_hex(6),
        "created_at": now,
        "created_by": operator,
        "expires_at": now + life_s,
        "uses": uses,
        "uses_left": uses,
        "labels": dict(labels),
        "revoked_at": None,
    }
    connection.execute(invites.insert().values(**row, secret_sha256=hash_secret(secret)))
    return _invite(row), secret


def consume(connection: sa.Connection, *, invite: str, secret: str, now: float) -> Invite:
    """Use the invite once, or raise RejectedError saying why it admits nobody.

    The check and the count are one UPDATE, so that of 50 devices on a 5-use invite 5 get in.
    """
    found = prove(connection, invite=invite, secret=secret)
    used = connection.execute(
        invites.update()
        .where(
            invites.c.id == invite,
            invites.c.uses_left > 0,
            invites.c.expires_at > now,
            invites.c.revoked_at.is_(None),
        )
        .values(uses_left=invites.c.uses_left - 1)
    )
    if used.rowcount != 1:
        match found.state(now):
            case "revoked":
                raise RejectedError(
                    "token-revoked", "the join token was withdrawn: ask for another"
                )
            case "expired":
                raise RejectedError("token-expired", "the join token has expired: ask for another")
        raise RejectedError(
            "token-used",
            f"the join token has admitted the {found.uses} it was made for: ask for another",
        )
    return found


def prove(connection: sa.Connection, *, invite: str, secret: str) -> Invite:
    """Return the invite whose secret this is, used up or not; else raise RejectedError."""
    row = connection.execute(sa.select(invites).where(invites.c.id == invite)).mappings().first()
    if row is None:
        raise RejectedError(
            "token-unknown", "this coordinator has made no such join token: ask for one here"
        )
    if not hmac.compare_digest(row["secret_sha256"], hash_secret(secret)):
        raise RejectedError("token-forged", "the join token's secret is wrong: copy it whole")
    return _invite(row)


def listed(connection: sa.Connection) -> list[Invite]:
    """Return all invites, newest first."""
    rows = connection.execute(sa.select(invites).order_by(invites.c.created_at.desc())).mappings()
    return [_invite(row) for row in rows]


def withdraw(connection: sa.Connection, invite: str) -> bool:
    """Let the invite admit nobody any more; return whether there is one."""
    done = connection.execute(
        invites.update()
        .where(invites.c.id == invite)
        .values(revoked_at=sa.func.coalesce(invites.c.revoked_at, time.time()))
    )
    return done.rowcount == 1


def hash_secret(secret: str) -> str:
    """Return what is kept of a secret of 192 random bits, which needs no salt or stretching."""
    return hashlib.sha256(secret.encode()).hexdigest()


def _invite(row: Mapping[str, Any] | sa.RowMapping) -> Invite:
    return Invite(**{name: row[name] for name in Invite.__slots__})
