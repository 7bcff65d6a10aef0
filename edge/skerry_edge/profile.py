"""Device profiles: what a kind of device is and what to begin with, as a TOML file.

A profile is found by path, or by name among the folders of the entry points "skerry.profiles" (the
`skerry` distribution brings ours). The agent keeps a copy, so a device needs no more than the file.
"""

import re
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from importlib.resources import files
from pathlib import Path
from typing import Any

from skerry_protos.errors import ConfigError
from skerry_protos.settings import load_tables, parse_tables, read_table, require_known

from skerry_edge.conditions import Conditions
from skerry_edge.config import Limits
from skerry_edge.inference.settings import InferenceTable

GENERIC = "generic"
TABLES = ("device", "power", "limits", "conditions", "inference")
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,63}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Hardware:
    """The table [device]: what the maker says of it."""

    name: str
    title: str
    arch: str
    cpu: str
    cores: int
    clock_mhz: int
    memory_mb: int
    accelerators: tuple[str, ...] = ()
    """Capabilities beyond "cpu", as the heartbeat names them."""
    runtimes: tuple[str, ...] = ()
    """Capabilities that suit the device; which are installed the heartbeat says."""
    links: tuple[str, ...] = ("grpc", "mqtt")

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ValueError(f"name must be lower-case letters, digits and '-', not {self.name!r}")
        if min(self.cores, self.clock_mhz, self.memory_mb) <= 0:
            raise ValueError("cores, clock_mhz and memory_mb must be above 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class Power:
    """The table [power]: watts of the whole device, for energy where nothing can be measured."""

    source: str = "mains"
    idle_w: float = 0.0
    busy_w: float = 0.0

    def __post_init__(self) -> None:
        if self.source not in ("mains", "battery"):
            raise ValueError(f'source must be "mains" or "battery", not {self.source!r}')
        if not 0 <= self.idle_w <= self.busy_w:
            raise ValueError("idle_w must be 0 or more and at most busy_w")


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """A checked profile, and its text as it was written."""

    hardware: Hardware
    power: Power
    limits: dict[str, Any] = field(default_factory=dict)
    conditions: dict[str, Any] = field(default_factory=dict)
    text: str = ""

    @property
    def name(self) -> str:
        return self.hardware.name


def find_profile(name: str) -> Profile:
    """Return the profile in the file `name`, or the one of that name; raise ConfigError."""
    path = Path(name)
    if path.suffix == ".toml" or path.exists():
        load_tables(path)  # says what is wrong with the file itself
        return read_profile(path.read_text(encoding="utf-8"), str(path))
    found = profiles()
    if name not in found:
        known = ", ".join(sorted(found)) or "none on this device"
        raise ConfigError(
            f"there is no profile {name!r}; there are: {known}",
            hint="give the path of a profile's file (docs/devices.md)",
        )
    return read_profile(found[name].read_text(encoding="utf-8"), str(found[name]))


def profiles() -> dict[str, Path]:
    """Return the profiles installed here, by name."""
    found = {}
    for entry in entry_points(group="skerry.profiles"):
        for file in files(entry.value).iterdir():
            if file.name.endswith(".toml"):
                found[file.name.removesuffix(".toml")] = Path(str(file))
    return found


def read_profile(text: str, source: str) -> Profile:
    """Return the profile in `text`, or raise ConfigError naming its source, key and flaw."""
    tables = parse_tables(text, source)
    for key in tables:
        require_known(key, TABLES, source=source)
    limits, conditions = tables.get("limits", {}), tables.get("conditions", {})
    read_table(Limits, limits, source=source, name="limits")
    read_table(Conditions, conditions, source=source, name="conditions")
    read_table(InferenceTable, tables.get("inference", {}), source=source, name="inference")
    return Profile(
        hardware=read_table(Hardware, tables.get("device", {}), source=source, name="device"),
        power=read_table(Power, tables.get("power", {}), source=source, name="power"),
        limits=limits,
        conditions=conditions,
        text=text,
    )
