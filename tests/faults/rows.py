"""All rows, in order."""

from tests.faults import (
    clocks,
    disks,
    fleets,
    floods,
    hostile,
    kills,
    network,
    passes,
    resume,
    rollouts,
)
from tests.faults.table import ROWS

__all__ = [
    "ROWS",
    "clocks",
    "disks",
    "fleets",
    "floods",
    "hostile",
    "kills",
    "network",
    "passes",
    "resume",
    "rollouts",
]

ROWS.sort(key=lambda row: (row.number, row.name, row.link))
