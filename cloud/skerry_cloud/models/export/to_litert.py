"""LiteRT: convert by litert-torch, quantize the float file by ai-edge-quantizer, and slim it.

The converter takes a fixed number of examples only: one. Inputs and outputs stay float, so that a
device hands a model the same numbers whatever its weights are.
"""

import contextlib
import io
import logging
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import flatbuffers
import numpy as np
import torch
from ai_edge_litert import schema_py_generated as schema
from ai_edge_quantizer import quantizer, recipe
from torch import nn

from skerry_cloud.models.export import ExportError, lowering
from skerry_cloud.models.export.program import Traced, lacking
from skerry_cloud.models.export.runners import LiteRtFile
from skerry_cloud.models.export.source import Arrays

PRODUCTS = ("CONV_2D", "DEPTHWISE_CONV_2D", "CONV_2D_TRANSPOSE", "FULLY_CONNECTED", "BATCH_MATMUL")
CALIBRATED_BY = 128
"""Most examples used: the quantizer looks at every tensor of every example in Python."""
SHARED_UP_TO = 64 * 1024
"""Longer vectors are the weights: those are aligned, and no two are the same."""
ALIGNMENT = 16
Recipe = list[dict[str, Any]]
_FLOAT = "no_quantize"


def export(model: nn.Module, traced: Traced, example: Sequence[torch.Tensor], path: Path) -> None:
    """Write the float model; raise ExportError naming an operation that LiteRT lacks."""
    import litert_torch

    with _quiet():
        try:
            layers = lowering.same(model, [each[:1] for each in example])
            made = litert_torch.convert(
                _Named(model, traced.outputs, layers=layers).eval(),
                sample_kwargs={
                    name: each[:1] for name, each in zip(traced.inputs, example, strict=True)
                },
            )
            made.export(str(path))
        except Exception as error:
            raise lacking("LiteRT", error, traced.program) from error


def static(
    source: Path, target: Path, names: Sequence[str], data: Arrays, *, products: bool = False
) -> None:
    """Quantize weights and activations; `products`: only convolutions and matrix products."""
    with _quiet():
        worker = quantizer.Quantizer(str(source), _static(products=products))
        key = LiteRtFile(source).key
        rows = [
            {name: each[row : row + 1] for name, each in zip(names, data, strict=True)}
            for row in range(0, len(data[0]), -(-len(data[0]) // CALIBRATED_BY))
        ]
        _write(worker, target, worker.calibrate({key: rows}))


def by_ranges(
    source: Path,
    target: Path,
    names: Sequence[str],
    example: Arrays,
    ranges: Mapping[str, tuple[float, float]],
    *,
    products: bool = False,
) -> None:
    """Quantize as `static` does, with ranges that were measured elsewhere.

    The quantizer looks at one example all the same: for the form that it keeps ranges in.
    """
    with _quiet():
        worker = quantizer.Quantizer(str(source), _static(products=products))
        found = _looked_at(worker, source, names, example)
        for tensor, kept in found.items():
            if not _one_range(kept):
                continue
            if tensor not in ranges:
                raise ExportError(f"the calibration lacks the tensor {tensor!r:.200}")
            for end, value in zip(("min", "max"), ranges[tensor], strict=True):
                kept[end] = np.full_like(kept[end], value)
        _write(worker, target, found)


def sizes(source: Path, names: Sequence[str], example: Arrays) -> dict[str, int]:
    """Return the tensors whose ranges `static` asks for, with how many numbers each has."""
    with _quiet():
        worker = quantizer.Quantizer(str(source), _static(products=False))
        found = _looked_at(worker, source, names, example)
        tensors = LiteRtFile(source).interpreter.get_tensor_details()
    shapes = {str(one["name"]): one["shape"] for one in tensors}
    return {name: int(np.prod(shapes[name])) for name, kept in found.items() if _one_range(kept)}


def _one_range(kept: Mapping[str, Any]) -> bool:
    """Return whether a tensor has one range: a constant may have one of its own per channel."""
    return bool(kept) and np.size(kept["min"]) == 1


def _looked_at(worker: Any, source: Path, names: Sequence[str], example: Arrays) -> dict[str, Any]:
    one = {name: each[:1] for name, each in zip(names, example, strict=True)}
    return dict(worker.calibrate({LiteRtFile(source).key: [one]}))


def _static(*, products: bool) -> Recipe:
    wanted: Recipe = recipe.static_wi8_ai8()
    if products:
        wanted = [{**wanted[0], "operation": op} for op in PRODUCTS]
    return [*wanted, _kept_float("INPUT"), _kept_float("OUTPUT")]


def dynamic(source: Path, target: Path) -> None:
    """Quantize weights to int8; activations as they come."""
    _by(source, target, recipe.dynamic_wi8_afp32())


def weights(source: Path, target: Path) -> None:
    """Keep weights as int8; everything is computed in float."""
    _by(source, target, recipe.weight_only_wi8_afp32())


def int4(source: Path, target: Path) -> None:
    """Quantize weights to 4 bits, where the runtime has it, activations as they come."""
    _by(source, target, recipe.dynamic_wi4_afp32())


def half(source: Path, target: Path) -> None:
    """Keep weights as float16; everything is computed in float32."""
    config = {
        "weight_tensor_config": {
            "num_bits": 16,
            "symmetric": True,
            "granularity": "TENSORWISE",
            "dtype": "FLOAT",
        },
        "compute_precision": "FLOAT",
        "explicit_dequantize": True,
        "skip_checks": False,
        "min_weight_elements": 0,
    }
    _by(
        source,
        target,
        [
            {"regex": ".*", "operation": op, "algorithm_key": "float_casting", "op_config": config}
            for op in ("CONV_2D", "DEPTHWISE_CONV_2D", "CONV_2D_TRANSPOSE", "FULLY_CONNECTED")
        ],
    )


def slim(source: Path, target: Path) -> None:
    """Write a model without what only people read, equal parts once: most are zero points.

    The names of inputs and outputs are in the signature and stay.
    """
    data = source.read_bytes()
    model = schema.ModelT.InitFromPackedBuf(bytearray(data), 0)
    for graph in model.subgraphs:
        for tensor in graph.tensors:
            tensor.name = b""
    for buffer in model.buffers:
        if buffer.offset:  # large constants lie behind the flatbuffer proper
            end = buffer.offset + buffer.size
            buffer.data = np.frombuffer(data[buffer.offset : end], np.uint8)
            buffer.offset = buffer.size = 0
    model.description = None
    builder = _SharingBuilder(len(data))
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    made = bytes(builder.Output())
    target.write_bytes(made if len(made) < len(data) else data)


class _SharingBuilder(flatbuffers.Builder):  # type: ignore[misc]  # no stubs
    """Writes equal small vectors once; their readers hold offsets and cannot tell."""

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self._written: dict[tuple[str, bytes], int] = {}

    def CreateNumpyVector(self, x: Any) -> int:  # noqa: N802 - the library's name
        if x.nbytes > SHARED_UP_TO:
            return self._aligned(x)
        key = (x.dtype.str, x.tobytes())
        if key not in self._written:
            self._written[key] = self._aligned(x)
        return self._written[key]

    def _aligned(self, x: Any) -> int:
        """Write bytes where kernels may load them as vectors: the schema says force_align: 16."""
        if x.dtype != np.uint8:
            return int(super().CreateNumpyVector(x))
        self.StartVector(x.itemsize, x.size, ALIGNMENT)
        self.head -= x.nbytes
        self.Bytes[self.head : self.head + x.nbytes] = x.tobytes()
        return int(self.EndVector())


def _by(source: Path, target: Path, wanted: Recipe) -> None:
    with _quiet():
        _write(quantizer.Quantizer(str(source), wanted), target, None)


def _write(worker: Any, target: Path, ranges: Any) -> None:
    made = worker.quantize(ranges)
    if made.quantized_model is None:
        raise ExportError("LiteRT's quantizer made no model")
    target.write_bytes(made.quantized_model)


def _kept_float(operation: str) -> dict[str, Any]:
    return {"regex": ".*", "operation": operation, "algorithm_key": _FLOAT, "op_config": {}}


class _Named(nn.Module):
    """The model with its outputs by name, which become the signature's."""

    def __init__(self, model: nn.Module, outputs: tuple[str, ...], *, layers: bool) -> None:
        super().__init__()
        self.model = model
        self._outputs = outputs
        self._layers = layers

    def forward(self, **inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return what the model returns."""
        with lowering.Lowered(layers=self._layers):
            found = self.model(*inputs.values())
        several = found if isinstance(found, tuple | list) else (found,)
        return dict(zip(self._outputs, several, strict=True))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep what the converter and its native code print out of the way."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
