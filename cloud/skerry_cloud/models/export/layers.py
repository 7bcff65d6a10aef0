"""Where a quantized file loses accuracy: the error after each layer, against the float file."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skerry_cloud.models.export.program import Traced, layer_of
from skerry_cloud.models.export.runners import LiteRtFile
from skerry_cloud.models.export.source import Arrays

EXAMPLES = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerError:
    """The relative root mean square error after a layer, and how much the layer itself added."""

    layer: str
    error: float
    added: float

    def __str__(self) -> str:
        return f"{self.layer} {self.error:.1%} (+{self.added:.1%})"


def layer_errors(
    runtime: str, float_file: Path, file: Path, traced: Traced, data: Arrays
) -> list[LayerError]:
    """Return each layer's error in the order of the layers, where the file tells it."""
    some = tuple(each[:EXAMPLES] for each in data)
    read = _onnx_tensors if runtime == "onnx" else _litert_tensors
    right, found = read(float_file, some, traced), read(file, some, traced)
    names = _layers(traced)
    made: list[LayerError] = []
    worst = 0.0
    for name, values in right.items():
        if name not in found or found[name].shape != values.shape or not values.size:
            continue
        size = float(np.sqrt(np.mean(np.square(values, dtype=np.float64))))
        off = float(np.sqrt(np.mean(np.square(found[name].astype(np.float64) - values))))
        error = off / size if size > 0 else 0.0
        made.append(
            LayerError(layer=names.get(name, name), error=error, added=max(0.0, error - worst))
        )
        worst = max(worst, error)
    return made


def culprit(errors: list[LayerError]) -> str:
    """Return in words which layers brought the error in."""
    if not errors:
        return "no layer's error could be told"
    worst = sorted(errors, key=lambda each: -each.added)[:3]
    return "error by layer: " + ", ".join(str(each) for each in worst if each.added > 0)


def _layers(traced: Traced) -> dict[str, str]:
    """Return the layer of each value of the graph, by the value's name in the exported file."""
    found = {
        node.name: layer_of(node)
        for node in traced.program.graph.nodes
        if node.op == "call_function"
    }
    for node in traced.program.graph.nodes:
        if node.op == "output":
            for name, value in zip(traced.outputs, node.args[0], strict=False):
                found[name] = found.get(getattr(value, "name", ""), name)
    return found


def _onnx_tensors(file: Path, data: Arrays, traced: Traced) -> Mapping[str, NDArray[Any]]:
    """Return the float values inside the model that have names, in order."""
    import onnx
    import onnxruntime as ort
    from onnx import helper

    model = onnx.load(file)
    names = set(_layers(traced))
    values: dict[str, str] = {}  # name in the float model -> name of the float value here
    for node in model.graph.node:
        for output in node.output:
            plain = output.removesuffix("_DequantizeLinear_Output")
            if plain in names and (output != plain or plain not in values):
                values[plain] = output
    have = {each.name for each in model.graph.output}
    for output in values.values():
        if output not in have:
            model.graph.output.append(helper.make_empty_tensor_value_info(output))
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    fed = dict(zip((each.name for each in session.get_inputs()), data, strict=True))
    found = session.run(list(values.values()), fed)
    return {
        name: array for name, array in zip(values, found, strict=True) if array.dtype.kind == "f"
    }


def _litert_tensors(file: Path, data: Arrays, traced: Traced) -> Mapping[str, NDArray[Any]]:
    """Return the values inside the model as float, by the layer in their names."""
    runner = LiteRtFile(file, (traced.inputs, ()), keep=True)
    details = runner.interpreter.get_tensor_details()
    found: dict[str, list[NDArray[Any]]] = {}
    for row in range(min(8, len(data[0]))):
        runner.prepare(tuple(each[row : row + 1] for each in data))
        runner.once()
        for detail in details:
            name = str(detail["name"])
            try:
                values = runner.interpreter.get_tensor(detail["index"])
            except ValueError:
                continue  # a temporary of the runtime
            if "/" in name and values.dtype.kind in "fi" and values.ndim:
                found.setdefault(name, []).append(_as_float(values, detail))
    return {name: np.stack(values) for name, values in found.items()}


def _as_float(values: NDArray[Any], detail: Any) -> NDArray[Any]:
    scales = detail["quantization_parameters"]["scales"]
    if values.dtype.kind == "f" or not len(scales):
        return values.astype(np.float32)
    zero = detail["quantization_parameters"]["zero_points"]
    axis = detail["quantization_parameters"]["quantized_dimension"]
    shape = [1] * values.ndim
    if len(scales) > 1:
        shape[axis] = len(scales)
    return np.asarray((values.astype(np.float32) - zero.reshape(shape)) * scales.reshape(shape))
