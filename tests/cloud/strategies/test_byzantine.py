"""A fifth of the devices lies: robust strategies stay within 2 points of clean."""

from logging import getLogger
from pathlib import Path

import pytest

from tests.cloud.strategies.byzantine import ATTACKS, DEVICES, LIARS, ROUNDS, STRATEGIES, outcome

WITHIN = 0.02
AS_GOOD_AS_MEAN = ("FedMedian", "FedTrimmedAvg", "MultiKrum")
"""Those that without attackers come to what FedAvg comes to; Krum and Bulyan use fewer replies."""


@pytest.fixture(autouse=True)
def quiet() -> None:
    getLogger("flwr").setLevel("ERROR")


def test_a_fifth_that_lies_ruins_a_plain_mean_without_screening(tmp_path: Path) -> None:
    found = outcome(tmp_path, "FedAvg", "sign flip x10", rounds=8, max_norm_ratio=0.0)
    assert found.accuracy < 0.5


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_what_screening_refuses_does_not_stop_a_robust_strategy(
    tmp_path: Path, strategy: str
) -> None:
    clean = outcome(tmp_path, strategy, rounds=8)
    for attack in ("NaN", "sign flip"):
        found = outcome(tmp_path, strategy, attack, rounds=8)
        assert found.accuracy > clean.accuracy - 2 * WITHIN, attack
        assert found.refused == (8 * LIARS if attack == "NaN" else 0)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_attack_costs_a_robust_strategy_two_points_at_most(
    tmp_path: Path, strategy: str
) -> None:
    clean = outcome(tmp_path, "FedAvg" if strategy in AS_GOOD_AS_MEAN else strategy)
    found = {attack: outcome(tmp_path, strategy, attack).accuracy for attack in ATTACKS}
    print(f"\n{strategy}: clean {clean.accuracy:.3f}, {DEVICES} devices, {ROUNDS} rounds: {found}")
    worst = min(found, key=lambda attack: found[attack])
    assert found[worst] >= clean.accuracy - WITHIN, worst
