"""Exports, each in its own process as a person gets it: what comes out, and what is refused."""

import importlib.util
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from skerry_cloud.models.export.request import Processor, Request
from skerry_cloud.models.export.start import run_export
from skerry_edge.inference.predictor import Predictor
from skerry_protos.drift import Reference, confidence
from skerry_protos.errors import DeadlineError, SkerryError
from skerry_protos.manifest import Manifest
from skerry_protos.packing import peek_artefact, read_artefact, unpack_artefact

from tests.cloud.models.apps import write_app

pytestmark = [
    pytest.mark.skipif(
        importlib.util.find_spec("onnxruntime") is None, reason="needs skerry-cloud[export]"
    ),
    pytest.mark.timeout(300),
]
needs_litert = pytest.mark.skipif(
    importlib.util.find_spec("litert_torch") is None, reason="needs skerry-cloud[litert]"
)
PI = Processor(arch="aarch64", cpu="4x Cortex-A72", clock_mhz=1800, idle_w=2.7, busy_w=6.4)


def export(folder: Path, **options: Any) -> list[dict[str, Any]]:
    """Export the module `app` in a folder to ONNX, or as the options say."""
    wish: dict[str, Any] = {"name": "digits", "module": "app", "to": ("onnx",), **options}
    request = Request(folder=str(folder), out=str(folder / "out"), processors={"pi4": PI}, **wish)
    return run_export(request, timeout_s=280, on_line=lambda _line: None)


def answers(folder: Path, manifest: Manifest, inputs: "np.ndarray[Any, Any]") -> Any:
    """Return what a file answers in its own runtime, called directly."""
    path = str(folder / manifest.file)
    if manifest.runtime == "onnx":
        import onnxruntime as ort

        session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
        return session.run(None, {manifest.inputs[0].name: inputs})[0]
    from ai_edge_litert.interpreter import Interpreter

    runner = Interpreter(model_path=path).get_signature_runner()
    name, output = manifest.inputs[0].name, manifest.outputs[0].name
    return np.concatenate([runner(**{name: each[None]})[output] for each in inputs])


def check_golden(folder: Path, manifest: Manifest) -> None:
    """Do what the device's self test does."""
    with np.load(folder / manifest.golden.file, allow_pickle=False) as golden:
        given = golden[f"input.{manifest.inputs[0].name}"]
        wanted = golden[f"output.{manifest.outputs[0].name}"]
        assert len(given) == manifest.golden.examples == len(golden["labels"])
        found = answers(folder, manifest, given)
        assert (found.argmax(-1) == wanted.argmax(-1)).mean() >= manifest.golden.min_agreement
        assert len(np.unique(wanted.argmax(-1))) == 10  # every class is in it


@needs_litert
def test_both_runtimes_get_an_int8_artefact_that_answers_alike(tmp_path: Path) -> None:
    made = export(write_app(tmp_path), to=("onnx", "litert"))
    found = []
    pixels = np.load(Path(made[0]["folder"]) / "golden.npz")["input.input"]
    for each in made:
        folder = tmp_path / each["runtime"]
        folder.mkdir()
        manifest = unpack_artefact(Path(each["artefact"]), folder)
        assert manifest == read_artefact(Path(each["folder"]))
        check_golden(folder, manifest)
        figures = manifest.figures
        assert figures["drop_points"] <= 1
        assert figures["agreement"] >= 0.98
        assert figures["bytes"] == (folder / manifest.file).stat().st_size
        assert figures["bytes"] < 0.4 * figures["float_bytes"]
        assert figures["latency_s"] <= figures["float_latency_s"] * 1.03 + 1e-6
        assert figures["macs"] == 16 * 9 * 64 + 32 * 16 * 9 * 16 + 128 * 64 + 640
        assert figures["estimated_latency_s"]["pi4"] > figures["latency_s"]
        assert figures["estimated_energy_j"]["pi4"] > 0
        assert manifest.inputs[0].dtype == "float32"
        assert manifest.postprocessing[0].labels == tuple("0123456789")
        assert manifest.preprocessing[0].scale == 1 / 16
        reference = Reference.parse(manifest.lineage["drift"])
        assert {"input.mean", "confidence"} <= reference.features.keys()
        assert reference.features["input.mean"].rows == reference.classes.sum() > 100
        found.append(answers(folder, manifest, pixels))
    assert made[0]["figures"]["float_value"] > 0.9
    assert (found[0].argmax(-1) == found[1].argmax(-1)).all()


def test_answers_too_unsure_for_the_allowed_risk_are_known_to_the_device(tmp_path: Path) -> None:
    # Trained for one pass: wrong more often than allowed.
    folder = write_app(tmp_path, "def model():\n    return fitted(network(), epochs=1)")
    (made,) = export(folder, unsure_risk=0.05)
    figures = made["figures"]
    spec = importlib.util.spec_from_file_location("held_out_of_it", folder / "app.py")
    assert spec is not None
    assert spec.loader is not None
    app = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(app)
    pixels, labels = app.held_out()
    predictor = Predictor.load(Path(made["folder"]))
    raw = np.rint(pixels * 16).astype(np.uint8)
    answers = predictor.predict([{predictor.inputs[0].name: raw}])[0]
    predictor.close()
    assert predictor.threshold == figures["unsure_below"] > 0
    stays = ~(confidence(answers["probabilities"]) < figures["unsure_below"])
    wrong = answers["class"] != labels
    assert wrong.mean() > 0.05 >= figures["unsure_bound"] >= wrong[stays].mean()
    assert stays.mean() == pytest.approx(figures["unsure_kept"], abs=0.004)
    assert 0.3 < figures["unsure_kept"] < 1
    assert figures["unsure_risk"] == 0.05


@needs_litert
def test_nearest_pixels_are_torchs_own_where_the_factor_is_not_whole(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(
        "import torch\nfrom torch import nn\n"
        "def model():\n"
        "    return nn.Sequential(nn.Upsample(size=(28, 20), mode='nearest'), nn.Flatten())\n"
        "def held_out():\n"
        "    return torch.arange(192.0).reshape(2, 1, 8, 12), None\n"
    )
    (made,) = export(tmp_path, to=("litert",), quantize="none")
    assert made["figures"]["max_deviation"] == 0


def test_an_onnx_file_takes_any_number_of_examples(tmp_path: Path) -> None:
    (made,) = export(write_app(tmp_path), quantize="none")
    manifest = peek_artefact(Path(made["artefact"]))
    assert (manifest.recipe, manifest.opset) == ("float", 18)
    assert manifest.inputs[0].shape == (None, 1, 8, 8)
    for count in (1, 3, 70):
        given = np.zeros((count, 1, 8, 8), np.float32)
        assert answers(Path(made["folder"]), manifest, given).shape == (count, 10)
    assert made["figures"]["max_deviation"] < 1e-4


def test_the_front_keeps_what_none_beats(tmp_path: Path) -> None:
    made = export(write_app(tmp_path), front=True, allow_slower=True)
    assert len({each["recipe"] for each in made}) == len(made)
    points = [
        (-m["figures"]["value"], m["figures"]["bytes"], m["figures"]["latency_s"]) for m in made
    ]
    for one in points:
        assert not any(
            other != one and all(a <= b for a, b in zip(other, one, strict=True))
            for other in points
        )


def test_a_model_that_loses_too_much_is_refused_with_figures_and_layers(tmp_path: Path) -> None:
    # Beside features of about 1 stands one of a million: 8 bits for all of them hold only that one.
    spoilt = """
    class Spread(nn.Module):
        def __init__(self, body):
            super().__init__()
            self.front, self.rest = body[:8], body[9:]
            self.wide = nn.Linear(129, 64)
            with torch.no_grad():
                self.wide.weight.copy_(torch.cat([body[8].weight, torch.zeros(64, 1)], dim=1))
                self.wide.bias.copy_(body[8].bias)
        def forward(self, x):
            features = self.front(x)
            huge = torch.full_like(features[:, :1], 1e6)
            return self.rest(self.wide(torch.cat([features, huge], dim=1)))
    def model():
        return Spread(fitted(network())).eval()
    """
    folder = write_app(tmp_path, spoilt)
    with pytest.raises(SkerryError) as refused:
        export(folder, max_drop=1.0, quantize="dynamic", allow_slower=True)
    assert refused.value.code == "max-drop"
    assert "points of accuracy" in refused.value.message
    assert "error by layer: wide " in refused.value.message


@pytest.mark.parametrize(
    ("more", "options", "code", "told"),
    [
        (
            """
            class Odd(nn.Module):
                def __init__(self):
                    super().__init__()
                    self.body = network()
                def forward(self, x):
                    kept = x[x > 0.5]
                    if kept.sum() > 3:
                        return self.body(x)
                    return self.body(x) * 2
            def model():
                return Odd().eval()
            """,
            {},
            "export",
            "shapes that depend on the data, in forward() at app.py:",
        ),
        (
            """
            class Roots(nn.Module):
                def forward(self, x):
                    return torch.special.airy_ai(x)
            def model():
                return nn.Sequential(network(), Roots())
            """,
            {},
            "export",
            "lacks the operation aten.special_airy_ai.default, which layer '1' (Roots) uses",
        ),
        ("def calibration():\n    return X[:0]", {}, "data", "the calibration set is empty"),
        ("def calibration():\n    return X[:9] * 0", {}, "data", "the calibration set is constant"),
        (
            "def calibration():\n    return np.where(X[:9] > 2, X[:9], np.float32('nan'))",
            {},
            "data",
            "example 0 of the calibration set is not finite",
        ),
        ("def calibration():\n    return X[:9, :, :4]", {}, "data", "the example is float32"),
        ("def held_out():\n    return X[:0], Y[:0]", {}, "data", "the held-out set is empty"),
        ("held_out = None", {}, "data", "there is no held-out data"),
        ("def model():\n    return 7", {}, "export", "only torch modules can be exported"),
        (
            "def model():\n    1 / 0",
            {},
            "export",
            "ZeroDivisionError: division by zero, in model()",
        ),
        (
            "def model():\n    made = network()\n    made[0].weight.data[0] = float('nan')\n"
            "    return made",
            {},
            "export",
            "'0.weight' are not finite",
        ),
        ("", {"distil": True}, "export", "--distil needs a smaller model"),
        (
            "",
            {"unsure_risk": 0.001},
            "unsure-risk",
            "297 held-out examples cannot show that at most 0.001 of the answers are wrong",
        ),
        (
            "def held_out():\n    return X[1500:], None",
            {"unsure_risk": 0.05},
            "data",
            "--unsure-risk needs the right class of every held-out example",
        ),
        (
            "def model():\n    return nn.Sequential(nn.Conv2d(1, 3, 3)).eval()\n"
            "def metric(outputs, labels):\n    return 1.0",
            {"unsure_risk": 0.05},
            "data",
            "output has the shape [3, 6, 6]",
        ),
        ("", {"module": "apq"}, "config", "cannot import 'apq'"),
        ("", {"weights": "/nowhere.npz"}, "config", "/nowhere.npz is no .npz file of weights"),
    ],
)
def test_what_cannot_be_exported_is_told_in_one_line(
    tmp_path: Path, more: str, options: dict[str, Any], code: str, told: str
) -> None:
    quick = "def model():\n    return network().eval()\n"
    import textwrap

    folder = write_app(tmp_path, quick + textwrap.dedent(more))
    with pytest.raises(SkerryError) as refused:
        export(folder, **options)
    assert told in refused.value.message
    assert refused.value.code == code
    assert "\n" not in refused.value.message
    assert not (folder / "out").exists()


def test_an_export_that_never_ends_is_ended_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    folder = write_app(tmp_path, "def model():\n    import time; time.sleep(600)")
    request = Request(name="digits", folder=str(folder), module="app", out=str(folder / "out"))
    with pytest.raises(DeadlineError, match="took longer than"):
        run_export(request, timeout_s=2, on_line=lambda _line: None)
    assert list(temporary.iterdir()) == []


def test_a_request_reads_as_it_was_written() -> None:
    request = Request(
        name="m", folder="/f", module="app", out="/o", processors={"pi4": PI}, prune=0.5
    )
    assert Request.from_json(request.to_json()) == request
    assert json.loads(request.to_json())["prune"] == 0.5


@pytest.mark.parametrize(
    "wrong",
    [
        {"to": ("tvm",)},
        {"quantize": "int7"},
        {"prune": 1.0},
        {"max_drop": -1.0},
        {"unsure_risk": 1.0},
    ],
)
def test_a_request_that_makes_no_sense_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(SkerryError):
        Request(**{"name": "m", "folder": "/f", "module": "app", "out": "/o", **wrong})
