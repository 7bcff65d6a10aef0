"""Training on digits with devices that lie: the real server side over scikit-learn's data.

20 devices have 72 images each, dealt at random; 359 are held back. The model is a softmax
regression; a device does ten steps of gradient descent. What an attacker answers is in ATTACKS.
"""

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from skerry_cloud.runs.plan import NORM_RATIO
from skerry_cloud.strategies import MEAN, RoundPlan, mean
from skerry_cloud.strategies.flower.running import run_strategy
from skerry_protos.records import Records
from skerry_protos.tensors import Tensor
from sklearn.datasets import load_digits

from tests.cloud.strategies.shore import Shore, asking

Floats = NDArray[np.float32]

DEVICES, LIARS, ROUNDS = 20, 4, 30
STEPS, RATE = 10, 0.5
HELD_BACK = 359


@cache
def dealt(seed: int) -> tuple[Floats, NDArray[np.int64], list[NDArray[np.int64]]]:
    """Return images (n x 65, the last a 1), labels, and the rows of the test and each device."""
    images, labels = load_digits(return_X_y=True)
    ones = np.ones((len(images), 1))
    order = np.random.default_rng(seed).permutation(len(images))
    parts = np.array_split(order[HELD_BACK:], DEVICES)
    return np.hstack([images / 16, ones]).astype(np.float32), labels, [order[:HELD_BACK], *parts]


def trained(weights: Floats, images: Floats, labels: NDArray[np.int64]) -> Floats:
    """Return weights (65 x 10) after ten steps of gradient descent."""
    made, wanted = weights.copy(), np.eye(10, dtype=np.float32)[labels]
    for _ in range(STEPS):
        scores = images @ made
        likely = np.exp(scores - scores.max(axis=1, keepdims=True))
        likely /= likely.sum(axis=1, keepdims=True)
        made -= RATE / len(images) * images.T @ (likely - wanted)
    return made


Attack = Callable[[Floats, Floats, np.random.Generator], Floats]
"""From the weights asked with and those an honest training comes to, to what is answered."""

ATTACKS: dict[str, Attack] = {
    "sign flip x10": lambda asked, made, _: asked - 10 * (made - asked),
    "sign flip": lambda asked, made, _: asked - (made - asked),
    "scaling x100": lambda asked, made, _: asked + 100 * (made - asked),
    "scaling x5": lambda asked, made, _: asked + 5 * (made - asked),
    "noise": lambda asked, _, dice: asked + dice.normal(0, 5, asked.shape).astype(np.float32),
    "NaN": lambda asked, _made, _: np.full_like(asked, np.nan),
    "wrong shape": lambda asked, _made, _: asked[:-1],
    "label flip": lambda _, made, _dice: made,
}
"""Label flip trains on 9 - label: an honest training of other data."""

STRATEGIES: dict[str, dict[str, Any]] = {
    "FedMedian": {},
    "FedTrimmedAvg": {"beta": 0.25},
    "Krum": {"num_malicious_nodes": LIARS},
    "MultiKrum": {"num_malicious_nodes": LIARS, "num_nodes_to_select": DEVICES - LIARS - 2},
    "Bulyan": {"num_malicious_nodes": LIARS},
}


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a training came to: accuracy on what was held back, and the replies refused."""

    accuracy: float
    refused: int


def outcome(
    folder: Path,
    strategy: str,
    attack: str = "",
    *,
    seed: int = 0,
    rounds: int = ROUNDS,
    max_norm_ratio: float = NORM_RATIO,
) -> Outcome:
    """Train with a strategy while LIARS of DEVICES attack; "" for nobody."""
    images, labels, parts = dealt(seed)
    count = [0] * DEVICES

    def device(node: int, asked: Records) -> Records:
        place = node - 100
        count[place] += 1
        weights: Floats = asked.arrays["arrays"]["w"].numpy()
        rows = parts[1 + place]
        lies = bool(attack) and place < LIARS
        said = 9 - labels[rows] if lies and attack == "label flip" else labels[rows]
        made = trained(weights, images[rows], said)
        if lies:
            dice = np.random.default_rng([seed, place, count[place]])
            made = ATTACKS[attack](weights, made, dice)
        return Records(
            arrays={"arrays": {"w": Tensor.of(made.astype(np.float32))}},
            metrics={"metrics": {"num-examples": len(rows)}},
        )

    plan = RoundPlan(
        rounds=rounds,
        fraction=1.0,
        min_devices=DEVICES,
        seed=seed,
        run_config={},
        round_deadline_s=30,
        strategy=strategy,
        strategy_options=STRATEGIES.get(strategy, {}),
    )
    weights: Mapping[str, Tensor] = {"w": Tensor.of(np.zeros((65, 10), np.float32))}
    folder = Path(tempfile.mkdtemp(dir=folder))
    shore = Shore(folder, range(100, 100 + DEVICES), device)
    with asking(shore, max_norm_ratio=max_norm_ratio) as asker:
        if strategy == MEAN:
            for number in range(1, rounds + 1):
                weights = mean.train_round(asker, plan, number, weights)
        else:
            weights = run_strategy(asker, plan, weights, evaluate=None, on_devices=False)
    found = images[parts[0]] @ weights["w"].numpy()
    return Outcome(float((found.argmax(axis=1) == labels[parts[0]]).mean()), len(shore.refused()))
