"""How long answers take, and so how long to wait for one before asking again."""

from typing import Final

SHORTEST_S: Final = 1.0
FIRST_S: Final = 1.0
LONGEST_S: Final = 10.0


class RoundTrip:
    """A smoothed round trip time (RFC 6298's gain) and the time-out made of it."""

    def __init__(self) -> None:
        self.smoothed_s = 0.0

    def sample(self, seconds: float) -> None:
        """Take one measured round trip; never of something sent twice (Karn)."""
        if self.smoothed_s:
            self.smoothed_s += (seconds - self.smoothed_s) / 8
        else:
            self.smoothed_s = seconds

    def timeout_s(self, tries: int = 0) -> float:
        """Return how long to wait for an answer after `tries` that got none."""
        first = max(SHORTEST_S, 4 * self.smoothed_s) if self.smoothed_s else FIRST_S
        return min(LONGEST_S, first * 2.0 ** min(tries, 8))
