"""An SQLite database with damaged pages: found at start, named, mended as far as it can be read.

What can be read is copied row by row into a new file; the damaged one stays beside it. A row that
is lost belongs to a run, which is marked so that it is ended with the reason, while all others go
on; or to the fleet itself (devices, operators), and then nothing starts before a person has looked.
"""

import contextlib
import json
import logging
import os
import shutil
import sqlite3
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from skerry_cloud.store.databases import StoreError

log = logging.getLogger(__name__)

LOOK_S = 3.0
"""Longest look at a large database at start; pages beyond are checked by whoever reads them."""
DAMAGED = -1
"""The form of the journal of a run that has lost a part of it (tables.runs.c.journal)."""
NEEDED = frozenset({"run", "question", "muster", "pull", "task"})
"""Tables without whose rows a run cannot go on."""
SPARE = frozenset({"event", "metric", "audit", "device_log", "blob"})
"""Tables whose lost rows are only reported."""


@dataclass(slots=True)
class Lost:
    """What could not be read: rows of each table, and of which runs; "?": nobody knows."""

    rows: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    runs: set[str] = field(default_factory=set)


def mend(path: Path) -> Lost | None:
    """Look at a database before it is used; mend it if need be and return what was lost.

    Raise StoreError when what was lost is not a run's.
    """
    if not path.exists() or _sound(path):
        return None
    aside = path.with_name(f"{path.name}.damaged-{int(time.time())}")
    beside = path.with_name(f"{path.name}.mended")
    for file in (beside, *_beside(beside)):
        file.unlink(missing_ok=True)
    with closing(_opened(path)) as old, closing(sqlite3.connect(beside)) as new:
        lost = _copied(old, new)
    fleet = {table: count for table, count in lost.rows.items() if table not in NEEDED | SPARE}
    if fleet:
        raise StoreError(
            f"the database {path} is damaged: rows of {', '.join(sorted(fleet))} cannot be read",
            hint=f"put back a copy of it; what can be read is in {beside}",
        )
    shutil.copy2(path, aside)
    with beside.open("rb") as made:
        os.fsync(made.fileno())
    for file in _beside(path):
        file.unlink(missing_ok=True)
    beside.replace(path)
    named = ", ".join(sorted(lost.runs)) or "no run"
    log.error("the database was damaged and is mended; hurt: %s; kept: %s", named, aside)
    return lost


def _beside(path: Path) -> list[Path]:
    return [path.with_name(path.name + end) for end in ("-wal", "-shm")]


def _opened(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path)
    connection.text_factory = bytes
    return connection


def _sound(path: Path) -> bool:
    """Return whether no damage was found in the time there is."""
    until = time.monotonic() + LOOK_S
    with closing(sqlite3.connect(path)) as connection:
        connection.set_progress_handler(lambda: time.monotonic() > until, 50_000)
        try:
            found = connection.execute("PRAGMA quick_check(5)").fetchall()
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode == sqlite3.SQLITE_INTERRUPT:
                log.warning("the database %s is too large to be checked whole at start", path)
            return True  # locked, unreadable: who opens it says so
        except sqlite3.DatabaseError as error:
            return error.sqlite_errorcode == sqlite3.SQLITE_NOTADB  # no database: who opens it says
    if found == [("ok",)]:
        return True
    log.error("the database %s is damaged: %s", path, "; ".join(str(row[0]) for row in found))
    return False


def _copied(old: sqlite3.Connection, new: sqlite3.Connection) -> Lost:
    """Copy all that can be read."""
    try:
        schema = old.execute("SELECT type, name, sql FROM sqlite_master").fetchall()
    except sqlite3.DatabaseError as error:
        raise StoreError(
            f"the database is damaged beyond reading: {error}", hint="put back a copy of it"
        ) from error
    texts = [(kind.decode(), name.decode(), sql and sql.decode()) for kind, name, sql in schema]
    lost = Lost()
    new.execute("PRAGMA journal_mode=OFF")
    for kind, name, sql in texts:
        if kind == "table" and sql and not name.startswith("sqlite_"):
            new.execute(sql)
            _copy_table(old, new, name, lost)
    for kind, _, sql in texts:
        if kind != "table" and sql:
            new.execute(sql)
    every = "?" in lost.runs
    why = json.dumps({"what": "damage", "why": "a part of its journal was lost with a disk page"})
    for (run,) in new.execute("SELECT id FROM run").fetchall():
        if every or run in lost.runs:
            marked = "UPDATE run SET journal = ?, waiting = ? WHERE id = ?"
            new.execute(marked, (DAMAGED, why, run))
    new.commit()
    return lost


def _copy_table(old: sqlite3.Connection, new: sqlite3.Connection, table: str, lost: Lost) -> None:
    columns = [row[1].decode() for row in old.execute(f'PRAGMA table_info("{table}")')]
    names = ", ".join(f'"{column}"' for column in columns)
    marks = ", ".join("?" * len(columns))
    owner = '"run"' if "run" in columns else '"id"' if table == "run" else "''"
    rows, whole = _rows(old, table, owner)
    for number, run in rows.items():
        try:
            chosen = f'SELECT {names} FROM "{table}" WHERE rowid = ?'  # noqa: S608 - our names
            row = old.execute(chosen, (number,)).fetchone()
        except sqlite3.DatabaseError:
            row = None
        if row is None:
            lost.rows[table] += 1
            if table in NEEDED:
                lost.runs.add(run or "?")
            continue
        # Bytes that are text in the old one are text again; blobs are what no text is declared as.
        new.execute(
            f'INSERT INTO "{table}" (rowid, {names}) VALUES (?, {marks})',  # noqa: S608
            (number, *_typed(old, table, number, names, row)),
        )
    if not whole:
        lost.rows[table] += 1
        if table in NEEDED:
            lost.runs.add("?")


def _typed(
    old: sqlite3.Connection, table: str, number: int, names: str, row: tuple[object, ...]
) -> Iterator[object]:
    kinds = ", ".join(f"typeof({name})" for name in names.split(", "))
    found = old.execute(f'SELECT {kinds} FROM "{table}" WHERE rowid = ?', (number,)).fetchone()  # noqa: S608
    for kind, value in zip(found, row, strict=True):
        yield value.decode("utf-8", "replace") if kind == b"text" and value else value  # type: ignore[attr-defined]


def _rows(connection: sqlite3.Connection, table: str, owner: str) -> tuple[dict[int, str], bool]:
    """Return every row's number and run, and whether one way of looking saw them all.

    The table itself and each of its indexes are ways; a damaged page spoils few of them.
    """
    found: dict[int, str] = {}
    ways = ["NOT INDEXED"]
    with contextlib.suppress(sqlite3.DatabaseError):
        indexes = connection.execute(f'PRAGMA index_list("{table}")').fetchall()
        ways += [f'INDEXED BY "{row[1].decode()}"' for row in indexes]
    whole = False
    for way in ways:
        column = owner if "INDEXED BY" not in way or _covers(connection, way, owner) else "''"
        for order in ("ASC", "DESC") if way == "NOT INDEXED" else ("",):
            by = f"ORDER BY rowid {order}" if order else ""
            try:
                chosen = connection.execute(f'SELECT rowid, {column} FROM "{table}" {way} {by}')  # noqa: S608
                for number, run in chosen:
                    found[number] = found.get(number) or (run or b"").decode()
            except sqlite3.DatabaseError:
                continue
            whole = True
    return found, whole


def _covers(connection: sqlite3.Connection, way: str, owner: str) -> bool:
    """Return whether an index has the column that says whose a row is."""
    name = way.partition('"')[2].rstrip('"')
    with contextlib.suppress(sqlite3.DatabaseError):
        columns = [row[2] for row in connection.execute(f'PRAGMA index_info("{name}")')]
        return owner.strip('"').encode() in columns
    return False
