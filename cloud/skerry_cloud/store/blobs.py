"""Blobs in the database: which are here, why, and whose they are.

A blob that nobody needs any more is first marked as gone, in the transaction that makes it so, and
its file is removed after that commit: a kill between the two leaves a mark, never a hole.
"""

import time
from collections.abc import Iterable, Sequence

import sqlalchemy as sa
from skerry_protos.messages import BlobRef, Digest, RunId

from skerry_cloud.store.tables import blobs

LASTING = frozenset({"app", "model"})
"""Roles of blobs that outlive their run."""
GONE = "gone"


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
    lasting = role if role in LASTING or known.role == GONE else known.role
    owner = run if known.run == run or known.role == GONE else ""
    if (lasting, owner) != (known.role, known.run):
        connection.execute(
            blobs.update().where(blobs.c.digest == ref.digest).values(role=lasting, run=owner)
        )


def leave(connection: sa.Connection, ref: BlobRef) -> None:
    """Have a blob removed that came and that nobody needs."""
    if not connection.execute(sa.select(blobs.c.digest).where(blobs.c.digest == ref.digest)).all():
        keep_blob(connection, ref, GONE)


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


def release_run(connection: sa.Connection, run: RunId, roles: Sequence[str]) -> None:
    """Mark a run's blobs in these roles as gone."""
    chosen = sa.and_(blobs.c.run == run, blobs.c.role.in_(roles))
    connection.execute(blobs.update().where(chosen).values(role=GONE, run=""))


def release(connection: sa.Connection, run: RunId, digests: Iterable[str]) -> None:
    """Mark some of a run's blobs as gone, but what lasts."""
    every = sorted(set(digests) - {""})
    for begin in range(0, len(every), 500):
        connection.execute(
            blobs.update()
            .where(
                blobs.c.digest.in_(every[begin : begin + 500]),
                blobs.c.run == run,
                blobs.c.role.not_in(LASTING),
            )
            .values(role=GONE, run="")
        )


def gone(connection: sa.Connection, limit: int = 1000) -> list[Digest]:
    """Return blobs that are to be removed."""
    found = connection.execute(sa.select(blobs.c.digest).where(blobs.c.role == GONE).limit(limit))
    return [Digest(one) for one in found.scalars()]


def forget(connection: sa.Connection, digests: Sequence[Digest]) -> None:
    """Forget blobs whose files have been removed."""
    connection.execute(
        blobs.delete().where(blobs.c.digest.in_(list(digests)), blobs.c.role == GONE)
    )
