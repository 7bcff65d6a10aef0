"""Energy: what the device uses, read from what it has, and a daily budget that throttles.

`meters.py` reads joules; `budget.py` keeps the day's account; the profile's watts stand in where
nothing can be measured, and then every figure says "estimated".
"""

from skerry_edge.energy.budget import Budget, EnergyTable, Throttle, open_budget
from skerry_edge.energy.meters import Meter, find_meter
from skerry_edge.energy.share import Share

__all__ = ["Budget", "EnergyTable", "Meter", "Share", "Throttle", "find_meter", "open_budget"]
