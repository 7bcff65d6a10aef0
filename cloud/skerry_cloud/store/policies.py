"""Policies in the database: one for each model, with when it last began a run."""

from dataclasses import fields

import sqlalchemy as sa

from skerry_cloud.policies.policy import Policy
from skerry_cloud.store.tables import policies, runs


def keep(connection: sa.Connection, policy: Policy) -> None:
    """Keep a policy in place of the model's old one, whose last run stays known."""
    values = {each.name: getattr(policy, each.name) for each in fields(Policy)}
    values["options"] = dict(policy.options)
    for name in ("last_at", "last_run", "last_why"):
        del values[name]
    changed = connection.execute(
        policies.update().where(policies.c.model == policy.model).values(**values)
    )
    if changed.rowcount == 0:
        connection.execute(policies.insert().values(**values))


def remove(connection: sa.Connection, model: str) -> None:
    """Forget a model's policy."""
    connection.execute(policies.delete().where(policies.c.model == model))


def note(connection: sa.Connection, model: str, *, at: float, run: str, why: str) -> None:
    """Note that a run was begun, or could not be."""
    connection.execute(
        policies.update()
        .where(policies.c.model == model)
        .values(last_at=at, last_run=run, last_why=why[:500])
    )


def listed(connection: sa.Connection) -> list[Policy]:
    """Return every policy, by model."""
    chosen = connection.execute(sa.select(policies).order_by(policies.c.model))
    return [Policy(**row) for row in chosen.mappings()]


def open_run(connection: sa.Connection, by: str) -> str:
    """Return a run begun by this policy that has not ended; empty: there is none."""
    chosen = sa.select(runs.c.id).where(runs.c.created_by == by, runs.c.ended_at.is_(None))
    return connection.execute(chosen.limit(1)).scalar() or ""
