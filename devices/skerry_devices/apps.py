"""An app as a person has it, a folder, made into the bundle that the coordinator signs and ships.

Two kinds: a native app has a skerry.toml, a Flower app a pyproject.toml with [tool.flwr.app]. The
bundle holds every file of the folder but hidden ones, caches, and what a .gitignore names.
"""

import os
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pathspec
from skerry_protos import bundles
from skerry_protos.errors import ConfigError
from skerry_protos.settings import load_tables, require_known

SKIPPED = ("__pycache__/", "*.py[cod]", "*.egg-info/", "venv/", "build/", "dist/", "node_modules/")
NATIVE_TABLES = {
    "app": ("name", "version", "module"),
    "run": ("rounds", "strategy", "strategy_options", "config"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class App:
    """An app's name, kind and bundle, not signed yet."""

    name: str
    kind: str
    bundle: bytes
    files: int


def read_app(folder: Path) -> App:
    """Return the app in `folder`, or raise ConfigError saying what is missing."""
    if not folder.is_dir():
        raise ConfigError(
            f"{folder} is not a folder", hint="name the folder of an app; skerry new makes one"
        )
    if (folder / "skerry.toml").exists():
        kind, said = "native", _native(folder)
    elif "flwr" in _pyproject(folder).get("tool", {}):
        kind, said = "flower", _flower(folder)
    else:
        raise ConfigError(
            f"{folder} holds no app: neither skerry.toml nor a pyproject.toml with [tool.flwr.app]",
            hint="skerry new NAME makes a native app, skerry new NAME --flower a Flower app",
        )
    files = {path.relative_to(folder).as_posix(): path for path in sorted(app_files(folder))}
    _check_size(folder, files)
    bundle = bundles.pack(
        {name: path.read_bytes() for name, path in files.items()}, kind=kind, **said
    )
    return App(name=said["name"], kind=kind, bundle=bundle, files=len(files))


def _native(folder: Path) -> dict[str, str]:
    source = folder / "skerry.toml"
    tables = load_tables(source)
    for name, table in tables.items():
        require_known(name, NATIVE_TABLES, source=str(source))
        for key in table if isinstance(table, dict) else ():
            require_known(key, NATIVE_TABLES[name], source=str(source), name=name)
    app = tables.get("app", {})
    module = app.get("module", "app")
    path = folder.joinpath(*str(module).split("."))
    if not (path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()):
        raise ConfigError(
            f"{source}: app.module is {module!r}, but there is no {path.with_suffix('.py')}"
        )
    return {
        "name": str(app.get("name") or folder.resolve().name),
        "version": str(app.get("version", "0.1.0")),
        "client": f"{module}:train",
        "server": f"{module}:model",
    }


def _flower(folder: Path) -> dict[str, str]:
    source, project = folder / "pyproject.toml", _pyproject(folder)
    components = project["tool"]["flwr"].get("app", {}).get("components", {})
    for part in ("serverapp", "clientapp"):
        module, _, attribute = str(components.get(part, "")).partition(":")
        if not module or not attribute:
            raise ConfigError(
                f"{source}: tool.flwr.app.components.{part} is {components.get(part)!r}",
                hint='write it as "module:attribute"',
            )
    named = project.get("project", {})
    return {
        "name": str(named.get("name") or folder.resolve().name),
        "version": str(named.get("version", "0.1.0")),
        "client": str(components["clientapp"]),
        "server": str(components["serverapp"]),
    }


def _pyproject(folder: Path) -> dict[str, Any]:
    path = folder / "pyproject.toml"
    return load_tables(path) if path.exists() else {}


def app_files(folder: Path) -> Iterator[Path]:
    """Yield the files that belong to the app."""
    ignored = [*SKIPPED]
    if (listed := folder / ".gitignore").exists():
        ignored += listed.read_text(errors="replace").splitlines()
    skip = pathspec.PathSpec.from_lines("gitignore", ignored)
    for here, below, names in os.walk(folder):
        inside = Path(here).relative_to(folder)
        below[:] = sorted(
            name
            for name in below
            if not name.startswith(".") and not skip.match_file(f"{(inside / name).as_posix()}/")
        )
        for name in names:
            path = Path(here, name)
            if name.startswith(".") or skip.match_file((inside / name).as_posix()):
                continue
            if path.is_symlink() or not path.is_file():
                raise ConfigError(
                    f"{path} is a link or no plain file, and bundles hold plain files only",
                    hint="copy the file into the folder, or name it in .gitignore",
                )
            yield path


def _check_size(folder: Path, files: dict[str, Path]) -> None:
    sizes = {name: path.stat().st_size for name, path in files.items()}
    if len(files) > bundles.FILES_LIMIT:
        raise ConfigError(
            f"{folder} has {len(files)} files; a bundle holds at most {bundles.FILES_LIMIT}",
            hint="name folders that devices do not need in .gitignore",
        )
    if sum(sizes.values()) > bundles.SIZE_LIMIT * 0.99:
        largest = max(sizes, key=lambda name: sizes[name])
        raise ConfigError(
            f"{folder} has {sum(sizes.values()) / 1e6:.0f} MB of files, most of it {largest};"
            f" a bundle holds at most {bundles.SIZE_LIMIT / 1e6:.0f} MB",
            hint="data belong on the devices: name what they do not need in .gitignore",
        )


def read_value(text: str) -> bool | int | float | str:
    """Return what the V of `--run-config K=V` means: a TOML scalar, else the text itself."""
    try:
        value = tomllib.loads(f"v = {text}")["v"]
    except tomllib.TOMLDecodeError:
        return text
    return value if isinstance(value, bool | int | float | str) else text
