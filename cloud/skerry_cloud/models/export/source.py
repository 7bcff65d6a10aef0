"""The app's side of an export: its model, example, data, metric, labels. Imports the app's code.

What a module may have besides `model()`; docs/models.md says more:

    example()        one example input with its batch axis, or a tuple of inputs
    held_out()       (inputs, labels) to judge by; labels may be None
    calibration()    inputs to take the ranges of activations from
    training()       (inputs, labels) for what trains: QAT, distillation, mending after pruning
    student()        a smaller model, for distillation
    metric(outputs, labels)   a number, higher is better; else accuracy
    LABELS, PREPROCESSING     what the artefact's manifest says
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from skerry_protos.errors import ConfigError, SkerryError
from skerry_protos.tensors import Tensor
from skerry_protos.weights import load_tensors
from torch import nn

from skerry_cloud.models.export import DataError, ExportError
from skerry_cloud.models.export.request import Request

Arrays = tuple[NDArray[Any], ...]
"""The arrays of each input, examples first."""
Metric = Callable[[Any, Any], float]
EXAMPLES_LIMIT = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Labelled:
    """Examples and what is right for them, if that is known."""

    inputs: Arrays
    labels: NDArray[Any] | None = None

    def __len__(self) -> int:
        return len(self.inputs[0])


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A trained model with what is needed to export and to judge it."""

    name: str
    model: nn.Module
    example: tuple[torch.Tensor, ...]
    held_out: Labelled
    calibration: Arrays | None
    training: Labelled | None
    student: Callable[[], nn.Module] | None
    metric: Metric | None
    metric_name: str
    labels: tuple[str, ...]
    preprocessing: tuple[Mapping[str, Any], ...]
    app: Path


def load(request: Request) -> Subject:
    """Return what the app gives for the export; raise ConfigError or DataError for a flaw."""
    app = _module(request)
    model = _model(app, request.weights)
    held_out = _held_out(app, request.held_out)
    example = _example(app, held_out)
    calibration = _calibration(app, request.calibration)
    training = _labelled("training()", _call(app, "training"))
    return Subject(
        name=request.name,
        model=model,
        example=example,
        held_out=_checked("held-out", held_out, example),
        calibration=calibration,
        training=_checked("training", training, example) if training else None,
        student=getattr(app, "student", None),
        metric=getattr(app, "metric", None),
        metric_name=str(getattr(app, "METRIC", "metric")),
        labels=tuple(str(each) for each in getattr(app, "LABELS", ())),
        preprocessing=_preprocessing(app),
        app=Path(request.folder),
    )


def load_weights(model: nn.Module, file: str) -> None:
    """Put the tensors of an .npz file into the model."""
    try:
        with np.load(file, allow_pickle=False) as arrays:
            tensors = {name: Tensor.of(arrays[name]) for name in arrays.files}
    except (OSError, ValueError, EOFError) as error:
        raise ConfigError(f"{file} is no .npz file of weights: {error}") from error
    try:
        load_tensors(model, tensors)
    except SkerryError as error:
        raise ConfigError(
            f"{file} does not fit the app's model: {error.message}",
            hint="is it of another version of the app?",
        ) from error


def arrays_of(given: Any, what: str) -> Arrays:
    """Return the inputs an app or a file gave, as arrays side by side."""
    several = given if isinstance(given, tuple | list) else (given,)
    try:
        arrays = tuple(_array(each) for each in several)
    except (TypeError, ValueError) as error:
        raise DataError(f"{what} gave no arrays: {error}") from error
    if not arrays or any(each.ndim == 0 for each in arrays):
        raise DataError(f"{what} gave no examples", hint="expected an array, examples first")
    if len({len(each) for each in arrays}) != 1:
        sizes = ", ".join(str(len(each)) for each in arrays)
        raise DataError(f"{what} gave inputs of different lengths: {sizes}")
    return arrays


def _module(request: Request) -> ModuleType:
    sys.path.insert(0, request.folder)
    try:
        app = import_module(request.module)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"cannot import {request.module!r} from {request.folder}: {error}",
            hint="name the module with --module, and install what it needs",
        ) from error
    if not callable(getattr(app, "model", None)):
        raise ConfigError(
            f"module {request.module!r} has no function model()",
            hint="what an app gives for an export: docs/models.md",
        )
    return app


def _model(app: ModuleType, weights: str) -> nn.Module:
    model = app.model()
    if not isinstance(model, nn.Module):
        raise ExportError(
            f"model() returned {type(model).__name__}; only torch modules can be exported"
        )
    if weights:
        load_weights(model, weights)
    bad = [name for name, value in model.state_dict().items() if not _finite(value)]
    if bad:
        raise ExportError(f"the weights {bad[0]!r} are not finite (NaN or infinite)")
    return model.eval().requires_grad_(requires_grad=False)


def _example(app: ModuleType, held_out: Labelled) -> tuple[torch.Tensor, ...]:
    """Return two examples, so that nothing takes a batch of one for a constant."""
    given = _call(app, "example")
    arrays = arrays_of(given, "example()") if given is not None else held_out.inputs
    if not len(arrays[0]):
        raise DataError("there is no example input", hint="let example() return one")
    two = tuple(np.concatenate([each[:1], each[:1]]) for each in arrays)
    return tuple(torch.from_numpy(np.ascontiguousarray(each)) for each in two)


def _held_out(app: ModuleType, file: str) -> Labelled:
    if file:
        arrays = read_npz(file)
        labels = arrays.pop("labels", None)
        return Labelled(inputs=arrays_of(tuple(arrays.values()), file), labels=labels)
    for name in ("held_out", "server_data"):
        found = _labelled(f"{name}()", _call(app, name))
        if found is not None:
            if not len(found):
                raise DataError(f"the held-out set is empty ({name}() returned no example)")
            return found
    raise DataError(
        "there is no held-out data to judge the exported model by",
        hint="let held_out() in the app return (inputs, labels), or name an .npz with --held-out",
    )


def _calibration(app: ModuleType, file: str) -> Arrays | None:
    if file:
        return arrays_of(tuple(read_npz(file).values()), file)
    given = _call(app, "calibration")
    if given is None:
        given = _call(app, "training")
        return None if given is None else arrays_of(_pair(given, "training()")[0], "training()")
    return arrays_of(given, "calibration()")


def read_npz(file: str) -> dict[str, NDArray[Any]]:
    """Return the arrays of an .npz file; raise DataError naming it."""
    try:
        with np.load(file, allow_pickle=False) as found:
            return {name: found[name] for name in found.files}
    except (OSError, ValueError, EOFError, AttributeError) as error:
        raise DataError(f"{file} is no .npz file of arrays: {error}") from error


def _labelled(what: str, given: Any) -> Labelled | None:
    if given is None:
        return None
    inputs, labels = _pair(given, what)
    return Labelled(
        inputs=arrays_of(inputs, what), labels=None if labels is None else _array(labels)
    )


def _pair(given: Any, what: str) -> tuple[Any, Any]:
    if isinstance(given, tuple | list) and len(given) == 2:
        return given[0], given[1]
    if hasattr(given, "__iter__"):  # a loader of batches
        batches = [each for each in given if isinstance(each, tuple | list) and len(each) == 2]
        if batches:
            inputs = [arrays_of(each[0], what) for each in batches]
            labels = np.concatenate([_array(each[1]) for each in batches])
            return tuple(np.concatenate(each) for each in zip(*inputs, strict=True)), labels
    raise DataError(f"{what} returned {type(given).__name__}; expected a pair (inputs, labels)")


def _checked(what: str, data: Labelled, example: Sequence[torch.Tensor]) -> Labelled:
    if not 0 < len(data) <= EXAMPLES_LIMIT:
        raise DataError(f"the {what} set is empty" if not len(data) else f"the {what} set is huge")
    check_like(what, data.inputs, example)
    if data.labels is not None and len(data.labels) != len(data):
        raise DataError(f"the {what} set has {len(data)} examples and {len(data.labels)} labels")
    return data


def check_like(what: str, arrays: Arrays, example: Sequence[torch.Tensor]) -> None:
    """Raise DataError unless the arrays are finite and of the example's types and shapes."""
    if len(arrays) != len(example):
        raise DataError(f"the {what} set has {len(arrays)} inputs; the model {len(example)}")
    for place, (got, wanted) in enumerate(zip(arrays, example, strict=True)):
        kind = wanted.numpy().dtype
        if got.dtype != kind or got.shape[1:] != tuple(wanted.shape[1:]):
            raise DataError(
                f"input {place} of the {what} set is {got.dtype} {list(got.shape[1:])}; "
                f"the example is {kind} {list(wanted.shape[1:])}"
            )
        if got.dtype.kind == "f" and not np.isfinite(got).all():
            row = int(np.argmin(np.isfinite(got).reshape(len(got), -1).all(axis=1)))
            raise DataError(f"example {row} of the {what} set is not finite (NaN or infinite)")


def _preprocessing(app: ModuleType) -> tuple[Mapping[str, Any], ...]:
    given = getattr(app, "PREPROCESSING", ())
    several = [given] if isinstance(given, Mapping) else list(given)
    if not all(isinstance(each, Mapping) for each in several):
        raise ConfigError("PREPROCESSING must be a table, or a list of one for each input")
    return tuple(several)


def _call(app: ModuleType, name: str) -> Any:
    function = getattr(app, name, None)
    return function() if callable(function) else None


def _array(value: Any) -> NDArray[Any]:
    if hasattr(value, "detach"):
        return np.ascontiguousarray(value.detach().cpu().numpy())
    made = np.ascontiguousarray(value)
    if made.dtype == object:
        raise ValueError("its rows differ in shape")
    return made


def _finite(value: Any) -> bool:
    return not isinstance(value, torch.Tensor) or bool(torch.isfinite(value).all())
