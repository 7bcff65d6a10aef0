"""Runs and models as MLflow keeps them, through `mlflow-skinny` (the extra `mlflow`).

A run becomes an MLflow run with its options, its metrics by round and its model file; a version of
a model becomes a version of a registered model, with its artefacts, lineage and labels. What was
exported once is found again by its tag `skerry.run` or `skerry.version`.
"""

import json
import math
import os
import tempfile
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from skerry_protos.errors import ConfigError, LinkError, TrustError
from skerry_protos.packing import file_digest

URI_VARIABLE = "MLFLOW_TRACKING_URI"
INSTALL = "pip install 'skerry[mlflow]'"
PARAMS_AT_ONCE, METRICS_AT_ONCE = 100, 1000
TEXT_LIMIT = 500
RUN_TAG, VERSION_TAG = "skerry.run", "skerry.version"
STATUS = {"completed": "FINISHED", "stopped": "KILLED"}
"""MLflow's word for the state of a run that has ended; of any other state: FAILED."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """Where something is in MLflow; `again`: it was there already."""

    uri: str
    experiment: str
    run_id: str
    version: str = ""
    again: bool = False


class MlflowStore:
    """A tracking store and registry at one URI: `sqlite:///mlflow.db` or a server's http(s)."""

    def __init__(self, uri: str, *, artefacts: Path | None = None) -> None:
        """Raise ConfigError when MLflow is not installed or no URI is named.

        `artefacts` is where a new experiment keeps files, if not where MLflow itself would.
        """
        self.uri = uri or os.environ.get(URI_VARIABLE, "")
        if not self.uri:
            raise ConfigError(
                "which MLflow?", hint=f"name it: --uri sqlite:///mlflow.db, or set {URI_VARIABLE}"
            )
        # Without it MLflow would try for minutes to reach a server that is not there.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
        try:
            from mlflow import MlflowClient
            from mlflow.exceptions import MlflowException
        except ImportError as error:
            raise ConfigError(f"MLflow is not installed here: {error}", hint=INSTALL) from error
        self._artefacts = artefacts.resolve().as_uri() if artefacts is not None else None
        self._failure = MlflowException
        try:
            self._client = MlflowClient(tracking_uri=self.uri, registry_uri=self.uri)
        except MlflowException as error:
            raise self._explained(error) from error

    def export_run(
        self,
        found: Mapping[str, Any],
        metrics: Iterable[Mapping[str, Any]],
        files: Iterable[Path],
        *,
        experiment: str = "",
        devices: bool = False,
    ) -> Exported:
        """Export a run that has ended, as the API shows it; raise ConfigError or LinkError.

        Metrics are named `<phase>/<name>`, with `devices` also `<phase>/<name>/<device>`.
        """
        if not found["ended_at"]:
            raise ConfigError(
                f"run {found['id']} is {found['state']}", hint="export it when it has ended"
            )
        name = experiment or str(found["name"])
        tags = {
            RUN_TAG: found["id"],
            "skerry.app": found["app"],
            "skerry.app_kind": found["app_kind"],
            "skerry.state": found["state"],
            "skerry.why": str(found["why"])[:TEXT_LIMIT],
            "skerry.model": found["model"] or "",
            "mlflow.user": found["created_by"],
        }
        params = {"rounds": found["rounds"], **_flat(found["options"])}
        rows = [
            (_key(each), each["value"], each["at"], each["round"])
            for each in metrics
            if devices or not each["device"]
        ]
        began = found["started_at"] or found["created_at"]
        status = STATUS.get(found["state"], "FAILED")
        try:
            return self._run(
                name,
                f"{found['name']} {found['id']}",
                tags=tags,
                params=params,
                metrics=rows,
                files=dict.fromkeys(files, ""),
                times=(began, found["ended_at"]),
                status=status,
            )
        except self._failure as error:
            raise self._explained(error) from error

    def export_model(
        self, found: Mapping[str, Any], files: Mapping[str, Path], *, experiment: str = ""
    ) -> Exported:
        """Export a version of a model with its artefacts, by file name.

        Raise TrustError when a file is not what the registry names, ConfigError or LinkError.
        """
        for each in found["artefacts"]:
            if file_digest(files[each["file"]]) != each["digest"]:
                raise TrustError(f"{each['file']} that came differs from its digest")
        name, version = str(found["model"]), str(found["version"])
        lineage = {f"skerry.lineage.{k}": _text(v) for k, v in found["lineage"].items()}
        digests = {f"skerry.sha256.{a['file']}": a["digest"] for a in found["artefacts"]}
        signed = sorted({channel for a in found["artefacts"] for channel in a["signed"]})
        tags = {VERSION_TAG: f"{name}@{version}", "skerry.signed": ",".join(signed)}
        tags |= lineage | digests
        params = {
            f"{each['file']}/{key}": _text(each["manifest"].get(key, ""))
            for each in found["artefacts"]
            for key in ("runtime", "quantization", "recipe", "profiles")
        }
        made = found["created_at"]
        rows = [
            (f"{each['file']}/{key}", float(value), made, 0)
            for each in found["artefacts"]
            for key, value in dict(each["manifest"].get("figures", {})).items()
            if isinstance(value, int | float) and not isinstance(value, bool)
        ]
        try:
            run = self._run(
                experiment or name,
                f"{name}@{version}",
                tags=tags,
                params=params,
                metrics=rows,
                files=dict.fromkeys(files.values(), "artefacts"),
                times=(made, time.time()),
                status="FINISHED",
            )
            number = self._register(name, run, tags, found["labels"])
        except self._failure as error:
            raise self._explained(error) from error
        return Exported(
            uri=self.uri,
            experiment=run.experiment,
            run_id=run.run_id,
            version=number,
            again=run.again,
        )

    def _register(
        self, name: str, run: Exported, tags: Mapping[str, str], labels: Iterable[str]
    ) -> str:
        """Return the registered version of a model whose artefacts a run holds; made once."""
        if not self._client.search_registered_models(f"name = '{name}'"):
            self._client.create_registered_model(name)
        every = self._client.search_model_versions(f"name = '{name}'")
        same = [each for each in every if each.tags.get(VERSION_TAG) == tags[VERSION_TAG]]
        if same:
            number = str(same[0].version)
        else:
            source = f"{self._client.get_run(run.run_id).info.artifact_uri}/artefacts"
            made = self._client.create_model_version(
                name, source=source, run_id=run.run_id, tags=dict(tags)
            )
            number = str(made.version)
        for label in labels:
            self._client.set_registered_model_alias(name, label, number)
        return number

    def _run(
        self,
        experiment: str,
        name: str,
        *,
        tags: Mapping[str, str],
        params: Mapping[str, str],
        metrics: Iterable[tuple[str, float, float, int]],
        files: Mapping[Path, str],
        times: tuple[float, float],
        status: str,
    ) -> Exported:
        """Write an MLflow run whole; one that an export left half done is begun anew."""
        from mlflow.entities import Metric, Param

        home = self._experiment(experiment)
        tag = RUN_TAG if RUN_TAG in tags else VERSION_TAG
        for held in self._client.search_runs([home], f"tags.`{tag}` = '{tags[tag]}'"):
            if held.info.status != "RUNNING":
                return Exported(
                    uri=self.uri, experiment=experiment, run_id=held.info.run_id, again=True
                )
            self._client.delete_run(held.info.run_id)
        made = self._client.create_run(
            home, start_time=int(times[0] * 1000), tags=dict(tags), run_name=name
        )
        run = made.info.run_id
        said = [Param(key, str(value)[:TEXT_LIMIT]) for key, value in params.items()]
        for start in range(0, len(said), PARAMS_AT_ONCE):
            self._client.log_batch(run, params=said[start : start + PARAMS_AT_ONCE])
        rows = [
            Metric(key, value, int(at * 1000), step)
            for key, value, at, step in metrics
            if not math.isnan(value)
        ]
        for start in range(0, len(rows), METRICS_AT_ONCE):
            self._client.log_batch(run, metrics=rows[start : start + METRICS_AT_ONCE])
        for path, folder in files.items():
            self._client.log_artifact(run, str(path), folder or None)
        with tempfile.TemporaryDirectory() as folder_of_tags:
            about = Path(folder_of_tags) / "skerry.json"
            about.write_text(json.dumps({"tags": dict(tags), "params": dict(params)}, indent=1))
            self._client.log_artifact(run, str(about))
        self._client.set_terminated(run, status, int(times[1] * 1000))
        return Exported(uri=self.uri, experiment=experiment, run_id=run)

    def _experiment(self, name: str) -> str:
        found = self._client.get_experiment_by_name(name)
        if found is not None and found.lifecycle_stage != "active":
            raise ConfigError(
                f"the MLflow experiment {name!r} was deleted", hint="name another: --experiment"
            )
        if found is not None:
            return str(found.experiment_id)
        return str(self._client.create_experiment(name, artifact_location=self._artefacts))

    def _explained(self, error: Exception) -> LinkError:
        text = " ".join(str(error).split())[:300]
        return LinkError(f"MLflow at {self.uri} refuses: {text}")


def _key(row: Mapping[str, Any]) -> str:
    parts = [row["phase"], row["name"], *([row["device"]] if row["device"] else [])]
    # MLflow takes letters, digits and _ - . : / and spaces
    return "/".join(
        "".join(c if c.isalnum() or c in "_-. :/" else "_" for c in str(part)) for part in parts
    )[:250]


def _flat(table: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Return a table of tables as one of texts: `limits.seconds`."""
    found: dict[str, str] = {}
    for key, value in table.items():
        name = f"{prefix}{key}"
        found |= _flat(value, f"{name}.") if isinstance(value, Mapping) else {name: _text(value)}
    return found


def _text(value: object) -> str:
    return (value if isinstance(value, str) else json.dumps(value, default=str))[:TEXT_LIMIT]
