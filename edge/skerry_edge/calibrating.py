"""The device's part of a calibration: the float model over its own examples, ranges and counts out.

The bundle brings the float model in the formats of the runtimes; each that is installed here runs
it, every tensor of interest an output, and only `Spreads` of those go into the reply. So the
tensors have the names, and the numbers the rounding, that the exporter's quantizer expects. Loaded
in the worker only, by native apps (apps/native.py).
"""

from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from skerry_protos.calibration import (
    EXAMPLES,
    FOLDER,
    LEAST_EXAMPLES,
    METRICS,
    PLAN,
    Graph,
    Plan,
    Spreads,
    read_plan,
)
from skerry_protos.errors import PeerError
from skerry_protos.records import Records

from skerry_edge.apps import AppFailure, FailureCode

Arrays = tuple[NDArray[Any], ...]
MODULES = {"onnx": "onnxruntime", "litert": "ai_edge_litert"}
FUNCTION = "device_calibration"
_HINT = f"let {FUNCTION}(device) in the app return the model's inputs"


def plan_of(app: Path) -> Plan:
    """Return the plan in a bundle, or raise AppFailure."""
    try:
        return read_plan((app / FOLDER / PLAN).read_bytes())
    except (OSError, PeerError) as error:
        raise AppFailure(FailureCode.LOAD, f"the bundle has no calibration: {error}") from error


def answer(app: Path, plan: Plan, arrays: Arrays) -> Records:
    """Return the spreads of these inputs by each runtime that is here, or raise AppFailure."""
    here = [name for name in plan.graphs if name in MODULES and find_spec(MODULES[name])]
    if not here:
        wanted = " or ".join(MODULES.get(name, name) for name in plan.graphs)
        raise AppFailure(FailureCode.PRECONDITION, f"neither {wanted} is installed here")
    made = Records(metrics={METRICS: {EXAMPLES: len(arrays[0])}})
    for name in here:
        graph = plan.graphs[name]
        run = _onnx if name == "onnx" else _litert
        spreads = Spreads.empty(len(graph.tensors))
        for found in run(app / FOLDER / graph.file, graph, plan, some(arrays, graph.examples)):
            for place, watched in enumerate(graph.tensors):
                try:
                    spreads.add(place, found[watched.name])
                except ValueError as error:
                    reason = f"the tensor {watched.name!r:.200} on this device's data: {error}"
                    raise AppFailure(FailureCode.RAISED, reason) from error
        made.arrays[name] = spreads.tensors()
    return made


def inputs_of(given: Any, plan: Plan, what: str) -> Arrays:
    """Return the model's inputs in what the app gave; raise AppFailure where there are none.

    `what` is the app's function: `device_calibration` gives inputs, `data` a pair (inputs, labels),
    a loader of such batches, or inputs; or what it gives has one of these as its `train`.
    """
    found = given
    if what != FUNCTION:
        given = found = _training(given)
        if not isinstance(given, tuple | list) and not hasattr(given, "shape"):
            found = _batched(given, plan)
        elif isinstance(given, tuple | list) and len(given) == len(plan.inputs) + 1:
            found = given[: len(plan.inputs)]
        elif isinstance(given, tuple | list) and len(given) == 2:
            found = given[0]
    several = tuple(found) if isinstance(found, tuple | list) else (found,)
    if len(several) != len(plan.inputs):
        raise _odd(f"{what}() gave {len(several)} inputs; the model has {len(plan.inputs)}")
    arrays = tuple(map(_array, several))
    for each, wanted in zip(arrays, plan.inputs, strict=True):
        if str(each.dtype) != wanted.dtype or each.shape[1:] != wanted.shape:
            raise _odd(
                f"input {wanted.name!r} of {what}() is {each.dtype} {list(each.shape[1:])}; "
                f"the model takes {wanted.dtype} {list(wanted.shape)}"
            )
    if len({len(each) for each in arrays}) != 1:
        raise _odd(f"{what}() gave inputs of different lengths")
    return _telling(some(arrays, plan.examples), plan)


def some(arrays: Arrays, most: int) -> Arrays:
    """Return at most so many examples, evenly over all: the same for the same data."""
    count = len(arrays[0])
    if count <= most:
        return arrays
    rows = np.linspace(0, count - 1, most).astype(np.int64)
    return tuple(each[rows] for each in arrays)


def _telling(arrays: Arrays, plan: Plan) -> Arrays:
    """Return the arrays, or raise AppFailure when they say nothing of the model's ranges."""
    if (count := len(arrays[0])) < LEAST_EXAMPLES:
        reason = f"there are {count} examples to calibrate with; at least {LEAST_EXAMPLES} count"
        raise AppFailure(FailureCode.PRECONDITION, reason)
    for each, wanted in zip(arrays, plan.inputs, strict=True):
        if each.dtype.kind == "f" and not np.isfinite(each).all():
            raise _odd(f"input {wanted.name!r} of this device's data has NaN or infinity")
        if (each == each.flat[0]).all():
            reason = f"this device's data are constant: all of {wanted.name!r} is {each.flat[0]}"
            raise AppFailure(FailureCode.PRECONDITION, reason)
    return arrays


def _training(given: Any) -> Any:
    """Return what data() keeps to train with, where it says which that is."""
    kept = given.get("train") if isinstance(given, Mapping) else getattr(given, "train", None)
    return given if kept is None or callable(kept) else kept


def _batched(given: Any, plan: Plan) -> Any:
    """Return the inputs of a loader's first batches, as many as are looked at."""
    try:
        batches = iter(given)
    except TypeError:
        raise _odd(f"data() gave {type(given).__name__}, which holds no inputs to see") from None
    kept: list[Arrays] = []
    seen = 0
    for batch in batches:
        if not isinstance(batch, tuple | list) or len(batch) < 2:
            raise _odd(f"data() gave a {type(given).__name__} of {type(batch).__name__}")
        first = batch[0]
        inputs = tuple(first) if isinstance(first, tuple | list) else (first,)
        kept.append(tuple(map(_array, inputs)))
        seen += len(kept[-1][0]) if kept[-1][0].ndim else 0
        if seen >= plan.examples:
            break
    if not kept:
        raise AppFailure(FailureCode.PRECONDITION, "there are 0 examples to calibrate with")
    return tuple(np.concatenate(each) for each in zip(*kept, strict=True))


def _array(value: Any) -> NDArray[Any]:
    if hasattr(value, "detach"):
        value = value.detach().cpu().numpy()
    try:
        made = np.asarray(value, order="C")
    except ValueError as error:
        raise _odd(f"its examples differ in shape: {error}") from error
    if made.dtype == object or not made.ndim:
        raise _odd(f"{type(value).__name__} is no array of examples")
    return made


def _odd(why: str) -> AppFailure:
    return AppFailure(FailureCode.RAISED, f"{why}; {_HINT}")


def _onnx(file: Path, graph: Graph, plan: Plan, arrays: Arrays) -> Iterator[Mapping[str, Any]]:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    outputs = [one.name for one in session.get_outputs()]
    for at in range(0, len(arrays[0]), graph.batch):
        given = {
            wanted.name: each[at : at + graph.batch]
            for wanted, each in zip(plan.inputs, arrays, strict=True)
        }
        yield {**given, **dict(zip(outputs, session.run(outputs, given), strict=True))}


def _litert(file: Path, graph: Graph, plan: Plan, arrays: Arrays) -> Iterator[Mapping[str, Any]]:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(
        model_path=str(file), num_threads=1, experimental_preserve_all_tensors=True
    )
    interpreter.allocate_tensors()
    places = {str(one["name"]): int(one["index"]) for one in interpreter.get_tensor_details()}
    inputs = interpreter.get_signature_runner().get_input_details()
    for row in range(len(arrays[0])):
        for wanted, each in zip(plan.inputs, arrays, strict=True):
            interpreter.set_tensor(int(inputs[wanted.name]["index"]), each[row : row + 1])
        interpreter.invoke()
        yield {one.name: interpreter.get_tensor(places[one.name]) for one in graph.tensors}
