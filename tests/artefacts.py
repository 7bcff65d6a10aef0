"""Small real artefacts for tests: an ONNX classifier whose answers are known."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from skerry_protos.drift import Reference
from skerry_protos.manifest import (
    Golden,
    Manifest,
    Port,
    Postprocessing,
    Preprocessing,
)
from skerry_protos.packing import file_digest, pack_artefact

FEATURES, CLASSES = 16, 4
OPSET = 20


def weights(seed: int = 0) -> NDArray[np.float32]:
    """Return the weights of a classifier, shape (FEATURES, CLASSES)."""
    return np.random.default_rng(seed).normal(0, 1, (FEATURES, CLASSES)).astype(np.float32)


def write_artefact(
    folder: Path,
    *,
    model: str = "tiny",
    seed: int = 0,
    bias: float = 0.0,
    depth: int = 0,
    heavy: int = 0,
    free_batch: bool = True,
    preprocessing: tuple[Preprocessing, ...] = (),
    unsure_below: float | None = None,
    reference: bool = False,
    golden_from: int | None = None,
    broken: str = "",
) -> Manifest:
    """Write a classifier's artefact into `folder`: scores = x @ weights(seed) + bias.

    `depth` layers of 256 x 256 in between make it slow, `heavy` bytes that nobody uses large;
    `golden_from` keeps the golden outputs of
    another seed; `broken` is "nan" (answers with NaN) or "file" (no ONNX at all).
    """
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(99)
    batch: Any = "batch" if free_batch else 1
    nodes, constants = [], []
    kept = weights(seed) * (np.nan if broken == "nan" else 1)
    constants.append(numpy_helper.from_array(kept.astype(np.float32), "w"))
    constants.append(numpy_helper.from_array(np.array([bias, 0, 0, 0], dtype=np.float32), "b"))
    nodes.append(helper.make_node("MatMul", ["x", "w"], ["scaled"]))
    nodes.append(helper.make_node("Add", ["scaled", "b"], ["scores" if not depth else "early"]))
    if depth:
        wide = rng.normal(0, 0.01, (CLASSES, 256)).astype(np.float32)
        constants.append(numpy_helper.from_array(wide, "w0"))
        constants.append(
            numpy_helper.from_array(rng.normal(0, 0.01, (256, 256)).astype(np.float32), "wn")
        )
        constants.append(numpy_helper.from_array((wide * 0).T.copy(), "back"))
        nodes.append(helper.make_node("MatMul", ["early", "w0"], ["h0"]))
        nodes += [
            helper.make_node("MatMul", [f"h{at}", "wn"], [f"h{at + 1}"]) for at in range(depth)
        ]
        nodes.append(helper.make_node("MatMul", [f"h{depth}", "back"], ["nothing"]))
        nodes.append(helper.make_node("Add", ["early", "nothing"], ["scores"]))
    if heavy:
        unused = rng.normal(0, 1, heavy // 4).astype(np.float32)
        constants.append(numpy_helper.from_array(unused, "unused"))
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, FEATURES])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, [batch, CLASSES])],
        constants,
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)
    onnx.checker.check_model(made)
    content = b"no model" if broken == "file" else made.SerializeToString()
    (folder / "model.onnx").write_bytes(content)
    inputs = rng.normal(0, 1, (32, FEATURES)).astype(np.float32)
    scores = inputs @ weights(seed if golden_from is None else golden_from)
    scores[:, 0] += bias
    np.savez(
        folder / "golden.npz",
        **{"input.x": inputs, "output.scores": scores, "labels": scores.argmax(axis=1)},
    )
    manifest = Manifest(
        model=model,
        runtime="onnx",
        file="model.onnx",
        quantization="none",
        recipe="float",
        opset=OPSET,
        inputs=(Port(name="x", dtype="float32", shape=(None if free_batch else 1, FEATURES)),),
        outputs=(Port(name="scores", dtype="float32", shape=(None if free_batch else 1, CLASSES)),),
        golden=Golden(examples=len(inputs), labels=True),
        files={name: file_digest(folder / name) for name in ("model.onnx", "golden.npz")},
        preprocessing=preprocessing,
        postprocessing=(
            Postprocessing(output="scores", kind="classes", labels=("a", "b", "c", "d")),
        ),
        figures={} if unsure_below is None else {"unsure_below": unsure_below},
        lineage={"drift": Reference.of({"x": inputs}, scores).to_json()} if reference else {},
        made_with={"test": time.strftime("%Y")},
    )
    (folder / "manifest.json").write_bytes(manifest.to_bytes())
    return manifest


def packed(folder: Path, **options: Any) -> Path:
    """Return a zip of such an artefact, beside `folder`."""
    write_artefact(folder, **options)
    target = folder.with_suffix(".zip")
    pack_artefact(folder, target)
    return target
