"""Shared pieces of the cloud's tests: a store on SQLite, and on a PostgreSQL of our own."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from skerry_cloud.store import Store

from tests.postgres import new_database, postgres, postgres_binaries


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """Run a PostgreSQL on a Unix socket in a folder of its own; yield that folder."""
    programs = postgres_binaries()
    if programs is None:
        pytest.skip("PostgreSQL's server is not installed (apt install postgresql)")
    with postgres(programs) as folder:
        yield folder


@pytest.fixture
def postgres_url(postgres_server: str) -> str:
    """Return the URL of an empty PostgreSQL database."""
    return new_database(postgres_server)


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
