"""Scaffolded apps run as they are."""

import subprocess
import sys
from pathlib import Path

import pytest
from skerry_devices.apps import read_app

from tests.devices.conftest import Skerry

TRAIN = """
import types, app
shares = [app.data(types.SimpleNamespace(partition=i, partitions=2)) for i in range(2)]
model = app.model()
for _ in range(3):
    for share in shares:
        app.train(model, share, {"lr": 0.1, "epochs": 2, "batch_size": 32})
print(app.evaluate(model, shares[0])["accuracy"])
"""


def test_a_native_app_learns(
    skerry: Skerry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert skerry("new", "my-app").status == 0
    assert read_app(tmp_path / "my-app").kind == "native"
    said = subprocess.run(
        [sys.executable, "-W", "error", "-c", TRAIN],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path / "my-app",
    )
    assert float(said.stdout) > 0.9


def test_a_flower_app_can_be_loaded(
    skerry: Skerry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert skerry("new", "my-app", "--flower").status == 0
    assert read_app(tmp_path / "my-app").kind == "flower"
    code = (
        "from my_app.client_app import app as c; from my_app.server_app import app as s;"
        "print(type(c).__name__, type(s).__name__)"
    )
    said = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path / "my-app",
    )
    assert said.stdout.split() == ["ClientApp", "ServerApp"]


@pytest.mark.parametrize("name", ["9lives", "a b", "ü", "."])
def test_a_name_that_cannot_be_one_is_refused(skerry: Skerry, name: str, tmp_path: Path) -> None:
    said = skerry("new", str(tmp_path / "x" / name) if name != "." else "/")
    assert said.status == 2
    assert "cannot be an app's name" in said.err


def test_what_is_there_is_left_alone(
    skerry: Skerry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    said = skerry("new", "mine")
    assert said.status == 2
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]
