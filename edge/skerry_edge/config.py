"""The agent's settings: `agent.toml` in its home, read once into one frozen value.

Every key is described in docs/devices.md. A profile (profile.toml beside it) gives defaults for
limits and conditions; agent.toml has the last word.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from skerry_protos.errors import ConfigError
from skerry_protos.labels import stated_flaws
from skerry_protos.settings import load_tables, read_table, require_known

from skerry_edge.conditions import Conditions
from skerry_edge.energy.budget import EnergyTable
from skerry_edge.inference.settings import InferenceTable
from skerry_edge.models.choice import ChoiceTable

TABLES = (
    "agent",
    "node",
    "limits",
    "conditions",
    "labels",
    "energy",
    "inference",
    "models",
    "choice",
)
LINKS = ("auto", "grpc", "mqtt")

NodeConfig = dict[str, bool | int | float | str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What the work of others may take of this device."""

    seconds: float = 3600.0
    """Wall time of one task; a task may ask for less."""
    memory_mb: int = 0
    """Resident memory of a worker and all its children; 0: 80 % of the machine's."""
    output_kb: int = 1024
    """Printed text kept and sent per task; the rest is dropped and counted."""
    reply_mb: int = 4096
    """Largest reply, and largest file an app may write."""
    processes: int = 64
    """Processes a worker may have below it."""
    niceness: int = 10
    """CPU niceness of workers."""
    io_idle: bool = True
    """Let workers use the disk only when nobody else wants it."""
    user: str = ""
    """Run workers as this user; only an agent started by root can."""
    fresh_worker: bool = False
    """Start a new worker process for every task."""
    worker_idle_s: float = 120.0
    """Stop a worker that has had nothing to do for so long."""
    workers: int = 1
    """Tasks worked on at once."""
    blobs_mb: int = 1024
    """Disk that received models and bundles may take."""
    states_mb: int = 4096
    """Disk for what apps and codecs keep between the tasks of a run."""
    bundles: int = 8
    """Unpacked app bundles kept."""
    pass_environment: tuple[str, ...] = ("SKERRY_DATA",)
    """Environment variables an app may see, beside the harmless ones."""

    def __post_init__(self) -> None:
        for name in ("seconds", "output_kb", "reply_mb", "processes", "workers", "bundles"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be above 0")
        if not 0 <= self.niceness <= 19:
            raise ValueError("niceness must be 0 to 19")


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentTable:
    """The table [agent]."""

    name: str = ""
    profile: str = "generic"
    link: str = "auto"
    heartbeat_s: float = 0.0
    """0: as often as the coordinator wants."""
    failover_s: float = 20.0
    """With link = "auto": try the other link after so long without a connection."""
    log_level: str = "info"
    metered: bool | None = None
    """Whether the network costs by the byte; unset: ask the operating system."""

    def __post_init__(self) -> None:
        if self.link not in LINKS:
            raise ValueError(f"link must be one of {', '.join(LINKS)}, not {self.link!r}")
        if self.log_level not in ("debug", "info", "warning", "error"):
            raise ValueError(
                f"log_level must be debug, info, warning or error, not {self.log_level!r}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelsTable:
    """The table [models]: what the device trusts, and where it remembers it."""

    root_sha256: str = ""
    """SHA-256 of the repository's first root.json; empty: the first one that comes is trusted."""
    state: Path | None = None
    """What was verified and found bad, kept where nothing is wiped; unset: <home>/trust."""
    signed_apps: bool = False
    """Run only apps that the models' repository has signed, not all that the coordinator sends."""

    def __post_init__(self) -> None:
        if self.root_sha256 and not re.fullmatch(r"[0-9a-fA-F]{64}", self.root_sha256):
            raise ValueError("root_sha256 must be 64 hexadecimal digits")


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentConfig:
    """Everything an operator may set; where the agent lives."""

    home: Path
    agent: AgentTable = field(default_factory=AgentTable)
    node: NodeConfig = field(default_factory=dict)
    limits: Limits = field(default_factory=Limits)
    conditions: Conditions = field(default_factory=Conditions)
    labels: dict[str, str] = field(default_factory=dict)
    energy: EnergyTable = field(default_factory=EnergyTable)
    inference: InferenceTable = field(default_factory=InferenceTable)
    models: ModelsTable = field(default_factory=ModelsTable)
    choice: ChoiceTable = field(default_factory=ChoiceTable)

    @property
    def file(self) -> Path:
        return self.home / "agent.toml"


OVER_PROFILE: dict[str, type[Any]] = {
    "agent": AgentTable,
    "limits": Limits,
    "conditions": Conditions,
    "inference": InferenceTable,
}
"""Tables of agent.toml; a profile gives defaults for all of them but [agent]."""


def default_home() -> Path:
    """Return where the agent lives unless told otherwise."""
    named = os.environ.get("SKERRY_AGENT_HOME")
    return Path(named) if named else Path.home() / ".skerry" / "agent"


def load_config(home: Path) -> AgentConfig:
    """Read the agent's settings under `home`; without a file, the profile's and our defaults."""
    file, profile = home / "agent.toml", home / "profile.toml"
    defaults = load_tables(profile) if profile.exists() else {}
    return read_config(home, load_tables(file) if file.exists() else {}, defaults)


def read_config(
    home: Path, tables: Mapping[str, Any], profile: Mapping[str, Any] | None = None
) -> AgentConfig:
    """Return the settings in `tables`, over those that the device's profile gives."""
    source = str(home / "agent.toml")
    for key in tables:
        require_known(key, TABLES, source=source)
    base = profile or {}
    values: dict[str, Any] = {"home": home}
    for name, kind in OVER_PROFILE.items():
        table = tables.get(name, {})
        if not isinstance(table, Mapping):
            raise ConfigError(f"{source}: [{name}] must be a table")
        read_table(kind, table, source=source, name=name)  # names this file's own mistakes
        inherited = base.get(name, {}) if name != "agent" else {}
        values[name] = read_table(kind, {**inherited, **table}, source=source, name=name)
    energy = tables.get("energy", {})
    read_table(EnergyTable, energy, source=source, name="energy")
    watts = {key: value for key, value in base.get("power", {}).items() if key.endswith("_w")}
    values["energy"] = read_table(EnergyTable, {**watts, **energy}, source=source, name="energy")
    values["models"] = read_table(
        ModelsTable, tables.get("models", {}), source=source, name="models"
    )
    values["choice"] = read_table(
        ChoiceTable, tables.get("choice", {}), source=source, name="choice"
    )
    values["node"] = _flat(tables.get("node", {}), source)
    values["labels"] = _labels(tables.get("labels", {}), source)
    return AgentConfig(**values)


def _flat(table: object, source: str) -> NodeConfig:
    """Return [node]: scalars only, because that is what Flower's node config holds."""
    if not isinstance(table, Mapping):
        raise ConfigError(f"{source}: [node] must be a table")
    for key, value in table.items():
        if not isinstance(value, bool | int | float | str):
            raise ConfigError(f"{source}: node.{key} must be a number, text or flag, not {value!r}")
    return dict(table)


def _labels(table: object, source: str) -> dict[str, str]:
    if not isinstance(table, Mapping) or not all(isinstance(v, str) for v in table.values()):
        raise ConfigError(f'{source}: [labels] must be a table of texts, as in site = "north"')
    for flaw in stated_flaws(table):
        raise ConfigError(f"{source}: [labels]: {flaw}")
    return dict(table)


def settings() -> list[str]:
    """Return the name of every setting, as docs/devices.md lists them."""
    tables = (
        ("agent", AgentTable),
        ("limits", Limits),
        ("conditions", Conditions),
        ("models", ModelsTable),
    )
    return [f"{name}.{each.name}" for name, kind in tables for each in fields(kind)]
