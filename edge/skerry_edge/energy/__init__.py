"""Energy: what the device uses, read from what it has, and a daily budget that throttles.

`meters.py` reads joules; `budget.py` keeps the day's account; the profile's watts stand in where
nothing can be measured, and then every figure says "estimated".
"""

from skerry_edge.energy.budget import Budget, EnergyTable, Throttle
from skerry_edge.energy.meters import Meter, find_meter

__all__ = ["Budget", "EnergyTable", "Meter", "Throttle", "find_meter"]
