"""Shared pieces of the cloud's tests: a store on SQLite, and on a PostgreSQL of our own."""

import os
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from skerry_cloud.store import Store


def postgres_binaries() -> Path | None:
    """Return the folder of PostgreSQL's server programs, or None."""
    versions = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    found = shutil.which("initdb")
    return versions[-1].parent if versions else Path(found).parent if found else None


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """Run a PostgreSQL on a Unix socket in a folder of its own; yield that folder."""
    programs = postgres_binaries()
    if programs is None:
        pytest.skip("PostgreSQL's server is not installed (apt install postgresql)")
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

    call("initdb", "-D", str(data), "-U", "postgres", "-A", "trust", "--no-sync")
    call("pg_ctl", "-D", str(data), "-l", str(logfile), "-w", "-o", f"-k {folder} -h ''", "start")
    try:
        yield str(folder)
    finally:
        call("pg_ctl", "-D", str(data), "-m", "immediate", "-w", "stop")
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def postgres_url(postgres_server: str) -> str:
    """Return the URL of an empty PostgreSQL database."""
    name = f"skerry_{secrets.token_hex(4)}"
    admin = sa.create_engine(
        f"postgresql+psycopg://postgres@/postgres?host={postgres_server}",
        isolation_level="AUTOCOMMIT",
    )
    with admin.connect() as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {name}")
    admin.dispose()
    return f"postgresql://postgres@/{name}?host={postgres_server}"


@pytest.fixture(
    params=[
        "sqlite",
        # In one process: a server takes seconds to make.
        pytest.param("postgresql", marks=pytest.mark.xdist_group("postgres")),
    ]
)
def database(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Return the URL of an empty database, of each kind in turn."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/skerry.db"
    return str(request.getfixturevalue("postgres_url"))


@pytest.fixture
async def store(database: str) -> AsyncIterator[Store]:
    """Return a store on each kind of database in turn."""
    async with Store.open(database) as opened:
        yield opened


@pytest.fixture
async def sqlite_store(tmp_path: Path) -> AsyncIterator[Store]:
    """Return a store on SQLite."""
    async with Store.open(f"sqlite:///{tmp_path}/skerry.db") as opened:
        yield opened
