"""What lies in an artefact: one model file for one runtime, and all that is needed to serve it.

An artefact is a folder or an uncompressed zip of it: `manifest.json` (this module), the model's
file, and `golden.npz` (a few inputs and the outputs this very file gave for them, for the device's
self test). `docs/models.md` says what each field means; `packing`
reads, packs and unpacks artefacts. The artefact's signature is not here: a
signed name (TUF target) is over the whole zip; the manifest's digests are over the files in it.
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Final

from skerry_protos.artefacts import file_name, model_name
from skerry_protos.errors import ConfigError, TrustError

MANIFEST: Final = "manifest.json"
GOLDEN: Final = "golden.npz"
FORMAT: Final = 1
RUNTIMES: Final = ("onnx", "litert")
QUANTIZATIONS: Final = ("none", "dynamic", "int8", "int8-qat", "fp16", "int4")
COMPARISONS: Final = ("argmax", "close")
MANIFEST_LIMIT: Final = 1024**2
FILES_LIMIT: Final = 32
SIZE_LIMIT: Final = 4 * 1024**3
"""Largest artefact, bytes."""
DTYPES: Final = frozenset(
    [
        "bool",
        "int8",
        "uint8",
        "int16",
        "uint16",
        "int32",
        "uint32",
        "int64",
        "uint64",
        "float16",
        "float32",
        "float64",
    ]
)
_HEX: Final = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Port:
    """One input or output of the model: its name in the runtime, shape and NumPy type.

    The first axis counts examples; None is a size that is free, 1 there means one at a time.
    """

    name: str
    dtype: str
    shape: tuple[int | None, ...]

    def __post_init__(self) -> None:
        _text(self.name, "a port's name")
        if self.dtype not in DTYPES:
            raise TrustError(f"the manifest's {self.name!r} is of no known type {self.dtype!r:.40}")
        if len(self.shape) > 8 or any(
            size is not None and (type(size) is not int or not 0 < size < 2**31)
            for size in self.shape
        ):
            raise TrustError(f"the manifest's {self.name!r} has no proper shape")


@dataclass(frozen=True, slots=True, kw_only=True)
class Preprocessing:
    """How raw values become the model's input: `(raw * scale - mean) / std`, as float32.

    mean and std are empty (0 and 1), one number, or one for each place on `axis` of the input.
    """

    input: str
    dtype: str = "float32"  # what the raw values come as
    scale: float = 1.0
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    axis: int = 1

    def __post_init__(self) -> None:
        _text(self.input, "preprocessing's input")
        if self.dtype not in DTYPES:
            raise TrustError(f"preprocessing takes no type {self.dtype!r:.40}")
        numbers = (self.scale, *self.mean, *self.std)
        if not all(_finite(each) for each in numbers) or any(each == 0 for each in self.std):
            raise TrustError("preprocessing has a number that is not finite, or a std of 0")
        if type(self.axis) is not int or not 0 <= self.axis < 8 or len(numbers) > 8193:
            raise TrustError("preprocessing has no proper axis, or too many numbers")


@dataclass(frozen=True, slots=True, kw_only=True)
class Postprocessing:
    """What an output means: scores of classes (`labels` by place), or plain numbers."""

    output: str
    kind: str = "values"  # "classes" or "values"
    scores: str = "logits"  # of classes: "logits" (softmax makes probabilities) or "probabilities"
    labels: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _text(self.output, "postprocessing's output")
        if self.kind not in {"classes", "values"} or self.scores not in {"logits", "probabilities"}:
            raise TrustError(f"postprocessing of {self.kind!r:.40}, {self.scores!r:.40} is unknown")
        if len(self.labels) > 100_000:
            raise TrustError("postprocessing has too many labels")
        for label in self.labels:
            _text(label, "a label")


@dataclass(frozen=True, slots=True, kw_only=True)
class Golden:
    """The self test: the arrays `input.NAME`, `output.NAME` and, when known, `labels` in the file.

    The model on the device passes when at least `min_agreement` of the examples give the same
    class ("argmax", over the last axis of the first output) or every number within `tolerance`
    of the kept one ("close", absolute).
    """

    examples: int
    compare: str = "argmax"
    min_agreement: float = 0.9
    tolerance: float = 0.0
    labels: bool = False
    file: str = GOLDEN

    def __post_init__(self) -> None:
        if type(self.examples) is not int or not 0 < self.examples <= 4096:
            raise TrustError("the golden set has no proper number of examples")
        if self.compare not in COMPARISONS:
            raise TrustError(
                f"the golden set is compared by {self.compare!r:.40}, which is unknown"
            )
        if not (_finite(self.min_agreement) and 0 <= self.min_agreement <= 1):
            raise TrustError("the golden set's min_agreement must be between 0 and 1")
        if not (_finite(self.tolerance) and self.tolerance >= 0):
            raise TrustError("the golden set's tolerance must be 0 or more")


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What an artefact is. `figures`, `lineage` and `made_with` are for people and tools."""

    model: str
    runtime: str
    file: str
    quantization: str
    recipe: str
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    golden: Golden
    files: Mapping[str, str]  # SHA-256 of every file but the manifest, by name
    opset: int = 0  # ONNX; 0 elsewhere
    profiles: tuple[str, ...] = ()  # device profiles it is for; empty: any
    preprocessing: tuple[Preprocessing, ...] = ()
    postprocessing: tuple[Postprocessing, ...] = ()
    figures: Mapping[str, Any] = field(default_factory=dict)
    lineage: Mapping[str, Any] = field(default_factory=dict)
    made_with: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        try:
            model_name(self.model)
            for name in self.files:
                file_name(name)
        except (ConfigError, TypeError) as error:
            raise TrustError(f"the manifest: {error}") from error
        if self.runtime not in RUNTIMES:
            raise TrustError(f"the manifest is for no known runtime: {self.runtime!r:.40}")
        if self.quantization not in QUANTIZATIONS:
            raise TrustError(f"the manifest has no known quantization: {self.quantization!r:.40}")
        if not self.inputs or not self.outputs or len(self.inputs) + len(self.outputs) > 256:
            raise TrustError("the manifest names no inputs, no outputs, or too many")
        if len(self.files) > FILES_LIMIT or not {self.file, self.golden.file} <= set(self.files):
            raise TrustError(f"the manifest does not list {self.file!r:.80} and the golden set")
        if MANIFEST in self.files:
            raise TrustError(f"the manifest lists itself ({MANIFEST})")
        if not all(isinstance(v, str) and _HEX.fullmatch(v) for v in self.files.values()):
            raise TrustError("the manifest has a digest that is no SHA-256")
        if type(self.opset) is not int or not 0 <= self.opset < 1000:
            raise TrustError("the manifest has no proper opset")
        _text(self.recipe, "recipe")
        for profile in self.profiles:
            _text(profile, "a profile")
        known = {port.name for port in self.inputs}, {port.name for port in self.outputs}
        for each in self.preprocessing:
            if each.input not in known[0]:
                raise TrustError(f"preprocessing is for {each.input!r}, which is no input")
        for every in self.postprocessing:
            if every.output not in known[1]:
                raise TrustError(f"postprocessing is for {every.output!r}, which is no output")

    def suits(self, profile: str, runtimes: tuple[str, ...] = RUNTIMES) -> str | None:
        """Return why a device of this profile with these runtimes cannot serve it, or None."""
        if self.profiles and profile not in self.profiles:
            return f"it is for {', '.join(self.profiles)}, and this device is a {profile}"
        if self.runtime not in runtimes:
            return f"it is for the runtime {self.runtime}, and this device has {runtimes}"
        return None

    def to_bytes(self) -> bytes:
        """Return the manifest as it lies in the artefact."""
        return json.dumps({"format": FORMAT, **_plain(self)}, indent=1, allow_nan=False).encode()

    @classmethod
    def parse(cls, data: bytes) -> "Manifest":
        """Return the manifest in `data`, or raise TrustError; unknown fields are left out."""
        if len(data) > MANIFEST_LIMIT:
            raise TrustError(f"the artefact's {MANIFEST} is longer than {MANIFEST_LIMIT} bytes")
        try:
            made = json.loads(data)
            if made["format"] != FORMAT:
                raise TrustError(f"the artefact's {MANIFEST} is not of format {FORMAT}")
            return cls(
                **{
                    **_known(cls, made),
                    "inputs": tuple(_port(each) for each in made["inputs"]),
                    "outputs": tuple(_port(each) for each in made["outputs"]),
                    "golden": Golden(**_known(Golden, made["golden"])),
                    "preprocessing": tuple(_part(Preprocessing, made, "preprocessing")),
                    "postprocessing": tuple(_part(Postprocessing, made, "postprocessing")),
                    "profiles": tuple(made.get("profiles", ())),
                    **{key: _table(made, key) for key in ("files", "figures", "lineage")},
                    "made_with": _table(made, "made_with"),
                }
            )
        except TrustError:
            raise
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            line = f"{type(error).__name__}: {error}"
            raise TrustError(f"the artefact's {MANIFEST} cannot be read: {line:.200}") from error


def _port(made: Any) -> Port:
    return Port(**{**_known(Port, made), "shape": tuple(made["shape"])})


def _part(kind: type, made: Mapping[str, Any], key: str) -> list[Any]:
    """Return the parts of that kind, their lists as tuples."""
    return [
        kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in _known(kind, one).items()})
        for one in made.get(key, ())
    ]


def _known(kind: Any, made: Mapping[str, Any]) -> dict[str, Any]:
    return {each.name: made[each.name] for each in fields(kind) if each.name in made}


def _table(made: Mapping[str, Any], key: str) -> dict[str, Any]:
    table = made.get(key, {})
    if not isinstance(table, dict):
        raise TrustError(f"the manifest's {key} must be a table")
    return table


def _plain(value: Any) -> Any:
    """Return a dataclass as JSON keeps it."""
    if hasattr(value, "__dataclass_fields__"):
        return {each.name: _plain(getattr(value, each.name)) for each in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return value


def _text(value: object, what: str) -> None:
    if not isinstance(value, str) or not value or len(value) > 500:
        raise TrustError(f"the manifest has no proper {what}")


def _finite(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
