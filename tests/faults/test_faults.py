"""The short form of every row of the fault matrix; `make faults` does the full counts."""

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.faults.rows import ROWS
from tests.faults.table import Row, Unable
from tests.faults.world import World

pytestmark = [pytest.mark.network, pytest.mark.broker, pytest.mark.timeout(240)]


class Worlds:
    """Worlds that rows with the same wishes share."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self._folder = folder
        self._stack = stack
        self._open: dict[str, World] = {}

    def of(self, row: Row) -> World:
        """Return the world that a row wants, opened at its first use."""
        key = json.dumps([row.link, row.devices, row.settings])
        if key not in self._open:
            home = self._folder / str(len(self._open))
            world = World(home, row.link, row.devices, settings=row.settings)
            self._open[key] = self._stack.enter_context(world)
        return self._open[key]


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worlds]:
    with ExitStack() as stack:
        yield Worlds(tmp_path_factory.mktemp("worlds"), stack)


BOTH = {1, 2}


def short_form() -> list[Row]:
    """Return the rows to do here: the kills on both links, of the others every second."""
    short = [row for row in ROWS if row.short]
    turn = {name: place for place, name in enumerate(dict.fromkeys(row.name for row in short))}
    links = {row.name: [one.link for one in short if one.name == row.name] for row in short}
    return [
        row
        for row in short
        if row.number in BOTH or row.link == links[row.name][turn[row.name] % len(links[row.name])]
    ]


@pytest.mark.parametrize("row", short_form(), ids=lambda row: row.key)
def test_a_fault_breaks_no_invariant(row: Row, worlds: Worlds) -> None:
    try:
        tally = row.run_in(worlds.of(row), row.short)
    except Unable as error:
        pytest.skip(str(error))
    assert tally.trials >= row.short
    assert not tally.violations, "\n".join(tally.violations)
