"""All rows, in order."""

from tests.faults import kills
from tests.faults.table import ROWS

__all__ = ["ROWS", "kills"]

ROWS.sort(key=lambda row: (row.number, row.name, row.link))
