"""What a person may say about how a run goes, checked once, kept as JSON beside the run."""

import dataclasses
import json
import math
from dataclasses import dataclass, field
from typing import Any

from skerry_protos.codecs import NONE, Codec, parse_broadcast
from skerry_protos.errors import ConfigError
from skerry_protos.settings import read_table

from skerry_cloud.selectors import parse as parse_selector

ConfigScalar = bool | int | float | str

RUN_CONFIG_LIMIT = 8 * 1024
"""Largest run configuration as JSON, bytes: it travels with every task."""
CODECS_LIMIT = 64
"""Most selectors of codecs in one run."""
DAY_S = 86_400.0
AGGREGATION_MEMORY = 256 * 1024**2
NORM_RATIO = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one task may use on a device; 0 leaves it to the device's own limit."""

    seconds: float = 0.0
    memory_bytes: int = 0
    output_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerLimits:
    """What the run's server side may use here."""

    silence_s: float = 900.0  # longest time it may compute without asking for anything
    memory_bytes: int = 0  # 0: nine tenths of this machine's memory
    output_bytes: int = 16 * 1024**2  # printed in all


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """How a run chooses devices, how long it waits, and what it passes on."""

    selector: str = ""
    capabilities: tuple[str, ...] = ()
    fraction: float = 1.0  # of the matching devices, asked in each round
    min_devices: int = 1  # how many must be connected before a round begins
    rounds: int = 0  # 0: as the app says
    round_deadline_s: float = 600.0
    quorum: float = 1.0  # of those asked: so many replies close a round early
    wait_deadline_s: float = 300.0  # for min_devices
    run_config: dict[str, ConfigScalar] = field(default_factory=dict)
    strategy: str = ""  # native apps; empty: as the app says
    strategy_options: dict[str, ConfigScalar] = field(default_factory=dict)
    limits: Limits = field(default_factory=Limits)
    server_limits: ServerLimits = field(default_factory=ServerLimits)
    reply_bytes: int = 2 * 1024**3  # largest reply taken
    max_norm_ratio: float = NORM_RATIO  # of an update's norm to the round's median; 0: any
    aggregation_memory_bytes: int = AGGREGATION_MEMORY  # for blocks of all replies side by side
    fresh_worker: bool = False
    codec: str | dict[str, ConfigScalar] = NONE  # of what training changed; or a table with options
    codecs: dict[str, str | dict[str, ConfigScalar]] = field(default_factory=dict)  # by selector
    broadcast_codec: str = NONE  # of models on their way to devices
    initial: str = ""  # the run whose final model this one begins with; empty: the app's own
    initial_if_fits: bool = False  # go on with the app's own where that one does not fit
    seed: int = 0  # 0: drawn when the run begins, and kept here
    checkpoint_s: float = 1.0  # how often at most the server side's state is kept; 0: each round

    def __post_init__(self) -> None:
        _within("fraction", self.fraction, 0.0, 1.0, open_below=True)
        _within("quorum", self.quorum, 0.0, 1.0, open_below=True)
        _within("min_devices", self.min_devices, 1, 1_000_000)
        _within("rounds", self.rounds, 0, 1_000_000)
        _within("round_deadline_s", self.round_deadline_s, 0.0, 30 * DAY_S, open_below=True)
        _within("wait_deadline_s", self.wait_deadline_s, 0.0, 30 * DAY_S)
        _within("reply_bytes", self.reply_bytes, 1024, 16 * 1024**3)
        _within("aggregation_memory_bytes", self.aggregation_memory_bytes, 1024**2, 2**48)
        if self.max_norm_ratio:
            _within("max_norm_ratio", self.max_norm_ratio, 1.0, 1e9)
        _within("seed", self.seed, 0, 2**63 - 1)
        _within("checkpoint_s", self.checkpoint_s, 0.0, DAY_S)
        _within("limits.seconds", self.limits.seconds, 0.0, 30 * DAY_S)
        _within("limits.memory_bytes", self.limits.memory_bytes, 0, 2**48)
        _within("limits.output_bytes", self.limits.output_bytes, 0, 2**40)
        _within("server_limits.silence_s", self.server_limits.silence_s, 1.0, 30 * DAY_S)
        _within("server_limits.memory_bytes", self.server_limits.memory_bytes, 0, 2**48)
        _within("server_limits.output_bytes", self.server_limits.output_bytes, 1024, 2**40)
        Codec.parse(self.codec, source="run options: codec")
        parse_broadcast(self.broadcast_codec, source="run options: broadcast_codec")
        if len(self.codecs) > CODECS_LIMIT:
            raise ConfigError(f"run options: more than {CODECS_LIMIT} codecs by selector")
        for selector, said in self.codecs.items():
            parse_selector(selector)
            Codec.parse(said, source=f"run options: codecs, {selector!r}")
        if len(json.dumps(self.run_config)) > RUN_CONFIG_LIMIT:
            raise ConfigError(f"run options: run_config passes {RUN_CONFIG_LIMIT} bytes as JSON")

    @property
    def coded(self) -> bool:
        """Return whether the run wants any codec."""
        said = {str(self.codec), self.broadcast_codec, *map(str, self.codecs.values())}
        return said != {NONE}

    @classmethod
    def parse(cls, options: object) -> "RunOptions":
        """Return options from JSON, or raise ConfigError naming the key and the nearest one."""
        return read_table(cls, options, source="run options")

    def to_json(self) -> dict[str, Any]:
        """Return the options as `parse` takes them."""
        made = dataclasses.asdict(self)
        made["capabilities"] = list(self.capabilities)
        return made


def _within(
    name: str, value: float, least: float, most: float, *, open_below: bool = False
) -> None:
    if not math.isfinite(value) or not least <= value <= most or (open_below and value == least):
        above = "more than" if open_below else "at least"
        raise ConfigError(
            f"run options: {name} is {value}; expected {above} {least:g} and at most {most:g}"
        )
