"""Native apps: four plain functions in a module, named by skerry.toml; no framework needed.

    model()                     a torch module, or anything with state_dict() and load_state_dict(),
                                or a dict or list of arrays
    data(device)                whatever train and evaluate want; loaded once per run and kept
    train(model, data, config)  trains the model in place; returns metrics (a dict, or nothing)
    evaluate(model, data)       returns metrics
    device_calibration(device)  not needed: the model's inputs, for a calibration (calibrating.py)

The number of examples is the metric "num-examples", else the length of the data.
"""

import inspect
import sys
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from skerry_protos.calibration import MESSAGE
from skerry_protos.records import Records
from skerry_protos.weights import load_tensors, tensors_of

from skerry_edge.apps import AppFailure, FailureCode
from skerry_edge.worker.messages import Job

ARRAYS, CONFIG, METRICS = "arrays", "config", "metrics"
EXAMPLES = "num-examples"


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """What `data(device)` is told about where it runs."""

    id: str
    node_id: int
    labels: Mapping[str, str]
    partition: int
    partitions: int
    config: Mapping[str, Any]


class NativeApp:
    """A module with the four functions."""

    def __init__(self, module: ModuleType) -> None:
        self._module = module
        self._data: tuple[tuple[str, str], Any] | None = None

    def handle(
        self, job: Job, content: Records, state: Records | None
    ) -> tuple[Records, Records | None]:
        """Train or evaluate; return the reply. A native app keeps no state of ours."""
        del state
        if job.message_type == MESSAGE:
            return self._calibrate(job), None
        kind = job.message_type.partition(".")[0]
        config = {**job.run_config, **content.configs.get(CONFIG, {})}
        _seed(config.get("seed"), job)
        model = self._function("model")()
        if tensors := content.arrays.get(ARRAYS):  # none: the model stays as it was made
            load_tensors(model, tensors)
        data = self._load(job)
        if kind == "train":
            metrics = _call(self._function("train"), model, data, config)
            arrays = {ARRAYS: tensors_of(model)}
        elif kind == "evaluate":
            metrics = _call(self._function("evaluate"), model, data, config)
            arrays = {}
        else:
            raise AppFailure(FailureCode.RAISED, f"a native app has no answer to {kind!r}")
        return Records(arrays=arrays, metrics={METRICS: metrics_of(metrics, data)}), None

    def _calibrate(self, job: Job) -> Records:
        """Return ranges and histograms of the model's activations on this device's data."""
        from skerry_edge import calibrating

        plan = calibrating.plan_of(Path(job.app))
        if callable(own := getattr(self._module, calibrating.FUNCTION, None)):
            given, what = own(device_of(job)), calibrating.FUNCTION
        else:
            given, what = self._load(job), "data"
        return calibrating.answer(Path(job.app), plan, calibrating.inputs_of(given, plan, what))

    def _function(self, name: str) -> Callable[..., Any]:
        found = getattr(self._module, name, None)
        if not callable(found):
            reason = f"module {self._module.__name__!r} has no function {name}()"
            raise AppFailure(FailureCode.LOAD, reason)
        return found  # type: ignore[no-any-return]

    def _load(self, job: Job) -> Any:
        """Return the device's data, loaded once per run in this worker."""
        key = (job.run, job.device)
        if self._data is None or self._data[0] != key:
            self._data = None  # the old data may go before the new comes
            self._data = (key, self._function("data")(device_of(job)))
        return self._data[1]


def load(job: Job) -> NativeApp:
    """Return the app in the job's bundle: the module that skerry.toml names."""
    name = job.entry.partition(":")[0] or _named(Path(job.app) / "skerry.toml")
    if job.app not in sys.path:
        sys.path.insert(0, job.app)
    return NativeApp(import_module(name))


def _named(file: Path) -> str:
    try:
        return str(tomllib.loads(file.read_text())["app"]["module"])
    except (OSError, KeyError, TypeError, tomllib.TOMLDecodeError) as error:
        reason = f"the bundle's skerry.toml names no module under [app]: {error}"
        raise AppFailure(FailureCode.LOAD, reason) from error


def device_of(job: Job) -> Device:
    """Return what the app may know about its device."""
    return Device(
        id=job.device,
        node_id=job.node,
        labels=job.labels,
        partition=int(job.node_config.get("partition-id", 0)),
        partitions=int(job.node_config.get("num-partitions", 1)),
        config=job.node_config,
    )


def metrics_of(returned: Any, data: Any) -> dict[str, Any]:
    """Return what train or evaluate gave as metrics, with the number of examples."""
    if returned is None:
        returned = {}
    if not isinstance(returned, Mapping):
        returned = {"loss": returned}
    metrics: dict[str, Any] = {
        str(name): _number(str(name), value) for name, value in returned.items()
    }
    given = metrics.pop("num_examples", None)
    if EXAMPLES not in metrics:
        metrics[EXAMPLES] = int(given) if given is not None else examples_in(data)
    return metrics


def examples_in(data: Any) -> int:
    """Return how many examples the data holds: a loader's, of arrays side by side, or items."""
    dataset = getattr(data, "dataset", data)
    if isinstance(dataset, tuple | list) and dataset and all(map(_rows, dataset)):
        lengths = {_rows(each) for each in dataset}
        if len(lengths) == 1:
            return lengths.pop()
    if isinstance(dataset, Mapping):
        return max((_rows(each) for each in dataset.values()), default=0) or 1
    try:
        return len(dataset)
    except TypeError:
        return 1


def _rows(value: Any) -> int:
    shape = getattr(value, "shape", None)
    return int(shape[0]) if shape else 0


def _number(name: str, value: Any) -> int | float | list[Any]:
    """Return a metric as Python's own number, or list of them."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, int | float):
        return value
    if isinstance(value, list | tuple):
        return [_number(name, each) for each in value]
    reason = f"metric {name!r} is {type(value).__name__}; expected a number"
    raise AppFailure(FailureCode.RAISED, reason)


def _call(function: Callable[..., Any], model: Any, data: Any, config: dict[str, Any]) -> Any:
    """Call train or evaluate, with the config when it takes one."""
    try:
        takes = len(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        takes = 3
    return function(model, data, config) if takes > 2 else function(model, data)


def _seed(seed: Any, job: Job) -> None:
    """Make the run repeatable when it has a seed: each device and round has its own dice."""
    if not isinstance(seed, int):
        return
    import random
    import zlib

    mixed = zlib.crc32(f"{seed}/{job.node}/{job.round}/{job.message_type}".encode())
    random.seed(mixed)
    np.random.seed(mixed)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(mixed)
