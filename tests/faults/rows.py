"""All rows, in order."""

from tests.faults import disks, fleets, hostile, kills, network, resume
from tests.faults.table import ROWS

__all__ = ["ROWS", "disks", "fleets", "hostile", "kills", "network", "resume"]

ROWS.sort(key=lambda row: (row.number, row.name, row.link))
