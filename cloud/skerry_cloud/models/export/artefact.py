"""Writes the artefact: the model's file, golden set, manifest; as a folder and as a zip."""

import importlib.metadata
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from skerry_protos.drift import Reference
from skerry_protos.errors import SkerryError
from skerry_protos.manifest import (
    GOLDEN,
    MANIFEST,
    Manifest,
    Port,
    Postprocessing,
    Preprocessing,
)
from skerry_protos.packing import file_digest, pack_artefact

from skerry_cloud.models.export import ExportError, estimate, golden
from skerry_cloud.models.export.measure import Judge
from skerry_cloud.models.export.prepared import Prepared
from skerry_cloud.models.export.program import Traced
from skerry_cloud.models.export.recipes import FLOAT, Candidate
from skerry_cloud.models.export.request import GOLDEN_EXAMPLES, Request
from skerry_cloud.models.export.runners import load
from skerry_cloud.models.export.selective import calibrated
from skerry_cloud.models.export.source import Subject

TOOLS = {
    "onnx": ("torch", "onnx", "onnxruntime"),
    "litert": ("torch", "litert-torch", "ai-edge-quantizer", "ai-edge-litert"),
}


def write(prepared: Prepared, chosen: Candidate, candidates: Sequence[Candidate]) -> dict[str, Any]:
    """Write one artefact below the request's folder; return its path and figures."""
    request, subject, judge = prepared.request, prepared.subject, prepared.judge
    traced = prepared.traced
    suffix = "onnx" if chosen.runtime == "onnx" else "tflite"
    kind = request.quantize if not request.front else chosen.recipe.replace(" ", "-")
    name = f"{request.name}-{chosen.runtime}-{kind}"
    file = load(chosen.runtime, chosen.path, prepared.order)
    answers = file.answer(judge.data.inputs)
    measured = figures(request, traced, judge, chosen, candidates)
    if request.unsure_risk and judge.data.labels is not None:
        measured |= calibrated(answers[0], judge.data.labels, request.unsure_risk).figures(
            request.unsure_risk
        )
    folder = Path(request.out) / name
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    model = folder / f"model.{suffix}"
    shutil.copyfile(chosen.path, model)
    proof = golden.write(folder / GOLDEN, file, judge, answers, GOLDEN_EXAMPLES)
    outputs = [_free(port, traced, chosen) for port in file.outputs]
    manifest = Manifest(
        model=request.name,
        runtime=chosen.runtime,
        file=model.name,
        quantization=request.quantize,
        recipe=chosen.recipe,
        inputs=tuple(_free(port, traced, chosen) for port in file.inputs),
        outputs=tuple(outputs),
        golden=proof,
        files={each: file_digest(folder / each) for each in (model.name, GOLDEN)},
        opset=_opset(chosen),
        profiles=request.profiles,
        preprocessing=_preprocessing(subject, file.inputs),
        postprocessing=(
            Postprocessing(
                output=outputs[0].name,
                kind="classes" if judge.classes else "values",
                labels=_labels(subject, judge),
            ),
        ),
        figures=measured,
        lineage={
            **request.lineage,
            "quantization": request.quantize,
            **_calibrated(prepared, chosen),
            "pruned": request.prune,
            "distilled": request.distil,
            "exported_at": time.time(),
            "drift": Reference.of(
                {
                    port.name: each
                    for port, each in zip(file.inputs, judge.data.inputs, strict=True)
                    if each.dtype.kind in "fiu"
                },
                answers[0] if judge.classes else None,
            ).to_json(),
        },
        made_with={each: _version(each) for each in TOOLS[chosen.runtime]},
    )
    (folder / MANIFEST).write_bytes(manifest.to_bytes())
    packed = folder.with_suffix(".zip")
    pack_artefact(folder, packed)
    return {
        "artefact": str(packed),
        "folder": str(folder),
        "model": request.name,
        "runtime": chosen.runtime,
        "quantization": request.quantize,
        "recipe": chosen.recipe,
        "figures": dict(manifest.figures),
        "front": [_row(each) for each in candidates],
    }


def _calibrated(prepared: Prepared, chosen: Candidate) -> dict[str, Any]:
    """Return where the ranges of a file's activations are from; empty where it has none."""
    if not chosen.recipe.startswith("static"):
        return {"calibration": ""}
    if prepared.federated is not None:
        by = prepared.federated.lineage(chosen.runtime)
        return {"calibration": "federated", "calibrated_by": by}
    examples = 0 if prepared.calibration is None else len(prepared.calibration[0])
    kind = "file" if prepared.request.calibration else "app"
    return {"calibration": kind, "calibrated_by": {"examples": examples}}


def figures(
    request: Request,
    traced: Traced,
    judge: Judge,
    chosen: Candidate,
    candidates: Sequence[Candidate],
) -> dict[str, Any]:
    """Return what was measured of a file, and estimated for devices (docs/models.md)."""
    plain = next(each for each in candidates if each.recipe == FLOAT)
    quantized = chosen.recipe in {"static", "static products", "dynamic", "int4 weights"}
    there = {
        name: estimate.latency(chosen.latency.median_s, processor, quantized=quantized)
        for name, processor in request.processors.items()
    }
    return {
        "metric": judge.metric_name,
        "value": chosen.quality.value,
        "float_value": judge.value,
        "drop_points": round(chosen.quality.drop_points, 4),
        "agreement": chosen.quality.agreement,
        "max_deviation": chosen.quality.max_deviation,
        "examples": len(judge.data),
        "bytes": chosen.nbytes,
        "float_bytes": plain.nbytes,
        "macs": traced.macs,
        "parameters": traced.parameters,
        "latency_s": chosen.latency.median_s,
        "latency_p95_s": chosen.latency.p95_s,
        "float_latency_s": plain.latency.median_s,
        "estimated_latency_s": there,
        "estimated_energy_j": {
            name: estimate.energy(seconds, request.processors[name])
            for name, seconds in there.items()
        },
    }


def _row(each: Candidate) -> dict[str, Any]:
    return {
        "recipe": each.recipe,
        "bytes": each.nbytes,
        "value": each.quality.value,
        "agreement": each.quality.agreement,
        "latency_s": each.latency.median_s,
    }


def _free(port: Port, traced: Traced, chosen: Candidate) -> Port:
    """Return the port with its number of examples free where the file takes any."""
    if chosen.runtime == "onnx" and traced.dynamic and port.shape:
        return Port(name=port.name, dtype=port.dtype, shape=(None, *port.shape[1:]))
    return port


def _opset(chosen: Candidate) -> int:
    if chosen.runtime != "onnx":
        return 0
    import onnx

    model = onnx.load(chosen.path, load_external_data=False)
    return next((int(each.version) for each in model.opset_import if not each.domain), 0)


def _labels(subject: Subject, judge: Judge) -> tuple[str, ...]:
    if not subject.labels:
        return ()
    if judge.classes and len(subject.labels) != (count := judge.answers[0].shape[-1]):
        raise ExportError(f"the app has {len(subject.labels)} LABELS, the model {count} outputs")
    return subject.labels


def _preprocessing(subject: Subject, inputs: Sequence[Port]) -> tuple[Preprocessing, ...]:
    made = []
    for given, port in zip(subject.preprocessing, inputs, strict=False):
        made.append(_read(given, port))
    return tuple(made)


def _read(given: Mapping[str, Any], port: Port) -> Preprocessing:
    table = {"input": port.name, **given}
    for key in ("mean", "std"):
        if key in table:
            table[key] = tuple(float(each) for each in np.atleast_1d(table[key]))
    try:
        return Preprocessing(**table)
    except (TypeError, SkerryError) as error:
        raise ExportError(f"PREPROCESSING of the app: {error}") from error


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "?"
