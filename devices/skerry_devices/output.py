"""What commands print: a table for people, JSON or JSON lines for programs."""

import json
import shutil
import sys
import textwrap
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console, JustifyMethod
    from rich.table import Table

Item = Mapping[str, Any]
EMPTY = frozenset({"", "-"})
GAP = 2
"""Characters between two columns."""
CRAMPED = 4
"""Where a terminal is too narrow even for the least, a column keeps so many characters."""


class Format(StrEnum):
    """How a command prints its result."""

    TABLE = "table"
    JSON = "json"
    JSONL = "jsonl"


Output = Annotated[
    Format, typer.Option("--output", "-o", help="How to print: table, json or jsonl.")
]


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a table: its title, what it says of an item, and what it does when cramped."""

    title: str
    says: Callable[[Item], str]
    least: int = 0
    """Fold it at words down to so many characters where the terminal is narrow; 0: never."""
    spare: int = 0
    """Leave it out where folding is not enough, the highest number first; 0: never."""
    right: bool = False
    """Numbers stand at the right."""
    cut: int = 0
    """An id: on a narrow terminal show its beginning, so long or as long as is unique; 0: all."""


def console(*, stderr: bool = False) -> "Console":
    """Return the terminal; where there is none, wide enough that no table is cut."""
    from rich.console import Console

    file = sys.stderr if stderr else sys.stdout
    return Console(
        stderr=stderr, highlight=False, width=None if file.isatty() else 400, soft_wrap=False
    )


def table(
    columns: Sequence[Column],
    items: Sequence[Item],
    *,
    title: str = "",
    width: int | None = None,
) -> "Table":
    """Return a table without lines, titles in capitals, that fits a terminal of `width` columns.

    Where not all fits, columns that say nothing and spare ones are left out, and long texts folded;
    a line below names the columns that would have said something.
    """
    from rich.table import Table
    from rich.text import Text

    width = console().width if width is None else width
    cells = [[column.says(item) for item in items] for column in columns]

    def natural() -> list[int]:
        return [_natural(*each) for each in zip(columns, cells, strict=True)]

    if sum(natural()) + GAP * (len(columns) - 1) > width:
        cells = [
            beginnings(texts, column.cut) if column.cut else texts
            for column, texts in zip(columns, cells, strict=True)
        ]
    widths = fit(columns, natural(), width, empty=[set(texts) <= EMPTY for texts in cells])
    made = Table(box=None, pad_edge=False, header_style="bold", title=title, title_justify="left")
    for at, chars in widths.items():
        side: JustifyMethod = "right" if columns[at].right else "left"
        made.add_column(columns[at].title.upper(), overflow="fold", width=chars, justify=side)
    for row in range(len(items)):
        made.add_row(*(Text(cells[at][row]) for at in widths))
    missing = [
        each.title
        for at, each in enumerate(columns)
        if at not in widths and not set(cells[at]) <= EMPTY
    ]
    if missing:
        made.caption = f"no room for: {', '.join(missing)} (-o json has them)"
        made.caption_justify = "left"
    return made


def fit(
    columns: Sequence[Column], natural: Sequence[int], width: int, empty: Sequence[bool] = ()
) -> dict[int, int]:
    """Return the width of each column that is shown, by its place, for a terminal of `width`.

    `natural` are the widths that would fold nothing, `empty` which columns say nothing. These go
    first, then spare columns, then texts are folded, those furthest above their least first; only
    when that is not enough either, what should not be folded is.
    """
    kept = dict(enumerate(natural))

    def room() -> int:
        return width - GAP * (len(kept) - 1)

    def least(at: int) -> int:
        return min(natural[at], columns[at].least or natural[at])

    if sum(kept.values()) > room():
        for at, says_nothing in enumerate(empty):
            if says_nothing and len(kept) > 1:
                del kept[at]
    for at in sorted(kept, key=lambda each: -columns[each].spare):
        if columns[at].spare and sum(map(least, kept)) > room():
            del kept[at]
    floors = {at: least(at) for at in kept}
    if sum(floors.values()) > room():
        floors = {at: min(natural[at], len(columns[at].title), CRAMPED) for at in kept}
    while sum(kept.values()) > room():
        loose = [at for at in kept if kept[at] > floors[at]]
        if not loose:
            break
        kept[max(loose, key=lambda at: kept[at] - floors[at])] -= 1
    return kept


def beginnings(ids: Sequence[str], chars: int) -> list[str]:
    """Return the beginnings of ids, `chars` long or as much longer as tells them apart."""
    while len({each[:chars] for each in ids}) < len(set(ids)):
        chars += 1
    return [each[:chars] for each in ids]


def _natural(column: Column, texts: Iterable[str]) -> int:
    """Return how many characters a column takes when nothing in it is folded."""
    from rich.cells import cell_len

    lines = (line for text in texts for line in text.splitlines() or [""])
    return max([len(column.title), *map(cell_len, lines)])


def show_list(
    items: Sequence[Item], columns: Sequence[Column], form: Format, *, empty: str
) -> None:
    """Print a list; `empty` tells a person what to do when there is nothing in it."""
    if form is Format.JSON:
        print(json.dumps(list(items), indent=2))
    elif form is Format.JSONL:
        for item in items:
            print(json.dumps(item))
    elif items:
        console().print(table(columns, items))
    else:
        print(empty, file=sys.stderr)


def show_one(item: Item, rows: Sequence[tuple[str, str]], form: Format) -> None:
    """Print one thing: as JSON, or as lines of `name  value` for people."""
    if form is not Format.TABLE:
        print(json.dumps(item, indent=2 if form is Format.JSON else None))
        return
    width = max(len(name) for name, _ in rows) + 2
    room = shutil.get_terminal_size().columns - width if sys.stdout.isatty() else 0
    for name, value in rows:
        lines = [value]
        if room > CRAMPED and len(value) > room:
            lines = textwrap.wrap(value, room, break_long_words=False, break_on_hyphens=False)
        for number, line in enumerate(lines):
            print(f"{name if not number else '':<{width}}{line}".rstrip())


def done(item: Item, sentence: str, form: Format) -> None:
    """Print what a command did."""
    if form is Format.TABLE:
        print(sentence)
    else:
        print(json.dumps(item, indent=2 if form is Format.JSON else None))


def shown_path(path: Path) -> str:
    """Return a path as a person in this folder would type it."""
    full, here = path.resolve(), Path.cwd()
    return str(full.relative_to(here)) if full.is_relative_to(here) else str(full)


def ago(unix_s: float | None, *, now: float | None = None) -> str:
    """Return how long ago a moment was, as people say it."""
    from skerry_cloud.durations import shown_duration

    if not unix_s:
        return "never"
    gone = (time.time() if now is None else now) - unix_s
    if gone > 3600.0:  # seconds, and after days minutes, say nothing any more
        gone -= gone % (3600.0 if gone > 86400.0 else 60.0)
    return "now" if abs(gone) < 1 else f"{shown_duration(gone)} ago" if gone > 0 else "just now"


def ahead(unix_s: float | None) -> str:
    """Return how long until a moment."""
    from skerry_cloud.durations import shown_duration

    if not unix_s:
        return "-"
    left = unix_s - time.time()
    return f"in {shown_duration(left)}" if left > 0 else "passed"


def clock(unix_s: float) -> str:
    """Return a moment as local time of day, with the date when it is not today."""
    moment, today = time.localtime(unix_s), time.localtime()
    form = "%H:%M:%S" if moment[:3] == today[:3] else "%Y-%m-%d %H:%M:%S"
    return time.strftime(form, moment)


def size(nbytes: float | None) -> str:
    """Return a number of bytes as people say it."""
    if nbytes is None:
        return "-"
    for unit in ("B", "KB", "MB", "GB"):
        if nbytes < 1000 or unit == "GB":
            return (
                f"{nbytes:.0f} {unit}" if unit == "B" or nbytes >= 100 else f"{nbytes:.1f} {unit}"
            )
        nbytes /= 1000
    raise AssertionError


def coded_size(nbytes: float, plain: float) -> str:
    """Return a number of bytes, and where it was coded its part of what it would have been."""
    return size(nbytes) + (f" ({nbytes / plain:.3g}x)" if plain > nbytes else "")


def labels(item: Mapping[str, str] | None) -> str:
    """Return labels as `k=v,k=v`."""
    return ",".join(f"{key}={value}" for key, value in sorted((item or {}).items())) or "-"
