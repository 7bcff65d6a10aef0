"""What both sides say about models: paths of artefacts, metadata sets, phases, readings, limits.

An artefact is one file for one runtime; in the models' repository (TUF) its name is
`<channel>/<model>/<version>/<file>`. A metadata set is a repository's metadata files in one piece,
so that a device needs one blob to verify an update, over either transport.
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Any, Final

from skerry_protos.errors import ConfigError, PeerError, TrustError

CHANNELS: Final = ("stable", "canary")
"""Delegated roles of the models' repository, each for the paths that begin with its name."""
APPS: Final = "apps"
"""The delegated role for bundles of runs' apps: it can never sign a model."""
RUNTIMES: Final[Mapping[str, frozenset[str]]] = {
    "onnx": frozenset({"onnxruntime"}),
    "litert": frozenset({"litert", "tflite"}),
}
"""Runtime of an artefact: the capabilities of a device, any of which runs it."""
VARIANT_OF: Final = "variant_of"
"""Custom field of the director's targets: it may be served in place of that path."""
VARIANTS: Final = "variants"
"""Key of a release's wish: what may be served in its place, filled in by the device alone."""
VARIANTS_LIMIT: Final = 8
"""Most variants of one release."""
APP_FOLDER: Final = f"{APPS}/"
"""Where apps are in the models' repository: `apps/<SHA-256 of the bundle's manifest.json>`."""
SET_LIMIT: Final = 8 * 1024**2
"""Largest metadata set, bytes."""
SET_FILES: Final = 600
METADATA_ROLE: Final = "metadata"
"""Role of the blob that is the models' repository."""
SIGNED_AT: Final = "x-skerry-signed-at"
"""Field of timestamp metadata: when it was signed, unix seconds; the device's time floor."""
DEVICE: Final = "x-skerry-device"
"""Field of the director's targets metadata: for which device it is."""
WITHDRAWN: Final = "x-skerry-withdrawn"
"""Field of the same: models the device is to serve no more, and by which rollout."""

_NAME = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,62}[a-z0-9])?")
_FILE = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,126}[A-Za-z0-9])?")
_SET_NAME = re.compile(r"(?:[1-9][0-9]{0,9}\.)?[a-z0-9][a-z0-9_-]{0,62}\.json")


class Phase(StrEnum):
    """How far a device is with a release; the lives of an update are in skerry_edge.models."""

    VERIFYING = "verifying"
    FETCHING = "fetching"
    TESTING = "testing"
    TRIAL = "trial"  # it serves, and is watched
    LIVE = "live"  # it serves, and the trial is over
    REFUSED = "refused"  # signature, hash, version, clock, profile: it never came near a slot
    FAILED = "failed"  # its self-test failed: it never served
    ROLLED_BACK = "rolled-back"  # it served, was unwell, and the last good one serves again


SETTLED: Final = frozenset({Phase.LIVE, Phase.REFUSED, Phase.FAILED, Phase.ROLLED_BACK})
BAD: Final = frozenset({Phase.REFUSED, Phase.FAILED, Phase.ROLLED_BACK})


class Reading(StrEnum):
    """What a device measures of a release."""

    ACCURACY = "accuracy"  # share of the golden set it gets right
    AGREEMENT = "agreement"  # share of the golden set answered as when it was exported
    LATENCY_P95_S = "latency_p95_s"
    LOAD_S = "load_s"
    MEMORY_BYTES = "memory_bytes"
    ENERGY_J = "energy_j"  # one inference
    ERROR_RATE = "error_rate"
    DRIFT = "drift"
    CRASHES = "crashes"
    REQUESTS = "requests"


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthLimits:
    """How a release must behave on a device; 0 (or below, of drift) means: not looked at."""

    min_accuracy: float = 0.0
    min_agreement: float = 0.0
    max_latency_p95_s: float = 0.0
    max_memory_mb: float = 0.0
    max_energy_j: float = 0.0
    max_error_rate: float = 0.05
    max_drift: float = 0.0
    max_crashes: int = 2

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            if not isinstance(value, int | float) or isinstance(value, bool):
                raise ConfigError(f"gate {each.name} must be a number, not {value!r}")
            if not math.isfinite(value) or value < 0:
                raise ConfigError(f"gate {each.name} must be 0 or more, not {value!r}")

    @classmethod
    def parse(cls, table: object) -> "HealthLimits":
        """Return the limits in a JSON table, or raise ConfigError naming the key."""
        if not isinstance(table, Mapping):
            raise ConfigError("gates must be a table")
        known = {each.name for each in fields(cls)}
        for key in table:
            if key not in known:
                raise ConfigError(f"no gate {key!r}", hint=f"gates: {', '.join(sorted(known))}")
        return cls(**table)

    def to_json(self) -> dict[str, float]:
        """Return the limits as a JSON table."""
        return {each.name: getattr(self, each.name) for each in fields(self)}


def unwell(readings: Mapping[str, float], limits: HealthLimits) -> str | None:
    """Return what is wrong with a release by its readings, or None; an absent reading is fine."""

    def value(reading: Reading) -> float | None:
        found = readings.get(reading)
        return None if found is None or not math.isfinite(found) else found

    for name, number in readings.items():
        if not math.isfinite(number):
            return f"{name} is {number}"
    for reading, least in (
        (Reading.ACCURACY, limits.min_accuracy),
        (Reading.AGREEMENT, limits.min_agreement),
    ):
        found = value(reading)
        if least > 0 and found is not None and found < least:
            return f"{reading} on the golden set is {found:.4g}, below {least:.4g}"
    for reading, most, scale, unit in (
        (Reading.LATENCY_P95_S, limits.max_latency_p95_s, 1e3, " ms"),
        (Reading.MEMORY_BYTES, limits.max_memory_mb * 2**20, 2.0**-20, " MB"),
        (Reading.ENERGY_J, limits.max_energy_j, 1.0, " J"),
        (Reading.ERROR_RATE, limits.max_error_rate, 100.0, " %"),
        (Reading.DRIFT, limits.max_drift, 1.0, ""),
        (Reading.CRASHES, float(limits.max_crashes), 1.0, ""),
    ):
        found = value(reading)
        if most > 0 and found is not None and found > most:
            return f"{reading} is {found * scale:.4g}{unit}, above {most * scale:.4g}{unit}"
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetPath:
    """The name of an artefact in the models' repository."""

    channel: str
    model: str
    version: int
    file: str

    def __str__(self) -> str:
        return f"{self.channel}/{self.model}/{self.version}/{self.file}"

    @classmethod
    def parse(cls, text: str) -> "TargetPath":
        """Return the parts of a path, or raise TrustError."""
        parts = text.split("/")
        if (
            len(parts) != 4
            or parts[0] not in CHANNELS
            or not _NAME.fullmatch(parts[1])
            or not re.fullmatch(r"[1-9][0-9]{0,8}", parts[2])
            or not _FILE.fullmatch(parts[3])
        ):
            raise TrustError(f"{text[:200]!r} does not name an artefact of a model")
        return cls(channel=parts[0], model=parts[1], version=int(parts[2]), file=parts[3])


def model_name(name: str) -> str:
    """Return `name` when a model may be called so, or raise ConfigError."""
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"{name[:80]!r} cannot name a model",
            hint="use up to 64 lower-case letters, digits and . _ - between them",
        )
    return name


def file_name(name: str) -> str:
    """Return `name` when an artefact's file may be called so, or raise ConfigError."""
    if not _FILE.fullmatch(name):
        raise ConfigError(
            f"{name[:80]!r} cannot name an artefact",
            hint="use up to 128 letters, digits and . _ - between them",
        )
    return name


def pack_set(files: Mapping[str, bytes]) -> bytes:
    """Return metadata files as one piece; the same files are the same bytes."""
    text = {name: files[name].decode() for name in sorted(files)}
    return json.dumps({"format": 1, "files": text}, separators=(",", ":")).encode()


def read_set(data: bytes) -> dict[str, bytes]:
    """Return the files of a metadata set, or raise PeerError."""
    if len(data) > SET_LIMIT:
        raise PeerError(f"a metadata set of {len(data)} bytes; at most {SET_LIMIT} are taken")
    try:
        made: Any = json.loads(data)
        files = made["files"]
        if made["format"] != 1 or not isinstance(files, dict) or len(files) > SET_FILES:
            raise ValueError("not of format 1")
        found = {name: text.encode() for name, text in files.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise PeerError(f"the metadata set cannot be read: {error}") from error
    for name in found:
        if not _SET_NAME.fullmatch(name):
            raise PeerError(f"a metadata set holds no file {name[:80]!r}")
    return found
