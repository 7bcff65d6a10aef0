"""Bring a database to this version's tables at start, or refuse one from a newer version.

Before an older SQLite database is changed, a copy is put beside it: the way back. Alembic is read
only when there is something to do: it is a tenth of a coordinator's start.
"""

import contextlib
import sqlite3
import time
from contextlib import closing
from pathlib import Path

import sqlalchemy as sa
from skerry_protos.errors import ConfigError
from skerry_protos.versions import installed_version

from skerry_cloud.store.tables import revisions

MIGRATIONS = Path(__file__).parent / "migrations"
AT = sa.table("alembic_version", sa.column("version_num"))
"""Where Alembic keeps at which revision a database is."""
LOCK = 0x534B5259
"""The advisory lock that coordinators sharing a PostgreSQL take while they migrate."""


def migrate(engine: sa.Engine) -> None:
    """Make or upgrade the tables; raise ConfigError for a database newer than this code."""
    known = {file.name.partition("_")[0] for file in (MIGRATIONS / "versions").glob("[0-9]*.py")}
    head = max(known)
    with engine.connect() as connection:
        new = not sa.inspect(connection).has_table(AT.name)
        current = None if new else connection.execute(sa.select(AT.c.version_num)).scalar()
        connection.rollback()
    if current == head:
        return
    if current is not None and current not in known:
        by = _brought_by(engine, current)
        raise ConfigError(
            f"the database {engine.url.render_as_string(hide_password=True)} is at revision "
            f"{current}{by and f', which skerry-cloud {by} brought it to'}, and this coordinator "
            f"({installed_version('skerry-cloud')}) knows only up to {head}",
            hint="run the newer coordinator again, or put back the copy "
            + _copy_name(engine, head),
        )
    if current is not None:
        _copy(engine, current)
    _upgrade(engine, head)


def _upgrade(engine: sa.Engine, head: str) -> None:
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    with engine.begin() as connection:
        if engine.dialect.name == "postgresql":
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(LOCK)))
        config.attributes["connection"] = connection
        command.upgrade(config, head)
        _sign(connection, head)


def _sign(connection: sa.Connection, revision: str) -> None:
    """Note which version brought the tables here: a later refusal names it."""
    connection.execute(revisions.delete().where(revisions.c.revision == revision))
    version = installed_version("skerry-cloud")
    values = {"revision": revision, "version": version, "at": time.time()}
    connection.execute(revisions.insert().values(**values))


def _brought_by(engine: sa.Engine, revision: str) -> str:
    """Return the version that brought the tables to a revision, or nothing."""
    with contextlib.suppress(sa.exc.SQLAlchemyError), engine.connect() as connection:
        chosen = sa.select(revisions.c.version).where(revisions.c.revision == revision)
        return str(connection.execute(chosen).scalar() or "")
    return ""


def _copy_name(engine: sa.Engine, revision: str) -> str:
    if engine.dialect.name == "sqlite":
        return f"{engine.url.database}.before-upgrade-from-{revision}"
    return "(pg_dump) that you took before the upgrade"


def _copy(engine: sa.Engine, revision: str) -> None:
    """Keep an SQLite database as it was before an upgrade; a server's own backups serve there."""
    if engine.dialect.name != "sqlite":
        return
    copy = Path(_copy_name(engine, revision))
    copy.unlink(missing_ok=True)
    with closing(sqlite3.connect(str(engine.url.database))) as connection:
        connection.execute("VACUUM INTO ?", (str(copy),))
    copy.chmod(0o600)
