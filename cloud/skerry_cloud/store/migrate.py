"""Bring a database to this version's tables at start, or refuse one from a newer version.

Before an older SQLite database is changed, a copy is put beside it: the way back.
"""

import sqlite3
from contextlib import closing
from pathlib import Path

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from skerry_protos.errors import ConfigError
from skerry_protos.versions import installed_version

MIGRATIONS = Path(__file__).parent / "migrations"
LOCK = 0x534B5259
"""The advisory lock that coordinators sharing a PostgreSQL take while they migrate."""


def migrate(engine: sa.Engine) -> None:
    """Make or upgrade the tables; raise ConfigError for a database newer than this code."""
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    scripts = ScriptDirectory.from_config(config)
    head = scripts.get_current_head()
    known = {script.revision for script in scripts.walk_revisions()}
    with engine.connect() as connection:
        current = MigrationContext.configure(connection).get_current_revision()
        connection.rollback()
    if current == head:
        return
    if current is not None and current not in known:
        raise ConfigError(
            f"the database {engine.url.render_as_string(hide_password=True)} is at revision "
            f"{current}, and this coordinator ({installed_version('skerry-cloud')}) knows only up "
            f"to {head}",
            hint="run the newer coordinator again, or put back the copy "
            + _copy_name(engine, head),
        )
    if current is not None:
        _copy(engine, current)
    with engine.begin() as connection:
        if engine.dialect.name == "postgresql":
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(LOCK)))
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


def _copy_name(engine: sa.Engine, revision: str | None) -> str:
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
