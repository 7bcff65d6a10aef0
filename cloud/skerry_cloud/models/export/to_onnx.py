"""ONNX: export by torch's exporter, quantize by onnxruntime.quantization, and slim the file.

Static quantization is QDQ: activations unsigned 8 bit for each tensor, weights signed 8 bit for
each channel, ranges by MinMax. `weights` keeps what the runtime computes as it is: int8 numbers in
the file, cast and scaled back when the session is made (constant folding), so it costs bytes only.
"""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnxruntime import quantization as quant
from onnxruntime.quantization import calibrate, quant_utils, registry

from skerry_cloud.models.export.program import Traced, lacking
from skerry_cloud.models.export.runners import OnnxFile
from skerry_cloud.models.export.source import Arrays

OPSET = 18
PRODUCTS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
"""The operations that int8 makes faster; all others only pass int8 on."""
WEIGHTS_FROM = 256
"""Weights with fewer numbers stay float: their scales would take as much."""
BATCH = 64


def export(traced: Traced, example: Sequence[torch.Tensor], path: Path) -> None:
    """Write the float model; raise ExportError naming an operation that ONNX lacks."""
    with _quiet():
        try:
            made = torch.onnx.export(
                traced.program,
                tuple(example),
                dynamo=True,
                opset_version=OPSET,
                input_names=list(traced.inputs),
                output_names=list(traced.outputs),
                optimize=True,
                verify=False,
                verbose=False,
            )
        except Exception as error:
            raise lacking("ONNX", error, traced.program) from error
    assert made is not None
    slim(made.model_proto, path)


def static(
    source: Path, target: Path, names: Sequence[str], data: Arrays, *, ops: Sequence[str] = ()
) -> None:
    """Quantize weights and activations; `ops`: only these operations, else all it can."""
    _static(source, target, ops, {"calibration_data_reader": _Reader(names, data)})


def by_ranges(
    source: Path, target: Path, ranges: Mapping[str, tuple[float, float]], *, ops: Sequence[str]
) -> None:
    """Quantize as `static` does, with ranges that were measured elsewhere."""
    measured = calibrate.TensorsData(
        quant.CalibrationMethod.MinMax,
        {name: (np.float32(low), np.float32(high)) for name, (low, high) in ranges.items()},
    )
    kept = target.with_suffix(".ranges")
    calibrate.save_tensors_data(measured, kept)
    _static(source, target, ops, {"calibration_cache_path": kept})


def watching(source: Path, target: Path) -> list[str]:
    """Write the model with every tensor an output whose range `static` asks for; return those."""
    with _quiet():
        model = quant_utils.save_and_reload_model_with_shape_infer(onnx.load(source))
        worker = calibrate.CalibraterBase(source)
        worker.op_types_to_calibrate = [*{*registry.QDQRegistry, *registry.QLinearOpsRegistry}]
        found, infos = worker.select_tensors_to_calibrate(model)
    ports = {port.name for port in (*model.graph.input, *model.graph.output)}
    model.graph.output.extend(infos[name] for name in sorted(found - ports))
    slim(model, target)
    return sorted(found)


def sizes(path: Path, names: Sequence[str], inputs: Arrays) -> dict[str, int]:
    """Return how many numbers each input and output of a model has for these inputs."""
    file = OnnxFile(path)
    outputs = file.answer(inputs)
    made = {port.name: each.size for port, each in zip(file.outputs, outputs, strict=True)}
    return made | {name: each.size for name, each in zip(names, inputs, strict=True)}


def dynamic(source: Path, target: Path) -> None:
    """Quantize the weights of MatMul and Gemm; activations as they come. Others: weights only."""
    with _quiet():
        quant.quantize_dynamic(
            onnx.load(source),
            target,
            per_channel=True,
            weight_type=quant.QuantType.QInt8,
            op_types_to_quantize=["MatMul", "Gemm"],  # dynamic convolutions: 6-20 times slower
        )
    made = onnx.load(target)
    shrink_weights(made)
    slim(made, target)


def weights(source: Path, target: Path) -> None:
    """Keep weights as int8; everything is computed in float."""
    made = onnx.load(source)
    shrink_weights(made)
    slim(made, target)


def half(source: Path, target: Path) -> None:
    """Keep weights as float16; everything is computed in float32: a CPU is not faster in half."""
    made = onnx.load(source)
    graph = made.graph
    for tensor in list(graph.initializer):
        if tensor.data_type == TensorProto.FLOAT and np.prod(tensor.dims) >= WEIGHTS_FROM:
            limits = np.finfo(np.float16)
            values = np.clip(numpy_helper.to_array(tensor), limits.min, limits.max)
            _replace(graph, tensor, values.astype(np.float16), None)
    slim(made, target)


def int4(source: Path, target: Path) -> None:
    """Quantize the weights of MatMul to 4 bits in blocks of 32; others: int8 weights only."""
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    made = onnx.load(source)
    _gemm_to_matmul(made.graph)
    with _quiet():
        worker = MatMulNBitsQuantizer(made, block_size=32, is_symmetric=True, accuracy_level=4)
        worker.process()
    made = worker.model.model
    shrink_weights(made)
    slim(made, target)


def shrink_weights(model: onnx.ModelProto) -> None:
    """Replace float weights by int8, a scale for each output channel, and the way back."""
    graph = model.graph
    uses: dict[str, tuple[str, int]] = {}
    for node in graph.node:
        for place, name in enumerate(node.input):
            uses.setdefault(name, (node.op_type, place))
    for tensor in list(graph.initializer):
        big = tensor.data_type == TensorProto.FLOAT and np.prod(tensor.dims) >= WEIGHTS_FROM
        if not big or tensor.name not in uses:
            continue
        values = numpy_helper.to_array(tensor)
        rest = _other_axes(values, *uses[tensor.name], graph)
        scale = np.maximum(np.abs(values).max(axis=rest, keepdims=True), 1e-12) / 127
        small = np.clip(np.rint(values / scale), -127, 127).astype(np.int8)
        _replace(graph, tensor, small, scale.astype(np.float32))


def slim(model: onnx.ModelProto, path: Path) -> None:
    """Write the model without what only people read: traces, names of nodes, inner shapes."""
    graph = model.graph
    for node in graph.node:
        del node.metadata_props[:]
        node.name = ""
        node.doc_string = ""
    for tensor in graph.initializer:
        del tensor.metadata_props[:]
        tensor.doc_string = ""
    for value in (*graph.input, *graph.output):
        del value.metadata_props[:]
    del graph.value_info[:]
    del graph.metadata_props[:]
    del model.metadata_props[:]
    del model.functions[:]
    onnx.save_model(model, path)


def kinds(path: Path) -> set[str]:
    """Return the operations in a model."""
    return {node.op_type for node in onnx.load(path, load_external_data=False).graph.node}


def _static(source: Path, target: Path, ops: Sequence[str], by: Mapping[str, Any]) -> None:
    """Quantize by a calibration set or by ranges that are known."""
    given: dict[str, Any] = {"calibration_data_reader": None, **by}
    with _quiet():
        quant.quantize_static(
            onnx.load(source),
            target,
            **given,
            quant_format=quant.QuantFormat.QDQ,
            per_channel=True,
            reduce_range=False,
            activation_type=quant.QuantType.QUInt8,
            weight_type=quant.QuantType.QInt8,
            calibrate_method=quant.CalibrationMethod.MinMax,
            op_types_to_quantize=list(ops) or None,
        )
    slim(onnx.load(target), target)


class _Reader(quant.CalibrationDataReader):  # type: ignore[misc]  # no stubs
    """Gives the calibration set in batches."""

    def __init__(self, names: Sequence[str], data: Arrays) -> None:
        self._batches = iter(
            [
                {name: each[at : at + BATCH] for name, each in zip(names, data, strict=True)}
                for at in range(0, len(data[0]), BATCH)
            ]
        )

    def get_next(self) -> dict[str, NDArray[Any]] | None:
        return next(self._batches, None)


def _other_axes(
    values: NDArray[Any], op: str, place: int, graph: onnx.GraphProto
) -> tuple[int, ...]:
    """Return the axes that share a scale: all but that of the output channels."""
    if values.ndim < 2 or place == 0:
        return tuple(range(values.ndim))
    if op in {"MatMul", "ConvTranspose"}:
        keep = 1 if op == "ConvTranspose" else values.ndim - 1
    elif op in {"GRU", "LSTM", "RNN"}:
        return (values.ndim - 1,)  # [directions, gates * hidden, inputs]
    elif op == "Gemm":
        node = next(n for n in graph.node if n.op_type == "Gemm" and place < len(n.input))
        transposed = any(a.name == "transB" and a.i for a in node.attribute)
        keep = 0 if transposed else 1
    else:
        keep = 0
    return tuple(axis for axis in range(values.ndim) if axis != keep)


def _replace(
    graph: onnx.GraphProto,
    tensor: TensorProto,
    values: NDArray[Any],
    scale: NDArray[Any] | None,
) -> None:
    """Let small numbers, cast (and scaled) back, take the place of an initializer."""
    name = tensor.name
    graph.initializer.remove(tensor)
    graph.initializer.append(numpy_helper.from_array(values, f"{name}_q"))
    cast = name if scale is None else f"{name}_c"
    nodes = [helper.make_node("Cast", [f"{name}_q"], [cast], to=TensorProto.FLOAT)]
    if scale is not None:
        graph.initializer.append(numpy_helper.from_array(scale, f"{name}_s"))
        nodes.append(helper.make_node("Mul", [cast, f"{name}_s"], [name]))
    for node in reversed(nodes):
        graph.node.insert(0, node)


def _gemm_to_matmul(graph: onnx.GraphProto) -> None:
    """Write Gemm (alpha = beta = 1, a constant matrix) as MatMul and Add, which have 4 bits."""
    constants = {tensor.name: tensor for tensor in graph.initializer}
    for place, node in reversed(list(enumerate(graph.node))):
        given = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        plain = given.get("alpha", 1.0) == given.get("beta", 1.0) == 1.0
        if (
            node.op_type != "Gemm"
            or not plain
            or given.get("transA")
            or (node.input[1] not in constants)
        ):
            continue
        matrix = numpy_helper.to_array(constants[node.input[1]])
        matrix = matrix.T if given.get("transB") else matrix
        name = f"{node.input[1]}_t"
        graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(matrix), name))
        if sum(node.input[1] in other.input for other in graph.node) == 1:
            graph.initializer.remove(constants[node.input[1]])
        biased = len(node.input) > 2
        product = f"{node.output[0]}_p" if biased else node.output[0]
        made = [helper.make_node("MatMul", [node.input[0], name], [product])]
        if biased:
            made.append(helper.make_node("Add", [product, node.input[2]], [node.output[0]]))
        graph.node.remove(node)
        for offset, each in enumerate(made):
            graph.node.insert(place + offset, each)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep what the exporters print and log out of the way."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
