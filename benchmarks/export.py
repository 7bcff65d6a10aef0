"""int8 against float: bytes, accuracy and latency of every example model, in both runtimes.

Each model is exported as `skerry models export MODEL --to onnx,litert --quantize int8` does, which
tries the recipes and keeps the best. Latency is of one example on one thread, the files of a
runtime measured in turns, the quietest of 15 blocks each. The peer is the same runtime's own float
file; the physical limit of the bytes is a quarter, and a call of the runtime on a model that does
nothing is what no file can be faster than.

MODELS=cnn,gru takes some of them only.
"""

import json
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from skerry_cloud.models.export.request import Request, absolute
from skerry_cloud.models.export.start import run_export

from benchmarks._measure import QUICK, finish
from benchmarks._training import MODELS, REPO, Model

RUNTIMES = ("onnx", "litert")
MAX_DROP = 1.0


def wanted() -> list[Model]:
    """Return the models that are asked for and whose data are here."""
    names = [each for each in os.environ.get("MODELS", "").split(",") if each]
    here = [each for each in MODELS if os.environ.get("SKERRY_DATA") or not each.needs_data]
    if QUICK and not names:
        here = [each for each in here if each.name in {"cnn", "transformer", "gru", "digits"}]
    return [each for each in here if each.name in names or not names]


def measure(model: Model, out: Path) -> dict[str, Any]:
    """Export one model to both runtimes and return the figures."""
    request = Request(
        name=model.name,
        folder=str(REPO / model.folder),
        module=model.module,
        out=absolute(out),
        to=RUNTIMES,
        quantize="int8",
        max_drop=100.0,  # the drop is measured here, not refused
        weights=absolute(model.weights()),
    )
    made = run_export(request, timeout_s=1800, on_line=lambda line: print(line, flush=True))
    by = {each["runtime"]: each for each in made}
    row: dict[str, Any] = {"model": model.name, "kind": model.kind}
    for runtime in RUNTIMES:
        figures = by[runtime]["figures"]
        row[runtime] = {
            "recipe": by[runtime]["recipe"],
            "bytes_ratio": round(figures["bytes"] / figures["float_bytes"], 4),
            "bytes": figures["bytes"],
            "float_value": figures["float_value"],
            "drop_points": figures["drop_points"],
            "us": round(figures["latency_s"] * 1e6, 1),
            "float_us": round(figures["float_latency_s"] * 1e6, 1),
            "speedup": round(figures["float_latency_s"] / figures["latency_s"], 2),
            "tried": by[runtime]["front"],
        }
    row["agreement"] = agreement(model, [Path(by[each]["folder"]) for each in RUNTIMES])
    row["best_speedup"] = max(row[runtime]["speedup"] for runtime in RUNTIMES)
    return row


def agreement(model: Model, folders: list[Path]) -> float:
    """Return the share of held-out examples to which both runtimes' files give the same class."""
    from skerry_cloud.models.export.runners import LiteRtFile, OnnxFile

    inputs = _held_out(model)
    one = OnnxFile(folders[0] / "model.onnx").answer((inputs,))[0]
    other = LiteRtFile(folders[1] / "model.tflite").answer((inputs,))[0]
    return float((one.argmax(-1) == other.argmax(-1)).mean())


def _held_out(model: Model) -> Any:
    import subprocess
    import sys

    with tempfile.NamedTemporaryFile(suffix=".npy") as file:
        program = (
            "import sys, importlib, numpy\nsys.path.insert(0, sys.argv[1])\n"
            "inputs, _ = importlib.import_module(sys.argv[2]).held_out()\n"
            "numpy.save(sys.argv[3], numpy.asarray(inputs))"
        )
        place = str(REPO / model.folder)
        subprocess.run(
            [sys.executable, "-c", program, place, model.module, file.name], check=True, timeout=300
        )
        return np.load(file.name)


def floors() -> dict[str, float]:
    """Return the microseconds of a call that computes nothing: eight numbers in and out."""
    program = (
        "import torch\nfrom torch import nn\n"
        "def model():\n    return nn.Identity()\n"
        "def held_out():\n    return torch.randn(4, 8), None\n"
    )
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "nothing.py").write_text(program)
        request = Request(
            name="nothing",
            folder=folder,
            module="nothing",
            out=f"{folder}/out",
            to=RUNTIMES,
            quantize="none",
        )
        made = run_export(request, timeout_s=600, on_line=lambda _line: None)
        return {each["runtime"]: round(each["figures"]["latency_s"] * 1e6, 2) for each in made}


def main() -> None:
    """Measure, and print the JSON line."""
    with tempfile.TemporaryDirectory() as out:
        rows = [measure(model, Path(out)) for model in wanted()]
    for row in rows:
        print(json.dumps(row), flush=True)
    every = [(row, row[runtime]) for row in rows for runtime in RUNTIMES]
    cnns = [row for row in rows if row["kind"] == "cnn"]
    sequences = [row for row in rows if row["kind"] == "sequence"]
    result: dict[str, object] = {
        "benchmark": "export",
        "int8_bytes_max": max(
            (each["bytes_ratio"] for row, each in every if row in cnns), default=0
        ),
        "int8_drop_points_max": max(each["drop_points"] for _, each in every),
        "argmax_agreement_min": min(row["agreement"] for row in rows),
        "int8_speedup_best_min": min(row["best_speedup"] for row in rows),
        "slower_than_float": sum(each["us"] > each["float_us"] * 1.03 + 1 for _, each in every),
        "cnn_litert_speedup": {row["model"]: row["litert"]["speedup"] for row in cnns},
        "cnn_onnx_speedup": {row["model"]: row["onnx"]["speedup"] for row in cnns},
        "sequence_best_speedup": {row["model"]: row["best_speedup"] for row in sequences},
        "bytes_floor": 0.25,
        "empty_call_us": floors(),
        "models": rows,
    }
    finish(result)


if __name__ == "__main__":
    main()
