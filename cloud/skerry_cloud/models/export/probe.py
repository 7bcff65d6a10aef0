"""What devices are given to calibrate with: the float model for each runtime, and the plan.

The tensors to watch are those that the runtime's own quantizer asks for, by its names for them.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from skerry_protos.calibration import (
    PLAN,
    TENSORS_LIMIT,
    Graph,
    Input,
    Plan,
    Watched,
)
from torch import nn

from skerry_cloud.models.export import ExportError
from skerry_cloud.models.export.calibration import MOST
from skerry_cloud.models.export.prepared import Say
from skerry_cloud.models.export.program import Traced, trace
from skerry_cloud.models.export.request import Request
from skerry_cloud.models.export.source import Arrays, Subject
from skerry_cloud.models.export.source import load as load_subject

Size = tuple[int, int]


def write(request: Request, folder: Path, say: Say) -> list[dict[str, Any]]:
    """Write the plan and its graphs into the request's `probe`; return what is in it."""
    torch.manual_seed(request.seed)
    torch.set_num_threads(1)
    subject = load_subject(request)
    traced = trace(subject.model, subject.example, subject.app)
    graphs = {}
    out = Path(request.probe)
    for runtime in request.to:
        if runtime == "onnx":
            graphs[runtime] = _onnx(subject, traced, folder, out)
        else:
            graphs[runtime] = _litert(subject, traced, out)
        count = len(graphs[runtime].tensors)
        if count > TENSORS_LIMIT:
            raise ExportError(
                f"{runtime}: the model has {count} tensors to calibrate; devices take at most "
                f"{TENSORS_LIMIT}"
            )
        say(f"{runtime}: {count} tensors to calibrate")
    plan = Plan(
        model=model_digest(subject.model),
        inputs=tuple(
            Input(name=name, dtype=str(each.numpy().dtype), shape=tuple(each.shape[1:]))
            for name, each in zip(traced.inputs, subject.example, strict=True)
        ),
        graphs=graphs,
    )
    (out / PLAN).write_text(json.dumps(plan.to_json()))
    return [{"runtime": name, "tensors": len(one.tensors)} for name, one in graphs.items()]


def model_digest(model: nn.Module) -> str:
    """Return the SHA-256 of a model's weights, by name: ranges are of one model only."""
    made = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        if isinstance(value, torch.Tensor):
            array = np.ascontiguousarray(
                value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
            )
            made.update(f"{name} {value.dtype} {list(value.shape)}\n".encode())
            made.update(array.tobytes())
    return made.hexdigest()


def _onnx(subject: Subject, traced: Traced, folder: Path, out: Path) -> Graph:
    from skerry_cloud.models.export import to_onnx

    source = folder / "float.onnx"
    to_onnx.export(traced, subject.example, source)
    names = to_onnx.watching(source, out / "graph.onnx")
    batch = to_onnx.BATCH if traced.dynamic else 1
    one = to_onnx.sizes(out / "graph.onnx", traced.inputs, _numpy(subject.example, 1))
    two = one
    if traced.dynamic:
        two = to_onnx.sizes(out / "graph.onnx", traced.inputs, _numpy(subject.example, 2))
    watched = tuple(_watched(name, (one[name], two[name]), batch) for name in names)
    return Graph(file="graph.onnx", batch=batch, examples=MOST, tensors=watched)


def _litert(subject: Subject, traced: Traced, out: Path) -> Graph:
    from skerry_cloud.models.export import to_litert

    source = out / "graph.tflite"
    to_litert.export(subject.model, traced, subject.example, source)
    one = _numpy(subject.example, 1)
    found = to_litert.sizes(source, traced.inputs, one)
    watched = tuple(Watched(name=name, per_example=size) for name, size in found.items())
    return Graph(file="graph.tflite", batch=1, examples=to_litert.CALIBRATED_BY, tensors=watched)


def _watched(name: str, sizes: Size, batch: int) -> Watched:
    """Return a tensor with its numbers for each example and each call, from calls of 1 and 2."""
    one, two = sizes
    if batch == 1:
        return Watched(name=name, per_example=one)
    if not 0 <= two - one <= one:
        raise ExportError(
            f"the tensor {name!r} has {one} numbers for one example and {two} for two; "
            "calibration needs it to grow with them"
        )
    return Watched(name=name, per_example=two - one, per_call=2 * one - two)


def _numpy(example: Sequence[torch.Tensor], count: int) -> Arrays:
    return tuple(each[:count].numpy() for each in example)
