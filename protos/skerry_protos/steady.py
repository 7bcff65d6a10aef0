"""The clock that deadlines are in: unix time that nobody's setting of a clock moves.

It shows what this machine's clock showed when the process first asked, and what has passed since.
A clock that is put right in the middle of a round would else end it at once, or never.
"""

import time
from functools import cache


def since_boot() -> float:
    """Return seconds since boot, those asleep included."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


@cache
def _began() -> float:
    return time.time() - since_boot()


def unix_s() -> float:
    """Return seconds since 1970, for deadlines only."""
    return _began() + since_boot()
