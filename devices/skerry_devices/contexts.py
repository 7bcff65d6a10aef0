"""Contexts: which coordinator the commands speak to, and as whom.

They are kept in ~/.skerry/config.toml (or $SKERRY_CONFIG), readable by the owner only, since a
context holds an operator's token.
"""

import os
from dataclasses import asdict, dataclass, field
from pathlib import Path

import click
import tomli_w
from skerry_protos.errors import ConfigError
from skerry_protos.settings import load_tables, read_table

HINT = "start one here with: skerry up; or name one with: skerry config set-context NAME --url URL"


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """One coordinator: its HTTPS address, the CA file that vouches for it, an operator's token."""

    url: str
    ca: str = ""
    token: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Contexts:
    """All contexts of a person, and which one is used when none is named."""

    current: str = ""
    contexts: dict[str, Context] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class _File:
    """What the file holds."""

    current: str = ""
    contexts: dict[str, dict[str, str]] = field(default_factory=dict)


def config_path() -> Path:
    """Return where the contexts are kept."""
    return Path(os.environ.get("SKERRY_CONFIG") or "~/.skerry/config.toml").expanduser()


def load() -> Contexts:
    """Return the person's contexts, none when there is no file, or raise ConfigError."""
    path = config_path()
    if not path.exists():
        return Contexts()
    made = read_table(_File, load_tables(path), source=str(path))
    return Contexts(
        current=made.current,
        contexts={name: _context(path, name, table) for name, table in made.contexts.items()},
    )


def save(contexts: Contexts) -> Path:
    """Write the contexts, at once and readable by the owner only; return the file."""
    path = config_path()
    made = {
        "current": contexts.current,
        "contexts": {
            name: {key: value for key, value in asdict(context).items() if value}
            for name, context in contexts.contexts.items()
        },
    }
    fresh = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            file.write(tomli_w.dumps(made))
        fresh.replace(path)
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}") from error
    return path


def keep(name: str, context: Context, *, use: bool) -> Path:
    """Add or replace a context; make it the current one when `use`, or when there is no other."""
    known = load()
    current = name if use or not known.current else known.current
    return save(Contexts(current=current, contexts={**known.contexts, name: context}))


def chosen() -> tuple[str, Context]:
    """Return the context of this call: --context, $SKERRY_CONTEXT, or the current one."""
    called = click.get_current_context(silent=True)
    wanted = (
        called.find_root().params.get("context") if called else os.environ.get("SKERRY_CONTEXT")
    )
    known = load()
    name = wanted or known.current
    if not name:
        raise ConfigError("no coordinator is chosen", hint=HINT)
    if name not in known.contexts:
        names = ", ".join(sorted(known.contexts)) or "none yet"
        raise ConfigError(f"no context {name!r} in {config_path()}; there are: {names}", hint=HINT)
    return name, known.contexts[name]


def _context(path: Path, name: str, table: object) -> Context:
    context = read_table(Context, table, source=str(path), name=f"contexts.{name}")
    if not context.url.startswith(("https://", "http://")):
        raise ConfigError(f"{path}: contexts.{name}.url must begin with https://")
    return context
