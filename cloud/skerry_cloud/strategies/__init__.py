"""Strategies: whom to ask, and what to make of the answers. They run in a run's child process.

`mean` is ours: a weighted mean folded in as replies arrive, O(model) in memory. `flower` is the
one package of the cloud that imports flwr: all of its strategies, and whole Flower apps.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from skerry_cloud.runs.plan import AGGREGATION_MEMORY, ConfigScalar


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundPlan:
    """What a run's server side was told about rounds."""

    rounds: int
    fraction: float
    min_devices: int
    seed: int
    run_config: Mapping[str, ConfigScalar]
    round_deadline_s: float
    strategy: str
    strategy_options: Mapping[str, ConfigScalar]
    aggregation_memory_bytes: int = AGGREGATION_MEMORY
    initial: Path | None = None  # the model to begin with; None: the app's own
    initial_run: str = ""
    initial_if_fits: bool = False


MEAN = "fedavg"
"""The name of our own strategy."""
CALIBRATE = "calibrate"
"""The name of what asks each device once for ranges of activations: no training."""
ARRAYS, CONFIG, METRICS = "arrays", "config", "metrics"
"""The groups of records that training uses, as Flower names them."""
EXAMPLES = "num-examples"
ROUND = "server-round"
