"""A Strategy that goes on after a restart: its rounds up to a checkpoint are not computed again.

The first `Strategy.start` of an app is kept: at the beginning of each round, what the rounds before
it have led to (arrays, metrics, the strategy's attributes, the settings it sends, randomness, and
the plain values that the app's own functions reach) becomes a checkpoint. A server side that begins
again runs the app's code as before; in `start` the rounds up to the checkpoint ask nobody and
aggregate nothing, and then everything is as it was.

What cannot be kept (an attribute of a kind we do not know) is named in the journal, and all rounds
are computed again from the recorded replies: slower, with the same result.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, MetricRecord
from flwr.serverapp.strategy import Strategy

from skerry_cloud.runs import chance, keeping
from skerry_cloud.runs.asker import Asker
from skerry_cloud.runs.keeping import Form, UnkeepableError
from skerry_cloud.strategies.flower import reach
from skerry_cloud.strategies.flower.conversion import arrays_of, tensors_of
from skerry_cloud.strategies.flower.grid import SkerryGrid

FORMS = {
    "arrays": Form(ArrayRecord, lambda record: dict(tensors_of(record)), arrays_of),
    "metrics": Form(MetricRecord, dict, MetricRecord),
    "config": Form(ConfigRecord, dict, ConfigRecord),
    **reach.GENERATORS,
}
METHODS = ("configure_train", "aggregate_train", "configure_evaluate", "aggregate_evaluate")


class Keeper:
    """One `Strategy.start`, kept round by round."""

    def __init__(self, asker: Asker, grid: SkerryGrid, strategy: Strategy, call: dict[str, Any]):
        self._asker = asker
        self._grid = grid
        self._strategy = strategy
        self._rounds: int = call["num_rounds"]
        for name in ("train_config", "evaluate_config"):
            if call[name] is None:
                call[name] = ConfigRecord()
        self._call = call
        self._first = asker.counts
        self._reached = reach.Reach(strategy, call["evaluate_fn"], FORMS)
        self._train: dict[int, Any] = {}
        self._evaluate: dict[int, Any] = {}
        self._server: dict[int, Any] = {}
        self._arrays: ArrayRecord | None = None
        self._off = ""  # why no checkpoint is made any more
        self._later: dict[str, Any] = {}  # what is put back behind the last round that is done
        self.done = 0

    def restore(self) -> None:
        """Put everything into the state of the checkpoint, if there is one."""
        before = self._asker.checkpoint()
        if before is None:
            return
        state = keeping.unpack(before, FORMS)
        self.done = state["round"]
        self._arrays = state["arrays"]
        self._train, self._evaluate = state["train"], state["evaluate"]
        self._server = state["server"]
        self._later = state

    def put_back(self) -> None:
        """Set what the rounds that are done have left behind, if that is not done yet."""
        state, self._later = self._later, {}
        if not state:
            return
        self._reached.restore(state["reached"])
        for name in ("train_config", "evaluate_config"):
            record = self._call[name]
            for key in list(record):
                del record[key]
            record.update(state[name])
        if self._arrays is not None:
            self._grid.model = self._arrays
        self._asker.go_on()
        chance.restore(state["chance"])

    def configure_train(self, number: int, original: Callable[..., Any]) -> Any:
        """Ask nobody in a round that is done; before one that is not, keep what there is."""
        if number <= self.done:
            return []
        if self._later:
            self.put_back()
        elif number > 1 and self._asker.due():
            self.keep(number - 1)
        return original()

    def keep(self, number: int) -> None:
        """Hand over a checkpoint of the first `number` rounds."""
        if self._off or number <= self.done:
            return
        self._grid.settle()  # what nobody read yet is reported, and never again
        try:
            state = keeping.pack(
                {
                    "round": number,
                    "arrays": self._arrays,
                    "train": self._train,
                    "evaluate": self._evaluate,
                    "server": self._server,
                    "reached": self._reached.state(),
                    "train_config": self._call["train_config"],
                    "evaluate_config": self._call["evaluate_config"],
                    "chance": chance.state(),
                },
                FORMS,
            )
        except UnkeepableError as error:
            self._off = error.message
            self._asker.note(f"no checkpoints: {self._off}; after a restart all is replayed")
            return
        self._asker.keep(state, round_=number, first=self._first)

    def aggregate_train(self, number: int, original: Callable[..., Any]) -> Any:
        """Return a round's arrays and metrics, the recorded ones of a round that is done."""
        if number <= self.done:
            last = number == self.done
            return (self._arrays if last else None), self._train.get(number)
        arrays, metrics = original()
        if arrays is not None:
            self._arrays = arrays
        if metrics is not None:
            self._train[number] = metrics
        return arrays, metrics

    def aggregate_evaluate(self, number: int, original: Callable[..., Any]) -> Any:
        """Return a round's metrics, the recorded ones of a round that is done."""
        if number <= self.done:
            return self._evaluate.get(number)
        metrics = original()
        if metrics is not None:
            self._evaluate[number] = metrics
        return metrics

    def evaluate_fn(self, number: int, original: Callable[..., Any]) -> Any:
        """Return what the app's own evaluation found, recorded where the round is done."""
        if self.done and number <= self.done:
            return self._server.get(number)
        metrics = original()
        if metrics is not None:
            self._server[number] = metrics
        return metrics


@contextmanager
def resuming(
    grid: SkerryGrid, strategy: Strategy, call: dict[str, Any], evaluate: Any
) -> Iterator[None]:
    """Keep a `Strategy.start` with these arguments, which may be changed, while the block runs.

    `evaluate` is the evaluate_fn of these arguments, as it is to be called.
    """
    keeper = Keeper(grid.asker, grid, strategy, call)
    keeper.restore()
    if evaluate is not None:
        call["evaluate_fn"] = lambda number, arrays: keeper.evaluate_fn(
            number, lambda: evaluate(number, arrays)
        )
    ours = {name: _wrapped(strategy, name, keeper) for name in METHODS}
    before = {name: vars(strategy)[name] for name in METHODS if name in vars(strategy)}
    vars(strategy).update(ours)
    try:
        yield
        keeper.put_back()
        keeper.keep(call["num_rounds"])
    finally:
        for name in METHODS:
            if vars(strategy).get(name) is ours[name]:
                del vars(strategy)[name]
        vars(strategy).update(before)


def _wrapped(strategy: Strategy, name: str, keeper: Keeper) -> Callable[..., Any]:
    original = getattr(strategy, name)

    def method(server_round: int, *args: Any, **kwargs: Any) -> Any:
        def call() -> Any:
            return original(server_round, *args, **kwargs)

        match name:
            case "configure_train":
                return keeper.configure_train(server_round, call)
            case "aggregate_train":
                return keeper.aggregate_train(server_round, call)
            case "aggregate_evaluate":
                return keeper.aggregate_evaluate(server_round, call)
        return [] if server_round <= keeper.done else call()

    return method
