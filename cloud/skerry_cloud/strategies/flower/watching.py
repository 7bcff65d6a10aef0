"""A run's rounds, metrics and arrays, seen where a Strategy is driven by its own `start`."""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from flwr.app import ArrayRecord
from flwr.serverapp.strategy import Strategy

from skerry_cloud.strategies import RoundPlan
from skerry_cloud.strategies.beginning import begin_with, not_begun_with
from skerry_cloud.strategies.flower.conversion import arrays_of, put_on_disk, tensors_of
from skerry_cloud.strategies.flower.grid import SkerryGrid
from skerry_cloud.strategies.flower.resume import resuming


@contextmanager
def watching(grid: SkerryGrid, plan: RoundPlan) -> Iterator[None]:
    """See every Strategy.start in this process: its rounds, metrics and arrays.

    The first one begins with the model that the plan names, where it names one that fits.
    """
    original = Strategy.start
    first = [True]  # only the first one makes checkpoints: resume.py

    def start(self: Strategy, *args: Any, **kwargs: Any) -> Any:
        bound = inspect.signature(original).bind(self, *args, **kwargs)
        bound.apply_defaults()
        evaluate = _observed_evaluation(grid, bound.arguments["evaluate_fn"])
        # Flower and the app hold the first model as long as the run lasts.
        if first and plan.initial is not None:
            own = tensors_of(bound.arguments["initial_arrays"])
            bound.arguments["initial_arrays"] = arrays_of(begin_with(grid.asker, plan, own))
        put_on_disk(bound.arguments["initial_arrays"], grid.asker)
        with _observing(grid, self, bound.arguments["num_rounds"]):
            grid.model = bound.arguments["initial_arrays"]
            if first:
                first.clear()
                with resuming(grid, self, bound.arguments, evaluate):
                    result = original(*bound.args, **bound.kwargs)
            else:
                bound.arguments["evaluate_fn"] = evaluate
                result = original(*bound.args, **bound.kwargs)
        if result.arrays:
            grid.model = result.arrays
        return result

    start.__wrapped__ = original  # type: ignore[attr-defined]
    Strategy.start = start
    try:
        yield
        if first:
            not_begun_with(grid.asker, plan)
    finally:
        Strategy.start = original


@contextmanager
def _observing(grid: SkerryGrid, strategy: Strategy, rounds: int) -> Iterator[None]:
    """Hear of each round from the strategy itself while it runs."""
    configure, train, evaluate = (
        strategy.configure_train,
        strategy.aggregate_train,
        strategy.aggregate_evaluate,
    )

    def configure_train(server_round: int, *args: Any, **kwargs: Any) -> Any:
        grid.begin(server_round, rounds)
        return configure(server_round, *args, **kwargs)

    def aggregate_train(server_round: int, *args: Any, **kwargs: Any) -> Any:
        arrays, metrics = train(server_round, *args, **kwargs)
        grid.model = arrays or grid.model
        grid.asker.measure(server_round, "train", metrics or {})
        return arrays, metrics

    def aggregate_evaluate(server_round: int, *args: Any, **kwargs: Any) -> Any:
        metrics = evaluate(server_round, *args, **kwargs)
        grid.asker.measure(server_round, "evaluate", metrics or {})
        return metrics

    ours = {
        "configure_train": configure_train,
        "aggregate_train": aggregate_train,
        "aggregate_evaluate": aggregate_evaluate,
    }
    before, grid.watched = grid.watched, True
    vars(strategy).update(ours)
    try:
        yield
    finally:
        grid.watched = before
        for name, method in ours.items():
            if vars(strategy).get(name) is method:
                del vars(strategy)[name]


def _observed_evaluation(grid: SkerryGrid, evaluate: Any) -> Any:
    if evaluate is None:
        return None

    def evaluated(server_round: int, arrays: ArrayRecord) -> Any:
        metrics = evaluate(server_round, arrays)
        grid.asker.measure(server_round, "server", metrics or {})
        return metrics

    return evaluated
