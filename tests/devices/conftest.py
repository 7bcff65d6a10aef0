"""Shared pieces of the command line's tests: calling it in this process, and a real local fleet."""

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from skerry_devices import contexts
from skerry_devices.cli import run
from skerry_devices.local import LocalFleet, plan_devices

REPOSITORY = Path(__file__).parents[2]


@dataclass(frozen=True, slots=True)
class Said:
    """What one command line did."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def lines(self) -> list[Any]:
        return [json.loads(line) for line in self.out.splitlines()]


Skerry = Callable[..., Said]


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep contexts in a file of this test's own."""
    path = tmp_path / "config" / "config.toml"
    monkeypatch.setenv("SKERRY_CONFIG", str(path))
    monkeypatch.delenv("SKERRY_CONTEXT", raising=False)
    return path


@pytest.fixture
def skerry(config: Path, capfd: pytest.CaptureFixture[str]) -> Skerry:
    """Call the command line."""

    def call(*words: object) -> Said:
        capfd.readouterr()
        status = run([str(word) for word in words])
        said = capfd.readouterr()
        assert "Traceback" not in said.err
        return Said(status, said.out, said.err)

    return call


@pytest.fixture(scope="session")
def local_fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalFleet]:
    """Run a coordinator and two devices, one on each link, as processes."""
    home = tmp_path_factory.mktemp("fleet")
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    plans = plan_devices(2, "both")
    with LocalFleet(home) as fleet:
        fleet.start()
        fleet.join(plans)
        fleet.run(plans)
        fleet.wait_online(plans)
        yield fleet


@pytest.fixture
def fleet(local_fleet: LocalFleet, config: Path) -> LocalFleet:
    """Make the local fleet this test's context."""
    contexts.keep("local", local_fleet.context, use=True)
    local_fleet.children.check()
    return local_fleet


@pytest.fixture
def app(tmp_path: Path) -> Path:
    """Return the folder of a native app that needs nothing but NumPy and takes no time."""
    folder = tmp_path / "tiny"
    folder.mkdir()
    (folder / "skerry.toml").write_text(
        '[app]\nname = "tiny"\nmodule = "tiny"\n[run]\nrounds = 2\n[run.config]\nstep = 1.0\n'
    )
    (folder / "tiny.py").write_text(
        "import numpy as np\n"
        "def model():\n"
        "    return {'w': np.zeros(3, np.float32)}\n"
        "def data(device):\n"
        "    return np.arange(10 + device.partition)\n"
        "def train(model, data, config):\n"
        "    model['w'] += config['step']\n"
        "    return {'loss': 1.0 / config['server-round']}\n"
        "def evaluate(model, data):\n"
        "    return {'accuracy': float(model['w'][0]) / 10}\n"
    )
    return folder
