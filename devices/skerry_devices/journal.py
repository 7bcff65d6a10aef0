"""A run's story, put together from its journal of events: rounds, their phases, and each device.

This is the pure core of `skerry run`, `runs watch` and `runs show`: events in, values out.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

ENDED = frozenset({"completed", "failed", "stopped", "interrupted"})
METRICS_FIRST = ("accuracy", "loss")


class Answer(StrEnum):
    """What came of asking one device in one phase."""

    ASKED = "asked"
    REPLIED = "replied"
    FAILED = "failed"
    LATE = "late"
    REFUSED = "refused"


@dataclass(slots=True)
class Part:
    """One device's part in a phase."""

    device: str
    answer: Answer = Answer.ASKED
    why: str = ""
    took_s: float = 0.0
    compute_s: float = 0.0
    bytes_up: int = 0
    plain_bytes: int = 0  # what a coded reply would have had without
    codec: str = ""


@dataclass(slots=True)
class Phase:
    """One question to many devices: train, evaluate, or what an app asks."""

    name: str
    asked_at: float = 0.0
    until: float = 0.0
    closed_at: float = 0.0
    parts: dict[str, Part] = field(default_factory=dict)

    def count(self, *answers: Answer) -> int:
        """Return how many devices have come to one of these answers."""
        return sum(part.answer in answers for part in self.parts.values())


@dataclass(slots=True)
class Round:
    """One round: its phases in order, and the metrics of the whole round by phase."""

    number: int
    phases: dict[str, Phase] = field(default_factory=dict)
    metrics: dict[str, dict[str, float]] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        """Return how long it has taken from the first question to the last answer."""
        starts = [phase.asked_at for phase in self.phases.values() if phase.asked_at]
        ends = [phase.closed_at for phase in self.phases.values() if phase.closed_at]
        return max(ends) - min(starts) if starts and ends else 0.0


@dataclass(slots=True)
class Story:
    """Everything the journal has told so far."""

    state: str = "created"
    why: str = ""
    rounds: int = 0
    by_round: dict[int, Round] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    last: int = 0

    @property
    def ended(self) -> bool:
        """Return whether nothing more will happen."""
        return self.state in ENDED

    def tell(self, events: Iterable[Mapping[str, Any]]) -> None:
        """Go on with these events, in order."""
        for event in events:
            self.last = max(self.last, int(event["id"]))
            self._tell(
                str(event["kind"]), int(event["round"]), str(event["device"]), event["data"], event
            )

    def _tell(
        self,
        kind: str,
        number: int,
        device: str,
        data: Mapping[str, Any],
        event: Mapping[str, Any],
    ) -> None:
        at = float(event["at"])
        match kind:
            case "state":
                self.state, self.why = str(data["state"]), str(data.get("why", ""))
            case "round":
                self.rounds = int(data.get("rounds") or self.rounds)
                self.round(number)
            case "asked":
                phase = self.phase(number, data)
                phase.asked_at, phase.until = phase.asked_at or at, float(data["until_unix_s"])
                phase.closed_at = 0.0
                for each in data["devices"]:
                    phase.parts[each] = Part(each)
            case "reply":
                part = self.part(number, data, device)
                part.answer, part.took_s = Answer.REPLIED, self.since(number, data, at)
                part.compute_s = float(data.get("compute_s", 0.0))
                part.bytes_up = int(data.get("bytes", 0))
                part.codec = str(data.get("codec", ""))
                part.plain_bytes = int(data.get("plain_bytes", part.bytes_up))
            case "failure" | "late" | "refused":
                part = self.part(number, data, device)
                part.answer = {"failure": Answer.FAILED, "late": Answer.LATE}.get(
                    kind, Answer.REFUSED
                )
                part.why, part.took_s = str(data.get("why", "")), self.since(number, data, at)
            case "closed":
                self.phase(number, data).closed_at = at
            case "metrics":
                values = {name: float(value) for name, value in data["values"].items()}
                self.round(number).metrics.setdefault(str(data["phase"]), {}).update(values)
            case "note":
                self.notes.append(str(data.get("text", "")))
            case _:  # a newer coordinator may tell more
                pass

    def round(self, number: int) -> Round:
        """Return a round, begun now when it is new."""
        return self.by_round.setdefault(number, Round(number))

    def phase(self, number: int, data: Mapping[str, Any]) -> Phase:
        """Return the phase that an event is about."""
        name = str(data.get("phase", "")) or "query"
        return self.round(number).phases.setdefault(name, Phase(name))

    def part(self, number: int, data: Mapping[str, Any], device: str) -> Part:
        """Return the part of the device that an event is about."""
        return self.phase(number, data).parts.setdefault(device, Part(device))

    def since(self, number: int, data: Mapping[str, Any], at: float) -> float:
        """Return how long after its phase was asked an event came."""
        asked = self.phase(number, data).asked_at
        return max(0.0, at - asked) if asked else 0.0

    @property
    def phases(self) -> list[tuple[Round, Phase]]:
        """Return every phase in order."""
        ordered = [self.by_round[number] for number in sorted(self.by_round)]
        return [(each, phase) for each in ordered for phase in each.phases.values()]

    @property
    def devices(self) -> list[dict[str, Any]]:
        """Return a row for each device: how often it was asked and what came of it."""
        rows: dict[str, dict[str, Any]] = {}
        for _, phase in self.phases:
            for part in phase.parts.values():
                row = rows.setdefault(
                    part.device,
                    {"device": part.device, "asked": 0, "compute_s": 0.0, "bytes_up": 0}
                    | {"plain_bytes": 0, "codec": "", "last_why": ""}
                    | {answer.value: 0 for answer in Answer if answer is not Answer.ASKED},
                )
                row["asked"] += 1
                row["compute_s"] += part.compute_s
                row["bytes_up"] += part.bytes_up
                row["plain_bytes"] += part.plain_bytes
                row["codec"] = part.codec or row["codec"]
                if part.answer is not Answer.ASKED:
                    row[part.answer.value] += 1
                if part.why:
                    row["last_why"] = part.why
        return [rows[device] for device in sorted(rows)]


def shown_metrics(values: Mapping[str, float]) -> str:
    """Return metrics as people read them: accuracy and loss first, counts left out."""
    names = sorted(
        (name for name in values if name not in {"num-examples", "num_examples"}),
        key=lambda name: (
            next((i for i, first in enumerate(METRICS_FIRST) if first in name), 9),
            name,
        ),
    )
    return "  ".join(f"{name} {shown_value(name, values[name])}" for name in names)


def shown_value(name: str, value: float) -> str:
    """Return a metric's value: accuracies as percent."""
    if "acc" in name and 0.0 <= value <= 1.0:
        return f"{value:.1%}"
    return f"{value:.4g}"
