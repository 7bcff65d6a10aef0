"""One question to many devices: who has answered, and when it is over. Values only, no clocks.

An exchange is over when everyone has settled, when its quorum has answered, or at its deadline.
"""

import math
from dataclasses import dataclass, field
from enum import StrEnum

from skerry_protos.messages import DeviceId, Parcel, ParcelId

from skerry_cloud.runs.lifecycle import OPEN_TASKS, TaskState


class Outcome(StrEnum):
    """What became of one device in an exchange."""

    OPEN = "open"
    REPLIED = "replied"
    FAILED = "failed"  # replied that it failed, or its reply could not be taken
    LATE = "late"


def outcome_of(state: TaskState) -> Outcome:
    """Return what a task's recorded state means to its exchange."""
    if state in OPEN_TASKS:
        return Outcome.OPEN
    if state in {TaskState.REPLIED, TaskState.REFUSED}:
        return Outcome.REPLIED
    return Outcome.LATE if state is TaskState.LATE else Outcome.FAILED


@dataclass(slots=True)
class Part:
    """One device's part."""

    task: ParcelId
    device: DeviceId
    node: int
    parcel: Parcel
    outcome: Outcome = Outcome.OPEN
    stored: bool = False  # the device has acknowledged the task
    progress: float = 0.0
    text: str = ""


@dataclass(slots=True)
class Exchange:
    """Tasks asked together."""

    number: int
    round: int
    phase: str
    deadline: float  # unix seconds
    quorum: float
    parts: dict[ParcelId, Part] = field(default_factory=dict)
    over: bool = False
    left_s: float | None = None  # its clock stands still, with so much left
    # The number by which the server side that runs now knows it; None: it has not asked yet.
    asked_as: int | None = None
    told: set[ParcelId] = field(default_factory=set)  # what that server side has heard

    @property
    def needed(self) -> int:
        """Return how many replies close the exchange early."""
        return max(1, math.ceil(self.quorum * len(self.parts) - 1e-9))

    @property
    def open(self) -> list[Part]:
        """Return the parts that are still waited for."""
        return [part for part in self.parts.values() if part.outcome is Outcome.OPEN]

    def count(self, outcome: Outcome) -> int:
        """Return how many parts came to this."""
        return sum(part.outcome is outcome for part in self.parts.values())

    def settle(self, task: ParcelId, outcome: Outcome) -> bool:
        """Note what became of a task, as it is recorded; return whether that was news."""
        part = self.parts.get(task)
        if part is None or part.outcome is not Outcome.OPEN:
            return False
        part.outcome = outcome
        return True

    @property
    def settled(self) -> bool:
        """Return whether nothing more is needed."""
        return not self.open or self.count(Outcome.REPLIED) >= self.needed
