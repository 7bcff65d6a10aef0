"""Keys, models and rollouts on the command line, against a real coordinator and two devices."""

import json
import shutil
from pathlib import Path

import pytest
from skerry_devices.local import LocalFleet

from tests.artefacts import packed
from tests.devices.conftest import Skerry

pytestmark = [
    pytest.mark.network,
    pytest.mark.timeout(240),
    pytest.mark.usefixtures("fleet"),
    pytest.mark.xdist_group("the local fleet"),
]

QUICK = ("--soak", "0s", "--trial", "0.2s", "--period", "0.2s", "--timeout", "60s", "--watch")


@pytest.fixture(scope="session")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("keys") / "held"


@pytest.fixture
def operator(keys: Path, skerry: Skerry, monkeypatch: pytest.MonkeyPatch) -> Skerry:
    """Return the command line of an operator with keys, made once."""
    monkeypatch.setenv("SKERRY_KEYS", str(keys))
    monkeypatch.setenv("SKERRY_KEYS_PASSWORD", "correct horse")
    if not keys.exists():
        made = skerry("keys", "init", "-o", "json")
        assert made.status == 0, made.err
        assert len(made.json["root_sha256"]) == 64
        assert len(list(keys.glob("*.pem"))) == 8
    return skerry


def test_a_model_goes_from_a_file_to_every_device_and_back(
    operator: Skerry, tmp_path: Path, fleet: LocalFleet
) -> None:
    first, second = packed(tmp_path / "one", seed=1), packed(tmp_path / "two", seed=2)
    for path in (first, second):
        said = operator("models", "import", "tiny", path, "--lineage", "run=run-7", "-o", "json")
        assert said.status == 0, said.err
    refused = operator("rollout", "start", "tiny@1", "--channel", "canary")
    assert refused.status == 2
    assert "no artefact of tiny@1 is signed" in refused.err
    for name in ("tiny@1", "tiny@2"):
        signed = operator("models", "sign", name, "--channel", "canary")
        assert signed.status == 0, signed.err
        assert operator("models", "verify", name).status == 0

    watched = operator(
        "rollout", "start", "tiny@1", "--channel", "canary", "-w", "50%", "-w", "100%", *QUICK
    )
    assert watched.status == 0, watched.err + watched.out
    assert "completed" in watched.out
    assert operator("rollout", "start", "tiny@canary", "--channel", "canary", *QUICK).status == 0
    shown = operator("models", "show", "tiny", "-o", "json").json
    assert shown["labels"] == ["canary"]
    assert shown["devices"] == {"live": 2}
    newest = operator("rollout", "history", "-o", "json").json[0]
    assert (newest["version"], newest["state"]) == (2, "completed")

    undone = operator("rollout", "undo", newest["id"], "--wait", "--timeout", "60s")
    assert undone.status == 0, undone.err
    status = operator("rollout", "status", newest["id"], "-o", "json").json
    assert status["state"] == "rolled-back"
    assert {each["state"] for each in status["devices"]} == {"reverted"}
    agents = [path for path in fleet.home.rglob("slot.json") if path.parent.parent.name == "tiny"]
    live = [path for path in agents if path.parent == (path.parent.parent / "live").resolve()]
    assert {json.loads(path.read_text())["version"] for path in live} == {1}


def test_a_version_that_is_served_cannot_be_retired(operator: Skerry, tmp_path: Path) -> None:
    path = packed(tmp_path / "one", seed=3)
    assert operator("models", "import", "spare", path).status == 0
    assert operator("models", "sign", "spare", "--channel", "stable").status == 0
    assert operator("rollout", "start", "spare", *QUICK).status == 0
    refused = operator("models", "retire", "spare@1", "--why", "old")
    assert refused.status == 8
    assert "devices are to serve" in refused.err
    assert operator("models", "import", "spare", packed(tmp_path / "two", seed=4)).status == 0
    assert operator("models", "retire", "spare@2", "--why", "never used").status == 0
    assert operator("models", "diff", "spare@1", "spare@2").status == 0


def test_keys_are_rotated_and_devices_go_on(operator: Skerry, keys: Path, tmp_path: Path) -> None:
    for role in ("stable", "targets", "root", "online"):
        said = operator("keys", "rotate", role)
        assert said.status == 0, f"{role}: {said.err}"
    assert operator("models", "import", "rotated", packed(tmp_path / "r", seed=5)).status == 0
    assert operator("models", "sign", "rotated", "--channel", "stable").status == 0
    watched = operator("rollout", "start", "rotated", *QUICK)
    assert watched.status == 0, watched.out + watched.err


def test_a_wrong_password_and_an_unknown_root_are_said_in_one_line(
    operator: Skerry, keys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert operator("models", "import", "worded", packed(tmp_path / "w", seed=6)).status == 0
    monkeypatch.setenv("SKERRY_KEYS_PASSWORD", "wrong password")
    wrong = operator("models", "sign", "worded", "--channel", "stable")
    assert wrong.status == 2
    assert "cannot open the key" in wrong.err
    monkeypatch.setenv("SKERRY_KEYS_PASSWORD", "correct horse")
    other = tmp_path / "other"
    shutil.copytree(keys, other)
    shutil.rmtree(other / "trust")
    (other / "root.json").write_text('{"signed": {}, "signatures": []}')
    unknown = operator("models", "sign", "worded", "--channel", "stable", "--keys", other)
    assert unknown.status == 7, unknown.err
    assert "does not hold" in unknown.err
