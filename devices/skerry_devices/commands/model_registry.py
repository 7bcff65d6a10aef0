"""The part of `skerry models` that speaks to the registry; models.py adds it to its group."""

import hashlib
import json
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from skerry_protos.errors import ConfigError, TrustError

from skerry_devices.commands import policy
from skerry_devices.output import Column, Format, Output, ago, done, show_list, show_one, size
from skerry_devices.signing import Folder, PasswordFile

if TYPE_CHECKING:
    from skerry_devices.client import Client

Name = Annotated[str, typer.Argument(metavar="MODEL", help="model, model@version or model@label.")]

COLUMNS = (
    Column("model", lambda v: f"{v['model']}@{v['version']}", least=20),
    Column("labels", lambda v: ", ".join(v["labels"]) or "-", least=10),
    Column("signed", lambda v: ", ".join(_signed(v)) or "-", least=7),
    Column("files", lambda v: ", ".join(a["file"] for a in v["artefacts"]), least=16, spare=4),
    Column("bytes", lambda v: size(sum(a["size"] for a in v["artefacts"])), spare=2),
    Column("run", lambda v: str(v["lineage"].get("run") or "-"), spare=3, cut=16),
    Column("devices", lambda v: _phases(v["devices"]), least=12),
    Column("made", lambda v: ago(v["created_at"]), spare=1),
    Column("state", lambda v: _state(v), least=18),  # noqa: PLW0108 - defined below
)
ARTEFACT_COLUMNS = (
    Column("file", lambda a: str(a["file"]), least=20),
    Column("runtime", lambda a: str(a["runtime"])),
    Column("profile", lambda a: a["profile"] or "any", spare=2),
    Column("quantization", lambda a: str(a["manifest"].get("quantization", "-"))),
    Column("value", lambda a: _figure(a, "value")),
    Column("drop", lambda a: _figure(a, "drop_points")),
    Column("size", lambda a: size(a["size"])),
    Column("signed", lambda a: ", ".join(a["signed"]) or "-", least=7),
    Column("sha256", lambda a: a["digest"][:16], spare=1),
)


def add_to(app: typer.Typer) -> None:
    """Add the commands to `skerry models`."""
    for name, command in (
        ("list", list_models),
        ("show", show_model),
        ("diff", diff_models),
        ("import", import_model),
        ("sign", sign_model),
        ("verify", verify_model),
        ("label", label_model),
        ("retire", retire_model),
        ("export-mlflow", export_mlflow),
    ):
        app.command(name)(command)
    app.add_typer(policy.app, name="policy")


def list_models(output: Output = Format.TABLE) -> None:
    """List models and their versions."""
    from skerry_devices.client import at, connect

    with connect() as client:
        items = client.items(at("models"))
    show_list(items, COLUMNS, output, empty="No models yet: skerry models import NAME FILE...")


def show_model(model: Name, output: Output = Format.TABLE) -> None:
    """Show a version: its files, figures, lineage, signatures, and where it serves."""
    from skerry_devices.client import at, connect
    from skerry_devices.output import console, table

    with connect() as client:
        found = client.get(at("models", model))
    rows = [
        ("model", f"{found['model']}@{found['version']}  {' '.join(found['labels'])}".rstrip()),
        ("state", _state(found)),
        ("made", f"{ago(found['created_at'])} by {found['created_by']}"),
        ("devices", _phases(found["devices"])),
        *((key, json.dumps(value)) for key, value in sorted(found["lineage"].items())),
    ]
    show_one(found, rows, output)
    if output is Format.TABLE:
        print()
        console().print(table(ARTEFACT_COLUMNS, found["artefacts"]))


def diff_models(
    old: Name,
    new: Annotated[str, typer.Argument(metavar="OTHER", help="What to compare it with.")],
    output: Output = Format.TABLE,
) -> None:
    """Say what differs between two versions."""
    from skerry_devices.client import at, connect

    with connect() as client:
        found = client.get(at("models", old, "diff"), other=new)
    if output is not Format.TABLE:
        show_one(found, (), output)
        return
    print(f"{found['old']} -> {found['new']}")
    for row in found["artefacts"]:
        before, after = row["bytes"]
        print(f"  {row['what']:<8} {row['file']}  {size(before)} -> {size(after)}")
    for key, (before, after) in found["lineage"].items():
        print(f"  {key}: {json.dumps(before)} -> {json.dumps(after)}")


def import_model(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The model's name.")],
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE...", help="Artefacts: zips or their folders.")
    ],
    lineage: Annotated[
        list[str] | None, typer.Option("--lineage", help="Where it comes from, as run=run-01a2.")
    ] = None,
    output: Output = Format.TABLE,
) -> None:
    """Make a new version of a model of artefacts (docs/models.md); devices get it when signed."""
    from skerry_devices.client import at, connect

    said = _pairs(lineage or [])
    with connect() as client, tempfile.TemporaryDirectory() as folder:
        sent: dict[str, str] = {}
        for path in files:
            packed, about = _packed(path, Path(folder))
            said = {**about, **said}
            sent[packed.name] = client.upload_file(at("uploads"), packed)["digest"]
        made = client.post(at("models"), {"model": name, "files": sent, "lineage": said})
    name = f"{made['model']}@{made['version']}"
    done(made, f"{name}: {len(sent)} artefacts; sign it: skerry models sign {name}", output)


def sign_model(
    model: Name,
    channel: Annotated[str, typer.Option(help="canary or stable.")] = "canary",
    min_agent: Annotated[str, typer.Option(help="The oldest agent that may take it.")] = "",
    keys: Folder = None,
    password_file: PasswordFile = None,
    output: Output = Format.TABLE,
) -> None:
    """Sign a version's artefacts in a channel, with the keys on this machine.

    The artefacts are fetched and hashed here. Versions that were retired are left out from now on.
    """
    from skerry_cloud.models import ceremonies, signing
    from skerry_protos.artefacts import CHANNELS, TargetPath

    from skerry_devices.client import at, connect
    from skerry_devices.signing import folder_of, offer, password_of, verified

    if channel not in CHANNELS:
        raise ConfigError(
            f"there is no channel {channel!r}", hint=f"channels: {', '.join(CHANNELS)}"
        )
    folder, password = folder_of(keys), password_of(password_file)
    with connect() as client:
        known = verified(client, folder)
        found = client.get(at("models", model))
        add = {}
        for each in found["artefacts"]:
            path = f"{channel}/{found['model']}/{found['version']}/{each['file']}"
            TargetPath.parse(path)
            digest, nbytes = _hashed(client, found, each["file"])
            if digest != each["digest"]:
                raise TrustError(f"{path}: its bytes are {digest[:12]}, not {each['digest'][:12]}")
            custom = {**each["custom"], "min_agent": min_agent}
            add[path] = signing.target(path, digest=digest, size=nbytes, custom=custom)
        held = signing.load_keys(folder, [channel], password)
        retired = _retired(client)
        current = known.role(channel)
        named = ceremonies.named_in(current)
        drop = [each for each in map(TargetPath.parse, named) if _version(each) in retired]
        lacking = offer(client, ceremonies.sign_targets(channel, current, add, held, drop=drop))
    name = f"{found['model']}@{found['version']}"
    said = "\n".join(lacking) or f"{name} is signed in {channel}: {len(add)} artefacts"
    done(
        {"model": name, "channel": channel, "waits": lacking, "dropped": list(map(str, drop))},
        said,
        output,
    )


def verify_model(model: Name, keys: Folder = None, output: Output = Format.TABLE) -> None:
    """Check a version as a device would: signatures by the pinned root, digests, manifests."""
    from skerry_protos.packing import peek_artefact, unpack_artefact

    from skerry_devices.client import at, connect
    from skerry_devices.signing import folder_of, verified

    rows: list[dict[str, Any]] = []
    with connect() as client, tempfile.TemporaryDirectory() as folder:
        known = verified(client, folder_of(keys))
        found = client.get(at("models", model))
        for each in found["artefacts"]:
            file = Path(folder) / each["file"]
            _fetch(client, found, each["file"], file)
            into = Path(folder) / f"{each['file']}.d"
            into.mkdir()
            manifest = unpack_artefact(file, into)
            assert peek_artefact(file) == manifest
            channels = []
            for channel in ("canary", "stable"):
                path = f"{channel}/{found['model']}/{found['version']}/{each['file']}"
                signed = known.client.get_targetinfo(path)
                if signed is None:
                    continue
                if signed.hashes.get("sha256") != _digest(file):
                    raise TrustError(f"{path} differs from what was signed")
                channels.append(channel)
            rows.append({"file": each["file"], "signed": channels, "sha256": _digest(file)})
    if not any(row["signed"] for row in rows):
        raise TrustError(f"{model} is signed in no channel", hint=f"skerry models sign {model}")
    columns = (
        Column("file", lambda r: str(r["file"])),
        Column("signed in", lambda r: ", ".join(r["signed"]) or "nothing"),
        Column("sha256", lambda r: str(r["sha256"])),
    )
    show_list(rows, columns, output, empty="No artefacts.")


def label_model(
    model: Name,
    label: Annotated[str, typer.Argument(metavar="LABEL", help="As best, or pilot.")],
    output: Output = Format.TABLE,
) -> None:
    """Let a label name this version."""
    from skerry_devices.client import at, connect

    with connect() as client:
        made = client.post(at("models", model, "label"), {"label": label})
    done(made, f"{label} is {made['model']}@{made['version']}", output)


def retire_model(
    model: Name,
    why: Annotated[str, typer.Option(help="For people who look later.")] = "",
    output: Output = Format.TABLE,
) -> None:
    """Take a version out of use; devices refuse it once a channel is signed without it."""
    from skerry_devices.client import at, connect

    with connect() as client:
        made = client.post(at("models", model, "retire"), {"why": why})
    done(made, f"{made['model']}@{made['version']} is retired", output)


def _pairs(said: list[str]) -> dict[str, str]:
    pairs = {}
    for each in said:
        key, found, value = each.partition("=")
        if not found or not key:
            raise ConfigError(f"--lineage {each!r} is not KEY=VALUE")
        pairs[key] = value
    return pairs


def _packed(path: Path, folder: Path) -> tuple[Path, dict[str, Any]]:
    """Return an artefact as a zip, and the lineage in its manifest."""
    from skerry_protos.packing import pack_artefact, peek_artefact

    if path.is_dir():
        target = folder / f"{path.resolve().name}.zip"
        return target, dict(pack_artefact(path, target).lineage)
    if not path.is_file():
        raise ConfigError(f"{path}: there is no such artefact")
    return path, dict(peek_artefact(path).lineage)


def export_mlflow(
    model: Name,
    uri: Annotated[
        str,
        typer.Option(help="The tracking store, as sqlite:///mlflow.db; else by MLflow's variable."),
    ] = "",
    experiment: Annotated[str, typer.Option(help="The experiment; else the model's name.")] = "",
    artefacts: Annotated[
        Path | None, typer.Option(help="Where a new experiment keeps its files.")
    ] = None,
    output: Output = Format.TABLE,
) -> None:
    """Export a version to MLflow: artefacts, figures, lineage, labels, as a registered model."""
    from skerry_devices.client import at, connect
    from skerry_devices.mlflow_export import MlflowStore

    store = MlflowStore(uri, artefacts=artefacts)
    with connect() as client, tempfile.TemporaryDirectory() as folder:
        found = client.get(at("models", model))
        files = {each["file"]: Path(folder) / each["file"] for each in found["artefacts"]}
        for name, path in files.items():
            _fetch(client, found, name, path)
        made = store.export_model(found, files, experiment=experiment)
    said = "was there already" if made.again else "is exported"
    done(
        asdict(made),
        f"{found['model']}@{found['version']} {said}: version {made.version} in {made.uri}",
        output,
    )


def _fetch(client: "Client", found: dict[str, Any], file: str, into: Path) -> None:
    from skerry_devices.client import at

    name = f"{found['model']}@{found['version']}"
    with client.download(at("models", name, "artefacts", file)) as answer, into.open("wb") as out:
        for block in answer.iter_bytes(1024**2):
            out.write(block)


def _hashed(client: "Client", found: dict[str, Any], file: str) -> tuple[str, int]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "artefact"
        _fetch(client, found, file, path)
        return _digest(path), path.stat().st_size


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _retired(client: "Client") -> set[tuple[str, int]]:
    from skerry_devices.client import at

    every = client.items(at("models"))
    return {(v["model"], v["version"]) for v in every if v["retired_at"] is not None}


def _version(path: Any) -> tuple[str, int]:
    return path.model, path.version


def _signed(version: Any) -> list[str]:
    return sorted({channel for each in version["artefacts"] for channel in each["signed"]})


def _phases(devices: dict[str, int]) -> str:
    return ", ".join(f"{count} {phase}" for phase, count in sorted(devices.items())) or "-"


def _state(version: Any) -> str:
    if version["retired_at"]:
        return f"retired: {version['retired_why']}".rstrip(": ")
    if version["quarantined_at"]:
        return f"quarantined: {version['quarantined_why']}"
    return "ready"


def _figure(artefact: Any, name: str) -> str:
    value = artefact["manifest"].get("figures", {}).get(name)
    return f"{value:.4g}" if isinstance(value, int | float) else "-"
