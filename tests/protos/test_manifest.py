"""Artefacts: what a manifest refuses, and that a zip holds exactly what it says."""

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
from skerry_protos.errors import TrustError
from skerry_protos.manifest import (
    GOLDEN,
    MANIFEST,
    Golden,
    Manifest,
    Port,
    Postprocessing,
    Preprocessing,
)
from skerry_protos.packing import (
    file_digest,
    pack_artefact,
    peek_artefact,
    read_artefact,
    unpack_artefact,
)


def artefact(folder: Path) -> Manifest:
    """Write a small artefact whose files are no model, and return its manifest."""
    folder.mkdir()
    (folder / "model.onnx").write_bytes(b"weights" * 1000)
    (folder / GOLDEN).write_bytes(b"arrays")
    made = Manifest(
        model="digits",
        runtime="onnx",
        file="model.onnx",
        quantization="int8",
        recipe="static",
        inputs=(Port(name="x", dtype="float32", shape=(None, 1, 8, 8)),),
        outputs=(Port(name="y", dtype="float32", shape=(None, 10)),),
        golden=Golden(examples=3),
        files={name: file_digest(folder / name) for name in ("model.onnx", GOLDEN)},
        preprocessing=(Preprocessing(input="x", dtype="uint8", scale=1 / 255, std=(0.5,)),),
        postprocessing=(Postprocessing(output="y", kind="classes", labels=("0", "1")),),
        figures={"accuracy": 0.9},
    )
    (folder / MANIFEST).write_bytes(made.to_bytes())
    return made


def test_a_manifest_reads_as_it_was_written(tmp_path: Path) -> None:
    made = artefact(tmp_path / "a")
    assert Manifest.parse(made.to_bytes()) == made
    assert read_artefact(tmp_path / "a") == made


def test_a_zip_unpacks_to_the_same_files_and_is_the_same_bytes_each_time(tmp_path: Path) -> None:
    made = artefact(tmp_path / "a")
    pack_artefact(tmp_path / "a", tmp_path / "1.zip")
    pack_artefact(tmp_path / "a", tmp_path / "2.zip")
    (tmp_path / "b").mkdir()
    assert unpack_artefact(tmp_path / "1.zip", tmp_path / "b") == made
    assert peek_artefact(tmp_path / "1.zip") == made
    assert (tmp_path / "1.zip").read_bytes() == (tmp_path / "2.zip").read_bytes()
    for file in (tmp_path / "a").iterdir():
        assert (tmp_path / "b" / file.name).read_bytes() == file.read_bytes()


def test_a_changed_byte_is_refused(tmp_path: Path) -> None:
    artefact(tmp_path / "a")
    pack_artefact(tmp_path / "a", tmp_path / "a.zip")
    packed = bytearray((tmp_path / "a.zip").read_bytes())
    packed[packed.index(b"weightsweights")] ^= 1
    (tmp_path / "a.zip").write_bytes(packed)
    (tmp_path / "b").mkdir()
    with pytest.raises(TrustError):
        unpack_artefact(tmp_path / "a.zip", tmp_path / "b")
    (tmp_path / "a" / GOLDEN).write_bytes(b"other")
    with pytest.raises(TrustError, match="differs from its digest"):
        read_artefact(tmp_path / "a")


def test_a_zip_with_a_file_more_or_compressed_is_refused(tmp_path: Path) -> None:
    artefact(tmp_path / "a")
    (tmp_path / "b").mkdir()
    for name, method in (("../evil", zipfile.ZIP_STORED), ("big", zipfile.ZIP_DEFLATED)):
        path = tmp_path / "odd.zip"
        pack_artefact(tmp_path / "a", path)
        with zipfile.ZipFile(path, "a", method) as archive:
            archive.writestr(name, b"x" * 1000)
        with pytest.raises(TrustError):
            unpack_artefact(path, tmp_path / "b")
    assert not list((tmp_path / "b").iterdir())
    (tmp_path / "text.zip").write_text("no zip")
    with pytest.raises(TrustError, match="is no artefact"):
        peek_artefact(tmp_path / "text.zip")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("format", 2),
        ("model", "../x"),
        ("runtime", "pickle"),
        ("file", "other.onnx"),
        ("file", ["x"]),
        ("files", {"../a": "0" * 64, GOLDEN: "0" * 64}),
        ("files", {"model.onnx": "short", GOLDEN: "0" * 64}),
        ("files", []),
        ("inputs", []),
        ("inputs", [{"name": "x", "dtype": "object", "shape": [1]}]),
        ("inputs", [{"name": "x", "dtype": "float32", "shape": [-1]}]),
        ("inputs", 7),
        ("golden", {"examples": 0}),
        ("golden", {"examples": 3, "min_agreement": 7}),
        ("golden", {"examples": 3, "compare": "eval"}),
        ("preprocessing", [{"input": "z"}]),
        ("preprocessing", [{"input": "x", "std": [0.0]}]),
        ("preprocessing", [{"input": "x", "scale": "1"}]),
        ("postprocessing", [{"output": "y", "kind": "exec"}]),
        ("postprocessing", [{"output": "y", "labels": [1]}]),
        ("lineage", []),
    ],
)
def test_a_manifest_that_is_off_is_refused(tmp_path: Path, key: str, value: Any) -> None:
    made = json.loads(artefact(tmp_path / "a").to_bytes())
    made[key] = value
    with pytest.raises(TrustError):
        Manifest.parse(json.dumps(made).encode())


def test_it_says_whom_it_does_not_suit(tmp_path: Path) -> None:
    made = artefact(tmp_path / "a")
    table = json.loads(made.to_bytes())
    bound = Manifest.parse(json.dumps({**table, "profiles": ["pi5"]}).encode())
    assert made.suits("pi4") is None
    assert "for pi5" in str(bound.suits("pi4"))
    assert "runtime onnx" in str(made.suits("pi4", ("litert",)))
