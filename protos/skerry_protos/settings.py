"""Settings files: TOML tables read into frozen dataclasses, strictly.

An unknown key, a wrong type or an unreadable file is a ConfigError that names the file, the key and
the nearest valid one. Nothing here knows what any setting means.
"""

import dataclasses
import difflib
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from skerry_protos.errors import ConfigError

T = TypeVar("T")


def load_tables(path: Path) -> dict[str, Any]:
    """Return the file's TOML, or raise ConfigError naming the file and what is wrong."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: there is no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: {error}") from error
    return parse_tables(text, str(path))


def parse_tables(text: str, source: str) -> dict[str, Any]:
    """Return the TOML in `text`, or raise ConfigError naming its `source`."""
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{source}: not valid TOML: {error}") from error


def read_table(cls: type[T], table: object, *, source: str, name: str = "") -> T:
    """Return dataclass `cls` filled from `table`, the table `name` of `source`."""
    if not isinstance(table, Mapping):
        raise ConfigError(f"{source}: [{name}] must be a table")
    hints = get_type_hints(cls)
    known = [field.name for field in dataclasses.fields(cls)]  # type: ignore[arg-type]
    values: dict[str, Any] = {}
    for key, value in table.items():
        require_known(key, known, source=source, name=name)
        where = f"{source}: {_dotted(name, key)}"
        if dataclasses.is_dataclass(hints[key]):
            values[key] = read_table(hints[key], value, source=source, name=_dotted(name, key))
        else:
            values[key] = _checked(value, hints[key], where)
    try:
        return cls(**values)
    except TypeError as error:
        raise ConfigError(f"{source}: [{name}]: {error}") from error
    except ValueError as error:
        raise ConfigError(f"{source}: [{name}]: {error}") from error


def require_known(key: str, known: Iterable[str], *, source: str, name: str = "") -> None:
    """Raise ConfigError for a key that is not `known`, naming the nearest one that is."""
    names = sorted(known)
    if key in names:
        return
    near = difflib.get_close_matches(key, names, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(names)}"
    raise ConfigError(f"{source}: unknown key {_dotted(name, key)!r}", hint=hint)


def _dotted(name: str, key: str) -> str:
    return f"{name}.{key}" if name else key


def _checked(value: Any, kind: Any, where: str) -> Any:
    """Return `value` as `kind` (a scalar, tuple or dict type), or raise ConfigError."""
    origin = get_origin(kind)
    if origin in (Union, UnionType):
        kinds = [each for each in get_args(kind) if each is not type(None)]
        for each in kinds:
            if isinstance(value, get_origin(each) or each):
                return _checked(value, each, where)
        expected = " or ".join(each.__name__ for each in kinds)
        raise ConfigError(f"{where} must be {expected}, not {value!r}")
    if origin is tuple:
        if not isinstance(value, list):
            raise ConfigError(f"{where} must be a list, not {value!r}")
        return tuple(_checked(each, get_args(kind)[0], where) for each in value)
    if origin is dict:
        if not isinstance(value, dict):
            raise ConfigError(f"{where} must be a table, not {value!r}")
        of = get_args(kind)[1]
        return {str(key): _checked(each, of, f"{where}.{key}") for key, each in value.items()}
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind is Path and isinstance(value, str):
        return Path(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise ConfigError(f"{where} must be {kind.__name__}, not {value!r}")
    return value
