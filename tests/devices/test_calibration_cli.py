"""`skerry models export --calibrate`: an app's int8 ranges from a fleet of real processes."""

import importlib.util
from pathlib import Path

import pytest
from skerry_devices.local import LocalFleet
from skerry_protos.packing import read_artefact

from tests.cloud.models.apps import write_app
from tests.devices.conftest import Skerry

pytestmark = [
    pytest.mark.skipif(
        importlib.util.find_spec("onnxruntime") is None, reason="needs skerry-cloud[export]"
    ),
    pytest.mark.timeout(300),
]
SHARES = """
calibration = training = None


def data(device):
    mine = slice(device.partition, 1500, 2)
    return X[mine], Y[mine]


def train(model, data, config):
    with torch.no_grad():
        model[-1].bias += 0.25  # not what model() returns, and the same classes
    return {"num_examples": len(data[1])}
"""


def test_what_cannot_be_calibrated_is_told_before_anything_is_asked(
    fleet: LocalFleet, skerry: Skerry, tmp_path: Path
) -> None:
    app = write_app(tmp_path / "app", SHARES)
    (app / "skerry.toml").write_text('[app]\nname = "shared"\nmodule = "app"\n')
    for words, told in {
        ("--calibrate", "phones"): "--calibrate takes devices, or run:ID",
        ("--calibrate", "devices", "-q", "fp16"): "has no use with --quantize fp16",
        ("--calibrate", "run:run-nothing"): "there is no run",
    }.items():
        said = skerry("models", "export", app, "--to", "onnx", *words)
        assert said.status != 0
        assert told in said.err


@pytest.mark.slow
def test_an_app_whose_data_the_cloud_has_not_is_calibrated_by_its_devices(
    fleet: LocalFleet, skerry: Skerry, tmp_path: Path
) -> None:
    app = write_app(tmp_path / "app", SHARES)
    (app / "skerry.toml").write_text('[app]\nname = "shared"\nmodule = "app"\n')
    trained = skerry("run", app, "--rounds", "1").out.split()[0]
    words = (
        "models",
        "export",
        trained,
        "--to",
        "onnx",
        "--allow-slower",
        "--out",
        tmp_path / "out",
    )
    said = skerry(*words, "--calibrate", "devices", "--output", "json")
    assert said.status == 0, said.err
    assert "2 of 2 devices calibrated" in said.err
    (made,) = said.json
    assert made["model"] == "shared"
    static = [row for row in made["front"] if row["recipe"] == "static"]
    assert static
    assert static[0]["value"] >= made["figures"]["float_value"] - 0.01
    run = next(word for word in said.err.split() if word.startswith("run-"))
    assert run != trained
    untrained = skerry("models", "export", app, "--to", "onnx", "--calibrate", f"run:{run}")
    assert untrained.status != 0
    assert "the calibration is of another model" in untrained.err

    again = skerry(*words, "--calibrate", f"run:{run}", "--ranges", "mse", "--output", "json")
    assert again.status == 0, again.err
    (found,) = again.json
    assert [row for row in found["front"] if row["recipe"] == "static"]
    lineage = read_artefact(Path(found["folder"])).lineage
    assert lineage["run"] == trained
    by = {"run": run, "devices": 2, "examples": 1024, "ranges": "mse"}
    assert lineage.get("calibrated_by") == (by if found["recipe"] == "static" else None)
