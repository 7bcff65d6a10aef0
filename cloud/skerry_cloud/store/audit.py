"""The audit log: every action that changes something, who asked for it, and how it ended.

A row is written before the action and finished after it, so that a crash between leaves "begun".
"""

import time
from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa

from skerry_cloud.store.tables import audit


def begin(
    connection: sa.Connection,
    *,
    operator: str,
    action: str,
    target: str,
    detail: Mapping[str, Any],
) -> int:
    """Note that an action begins; return the row's number."""
    made = connection.execute(
        audit.insert().values(
            at=time.time(),
            operator=operator[:64],
            action=action[:64],
            target=target[:200],
            outcome="begun",
            detail=dict(detail),
        )
    )
    assert made.inserted_primary_key is not None
    return int(made.inserted_primary_key[0])


def finish(
    connection: sa.Connection, number: int, action: str, outcome: str, detail: Mapping[str, Any]
) -> None:
    """Note what it was and how it ended."""
    connection.execute(
        audit.update()
        .where(audit.c.id == number)
        .values(action=action[:64], outcome=outcome[:200], detail=dict(detail))
    )


def listed(connection: sa.Connection, *, before: int, limit: int) -> list[dict[str, Any]]:
    """Return up to `limit` rows, newest first; those before row `before` unless that is 0."""
    chosen = sa.select(audit).order_by(audit.c.id.desc()).limit(limit)
    if before:
        chosen = chosen.where(audit.c.id < before)
    return [dict(row) for row in connection.execute(chosen).mappings()]
