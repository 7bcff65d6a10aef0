"""The choice is what an exhaustive search finds; the front is what no other candidate beats."""

import math
from typing import Any

import numpy as np
import pytest
from skerry_edge.models.choice import OBJECTIVES, ChoiceTable, Row, choose, pareto

NAMES = ("accuracy", "latency_s", "energy_j", "memory_bytes")


def row(name: str, accuracy: float, latency_s: float, energy_j: float, mb: float) -> Row:
    return Row(
        target=f"stable/m/1/{name}.zip",
        digest=name,
        accuracy=accuracy,
        latency_s=latency_s,
        energy_j=energy_j,
        memory_bytes=mb * 2**20,
    )


FLOAT = row("float", 0.98, 0.010, 0.40, 90)
INT8 = row("int8", 0.97, 0.004, 0.15, 70)
INT4 = row("int4", 0.90, 0.006, 0.10, 60)
ROWS = [FLOAT, INT8, INT4]


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        ({}, "float"),
        ({"objective": "accuracy"}, "float"),
        ({"objective": "latency"}, "int8"),
        ({"objective": "energy"}, "int4"),
        ({"objective": "energy", "min_accuracy": 0.95}, "int8"),
        ({"objective": "accuracy", "max_latency_ms": 5}, "int8"),
        ({"objective": "latency", "max_memory_mb": 65}, "int4"),
        ({"max_energy_j": 0.2}, "int8"),  # what was assigned breaks a limit
        ({"objective": "latency", "min_accuracy": 0.99}, "float"),  # nothing keeps it
    ],
)
def test_the_operators_objective_and_limits(table: dict[str, Any], expected: str) -> None:
    assert choose(ROWS, ChoiceTable(**table), assigned="float")[0] == expected


def test_it_is_what_an_exhaustive_search_finds() -> None:
    rng = np.random.default_rng(5)
    for _ in range(300):
        rows = [
            row(str(at), *rng.uniform(0.5, 1, 1), *rng.uniform(0.001, 0.05, 1), *rng.random(2))
            for at in range(int(rng.integers(1, 9)))
        ]
        objective = OBJECTIVES[int(rng.integers(1, len(OBJECTIVES)))]
        table = ChoiceTable(
            objective=objective,
            min_accuracy=float(rng.choice([0, 0.7])),
            max_latency_ms=float(rng.choice([0, 25])),
            max_energy_j=float(rng.choice([0, 0.5])),
            max_memory_mb=float(rng.choice([0, 0.5])),
        )
        chosen, _ = choose(rows, table, assigned="0")
        name = NAMES[OBJECTIVES.index(objective) - 1]
        fit = [
            each
            for each in rows
            if each.accuracy >= table.min_accuracy
            and (not table.max_latency_ms or each.latency_s * 1e3 <= table.max_latency_ms)
            and (not table.max_energy_j or each.energy_j <= table.max_energy_j)
            and (not table.max_memory_mb or each.memory_bytes / 2**20 <= table.max_memory_mb)
        ]
        if not fit:
            assert chosen == "0"
            continue
        best = next(each for each in rows if each.digest == chosen)
        values = [getattr(each, name) for each in fit]
        assert best in fit
        assert getattr(best, name) == (max(values) if name == "accuracy" else min(values))


def test_scarce_energy_asks_for_the_cheapest_that_is_good_enough() -> None:
    slow_limit = ChoiceTable(objective="accuracy", max_latency_ms=5)
    assert choose(ROWS, slow_limit, assigned="float", sparing=True)[0] == "int4"
    good = ChoiceTable(objective="accuracy", min_accuracy=0.95)
    assert choose(ROWS, good, assigned="float", sparing=True)[0] == "int8"
    never = ChoiceTable(objective="accuracy", sparing=False)
    assert choose(ROWS, never, assigned="float", sparing=True)[0] == "float"


def test_the_front_is_what_no_other_beats_and_the_bad_are_not_on_it() -> None:
    worse = row("worse", 0.97, 0.005, 0.16, 71)
    broken = Row(target="stable/m/1/x.zip", digest="x", accuracy=1.0, bad="it crashed")
    assert pareto([*ROWS, worse, broken]) == {"float", "int8", "int4"}
    assert choose([broken], ChoiceTable(objective="accuracy"), assigned="float")[0] == "float"


def test_a_row_comes_back_from_the_disk_as_it_was() -> None:
    for each in (*ROWS, Row(target="t", digest="d", bad="no labels")):
        assert Row.parse(each.to_json()) == each
    assert Row.of("t", "d", {"agreement": 0.5}, "rapl").accuracy == 0.5
    assert math.isinf(Row.of("t", "d", {}, "rapl").energy_j)


@pytest.mark.parametrize(
    ("table", "why"),
    [({"objective": "speed"}, "one of assigned"), ({"max_energy_j": -1.0}, "must be 0")],
)
def test_a_table_that_makes_no_sense_is_refused(table: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        ChoiceTable(**table)
