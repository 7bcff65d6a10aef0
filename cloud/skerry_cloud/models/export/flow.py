"""The story of an export: load, lighten, convert, quantize, measure, choose, write."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from skerry_cloud.models.export import DataError, ExportError, QualityError, ranges
from skerry_cloud.models.export import artefact as artefacts
from skerry_cloud.models.export import calibration as calibrations
from skerry_cloud.models.export.layers import culprit, layer_errors
from skerry_cloud.models.export.lighten import lighten
from skerry_cloud.models.export.measure import Judge, judge_of
from skerry_cloud.models.export.prepared import Prepared, Say
from skerry_cloud.models.export.probe import model_digest
from skerry_cloud.models.export.program import trace
from skerry_cloud.models.export.recipes import (
    FLOAT,
    NOISE,
    Activations,
    Candidate,
    best,
    front,
    recipes,
)
from skerry_cloud.models.export.request import Request
from skerry_cloud.models.export.runners import File, latencies, load
from skerry_cloud.models.export.selective import require_evidence
from skerry_cloud.models.export.source import load as load_subject

RESOLUTION_S = 1e-6
"""Latencies that differ by less are the same: it is what a call's own cost varies by."""


def export(request: Request, folder: Path, say: Say) -> list[dict[str, Any]]:
    """Write the artefacts that were asked for; return what each is.

    Raise QualityError with the figures when nothing keeps to the request's limits.
    """
    torch.manual_seed(request.seed)
    np.random.seed(request.seed % 2**32)
    torch.set_num_threads(1)
    prepared = prepare(request, folder, say)
    made: list[dict[str, Any]] = []
    for runtime in request.to:
        candidates = make_candidates(prepared, runtime)
        chosen = keep(prepared, runtime, candidates)
        made.extend(artefacts.write(prepared, each, candidates) for each in chosen)
    return made


def prepare(request: Request, folder: Path, say: Say) -> Prepared:
    """Return the model as it will be converted, and its judge."""
    started = time.monotonic()
    subject = load_subject(request)
    calibration, federated = None, None
    if request.ranges:
        federated = ranges.read(request.ranges, request.ranges_by, request.ranges_run)
        ranges.of_model(federated, model_digest(subject.model))
    else:
        calibration = calibrations.chosen(subject.calibration, subject.example, request.seed)
    if calibration is None and request.quantize == "int8-qat":
        raise DataError(
            "int8-qat needs a calibration set, and the app has neither calibration() nor training()"
        )
    judge = judge_of(subject)
    if request.unsure_risk:
        require_evidence(judge, request.unsure_risk)
    say(
        f"{request.name}: {judge.metric_name} {judge.value:.4f} on {len(judge.data)} held-out "
        f"examples ({time.monotonic() - started:.1f} s)"
    )
    subject = lighten(request, subject, judge, calibration, say)
    traced = trace(subject.model, subject.example, subject.app)
    if not traced.dynamic:
        say("the model takes a fixed number of examples only: exported for one at a time")
    return Prepared(
        request=request,
        subject=subject,
        traced=traced,
        judge=judge,
        calibration=calibration,
        federated=federated,
        folder=folder,
        say=say,
    )


def make_candidates(prepared: Prepared, runtime: str) -> list[Candidate]:
    """Return every recipe's file, measured; the float file first."""
    request, traced, subject = prepared.request, prepared.traced, prepared.subject
    suffix = "onnx" if runtime == "onnx" else "tflite"
    source = prepared.folder / f"float.{suffix}"
    started = time.monotonic()
    if runtime == "onnx":
        from skerry_cloud.models.export import to_onnx

        to_onnx.export(traced, subject.example, source)
    else:
        from skerry_cloud.models.export import to_litert

        to_litert.export(subject.model, traced, subject.example, source)
    prepared.say(f"{runtime}: converted in {time.monotonic() - started:.1f} s")
    named = {FLOAT: source}
    for recipe in recipes(runtime, request.quantize, subject.model, by_what(prepared, runtime)):
        target = prepared.folder / f"{recipe.name.replace(' ', '-')}.{suffix}"
        try:
            recipe.make(source, target)
            load(runtime, target, prepared.order)
            named[recipe.name] = target
        except Exception as error:  # noqa: BLE001 - one recipe of several
            line = " ".join(str(error).split())[:300]
            prepared.notes.append(f"{recipe.name}: {type(error).__name__}: {line}")
            prepared.say(f"{runtime} {prepared.notes[-1]}")
    return _measured(prepared, runtime, named)


def by_what(prepared: Prepared, runtime: str) -> Activations | None:
    """Return what static quantization takes ranges from; None, and a note, where there is none."""
    names, example = prepared.traced.inputs, prepared.judge.data.inputs
    if prepared.federated is not None:
        found = prepared.federated.by.get(runtime)
        if found is None:
            prepared.notes.append("static: no device has the runtime, so there are no ranges")
            prepared.say(f"{runtime} {prepared.notes[-1]}")
            return None
        return Activations(names=names, example=example, ranges=found.ranges)
    if prepared.calibration is None:
        return None
    return Activations(names=names, example=prepared.calibration)


def keep(prepared: Prepared, runtime: str, candidates: list[Candidate]) -> list[Candidate]:
    """Return the files to write: the best, or the whole front; raise QualityError for none."""
    request = prepared.request
    plain, tried = candidates[0], candidates[1:]
    if request.quantize == "none":
        return [plain] if _close(prepared, plain) else _refuse(prepared, runtime, [plain], plain)
    if not tried:
        why = "; ".join(prepared.notes) or "no recipe fits"
        raise ExportError(f"{runtime}: the model cannot be quantized ({request.quantize}): {why}")
    good = [each for each in tried if _close(prepared, each)]
    if not good:
        _refuse(prepared, runtime, tried, plain)
    quick = [each for each in good if request.allow_slower or _as_fast(each, plain)]
    if not quick:
        first = best(good)
        raise QualityError(
            f"{runtime}: {request.quantize} is slower than float here: "
            f"{first.latency.median_s * 1e6:.0f} and {plain.latency.median_s * 1e6:.0f} us "
            f"({first.recipe}, {first.nbytes} and {plain.nbytes} bytes)",
            hint="export with --quantize none, or take it with --allow-slower",
        )
    kept = front(quick)
    return kept if request.front else [best(kept)]


def _measured(prepared: Prepared, runtime: str, named: dict[str, Path]) -> list[Candidate]:
    """Return the files, slim, with what they answer and how fast."""
    paths = {recipe: _slim(runtime, path) for recipe, path in named.items()}
    files: dict[str, File] = {
        recipe: load(runtime, path, prepared.order) for recipe, path in paths.items()
    }
    one = tuple(each[:1] for each in prepared.judge.data.inputs)
    times = latencies(list(files.values()), one)
    made: list[Candidate] = []
    for (recipe, file), latency in zip(files.items(), times, strict=True):
        try:
            quality = prepared.judge.judge(file.answer(prepared.judge.data.inputs))
        except ExportError as error:
            prepared.notes.append(f"{recipe}: {error.message}")
            continue
        made.append(
            Candidate(
                runtime=runtime,
                recipe=recipe,
                path=paths[recipe],
                named=named[recipe],
                nbytes=paths[recipe].stat().st_size,
                quality=quality,
                latency=latency,
            )
        )
        prepared.say(shown(made[-1], prepared.judge))
    if not made or made[0].recipe != FLOAT:
        raise ExportError(f"{runtime}: the float file fails: {'; '.join(prepared.notes)}")
    return made


def _slim(runtime: str, path: Path) -> Path:
    if runtime == "onnx":
        return path  # written slim
    from skerry_cloud.models.export import to_litert

    target = path.with_name(f"slim-{path.name}")
    to_litert.slim(path, target)
    return target


def shown(each: Candidate, judge: Judge) -> str:
    """Return a candidate in one line."""
    return (
        f"{each.runtime} {each.recipe}: {each.nbytes} bytes, {judge.metric_name} "
        f"{each.quality.value:.4f}, agreement {each.quality.agreement:.4f}, "
        f"{each.latency.median_s * 1e6:.1f} us"
    )


def _close(prepared: Prepared, each: Candidate) -> bool:
    return each.quality.drop_points <= prepared.request.max_drop + 1e-9


def _as_fast(each: Candidate, plain: Candidate) -> bool:
    allowed = max(plain.latency.median_s * NOISE, plain.latency.median_s + RESOLUTION_S)
    return each.latency.median_s <= allowed


def _refuse(
    prepared: Prepared, runtime: str, tried: list[Candidate], plain: Candidate
) -> list[Candidate]:
    """Raise QualityError with the figures, and the layers that lost the accuracy."""
    judge, request = prepared.judge, prepared.request
    nearest = min(tried, key=lambda each: each.quality.drop_points)
    try:
        told = culprit(
            layer_errors(runtime, plain.named, nearest.named, prepared.traced, judge.data.inputs)
        )
    except Exception as error:  # noqa: BLE001 - only an explanation
        told = f"its layers could not be compared ({type(error).__name__})"
    raise QualityError(
        f"{runtime} {request.quantize} loses {nearest.quality.drop_points:.2f} points of "
        f"{judge.metric_name} ({judge.value:.4f} to {nearest.quality.value:.4f}, agreement "
        f"{nearest.quality.agreement:.4f}, {nearest.recipe}); at most {request.max_drop:g} are "
        f"allowed; {told}",
        hint="try --quantize int8-qat, more --calibration, or another --max-drop",
    )
