"""Runs and models in MLflow: a real tracking store in a file, where the extra is installed."""

import sys
from pathlib import Path
from typing import Any

import pytest

from tests.artefacts import packed
from tests.devices.conftest import Skerry

pytestmark = pytest.mark.filterwarnings("ignore")  # MLflow's own, of newer libraries

ENDED: dict[str, Any] = {
    "id": "run-01a2",
    "name": "tiny",
    "app": "ab" * 32,
    "app_kind": "native",
    "state": "completed",
    "why": "",
    "round": 2,
    "rounds": 2,
    "options": {"min_devices": 2, "limits": {"seconds": 0.0}, "codec": "int8"},
    "created_at": 1000.0,
    "created_by": "ann",
    "started_at": 1001.0,
    "ended_at": 1009.0,
    "model": "cd" * 32,
}


def rows(rounds: int) -> list[dict[str, Any]]:
    return [
        {
            "round": n,
            "device": d,
            "phase": "train",
            "name": "loss",
            "value": 1 / n,
            "at": 1000.0 + n,
        }
        for n in range(1, rounds + 1)
        for d in ("", "device-1")
    ]


def test_without_mlflow_one_line_says_what_to_install(
    skerry: Skerry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    for words in (("runs", "export", "run-1"), ("models", "export-mlflow", "digits")):
        said = skerry(*words, "--uri", "sqlite:///nowhere.db")
        assert said.status == 2
        assert "MLflow is not installed here" in said.err
        assert "pip install 'skerry[mlflow]'" in said.err
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    unnamed = skerry("runs", "export", "run-1")
    assert "which MLflow?" in unnamed.err


def test_a_run_is_exported_whole_and_once(tmp_path: Path) -> None:
    pytest.importorskip("mlflow")
    from skerry_devices.mlflow_export import METRICS_AT_ONCE, MlflowStore
    from skerry_protos.errors import ConfigError

    store = MlflowStore(f"sqlite:///{tmp_path}/mlflow.db", artefacts=tmp_path / "files")
    model = tmp_path / "model.npz"
    model.write_bytes(b"weights")
    with pytest.raises(ConfigError, match="export it when it has ended"):
        store.export_run({**ENDED, "ended_at": None, "state": "running"}, [], [])
    many = METRICS_AT_ONCE + 5
    nan = {**rows(1)[0], "name": "odd %", "value": float("nan")}
    made = store.export_run(ENDED, [*rows(many), nan], [model], devices=True)
    assert not made.again
    client = store._client
    found = client.get_run(made.run_id)
    assert found.info.status == "FINISHED"
    assert (found.info.start_time, found.info.end_time) == (1_001_000, 1_009_000)
    assert found.data.params["limits.seconds"] == "0.0"
    assert found.data.params["codec"] == "int8"
    assert found.data.tags["skerry.run"] == "run-01a2"
    history = client.get_metric_history(made.run_id, "train/loss")
    assert [each.step for each in history] == list(range(1, many + 1))
    assert "train/loss/device-1" in found.data.metrics
    assert {each.path for each in client.list_artifacts(made.run_id)} == {
        "model.npz",
        "skerry.json",
    }
    again = store.export_run(ENDED, rows(2), [model])
    assert (again.run_id, again.again) == (made.run_id, True)
    failed = store.export_run({**ENDED, "id": "run-2", "state": "failed"}, rows(2), [])
    assert client.get_run(failed.run_id).info.status == "FAILED"


def test_an_export_that_was_cut_is_done_anew(tmp_path: Path) -> None:
    pytest.importorskip("mlflow")
    from skerry_devices.mlflow_export import MlflowStore
    from skerry_protos.errors import SkerryError

    store = MlflowStore(f"sqlite:///{tmp_path}/mlflow.db", artefacts=tmp_path / "files")
    with pytest.raises((SkerryError, OSError)):
        store.export_run(ENDED, rows(2), [tmp_path / "not there"])
    made = store.export_run(ENDED, rows(2), [])
    assert not made.again
    experiment = store._client.get_experiment_by_name("tiny")
    assert experiment is not None
    (only,) = store._client.search_runs([experiment.experiment_id])
    assert only.info.run_id == made.run_id


@pytest.mark.network
@pytest.mark.timeout(240)
@pytest.mark.usefixtures("fleet")
@pytest.mark.xdist_group("the local fleet")
def test_the_commands_export_what_the_coordinator_has(
    skerry: Skerry, app: Path, tmp_path: Path
) -> None:
    pytest.importorskip("mlflow")
    from mlflow import MlflowClient

    uri = f"sqlite:///{tmp_path}/mlflow.db"
    where = ("--uri", uri, "--artefacts", tmp_path / "files", "-o", "json")
    ran = skerry("run", app, "-o", "json")
    assert ran.status == 0, ran.err
    newest = skerry("runs", "list", "-o", "json").json[0]
    exported = skerry("runs", "export", newest["id"], *where)
    assert exported.status == 0, exported.err
    client = MlflowClient(tracking_uri=uri, registry_uri=uri)
    found = client.get_run(exported.json["run_id"])
    assert found.data.metrics["evaluate/accuracy"] == pytest.approx(0.2)
    assert "model.npz" in {each.path for each in client.list_artifacts(found.info.run_id)}

    path = packed(tmp_path / "one", seed=1)
    lineage = f"run={newest['id']}"
    assert skerry("models", "import", "kept", path, "--lineage", lineage).status == 0
    assert skerry("models", "label", "kept@1", "best").status == 0
    for again in (False, True):
        said = skerry("models", "export-mlflow", "kept", *where)
        assert said.status == 0, said.err
        assert (said.json["version"], said.json["again"]) == ("1", again)
    version = client.get_model_version_by_alias("kept", "best")
    assert version.tags["skerry.lineage.run"] == newest["id"]
    files = client.list_artifacts(str(version.run_id), "artefacts")
    assert [each.path for each in files] == ["artefacts/one.zip"]
