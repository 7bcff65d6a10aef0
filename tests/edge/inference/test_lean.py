"""A device that only infers: what has to be installed on it is small, and it serves."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.artefacts import FEATURES, packed, weights

LIMIT_MB = 200
REPO = Path(__file__).parents[3]
NO_NETWORK = ("Temporary failure in name resolution", "NewConnectionError", "Connection refused")


def run(*command: str | Path, timeout: float) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [str(one) for one in command], capture_output=True, text=True, timeout=timeout, check=False
    )


def installed_mb(folder: Path) -> float:
    """Return the size of the files below `folder`, in units of 1e6 bytes."""
    return sum(one.lstat().st_size for one in folder.rglob("*") if one.is_file()) / 1e6


@pytest.mark.slow
@pytest.mark.network
@pytest.mark.timeout(400)
def test_an_inference_only_device_is_small_and_serves(tmp_path: Path) -> None:
    """Python's own files do not count, nor does pip; what was compiled while it served does."""
    venv = tmp_path / "device"
    assert run(sys.executable, "-m", "venv", "--without-pip", venv, timeout=60).returncode == 0
    device = venv / "bin/python"
    options = ("--quiet", "--disable-pip-version-check", "--no-compile")
    wanted = (REPO / "protos", f"{REPO / 'edge'}[grpc,onnx]")
    done = run(
        *(sys.executable, "-m", "pip", "--python", device, "install"),
        *options,
        *wanted,
        timeout=300,
    )
    if done.returncode and any(one in done.stderr for one in NO_NETWORK):
        pytest.skip("the package index is not in reach")
    assert done.returncode == 0, done.stderr
    artefact = packed(tmp_path / "tiny")
    script = Path(__file__).with_name("lean_device.py")
    done = run(device, "-P", script, artefact, tmp_path / "home", timeout=120)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["has"] == []
    assert said["readings"]["accuracy"] == 1.0
    row = np.array([[at % 3 for at in range(FEATURES)]], np.float32)
    outputs = {one["name"]: one["data"] for one in said["answer"]["outputs"]}
    np.testing.assert_allclose(outputs["scores"], (row @ weights())[0], rtol=1e-4, atol=1e-4)
    size = installed_mb(venv)
    print(f"an inference-only device takes {size:.1f} MB")
    assert size <= LIMIT_MB
