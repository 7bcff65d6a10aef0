"""The server side of a native app: rounds over its weights. Runs in the child."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib import import_module
from types import ModuleType
from typing import Any

from skerry_protos.errors import ConfigError
from skerry_protos.records import Records
from skerry_protos.tensors import Tensor
from skerry_protos.weights import load_tensors, tensors_of

from skerry_cloud.runs import chance, keeping
from skerry_cloud.runs.asker import Asker
from skerry_cloud.strategies import ARRAYS, MEAN, RoundPlan, mean
from skerry_cloud.strategies.beginning import begin_with

Evaluate = Callable[[int, Mapping[str, Tensor]], dict[str, Any]]


def run_native(asker: Asker, module: str, plan: RoundPlan, ready: Callable[[], None]) -> None:
    """Train the app's model for the plan's rounds and hand it over."""
    app = import_module(module)
    if not callable(getattr(app, "model", None)):
        raise ConfigError(f"module {module!r} has no function model()")
    chance.begin_torch(plan.seed)
    weights: Mapping[str, Tensor] = begin_with(asker, plan, tensors_of(app.model()))
    plan = replace(plan, initial=None)
    evaluate = server_evaluation(app)
    ready()
    if plan.strategy == MEAN and not plan.strategy_options:
        weights = _average(asker, app, plan, weights, evaluate)
    else:
        from skerry_cloud.strategies import flower

        weights = flower.run_strategy(
            asker, plan, weights, evaluate=evaluate, on_devices=hasattr(app, "evaluate")
        )
    asker.keep_model(Records(arrays={ARRAYS: dict(weights)}))


def _average(
    asker: Asker,
    app: ModuleType,
    plan: RoundPlan,
    weights: Mapping[str, Tensor],
    evaluate: Evaluate | None,
) -> Mapping[str, Tensor]:
    first, done = asker.counts, 0
    if (before := asker.checkpoint()) is not None:
        state = keeping.unpack(before)
        done, weights = state["round"], state["weights"]
        asker.go_on()
        chance.restore(state["chance"])
    for number in range(done + 1, plan.rounds + 1):
        asker.begin_round(number, plan.rounds)
        weights = mean.train_round(asker, plan, number, weights)
        if evaluate is not None:
            asker.measure(number, "server", evaluate(number, weights))
        elif hasattr(app, "evaluate"):
            mean.evaluate_round(asker, plan, number, weights)
        if asker.due() and number < plan.rounds:
            state = {"round": number, "weights": dict(weights), "chance": chance.state()}
            asker.keep(keeping.pack(state), round_=number, first=first)
    return weights


def server_evaluation(app: ModuleType) -> Evaluate | None:
    """Return how to evaluate here: with the app's `server_data()`, when it has one."""
    if not hasattr(app, "server_data") or not hasattr(app, "evaluate"):
        return None
    model, data = app.model(), app.server_data()

    def evaluate(_number: int, weights: Mapping[str, Tensor]) -> dict[str, Any]:
        load_tensors(model, weights)
        returned = app.evaluate(model, data)
        metrics = dict(returned) if isinstance(returned, Mapping) else {"loss": returned}
        return {
            str(name): float(value)
            for name, value in metrics.items()
            if name not in {"num_examples", "num-examples"}
        }

    return evaluate
