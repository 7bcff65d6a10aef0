"""SQLite and PostgreSQL alike: engines set up as the store needs them, and errors in our words."""

import sqlite3

import sqlalchemy as sa
from skerry_protos.errors import ConfigError, SkerryError

READERS = 4
BUSY_TIMEOUT_S = 10.0


class StoreError(SkerryError):
    """The database failed; what was not acknowledged was not kept."""

    code = "store"


class FullDiskError(StoreError):
    """There is no space left for the database: free some, nothing that was accepted is lost."""

    code = "disk-full"


class UnreachableError(StoreError):
    """The database server does not answer; nothing of the transaction was kept."""

    code = "store-unreachable"


def database_url(url: str) -> sa.URL:
    """Return a URL with the driver we use, or raise ConfigError."""
    try:
        parsed = sa.make_url(url)
    except sa.exc.ArgumentError as error:
        raise ConfigError(
            f"no database URL: {url!r}",
            hint="use sqlite:////path/to/file.db or postgresql://user:password@host/database",
        ) from error
    match parsed.drivername.partition("+")[0]:
        case "sqlite" if parsed.database and parsed.database != ":memory:":
            return parsed.set(drivername="sqlite+pysqlite")
        case "postgresql" | "postgres":
            return parsed.set(drivername="postgresql+psycopg")
    raise ConfigError(
        f"cannot keep state in {parsed.render_as_string(hide_password=True)!r}",
        hint="use sqlite:////path/to/file.db or postgresql://user:password@host/database",
    )


def engine_for(url: sa.URL, *, writes: bool) -> sa.Engine:
    size = 1 if writes else READERS
    if url.get_backend_name() == "sqlite":
        return _sqlite_engine(url, size, writes=writes)
    try:
        return sa.create_engine(
            url,
            pool_size=size,
            max_overflow=0,
            pool_pre_ping=True,
            connect_args={"connect_timeout": int(BUSY_TIMEOUT_S)},
        )
    except ImportError as error:
        raise ConfigError(
            "PostgreSQL needs its driver", hint="pip install 'skerry-cloud[postgres]'"
        ) from error


def _sqlite_engine(url: sa.URL, size: int, *, writes: bool) -> sa.Engine:
    engine = sa.create_engine(
        url,
        poolclass=sa.QueuePool,
        pool_size=size,
        max_overflow=0,
        connect_args={"check_same_thread": False, "timeout": BUSY_TIMEOUT_S},
    )

    @sa.event.listens_for(engine, "connect")
    def configure(connection: sqlite3.Connection, _record: object) -> None:
        # We say BEGIN ourselves: the driver's implicit one is deferred, and a deferred transaction
        # that turns into a writing one fails with "locked" whatever the busy timeout.
        connection.isolation_level = None
        if writes:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=FULL")
            connection.execute("PRAGMA foreign_keys=ON")
        else:
            connection.execute("PRAGMA query_only=ON")

    @sa.event.listens_for(engine, "begin")
    def begin(connection: sa.Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine


def fatal(error: Exception) -> bool:
    """Return whether the whole transaction is lost, whoever's function met it."""
    if isinstance(error, sa.exc.DBAPIError):
        return is_full(error) or is_lost(error)
    return isinstance(error, StoreError)


def is_full(error: sa.exc.DBAPIError) -> bool:
    """Return whether the database has no space; SQLite then undoes the whole transaction."""
    if isinstance(error.orig, sqlite3.Error):
        code = getattr(error.orig, "sqlite_errorcode", 0)
        return code in {
            sqlite3.SQLITE_FULL,
            sqlite3.SQLITE_IOERR_WRITE,
            sqlite3.SQLITE_IOERR_SHMSIZE,
        }
    return getattr(error.orig, "sqlstate", "") == "53100"


def is_lost(error: sa.exc.DBAPIError) -> bool:
    """Return whether the database server went away."""
    return error.connection_invalidated or (
        not isinstance(error.orig, sqlite3.Error)
        and isinstance(error, sa.exc.OperationalError)
        and not getattr(error.orig, "sqlstate", None)
    )


def translated(error: Exception, shown: str) -> Exception:
    """Return the error as one that says what to do next."""
    if isinstance(error, StoreError):
        return error
    if isinstance(error, sa.exc.DBAPIError):
        reason = " ".join(str(error.orig).split())[:300]
        if is_full(error):
            return FullDiskError(
                f"no space left for the database {shown}",
                hint="free space there; devices and runs wait, and go on by themselves",
            )
        if is_lost(error):
            return UnreachableError(
                f"the database {shown} does not answer: {reason}",
                hint="start it, or check --database",
            )
        return StoreError(f"the database {shown} failed: {reason}")
    if isinstance(error, OSError):
        return StoreError(f"the database {shown} failed: {error}")
    return error
