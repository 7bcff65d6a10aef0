"""Flower over our fleet: the only module of the cloud that imports flwr. Runs in the child.

`SkerryGrid` is what a ServerApp or Strategy takes for Flower's own network. Public API, but for
three things (FLOWER.md 2.5): `TaskIdentity`, which messages read; `Message(metadata=…)`, which
says whose a received message is; and a message's id, which its sender may not set.
"""

import inspect
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from importlib import import_module
from types import SimpleNamespace
from typing import Any

from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Context,
    Error,
    Message,
    Metadata,
    MetricRecord,
    RecordDict,
)
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp import strategy as strategies
from flwr.serverapp.strategy import Strategy
from flwr.supercore.task_identity import TaskIdentity
from skerry_protos.errors import ConfigError
from skerry_protos.messages import new_id
from skerry_protos.records import Records
from skerry_protos.tensors import DType, Tensor, from_npy, npy_bytes

from skerry_cloud.runs.asker import Answer, Ask, Asker
from skerry_cloud.strategies import ARRAYS, ROUND, RoundPlan
from skerry_cloud.strategies.mean import MetricMean

SERVER_NODE = 1
"""The server's node id, by Flower's convention."""
NPY = "numpy.ndarray"
WEIGHTS = ("num-examples", "num_examples")

Evaluate = Callable[[int, Mapping[str, Tensor]], dict[str, Any]]


def run_app(
    asker: Asker, entry: str, plan: RoundPlan, *, number: int, ready: Callable[[], None]
) -> None:
    """Run an unmodified ServerApp and hand over the model it ends with."""
    _identify(number)
    app = load_server_app(entry)
    grid = SkerryGrid(asker, plan, number)
    context = Context(
        run_id=number,
        node_id=SERVER_NODE,
        node_config={},
        state=RecordDict(),
        run_config=dict(plan.run_config),
    )
    ready()
    with grid.watching():
        app(grid, context)
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

    with grid.watching():
        result = strategy.start(
            grid=grid,
            initial_arrays=_arrays(weights),
            num_rounds=plan.rounds,
            timeout=plan.round_deadline_s,
            train_config=ConfigRecord(dict(plan.run_config)),
            evaluate_config=ConfigRecord(dict(plan.run_config)),
            evaluate_fn=evaluated if evaluate is not None else None,
        )
    return tensors_of(result.arrays) if result.arrays else dict(weights)


def make_strategy(plan: RoundPlan, *, fraction_evaluate: float) -> Strategy:
    """Return Flower's strategy of that name; ConfigError names the nearest one or its argument."""
    known = {
        name.lower(): name
        for name in strategies.__all__
        if inspect.isclass(found := getattr(strategies, name))
        and issubclass(found, Strategy)
        and not inspect.isabstract(found)
    }
    name = known.get(plan.strategy.lower())
    if name is None:
        near = get_close_matches(plan.strategy.lower(), known, n=1, cutoff=0.4)
        hint = f"did you mean {known[near[0]]}?" if near else f"there are {sorted(known.values())}"
        raise ConfigError(f"there is no strategy {plan.strategy!r}", hint=hint)
    made = getattr(strategies, name)
    takes = _arguments(made)
    for option in plan.strategy_options:
        if option not in takes:
            near = get_close_matches(option, takes, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"it takes {sorted(takes)}"
            raise ConfigError(f"strategy {name} has no option {option!r}", hint=hint)
    ours = {
        "fraction_train": plan.fraction,
        "fraction_evaluate": fraction_evaluate,
        "min_train_nodes": 1,
        "min_evaluate_nodes": 1,
        "min_available_nodes": plan.min_devices,
    }
    given = {key: value for key, value in ours.items() if key in takes} | dict(
        plan.strategy_options
    )
    try:
        strategy = made(**given)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"strategy {name}: {error}") from error
    assert isinstance(strategy, Strategy)
    return strategy


def _arguments(made: type[Strategy]) -> set[str]:
    """Return a strategy's arguments; those that pass **kwargs on take their parents' too."""
    found: set[str] = set()
    for each in made.__mro__:
        if "__init__" in vars(each) and each is not object:
            parameters = inspect.signature(vars(each)["__init__"]).parameters
            found |= set(parameters) - {"self", "args", "kwargs"}
            if not any(one.kind is one.VAR_KEYWORD for one in parameters.values()):
                break
    return found


def load_server_app(entry: str) -> ServerApp:
    """Return the ServerApp at "module:attribute"."""
    module, _, attribute = entry.partition(":")
    if not module or not attribute:
        raise ConfigError(f'the server app is {entry!r}; expected "module:attribute"')
    found: Any = import_module(module)
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise ConfigError(f"{entry}: there is no {part!r}")
        found = getattr(found, part)
    if not isinstance(found, ServerApp):
        raise ConfigError(f"{entry} is {type(found).__name__}, not a ServerApp")
    return found


def _identify(number: int) -> None:
    TaskIdentity.run_id = number
    TaskIdentity.node_id = SERVER_NODE
    TaskIdentity.task_id = SERVER_NODE


class SkerryGrid(Grid):  # type: ignore[misc]
    """Flower's network, over our fleet: every wait ends, every silence is an error reply."""

    def __init__(self, asker: Asker, plan: RoundPlan, number: int) -> None:
        self._asker = asker
        self._plan = plan
        self._number = number
        self._run: Any = SimpleNamespace(run_id=number, fab_id="", fab_version="")
        self._sent: dict[str, tuple[Message, Records]] = {}
        self._noting = threading.Lock()  # Flower's older API asks each device from its own thread
        self._means: dict[tuple[int, str], MetricMean] = {}
        self._round = 0
        self._watched = False
        self.model: ArrayRecord | None = None

    # What Flower's strategies call.

    def set_run(self, run: Any) -> None:
        """Take what Flower's own runtime would know of the run; ours is its number."""
        self._run = run

    @property
    def run(self) -> Any:
        """The run, with its number as `run_id`."""
        return self._run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Return a new message (Flower's older way)."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """Return the nodes, once there are enough; the run ends when there never are."""
        nodes = self._asker.sample(self._plan.fraction, self._plan.seed, self._round)
        return [one.node for one in nodes]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Send messages; return their ids."""
        return self._push(list(messages), None)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies that are here, each once."""
        return self._taken(self._asker.here(message_ids))

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Send messages and return a reply for each: the device's, or an error that says why."""
        # A list: secure aggregation goes over it twice.
        sent = list(messages)
        nodes = [message.metadata.dst_node_id for message in sent]
        return self._taken(list(self._asker.answers(self._push(sent, timeout), nodes)))

    def _push(self, messages: Sequence[Message], timeout: float | None) -> list[str]:
        if not messages:
            return []
        records: dict[int, Records] = {}
        asks = []
        for message in messages:
            content = message.content
            if id(content) not in records:
                records[id(content)] = from_flower(content)
            meta = message.metadata
            asks.append(
                Ask(
                    node=meta.dst_node_id,
                    message_type=meta.message_type,
                    content=records[id(content)],
                    group=meta.group_id,
                    ttl_s=meta.ttl,
                )
            )
        phase = _phase(asks[0].message_type)
        with self._noting:
            self._notice_round(messages[0], phase)
        limit = max(one.ttl_s for one in asks)
        tasks = self._asker.ask(
            asks,
            round_=self._round,
            phase=phase,
            timeout_s=limit if timeout is None else min(limit, timeout),
        )
        for task, message, ask in zip(tasks, messages, asks, strict=True):
            message.metadata.__dict__["_message_id"] = task
            self._sent[task] = message, ask.content
        return tasks

    def _taken(self, answers: list[Answer]) -> list[Message]:
        """Return answers as messages, those not fit to be used as errors; report the rest."""
        if not answers:
            return []
        sent = {one.task: self._sent.pop(one.task) for one in answers}
        for answer in answers:
            answer.node = sent[answer.task][0].metadata.dst_node_id
        message, asked = sent[answers[0].task]
        phase = _phase(message.metadata.message_type)
        self._asker.screen(asked, answers, phase=phase)
        self._measure(answers, phase)
        return [self._message(one, sent[one.task][0]) for one in answers]

    def _message(self, answer: Answer, to: Message) -> Message:
        asked = to.metadata
        metadata = Metadata(
            run_id=self._number,
            message_id=new_id("reply-"),
            src_node_id=answer.node,
            dst_node_id=SERVER_NODE,
            reply_to_message_id=answer.task,
            group_id=asked.group_id,
            created_at=answer.at,
            ttl=max(0.0, asked.created_at + asked.ttl - answer.at),
            message_type=asked.message_type,
        )
        metadata.delivered_at = str(time.time())
        if answer.content is None:
            error = Error(answer.code, answer.why)
            return Message(error=error, metadata=metadata)
        content = to_flower(answer.content)
        return Message(content=content, metadata=metadata)

    # What we report.

    def _notice_round(self, message: Message, phase: str) -> None:
        """Learn the round from what is sent, where no strategy tells us."""
        content = message.content
        if phase in {"train", "evaluate"} and not self._watched:
            if (arrays := next(iter(content.array_records.values()), None)) is not None:
                self.model = arrays
            if phase == "train" and (number := _round_of(message)) != self._round:
                self._begin(number or self._round + 1, max(self._plan.rounds, number))

    def _begin(self, number: int, rounds: int) -> None:
        self._round = number
        self._means.clear()
        self._asker.begin_round(number, rounds)

    def _measure(self, answers: list[Answer], phase: str) -> None:
        by_node: dict[int, Mapping[str, Any]] = {}
        with self._noting:
            mean = self._mean(answers, phase, by_node)
        if not self._watched:
            by_node[0] = {k: v for k, v in mean.items() if k not in WEIGHTS}
        self._asker.measure_all(self._round, phase, by_node)

    def _mean(
        self, answers: list[Answer], phase: str, by_node: dict[int, Mapping[str, Any]]
    ) -> dict[str, float]:
        """Put each answer's numbers into `by_node`; return the means of the phase so far."""
        mean = self._means.setdefault((self._round, phase), MetricMean())
        for answer in answers:
            if answer.content is not None:
                said = _metrics(answer.content)
                by_node[answer.node] = said
                weight = next((said[name] for name in WEIGHTS if name in said), 1.0)
                mean.add(said, weight if isinstance(weight, int | float) else 1.0)
        return mean.result()

    @contextmanager
    def watching(self) -> Iterator[None]:
        """See every Strategy.start in this process: its rounds, metrics and arrays."""
        original = Strategy.start
        grid = self

        def start(self: Strategy, *args: Any, **kwargs: Any) -> Any:
            bound = inspect.signature(original).bind(self, *args, **kwargs)
            bound.apply_defaults()
            with grid._observing(self, bound.arguments["num_rounds"]):
                bound.arguments["evaluate_fn"] = grid._observed_evaluation(
                    bound.arguments["evaluate_fn"]
                )
                grid.model = bound.arguments["initial_arrays"]
                result = original(*bound.args, **bound.kwargs)
            if result.arrays:
                grid.model = result.arrays
            return result

        start.__wrapped__ = original  # type: ignore[attr-defined]
        Strategy.start = start
        try:
            yield
        finally:
            Strategy.start = original

    @contextmanager
    def _observing(self, strategy: Strategy, rounds: int) -> Iterator[None]:
        """Hear of each round from the strategy itself while it runs."""
        configure, train, evaluate = (
            strategy.configure_train,
            strategy.aggregate_train,
            strategy.aggregate_evaluate,
        )

        def configure_train(server_round: int, *args: Any, **kwargs: Any) -> Any:
            self._begin(server_round, rounds)
            return configure(server_round, *args, **kwargs)

        def aggregate_train(server_round: int, *args: Any, **kwargs: Any) -> Any:
            arrays, metrics = train(server_round, *args, **kwargs)
            self.model = arrays or self.model
            self._asker.measure(server_round, "train", metrics or {})
            return arrays, metrics

        def aggregate_evaluate(server_round: int, *args: Any, **kwargs: Any) -> Any:
            metrics = evaluate(server_round, *args, **kwargs)
            self._asker.measure(server_round, "evaluate", metrics or {})
            return metrics

        ours = {
            "configure_train": configure_train,
            "aggregate_train": aggregate_train,
            "aggregate_evaluate": aggregate_evaluate,
        }
        before, self._watched = self._watched, True
        vars(strategy).update(ours)
        try:
            yield
        finally:
            self._watched = before
            for name, method in ours.items():
                if vars(strategy).get(name) is method:
                    del vars(strategy)[name]

    def _observed_evaluation(self, evaluate: Any) -> Any:
        if evaluate is None:
            return None

        def evaluated(server_round: int, arrays: ArrayRecord) -> Any:
            metrics = evaluate(server_round, arrays)
            self._asker.measure(server_round, "server", metrics or {})
            return metrics

        return evaluated


def _metrics(content: Records) -> dict[str, Any]:
    """Return a reply's numbers; Flower's older clients send theirs as settings."""
    found: dict[str, Any] = {}
    for metrics in content.metrics.values():
        found |= metrics
    for name in ("fitres.metrics", "evaluateres.metrics"):
        found |= content.configs.get(name, {})
    return found


def _phase(message_type: str) -> str:
    return message_type.partition(".")[0]


def _round_of(message: Message) -> int:
    """Return the round that a message says it belongs to, or 0."""
    for record in message.content.config_records.values():
        for name in (ROUND, "server_round"):
            if isinstance(number := record.get(name), int) and 0 < number < 2**31:
                return number
    group = message.metadata.group_id
    return int(group) if group.isdecimal() and len(group) < 10 else 0


# Records: Flower's and ours.


class NumpyArray(Array):  # type: ignore[misc]
    """An Array over a received tensor's bytes; its .npy form is made only when asked for."""

    def __init__(self, tensor: Tensor) -> None:
        self.__dict__["tensor"] = tensor
        self.dtype = str(tensor.numpy().dtype)
        self.shape = tensor.shape
        self.stype = NPY

    @property
    def data(self) -> bytes:
        """Return the array as an .npy file."""
        if "npy" not in self.__dict__:
            self.__dict__["npy"] = npy_bytes(self.__dict__["tensor"])
        return self.__dict__["npy"]  # type: ignore[no-any-return]

    @data.setter
    def data(self, value: bytes) -> None:
        self.__dict__["npy"] = value
        self.__dict__["tensor"] = None

    def numpy(self) -> Any:
        """Return a fresh ndarray, as Flower does: the caller may change it."""
        tensor = self.__dict__["tensor"]
        return super().numpy() if tensor is None else tensor.numpy().copy()


def to_flower(records: Records) -> RecordDict:
    """Return Records as Flower's RecordDict; tensors stay where they are until asked for."""
    made = RecordDict()
    for name, tensors in records.arrays.items():
        made[name] = _arrays(tensors)
    for name, metrics in records.metrics.items():
        made[name] = MetricRecord(dict(metrics))
    for name, configs in records.configs.items():
        made[name] = ConfigRecord(dict(configs))
    return made


def from_flower(content: RecordDict) -> Records:
    """Return Flower's RecordDict as Records, over the same bytes."""
    return Records(
        arrays={name: tensors_of(record) for name, record in content.array_records.items()},
        metrics={name: dict(record.items()) for name, record in content.metric_records.items()},
        configs={name: dict(record.items()) for name, record in content.config_records.items()},
    )


def tensors_of(record: ArrayRecord) -> dict[str, Tensor]:
    """Return an ArrayRecord's arrays as tensors, over the same bytes."""
    return {name: _tensor(array) for name, array in record.items()}


def _arrays(tensors: Mapping[str, Tensor]) -> ArrayRecord:
    return ArrayRecord({name: _array(tensor) for name, tensor in tensors.items()})


def _array(tensor: Tensor) -> Array:
    if tensor.stype:
        return Array(
            dtype=tensor.stype_dtype,
            shape=tuple(tensor.stype_shape),
            stype=tensor.stype,
            data=bytes(tensor.data),
        )
    return NumpyArray(tensor)


def _tensor(array: Array) -> Tensor:
    if isinstance(array, NumpyArray) and array.__dict__["tensor"] is not None:
        return array.__dict__["tensor"]  # type: ignore[no-any-return]
    plain = from_npy(array.data) if array.stype == NPY else None
    if plain is not None:
        return plain
    return Tensor.opaque(array.data, array.stype, array.dtype, tuple(array.shape))
