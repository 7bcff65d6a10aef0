"""A damaged page of an SQLite database costs the run whose rows it held, and no other."""

import asyncio
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from skerry_cloud.store import Store, StoreError
from skerry_cloud.store.mending import DAMAGED, mend
from skerry_cloud.store.tables import devices, runs, tasks

RUNS = ("run-a", "run-b", "run-c")
PAGE = 4096


def fill(connection: sa.Connection) -> None:
    for number, run in enumerate(RUNS):
        values: dict[str, Any] = {
            "id": run,
            "number": number + 5,
            "name": run,
            "app": "0" * 64,
            "app_kind": "native",
            "state": "running",
            "options": {"rounds": 3},
            "created_at": time.time(),
            "created_by": "test",
            "journal": 1,
        }
        connection.execute(runs.insert().values(**values))
        for place in range(40):
            connection.execute(
                tasks.insert().values(
                    id=f"{run}-task-{place}",
                    run=run,
                    round=1,
                    device=f"device-{place}",
                    message_type="train",
                    state="sent",
                    parcel=f"{run}!".encode() * 400,
                    deadline_at=1.0,
                    created_at=1.0,
                )
            )
    for place in range(200):
        connection.execute(
            devices.insert().values(id=f"device-{place}", node=place + 9, enrolled_at=1.0)
        )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "skerry.db"

    async def make() -> None:
        async with Store.open(f"sqlite:///{file}") as store:
            await store.write(fill)

    asyncio.run(make())
    return file


def page_of(path: Path, text: bytes, *, leaf: bool = True) -> int:
    """Return the offset of a page of rows that holds a text."""
    data = path.read_bytes()
    for at in range(0, len(data), PAGE):
        if text in data[at : at + PAGE] and (not leaf or data[at] == 0x0D):
            return at
    raise AssertionError(f"no page has {text!r}")


def spoil(path: Path, at: int) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(b"\xa5" * 64)


def test_a_sound_database_is_left_as_it_is(path: Path, tmp_path: Path) -> None:
    before = path.read_bytes()
    assert mend(path) is None
    assert path.read_bytes() == before
    assert not list(tmp_path.glob("*.damaged-*"))


@pytest.fixture
def spoilt(path: Path) -> Path:
    spoil(path, page_of(path, b"run-b-task-"))
    return path


async def test_a_damaged_page_costs_the_run_it_belongs_to(spoilt: Path) -> None:
    path = spoilt
    async with Store.open(f"sqlite:///{path}") as store:
        found = await store.read(lambda c: c.execute(sa.select(runs.c.id, runs.c.journal)).all())
        assert {row.id: row.journal for row in found} == {"run-a": 1, "run-b": DAMAGED, "run-c": 1}
        counts = await store.read(
            lambda c: c.execute(sa.select(tasks.c.run, sa.func.count()).group_by(tasks.c.run)).all()
        )
        kept = {row[0]: row[1] for row in counts}
        assert (kept["run-a"], kept["run-c"]) == (40, 40)
        assert 0 < kept["run-b"] < 40
        row = await store.read(
            lambda c: c.execute(sa.select(tasks).where(tasks.c.id == "run-a-task-7")).one()
        )
        assert (row.parcel, row.device) == (b"run-a!" * 400, "device-7")
    assert len(await asyncio.to_thread(lambda: list(path.parent.glob("*.damaged-*")))) == 1
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def test_a_damaged_page_of_the_fleet_stops_the_start(path: Path) -> None:
    before = path.read_bytes()
    at = page_of(path, b"device-150")
    spoil(path, at)
    with pytest.raises(StoreError, match="rows of device cannot be read"):
        Store.open(f"sqlite:///{path}")
    path.write_bytes(before)  # as the hint says
    assert mend(path) is None
