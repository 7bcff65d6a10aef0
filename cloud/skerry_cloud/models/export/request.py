"""What is to be exported and how, as one value that goes to the exporting process as JSON."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from skerry_protos.artefacts import model_name
from skerry_protos.errors import ConfigError
from skerry_protos.manifest import QUANTIZATIONS, RUNTIMES

MAX_DROP = 1.0
GOLDEN_EXAMPLES = 32
RANGES_BY = ("minmax", "percentile", "mse")
"""How ranges are taken from histograms (ranges.py)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Processor:
    """What the estimate of a device's latency and energy rests on (its profile's figures)."""

    arch: str
    cpu: str
    clock_mhz: int
    idle_w: float = 0.0
    busy_w: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One export. Paths are absolute; the module is imported from `folder`."""

    name: str
    folder: str
    module: str
    out: str
    to: tuple[str, ...] = RUNTIMES
    quantize: str = "int8"
    max_drop: float = MAX_DROP  # points
    weights: str = ""  # .npz by name of tensor; empty: as model() makes them
    calibration: str = ""  # .npz with an array for each input; empty: the app's
    held_out: str = ""  # .npz likewise, and `labels`
    ranges: str = ""  # .npz that a calibration by the devices came to (docs/models.md)
    ranges_by: str = "minmax"
    ranges_run: str = ""
    probe: str = ""  # a folder: write what devices calibrate with into it, and nothing else
    prune: float = 0.0  # share of channels to take out
    distil: bool = False
    epochs: int = 5  # of what trains: QAT, distillation, mending after pruning
    front: bool = False  # keep every file of the Pareto front, not only the best
    allow_slower: bool = False
    unsure_risk: float = (
        0.0  # share of wrong answers among those kept on the device; 0: no threshold
    )
    profiles: tuple[str, ...] = ()  # device profiles the artefact is bound to
    processors: Mapping[str, Processor] = field(default_factory=dict)
    lineage: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0

    def __post_init__(self) -> None:
        model_name(self.name)
        if odd := [each for each in self.to if each not in RUNTIMES] or not self.to:
            raise ConfigError(f"cannot export to {odd}", hint=f"there are {', '.join(RUNTIMES)}")
        if self.quantize not in QUANTIZATIONS:
            known = ", ".join(QUANTIZATIONS)
            raise ConfigError(f"no quantization {self.quantize!r}", hint=f"there are {known}")
        if not 0 <= self.prune < 1:
            raise ConfigError(f"--prune takes a share between 0 and 1, not {self.prune}")
        if self.max_drop < 0:
            raise ConfigError(f"--max-drop takes points from 0 on, not {self.max_drop}")
        if not 0 <= self.unsure_risk < 1:
            raise ConfigError(
                f"--unsure-risk takes a share of wrong answers, as 0.02, not {self.unsure_risk}"
            )
        if self.ranges_by not in RANGES_BY:
            known = ", ".join(RANGES_BY)
            raise ConfigError(f"no ranges by {self.ranges_by!r}", hint=f"there are {known}")
        if self.ranges or self.probe:
            self._require_ranges_fit()
        if not 0 < self.epochs <= 10_000:
            raise ConfigError(f"--epochs takes 1 to 10000, not {self.epochs}")

    def _require_ranges_fit(self) -> None:
        """Raise ConfigError for what ranges that devices measured cannot be used for."""
        if self.quantize not in {"int8", "int8-qat"}:
            raise ConfigError(
                f"--calibrate has no use with --quantize {self.quantize}: it needs no ranges",
                hint="export with --quantize int8",
            )
        changed = {"--quantize int8-qat": self.quantize == "int8-qat", "--distil": self.distil}
        changed["--prune"] = bool(self.prune)
        if odd := [name for name, wanted in changed.items() if wanted]:
            raise ConfigError(
                f"the devices' ranges are of the model as it is, and {odd[0]} changes it first",
                hint="export without it, or with a --calibration file",
            )
        if self.calibration:
            raise ConfigError("ranges come from --calibration or from --calibrate, not from both")

    def to_json(self) -> str:
        """Return the request as text."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Request":
        """Return the request in a text that `to_json` made."""
        made = json.loads(text)
        made |= {key: tuple(made[key]) for key in ("to", "profiles")}
        made["processors"] = {k: Processor(**v) for k, v in made["processors"].items()}
        return cls(**made)


def absolute(path: Path | None) -> str:
    """Return a path as a request holds it."""
    return str(path.resolve()) if path else ""
