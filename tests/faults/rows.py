"""All rows, in order."""

from tests.faults import clocks, disks, fleets, hostile, kills, network, passes, resume
from tests.faults.table import ROWS

__all__ = ["ROWS", "clocks", "disks", "fleets", "hostile", "kills", "network", "passes", "resume"]

ROWS.sort(key=lambda row: (row.number, row.name, row.link))
