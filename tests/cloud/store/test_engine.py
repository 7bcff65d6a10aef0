"""The store: what `write` returned is kept, what failed is not, on SQLite and on PostgreSQL."""

import asyncio
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from skerry_cloud.store import FullDiskError, Store, StoreError, migrate
from skerry_cloud.store.databases import database_url
from skerry_cloud.store.tables import audit, metadata
from skerry_protos.errors import ConfigError


def note(number: int, detail: str = "") -> sa.Insert:
    """Return an insert that a test can recognise."""
    return audit.insert().values(
        at=float(number),
        operator="test",
        action="note",
        target=str(number),
        outcome="ok",
        detail={"text": detail},
    )


def adding(number: int) -> Callable[[sa.Connection], object]:
    """Return a function for `write` that leaves `note(number)`."""
    return lambda connection: connection.execute(note(number))


async def targets(store: Store) -> set[str]:
    """Return what `note` left in the store."""
    rows = await store.read(lambda c: c.execute(sa.select(audit.c.target)).scalars().all())
    return set(rows)


async def test_what_write_returned_is_there_to_read(store: Store) -> None:
    assert await store.write(lambda c: c.execute(note(1)).inserted_primary_key) == (1,)
    assert await targets(store) == {"1"}


async def test_writes_queued_together_share_commits_and_all_arrive(store: Store) -> None:
    commits = 0

    @sa.event.listens_for(store._writer, "commit")
    def count(_connection: sa.Connection) -> None:
        nonlocal commits
        commits += 1

    await asyncio.gather(*(store.write(adding(n)) for n in range(500)))
    assert await targets(store) == {str(n) for n in range(500)}
    assert commits <= 50


async def test_a_function_that_fails_undoes_only_itself(store: Store) -> None:
    def fails(connection: sa.Connection) -> None:
        connection.execute(note(13))
        raise ValueError("not this one")

    def breaks_a_constraint(connection: sa.Connection) -> None:
        connection.execute(note(14))
        connection.execute(note(15).values(id=1))
        connection.execute(note(15).values(id=1))

    outcomes = await asyncio.gather(
        store.write(lambda c: c.execute(note(1))),
        store.write(fails),
        store.write(breaks_a_constraint),
        store.write(lambda c: c.execute(note(2))),
        return_exceptions=True,
    )
    assert isinstance(outcomes[1], ValueError)
    assert isinstance(outcomes[2], sa.exc.IntegrityError)
    assert await targets(store) == {"1", "2"}


async def test_a_reader_cannot_write_to_sqlite(sqlite_store: Store) -> None:
    with pytest.raises(StoreError, match="readonly"):
        await sqlite_store.read(lambda c: c.execute(note(1)))


async def test_two_processes_that_write_to_one_sqlite_file_never_see_a_lock(
    tmp_path: Path,
) -> None:
    url = f"sqlite:///{tmp_path}/skerry.db"
    async with Store.open(url) as first, Store.open(url) as second:
        await asyncio.gather(*(one.write(adding(n)) for n, one in enumerate([first, second] * 40)))
        assert len(await targets(first)) == 80


async def test_a_closed_store_refuses_with_one_line(sqlite_store: Store) -> None:
    await sqlite_store.close()
    with pytest.raises(StoreError, match="closed"):
        await sqlite_store.write(lambda c: c.execute(note(1)))
    with pytest.raises(StoreError, match="closed"):
        await sqlite_store.read(lambda c: c.execute(sa.select(audit)))


WRITER = """
import asyncio, sys
import sqlalchemy as sa
from skerry_cloud.store import Store
from skerry_cloud.store.tables import audit
async def main():
    store = Store.open(sys.argv[1])
    async def one(number):
        await store.write(lambda c: c.execute(audit.insert().values(at=0.0, operator="o",
            action="a", target=str(number), outcome="ok", detail={})))
        print(number, flush=True)
    number = 0
    while True:
        await asyncio.gather(*(one(number + i) for i in range(20)))
        number += 20
asyncio.run(main())
"""


async def test_a_killed_process_loses_nothing_it_was_told_is_kept(database: str) -> None:
    process = subprocess.Popen(  # noqa: ASYNC220 - nothing else waits in this loop
        [sys.executable, "-c", WRITER, database], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    told = [process.stdout.readline().strip() for _ in range(200)]
    process.send_signal(signal.SIGKILL)
    told += process.stdout.read().split()
    process.stdout.close()
    process.wait(timeout=10)
    async with Store.open(database) as store:
        assert set(told) <= await targets(store)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Return a folder on a file system of 3 MB."""
    folder = tmp_path / "small"
    folder.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(folder)],
        check=False,
        capture_output=True,
    )
    if made.returncode:
        pytest.skip("only root may mount a small file system")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


async def test_a_full_disk_holds_writes_back_and_they_go_on_when_space_is_back(
    small_disk: Path,
) -> None:
    async with Store.open(f"sqlite:///{small_disk}/skerry.db") as store:
        await store.write(lambda c: c.execute(note(1)))
        ballast = small_disk / "ballast"
        with ballast.open("wb") as file:
            while True:
                try:
                    os.write(file.fileno(), bytes(4096))
                except OSError:
                    break
        text = "x" * 200_000
        with pytest.raises(FullDiskError, match="no space left"):
            await store.write(lambda c: c.execute(note(2, text)), patience_s=0.0)
        assert isinstance(store.stuck, FullDiskError)
        waiting = asyncio.create_task(store.write(lambda c: c.execute(note(3, text))))
        done, _ = await asyncio.wait([waiting], timeout=0.5)
        assert not done
        assert await targets(store) == {"1"}
        ballast.unlink()
        await asyncio.wait_for(waiting, 20)
        assert store.stuck is None
        assert await targets(store) == {"1", "3"}


async def test_a_lost_postgresql_connection_is_made_again(postgres_url: str) -> None:
    async with Store.open(postgres_url) as store:
        await store.write(lambda c: c.execute(note(1)))

        def kill_the_others(connection: sa.Connection) -> None:
            connection.exec_driver_sql(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )

        async with Store.open(postgres_url) as other:
            await other.write(kill_the_others)
        await store.write(lambda c: c.execute(note(2)))
        assert await targets(store) == {"1", "2"}


async def test_the_migrations_make_the_tables_that_the_code_knows(database: str) -> None:
    async with Store.open(database) as store:
        with store._writer.connect() as connection:
            assert compare_metadata(MigrationContext.configure(connection), metadata) == []
    async with Store.open(database):
        pass  # opening it again changes nothing and fails nowhere


NEXT = """
import sqlalchemy as sa
from alembic import op
revision, down_revision = "9000", %r
def upgrade():
    op.add_column("operator", sa.Column("shoe_size", sa.Integer))
"""


async def test_an_older_sqlite_database_is_copied_and_then_upgraded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"sqlite:///{tmp_path}/skerry.db"
    async with Store.open(url) as store:
        await store.write(lambda c: c.execute(note(1)))
        head = await store.read(
            lambda c: c.exec_driver_sql("SELECT version_num FROM alembic_version").scalar_one()
        )
    newer = tmp_path / "migrations"
    shutil.copytree(migrate.MIGRATIONS, newer)
    (newer / "versions" / "9000_shoe_size.py").write_text(NEXT % head)
    with monkeypatch.context() as patch:
        patch.setattr(migrate, "MIGRATIONS", newer)
        async with Store.open(url) as store:
            assert await targets(store) == {"1"}
            await store.read(lambda c: c.exec_driver_sql("SELECT shoe_size FROM operator"))
    copy = tmp_path / f"skerry.db.before-upgrade-from-{head}"
    assert copy.stat().st_mode & 0o777 == 0o600
    with pytest.raises(ConfigError, match=f"put back the copy {copy}"):
        Store.open(url)
    async with Store.open(f"sqlite:///{copy}") as store:
        assert await targets(store) == {"1"}


def test_every_file_of_a_migration_is_named_after_its_revision() -> None:
    config = Config()
    config.set_main_option("script_location", str(migrate.MIGRATIONS))
    scripts = ScriptDirectory.from_config(config)
    every = [(script.revision, Path(script.path).name[:5]) for script in scripts.walk_revisions()]
    assert every == [(revision, f"{revision}_") for revision, _ in every]
    assert scripts.get_current_head() == max(revision for revision, _ in every)


async def test_a_database_newer_than_the_code_is_refused_with_the_way_back(database: str) -> None:
    async with Store.open(database) as store:
        await store.write(
            lambda c: c.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
        )
    with pytest.raises(ConfigError, match=r"9999.*newer coordinator again"):
        Store.open(database)


def test_an_sqlite_database_is_private_and_a_url_we_cannot_use_is_named(tmp_path: Path) -> None:
    for url in ["sqlite://", "sqlite:///:memory:", "mysql://host/db", "no url"]:
        with pytest.raises(ConfigError, match="postgresql://user"):
            database_url(url)
    with pytest.raises(StoreError, match="unable to open"):
        Store.open(f"sqlite:///{tmp_path}/absent/skerry.db")
    with pytest.raises(StoreError, match="does not answer") as refusal:
        Store.open("postgresql://me:secret@127.0.0.1:1/x")
    assert "secret" not in str(refusal.value)


async def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "skerry.db").write_bytes(b"not a database at all" * 100)
    with pytest.raises(StoreError, match="not a database"):
        Store.open(f"sqlite:///{tmp_path}/skerry.db")
