"""Rows of the fault matrix: what one is, what became of it, and the table of all.

A row is a function `(Tally, World or folder)` under `@row(...)`; it does `tally.count` faults and
calls `tally.judge(trip)` for every run it began. What breaks an invariant is written into
`tally.violations`; a row that cannot be done on this machine raises `Unable` with the reason.
"""

import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.faults.invariants import Verdict, judge
from tests.faults.machine import resident
from tests.faults.trips import Clean, Trip
from tests.faults.world import World

LINKS = ("grpc", "mqtt")


class Unable(Exception):
    """This machine cannot do this row; the text says why."""


@dataclass
class Tally:
    """What a row did, and what it found."""

    count: int
    full: bool = False
    """Whether these are the full counts: what is measured may be asserted, too."""
    trials: int = 0
    updates: int = 0
    retrained: int = 0
    spent: int = 0
    due: int = 0
    exact: bool | None = None
    slowest_s: float | None = None
    notes: list[str] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)

    def judge(
        self,
        trip: Trip,
        clean: Clean | None = None,
        *,
        bytes_limit: float = 1.2,
        memory_limit: float = 2.0,
        **more: Any,
    ) -> Verdict:
        """Hold a run that is over against the invariants; `clean` is the same without faults."""
        found = judge(trip, clean, **more)
        self.updates += found.updates
        self.retrained += found.retrained
        self.violations += found.violations
        if clean is not None:
            self.exact = found.exact and self.exact is not False
            self.spent += trip.moved()
            self.due += clean.moved
            if bytes_limit and trip.moved() > clean.moved * bytes_limit:
                self.broke(
                    f"{trip.id}: I4: {trip.moved()} bytes crossed, {clean.moved} without faults"
                )
            for kind, held in resident(trip.world.tree()).items():
                usual = max(clean.resident.get(kind, 0), 64_000_000)
                if held > memory_limit * usual:
                    self.broke(f"I5: a {kind} held {held >> 20} MB, without faults {usual >> 20}")
        return found

    def recovered(self, seconds: float, bound_s: float, what: str) -> None:
        """Note how long a recovery took; in the full counts, more than its bound is a violation.

        The short form runs beside other tests, whose load is not the product's.
        """
        self.slowest_s = max(self.slowest_s or 0.0, seconds)
        if self.full and seconds > bound_s:
            self.broke(f"I6: {what} took {seconds:.1f} s; at most {bound_s:g} s")

    def require(self, claim: object, what: str) -> None:
        """Note a violation unless a claim holds."""
        if not claim:
            self.broke(what)

    def broke(self, what: str) -> None:
        """Note a violation."""
        self.violations.append(what)

    @property
    def ratio(self) -> float | None:
        """Bytes that crossed over those that cross without faults."""
        return self.spent / self.due if self.due else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One fault on one link."""

    number: int
    name: str
    link: str
    full: int
    short: int
    devices: int
    settings: Mapping[str, Any]
    act: Callable[[Tally, World], None]

    @property
    def key(self) -> str:
        return f"{self.number}-{self.name.replace(' ', '-')}-{self.link}"

    def run(self, count: int, *, full: bool) -> Tally:
        """Do the row in a world of its own."""
        with opened(self) as world:
            return self.run_in(world, count, full=full)

    def run_in(self, world: World, count: int, *, full: bool = False) -> Tally:
        """Do the row in a world that may have seen others; it leaves the world whole."""
        tally = Tally(count, full)
        try:
            self.act(tally, world)
        finally:
            world.heal()
        return tally


ROWS: list[Row] = []


def row(
    number: int,
    name: str,
    *,
    full: int,
    short: int = 1,
    links: tuple[str, ...] = LINKS,
    devices: int = 3,
    settings: Mapping[str, Any] | None = None,
) -> Callable[[Callable[[Tally, World], None]], Callable[[Tally, World], None]]:
    """Register a row, once for each link; `full` and `short` are its counts."""

    def register(act: Callable[[Tally, World], None]) -> Callable[[Tally, World], None]:
        ROWS.extend(
            Row(
                number=number,
                name=name,
                link=link,
                full=full,
                short=short,
                devices=devices,
                settings=settings or {},
                act=act,
            )
            for link in links
        )
        return act

    return register


@contextmanager
def opened(row_: Row) -> Iterator[World]:
    """Open the world that a row wants."""
    with (
        tempfile.TemporaryDirectory(prefix="faults-") as home,
        World(Path(home), row_.link, row_.devices, settings=row_.settings) as world,
    ):
        yield world


HEAD = ("fault", "link", "trials", "updates", "retrained", "bytes", "bit-exact", "slowest s", "")


def line(row_: Row, tally: Tally | None, why: str = "") -> tuple[str, ...]:
    """Return a row's line of the table."""
    name = f"{row_.number} {row_.name}"
    if tally is None:
        return (name, row_.link, *("-",) * 6, f"skipped: {why}")
    exact = {None: "-", True: "yes", False: "NO"}[tally.exact]
    said = [*(f"VIOLATED: {one}" for one in tally.violations[:3]), *tally.notes]
    return (
        name,
        row_.link,
        str(tally.trials),
        str(tally.updates),
        str(tally.retrained),
        f"{tally.ratio:.3f}x" if tally.ratio else "-",
        exact,
        "-" if tally.slowest_s is None else f"{tally.slowest_s:.2f}",
        "; ".join(said),
    )
