"""A run's server side with Flower: a whole ServerApp, or one strategy over a native app's model."""

from collections.abc import Callable, Mapping
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Context, MetricRecord, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from skerry_protos.errors import ConfigError
from skerry_protos.records import Records
from skerry_protos.tensors import DType, Tensor

from skerry_cloud.runs import chance
from skerry_cloud.runs.asker import Asker
from skerry_cloud.strategies import ARRAYS, RoundPlan
from skerry_cloud.strategies.flower.conversion import arrays_of, tensors_of
from skerry_cloud.strategies.flower.grid import SERVER_NODE, SkerryGrid
from skerry_cloud.strategies.flower.making import load_server_app, make_strategy
from skerry_cloud.strategies.flower.streaming import streaming
from skerry_cloud.strategies.flower.watching import watching

Evaluate = Callable[[int, Mapping[str, Tensor]], dict[str, Any]]


def run_app(
    asker: Asker, entry: str, plan: RoundPlan, *, number: int, ready: Callable[[], None]
) -> None:
    """Run an unmodified ServerApp and hand over the model it ends with."""
    _identify(number)
    app = load_server_app(entry)
    chance.begin_torch(plan.seed)
    grid = SkerryGrid(asker, plan, number)
    context = Context(
        run_id=number,
        node_id=SERVER_NODE,
        node_config={},
        state=RecordDict(),
        run_config=dict(plan.run_config),
    )
    ready()
    with watching(grid, plan), streaming(asker, plan.aggregation_memory_bytes):
        app(grid, context)
        grid.settle()
    grid.check_heard()
    if grid.model is None:
        asker.note("the app sent no arrays: the run has no model")
    else:
        asker.keep_model(Records(arrays={ARRAYS: tensors_of(grid.model)}))


def run_strategy(
    asker: Asker,
    plan: RoundPlan,
    weights: Mapping[str, Tensor],
    *,
    evaluate: Evaluate | None,
    on_devices: bool,
) -> dict[str, Tensor]:
    """Train a native app's weights with the Flower strategy that the plan names."""
    _identify(2)
    for name, tensor in weights.items():
        if tensor.dtype in {DType.BFLOAT16, DType.FLOAT8_E4M3FN, DType.FLOAT8_E5M2}:
            raise ConfigError(
                f"the weight {name!r} is {tensor.dtype.name}, which Flower does not take",
                hint="use strategy fedavg, or keep the model in float32",
            )
    everywhere = plan.fraction if on_devices and evaluate is None else 0.0
    strategy = make_strategy(plan, fraction_evaluate=everywhere)
    grid = SkerryGrid(asker, plan, 2)

    def evaluated(number: int, arrays: ArrayRecord) -> MetricRecord | None:
        assert evaluate is not None
        return MetricRecord(evaluate(number, tensors_of(arrays)))

    with watching(grid, plan), streaming(asker, plan.aggregation_memory_bytes):
        result = strategy.start(
            grid=grid,
            initial_arrays=arrays_of(weights),
            num_rounds=plan.rounds,
            timeout=plan.round_deadline_s,
            train_config=ConfigRecord(dict(plan.run_config)),
            evaluate_config=ConfigRecord(dict(plan.run_config)),
            evaluate_fn=evaluated if evaluate is not None else None,
        )
    grid.check_heard()
    return tensors_of(result.arrays) if result.arrays else dict(weights)


def _identify(number: int) -> None:
    TaskIdentity.run_id = number
    TaskIdentity.node_id = SERVER_NODE
    TaskIdentity.task_id = SERVER_NODE
