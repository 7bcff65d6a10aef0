"""Artefacts answer as their manifest says, batched or not, and bad ones are refused in one line."""

import json
from pathlib import Path

import numpy as np
import pytest
from skerry_edge.inference.predictor import Predictor
from skerry_edge.inference.runtimes import ModelError
from skerry_protos.errors import TrustError
from skerry_protos.manifest import Preprocessing

from tests.artefacts import FEATURES, weights, write_artefact


@pytest.fixture
def inputs() -> np.ndarray:
    return np.random.default_rng(5).normal(0, 1, (6, FEATURES)).astype(np.float32)


def test_answers_with_scores_probabilities_classes_and_labels(
    tmp_path: Path, inputs: np.ndarray
) -> None:
    write_artefact(tmp_path)
    found = Predictor.load(tmp_path).predict([{"x": inputs}])[0]
    expected = inputs @ weights()
    np.testing.assert_allclose(found["scores"], expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found["probabilities"].sum(axis=1), 1, rtol=1e-5)
    assert (found["class"] == expected.argmax(axis=1)).all()
    assert found["label"][0] == "abcd"[expected[0].argmax()]


@pytest.mark.parametrize("free_batch", [True, False])
def test_requests_answered_together_get_what_they_get_alone(
    tmp_path: Path, inputs: np.ndarray, free_batch: bool
) -> None:
    write_artefact(tmp_path, free_batch=free_batch)
    predictor = Predictor.load(tmp_path)
    assert predictor.batches == free_batch
    parts = [{"x": inputs[:1]}, {"x": inputs[1:4]}, {"x": inputs[4:]}]
    together = predictor.predict(parts)
    for part, found in zip(parts, together, strict=True):
        alone = predictor.predict([part])[0]
        for name, values in alone.items():
            if values.dtype.kind == "f":
                np.testing.assert_allclose(found[name], values, rtol=1e-5)
            else:
                assert (found[name] == values).all()


def test_raw_values_are_prepared(tmp_path: Path) -> None:
    step = Preprocessing(input="x", dtype="uint8", scale=1 / 255, mean=(0.5,), std=(0.25,))
    write_artefact(tmp_path, preprocessing=(step,))
    predictor = Predictor.load(tmp_path)
    raw = np.arange(FEATURES, dtype=np.uint8).reshape(1, FEATURES) * 10
    assert predictor.inputs[0].dtype == np.uint8
    found = predictor.predict([{"x": raw}])[0]["scores"]
    expected = ((raw.astype(np.float32) / 255 - 0.5) / 0.25) @ weights()
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)


def test_numbers_for_each_place_of_an_axis(tmp_path: Path) -> None:
    mean = tuple(float(at) for at in range(FEATURES))
    step = Preprocessing(input="x", mean=mean, axis=1)
    write_artefact(tmp_path, preprocessing=(step,))
    raw = np.array([mean], dtype=np.float32)
    found = Predictor.load(tmp_path).predict([{"x": raw}])[0]["scores"]
    np.testing.assert_allclose(found, 0, atol=1e-6)


def test_a_model_that_answers_nan_fails(tmp_path: Path, inputs: np.ndarray) -> None:
    write_artefact(tmp_path, broken="nan")
    with pytest.raises(ModelError, match="not finite"):
        Predictor.load(tmp_path).predict([{"x": inputs}])


def test_what_is_no_model_is_named(tmp_path: Path) -> None:
    write_artefact(tmp_path, broken="file")
    with pytest.raises(ModelError, match=r"cannot load model.onnx"):
        Predictor.load(tmp_path)


def test_a_changed_file_is_refused(tmp_path: Path) -> None:
    write_artefact(tmp_path)
    content = bytearray((tmp_path / "model.onnx").read_bytes())
    content[-1] ^= 1
    (tmp_path / "model.onnx").write_bytes(content)
    with pytest.raises(TrustError, match=r"'model.onnx' differs"):
        Predictor.load(tmp_path)


def test_a_manifest_of_another_model_is_refused(tmp_path: Path) -> None:
    manifest = write_artefact(tmp_path)
    said = json.loads(manifest.to_bytes())
    said["inputs"][0]["name"] = "y"
    (tmp_path / "manifest.json").write_text(json.dumps(said))
    with pytest.raises(ModelError, match=r"inputs \['x'\]; its manifest names \['y'\]"):
        Predictor.load(tmp_path)
