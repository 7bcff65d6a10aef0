"""Which of several artefacts of one version a device serves, by what it measured of them.

A row is accuracy, latency, energy and memory of one candidate on this device (the four that OpenEI
calls ALEM: Zhang et al., "OpenEI: An Open Framework for Edge Intelligence", ICDCS 2019). The choice
is the best by the operator's objective among the rows that keep the operator's limits; when none
does, what the coordinator assigned.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

OBJECTIVES = ("assigned", "accuracy", "latency", "energy", "memory")


@dataclass(frozen=True, slots=True, kw_only=True)
class ChoiceTable:
    """The table [choice] of agent.toml; a limit of 0 is none."""

    objective: str = "assigned"
    """What is best: most accuracy, least latency, energy or memory; assigned: the coordinator's."""
    min_accuracy: float = 0.0
    max_latency_ms: float = 0.0
    max_energy_j: float = 0.0
    max_memory_mb: float = 0.0
    sparing: bool = True
    """Serve the candidate with the least energy from 90 % of the day's budget on."""

    def __post_init__(self) -> None:
        if self.objective not in OBJECTIVES:
            raise ValueError(
                f"objective must be one of {', '.join(OBJECTIVES)}, not {self.objective!r}"
            )
        for name in ("min_accuracy", "max_latency_ms", "max_energy_j", "max_memory_mb"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                raise ValueError(f"{name} must be 0 (no limit) or more")


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What was measured of one candidate; what is not known is infinitely bad."""

    target: str  # its path in the models' repository
    digest: str
    accuracy: float = -math.inf  # share of the golden set
    latency_s: float = math.inf  # 95th percentile of one example
    energy_j: float = math.inf  # one example
    energy_source: str = ""
    memory_bytes: float = math.inf
    bad: str = ""
    """Why it may not be served."""

    @classmethod
    def of(
        cls, target: str, digest: str, readings: Mapping[str, float], energy_source: str
    ) -> "Row":
        """Return the row of a self test; without labels, agreement stands for accuracy."""
        return cls(
            target=target,
            digest=digest,
            accuracy=readings.get("accuracy", readings.get("agreement", -math.inf)),
            latency_s=readings.get("latency_p95_s", math.inf),
            energy_j=readings.get("energy_j", math.inf),
            energy_source=energy_source if "energy_j" in readings else "",
            memory_bytes=readings.get("memory_bytes", math.inf),
        )

    @classmethod
    def parse(cls, said: Mapping[str, Any]) -> "Row":
        """Return a row that was kept; raise TypeError or ValueError when it is none."""
        texts = {"target", "digest", "energy_source", "bad"}
        named = {each.name for each in fields(cls)} & said.keys()
        return cls(
            **{key: str(said[key]) if key in texts else float(said[key]) for key in named}  # type: ignore[arg-type]
        )

    def to_json(self) -> dict[str, Any]:
        """Return the row as it is kept; what is not known is left out."""
        return {
            key: value
            for key, value in asdict(self).items()
            if not (isinstance(value, float) and math.isinf(value))
        }

    @property
    def costs(self) -> tuple[float, float, float, float]:
        """Accuracy (negated), latency, energy, memory: less is better in each."""
        return (-self.accuracy, self.latency_s, self.energy_j, self.memory_bytes)


def within(row: Row, table: ChoiceTable) -> bool:
    """Return whether a row keeps the operator's limits."""
    return (
        not row.bad
        and (not table.min_accuracy or row.accuracy >= table.min_accuracy)
        and (not table.max_latency_ms or row.latency_s * 1e3 <= table.max_latency_ms)
        and (not table.max_energy_j or row.energy_j <= table.max_energy_j)
        and (not table.max_memory_mb or row.memory_bytes <= table.max_memory_mb * 2**20)
    )


def choose(
    rows: Sequence[Row], table: ChoiceTable, *, assigned: str, sparing: bool = False
) -> tuple[str, str]:
    """Return the digest to serve and why; `assigned` is the digest of what was assigned.

    When energy is scarce, least energy is the objective, and of the limits only accuracy counts.
    """
    sparing = sparing and table.sparing
    if sparing:
        table = ChoiceTable(objective="energy", min_accuracy=table.min_accuracy)
    objective = table.objective
    if objective == "assigned":
        first = next((row for row in rows if row.digest == assigned), None)
        if first is None or within(first, table):
            return assigned, "as assigned"
        objective = "accuracy"  # it breaks a limit: the best that does not
    fit = [row for row in rows if within(row, table)]
    if not fit:
        return assigned, "as assigned: no candidate keeps the limits"
    at = OBJECTIVES.index(objective) - 1
    best = min(fit, key=lambda row: (row.costs[at], *row.costs, row.target))
    why = "most accuracy" if objective == "accuracy" else f"least {objective}"
    return best.digest, f"{why} of {len(fit)} that keep the limits" + (
        ", for want of energy" if sparing else ""
    )


def pareto(rows: Iterable[Row]) -> set[str]:
    """Return the digests of the rows that no other beats in all four."""
    good = [row for row in rows if not row.bad]
    return {
        row.digest
        for row in good
        if not any(
            other.costs != row.costs
            and all(a <= b for a, b in zip(other.costs, row.costs, strict=True))
            for other in good
        )
    }
