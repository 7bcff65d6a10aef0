"""`make faults`: the full counts of all rows, or of some, and one table.

    python -m tests.faults [--rows 1,4] [--count 20] [--link mqtt]

Exits with 1 when an invariant is violated.
"""

import argparse
import sys
import time
import traceback

from tests.faults import rows
from tests.faults.table import HEAD, Row, Tally, Unable, line


def main() -> int:
    """Do the rows that were asked for and print the table."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--rows", default="", help="their numbers, by commas; all if not given")
    parser.add_argument("--count", type=int, default=0, help="trials of each, not its full count")
    parser.add_argument("--link", choices=("grpc", "mqtt"), help="only this one")
    asked = parser.parse_args()
    numbers = {int(text) for text in asked.rows.split(",") if text}
    lines: list[tuple[str, ...]] = [HEAD]
    broken: list[str] = []
    for row in rows.ROWS:
        if (numbers and row.number not in numbers) or asked.link not in {None, row.link}:
            continue
        began = time.monotonic()
        count = min(asked.count, row.full) or row.full
        if not count:  # of the short form only
            continue
        print(f"{row.key}: {count} …", file=sys.stderr, flush=True)
        tally, why = attempt(row, count)
        lines.append(line(row, tally, why))
        if tally is not None and tally.violations:
            broken += [f"{row.key}: {each}" for each in tally.violations]
        took = f" ({time.monotonic() - began:.0f} s)"
        print("  " + "  ".join(lines[-1][2:]) + took, file=sys.stderr, flush=True)
    widths = [max(len(each[place]) for each in lines) for place in range(len(HEAD) - 1)]
    for each in lines:
        cells = [text.ljust(width) for text, width in zip(each, [*widths, 0], strict=True)]
        print("  ".join(cells).rstrip())
    for violation in broken:
        print(f"violated: {violation}")
    return 1 if broken else 0


def attempt(row: Row, count: int) -> tuple[Tally | None, str]:
    """Do a row; what ends it early is a violation, unless the machine is unable."""
    try:
        return row.run(count, full=True), ""
    except Unable as error:
        return None, str(error)
    except Exception as error:  # noqa: BLE001 (the other rows are still to be done)
        traceback.print_exc()
        return Tally(count, violations=[f"{type(error).__name__}: {error}"[:300]]), ""


if __name__ == "__main__":
    sys.exit(main())
