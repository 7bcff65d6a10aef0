"""What an export is made of: an app in a folder, a file, or a run and its app from the coordinator.

The app's code runs on this machine, as the user who asks, in a process of its own. It never runs in
the coordinator: that only hands out the run's weights and the bundle that devices got as well.
"""

import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from skerry_protos import bundles
from skerry_protos.errors import ConfigError, TrustError
from skerry_protos.packing import file_digest

CHUNK = 1024**2


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where an export's model comes from."""

    name: str
    folder: Path
    module: str
    weights: Path | None
    lineage: dict[str, Any]


@contextmanager
def find_source(given: str, module: str, weights: Path | None) -> Iterator[Source]:
    """Yield the source that a path or a run's id names; raise ConfigError saying what it lacks."""
    path = Path(given)
    if path.is_dir():
        yield _folder(path.resolve(), module, weights)
    elif path.suffix == ".py" and path.is_file():
        yield _source(path.stem, path.resolve().parent, module or path.stem, weights)
    elif path.exists() or "/" in given:
        raise ConfigError(
            f"{given} is neither an app's folder nor a Python file nor a run",
            hint="give trained weights with --weights FILE.npz",
        )
    else:
        with TemporaryDirectory(prefix="skerry-export-") as folder:
            yield _run(given, module, Path(folder))


def _folder(folder: Path, module: str, weights: Path | None) -> Source:
    name = folder.name
    if (settings := folder / "skerry.toml").exists():
        app = _app_table(settings)
        name = str(app.get("name", name))
        module = module or str(app.get("module", "app"))
    return _source(name, folder, module or _export_module(folder), weights)


def _source(name: str, folder: Path, module: str, weights: Path | None) -> Source:
    if weights is not None and not weights.is_file():
        raise ConfigError(f"there is no file {weights}")
    lineage = {"parent": file_digest(weights)} if weights else {}
    return Source(
        name=_fitting(name), folder=folder, module=module, weights=weights, lineage=lineage
    )


def _run(run: str, module: str, folder: Path) -> Source:
    from skerry_devices.client import at, connect
    from skerry_devices.models import save_model

    with connect() as client:
        found = client.get(at("runs", run))
        weights = folder / "weights.npz"
        save_model(client, found["id"], weights)
        packed = folder / "app.zip"
        with packed.open("wb") as file, client.download(at("runs", found["id"], "app")) as answer:
            for chunk in answer.iter_bytes(CHUNK):
                file.write(chunk)
    if file_digest(packed) != found["app"]:
        raise TrustError(f"the app of {found['id']} that came differs from its digest")
    app = folder / "app"
    app.mkdir()
    # Its signature is the coordinator's own, and it came from there over TLS just now.
    manifest = bundles.unpack(packed, app, lambda _signature, _data: None)
    if not module and manifest.kind == "native":
        module = manifest.server.partition(":")[0]
    return Source(
        name=_fitting(str(found["name"])),
        folder=app,
        module=module or _export_module(app),
        weights=weights,
        lineage={
            "run": found["id"],
            "run_name": found["name"],
            "rounds": found["round"],
            "app": found["app"],
            "codec": found["options"].get("codec", "none"),
            "parent": file_digest(weights),
        },
    )


def _export_module(folder: Path) -> str:
    """Return the module `export` of a Flower app, or raise ConfigError."""
    for path in (folder / "export.py", *sorted(folder.glob("*/export.py"))):
        if path.is_file():
            return ".".join(path.relative_to(folder).with_suffix("").parts)
    raise ConfigError(
        "which module has model() and held_out()?",
        hint="name it with --module, or put an export.py beside the app's other modules "
        "(docs/models.md)",
    )


def _app_table(settings: Path) -> dict[str, Any]:
    try:
        return dict(tomllib.loads(settings.read_text()).get("app", {}))
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(f"{settings} cannot be read: {error}") from error


def _fitting(name: str) -> str:
    """Return a name as a model may have it."""
    plain = "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "-" for c in name.lower())
    return plain.strip("._-")[:64].rstrip("._-") or "model"
