"""What an app says of itself, read from its bundle: settings only, none of its code.

A Flower app has `[tool.flwr.app]` in pyproject.toml, a native one skerry.toml.
"""

import io
import tomllib
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from skerry_protos.bundles import Manifest, inspect
from skerry_protos.errors import ConfigError
from skerry_protos.settings import read_table, require_known

from skerry_cloud.runs.plan import ConfigScalar, RunOptions

ROUNDS_KEY = "num-server-rounds"
"""Where Flower's app templates keep the number of rounds."""
DEFAULT_ROUNDS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class NativeRun:
    """The table [run] of skerry.toml."""

    rounds: int = DEFAULT_ROUNDS
    strategy: str = "fedavg"
    strategy_options: dict[str, ConfigScalar] = field(default_factory=dict)
    config: dict[str, ConfigScalar] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class AppPlan:
    """The app with a run's wishes applied: what its server side is told."""

    manifest: Manifest
    rounds: int  # 0: only the app knows
    strategy: str
    strategy_options: Mapping[str, ConfigScalar]
    run_config: Mapping[str, ConfigScalar]


def plan_app(bundle: Path, options: RunOptions) -> AppPlan:
    """Return the app's plan, or raise ConfigError naming file, key and the nearest valid one."""
    manifest = inspect(bundle)
    if manifest.kind == "flower":
        return _flower(bundle, manifest, options)
    return _native(bundle, manifest, options)


def _native(bundle: Path, manifest: Manifest, options: RunOptions) -> AppPlan:
    tables = _toml(bundle, "skerry.toml")
    run = read_table(NativeRun, tables.get("run", {}), source="skerry.toml", name="run")
    rounds = options.rounds or run.rounds
    if rounds < 1:
        raise ConfigError(f"skerry.toml: run.rounds is {rounds}; expected at least 1")
    return AppPlan(
        manifest=manifest,
        rounds=rounds,
        strategy=options.strategy or run.strategy,
        strategy_options=options.strategy_options or run.strategy_options,
        run_config=_overridden(run.config, options.run_config, "skerry.toml", "run.config"),
    )


def _flower(bundle: Path, manifest: Manifest, options: RunOptions) -> AppPlan:
    if options.strategy:
        raise ConfigError(
            "run options: a Flower app brings its own strategy",
            hint="set it in the app, or pass what the app reads with run_config",
        )
    tables = _toml(bundle, "pyproject.toml")
    declared = tables.get("tool", {}).get("flwr", {}).get("app", {}).get("config", {})
    config = flattened(declared)
    wanted = dict(options.run_config)
    if options.rounds:
        if ROUNDS_KEY not in config:
            raise ConfigError(
                f"run options: rounds is {options.rounds}, but the app declares no {ROUNDS_KEY!r}",
                hint="set the rounds in the app",
            )
        wanted.setdefault(ROUNDS_KEY, options.rounds)
    merged = _overridden(config, wanted, "pyproject.toml", "tool.flwr.app.config")
    rounds = merged.get(ROUNDS_KEY, 0)
    return AppPlan(
        manifest=manifest,
        rounds=rounds if isinstance(rounds, int) and rounds > 0 else 0,
        strategy="",
        strategy_options={},
        run_config=merged,
    )


def flattened(tables: Mapping[str, Any], prefix: str = "") -> dict[str, ConfigScalar]:
    """Return nested tables with dotted keys, as Flower does; ConfigError for other values."""
    found: dict[str, ConfigScalar] = {}
    for key, value in tables.items():
        if isinstance(value, Mapping):
            found |= flattened(value, f"{prefix}{key}.")
        elif isinstance(value, ConfigScalar):
            found[prefix + key] = value
        else:
            raise ConfigError(
                f"pyproject.toml: tool.flwr.app.config.{prefix}{key} is {value!r:.80}",
                hint="expected a number, a text, true/false, or a table of those",
            )
    return found


def _overridden(
    declared: Mapping[str, ConfigScalar],
    wanted: Mapping[str, ConfigScalar],
    source: str,
    name: str,
) -> dict[str, ConfigScalar]:
    """Return the declared values with those wanted; a key nobody declared is a mistake."""
    for key in wanted:
        require_known(key, declared, source=source, name=name)
    return {**declared, **wanted}


def _toml(bundle: Path, name: str) -> dict[str, Any]:
    try:
        with zipfile.ZipFile(bundle) as archive:
            return tomllib.load(io.BytesIO(archive.read(name)))
    except KeyError as error:
        raise ConfigError(f"the app has no {name}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{name}: {error}") from error
