"""A PostgreSQL server of our own, for as long as a block runs."""

import contextlib
import os
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import sqlalchemy as sa


def postgres_binaries() -> Path | None:
    """Return the folder of PostgreSQL's server programs, or None."""
    versions = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    found = shutil.which("initdb")
    return versions[-1].parent if versions else Path(found).parent if found else None


@contextlib.contextmanager
def postgres(programs: Path) -> Iterator[str]:
    """Run a PostgreSQL on a Unix socket in a folder of its own; yield that folder."""
    # The server refuses to run as root.
    become = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
    folder = Path(tempfile.mkdtemp(prefix="skerry-pg-"))
    if become:
        shutil.chown(folder, "postgres")
    data, logfile = folder / "data", folder / "log"

    def call(*words: str) -> None:
        subprocess.run(
            [*become, str(programs / words[0]), *words[1:]],
            check=True,
            timeout=60,
            cwd=folder,
            stdout=subprocess.DEVNULL,
        )

    try:
        call("initdb", "-D", str(data), "-U", "postgres", "-A", "trust", "--no-sync")
        call(
            "pg_ctl", "-D", str(data), "-l", str(logfile), "-w", "-o", f"-k {folder} -h ''", "start"
        )
        try:
            yield str(folder)
        finally:
            call("pg_ctl", "-D", str(data), "-m", "immediate", "-w", "stop")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def new_database(server: str) -> str:
    """Return the URL of an empty database on the server that `postgres` yielded."""
    name = f"skerry_{secrets.token_hex(4)}"
    admin = sa.create_engine(
        f"postgresql+psycopg://postgres@/postgres?host={server}", isolation_level="AUTOCOMMIT"
    )
    with admin.connect() as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {name}")
    admin.dispose()
    return f"postgresql://postgres@/{name}?host={server}"
