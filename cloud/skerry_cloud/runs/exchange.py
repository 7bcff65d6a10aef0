"""One question to many devices: who has answered, and when it is over. Values only, no clocks.

An exchange is over when everyone has settled, when its quorum has answered, or at its deadline.
"""

import math
from collections import Counter
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


class _Index:
    """The parts by what is asked of them with every reply: thousands of devices take no longer."""

    def __init__(self, parts: dict[ParcelId, Part]) -> None:
        self.size = len(parts)
        self.open = {task: part for task, part in parts.items() if part.outcome is Outcome.OPEN}
        self.counts = Counter(part.outcome for part in parts.values())
        self.by_device: dict[DeviceId, list[Part]] = {}
        for part in parts.values():
            self.by_device.setdefault(part.device, []).append(part)


@dataclass(slots=True)
class Exchange:
    """Tasks asked together; what becomes of one is noted by `settle` alone."""

    number: int
    round: int
    phase: str
    deadline: float  # unix seconds
    quorum: float
    parts: dict[ParcelId, Part] = field(default_factory=dict)
    over: bool = False
    asked_at: float = 0.0  # unix seconds
    left_s: float | None = None  # its clock stands still, with so much left
    # The number by which the server side that runs now knows it; None: it has not asked yet.
    asked_as: int | None = None
    told: set[ParcelId] = field(default_factory=set)  # what that server side has heard
    _made: _Index | None = field(default=None, repr=False, compare=False)

    @property
    def needed(self) -> int:
        """Return how many replies close the exchange early."""
        return max(1, math.ceil(self.quorum * len(self.parts) - 1e-9))

    @property
    def open(self) -> list[Part]:
        """Return the parts that are still waited for."""
        return list(self._index.open.values())

    def open_of(self, device: DeviceId) -> list[Part]:
        """Return a device's parts that are still waited for."""
        found = self._index.by_device.get(device, [])
        return [part for part in found if part.outcome is Outcome.OPEN]

    def count(self, outcome: Outcome) -> int:
        """Return how many parts came to this."""
        return self._index.counts[outcome]

    def settle(self, task: ParcelId, outcome: Outcome) -> bool:
        """Note what became of a task, as it is recorded; return whether that was news."""
        index, part = self._index, self.parts.get(task)
        if part is None or part.outcome is not Outcome.OPEN:
            return False
        part.outcome = outcome
        index.open.pop(task, None)
        index.counts[Outcome.OPEN] -= 1
        index.counts[outcome] += 1
        return True

    @property
    def settled(self) -> bool:
        """Return whether nothing more is needed."""
        return not self._index.open or self.count(Outcome.REPLIED) >= self.needed

    @property
    def _index(self) -> _Index:
        if self._made is None or self._made.size != len(self.parts):
            self._made = _Index(self.parts)
        return self._made
