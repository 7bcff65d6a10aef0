"""What is tried for each quantization and runtime, and which of the results are kept.

No recipe is best for all layers: static int8 pays for convolutions, dynamic int8 for attention and
in LiteRT for recurrent layers, and ONNX Runtime keeps recurrent layers in float. So the few that
make sense for the layers a model has are made, measured and compared.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from skerry_cloud.models.export.measure import Quality
from skerry_cloud.models.export.runners import Latency
from skerry_cloud.models.export.source import Arrays

NOISE = 1.03
"""Latencies closer than this are the same."""
FLOAT = "float"
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d)
NORMALISED = (nn.GroupNorm, nn.LayerNorm, nn.InstanceNorm1d, nn.InstanceNorm2d)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """One way to quantize: a name, and what makes the file from the float file."""

    name: str
    make: Callable[[Path, Path], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A file that was made and measured."""

    runtime: str
    recipe: str
    path: Path
    named: Path  # the same file with the names of what is inside
    nbytes: int
    quality: Quality
    latency: Latency


@dataclass(frozen=True, slots=True, kw_only=True)
class Activations:
    """What static quantization takes ranges from: examples, or ranges that devices measured."""

    names: Sequence[str]  # of the inputs
    example: Arrays  # with `ranges` only the first is looked at
    ranges: Mapping[str, tuple[float, float]] | None = None


def recipes(
    runtime: str, quantize: str, model: nn.Module, seen: Activations | None
) -> list[Recipe]:
    """Return what to try; the static ones only with something to take ranges from."""
    from skerry_cloud.models.export import to_litert, to_onnx

    made = to_onnx if runtime == "onnx" else to_litert
    simple = {
        "dynamic": Recipe(name="dynamic", make=made.dynamic),
        "weights": Recipe(name="weights", make=made.weights),
        "fp16": Recipe(name="fp16 weights", make=made.half),
        "int4": Recipe(name="int4 weights", make=made.int4),
    }
    if quantize == "none":
        return []
    if quantize in {"dynamic", "fp16", "int4"}:
        return [simple[quantize]]
    static: list[Recipe] = []
    if seen is not None:
        static = [Recipe(name="static", make=_static(runtime, seen, products=False))]
        if any(isinstance(each, NORMALISED) for each in model.modules()) or not _convolves(model):
            static.append(
                Recipe(name="static products", make=_static(runtime, seen, products=True))
            )
    return [*static, simple["dynamic"], simple["weights"]]


def front(candidates: Iterable[Candidate]) -> list[Candidate]:
    """Return those that no other beats in accuracy, bytes and latency at once; fastest first."""
    every = list(candidates)
    kept = [one for one in every if not any(_beats(other, one) for other in every)]
    return sorted(kept, key=lambda each: (each.latency.median_s, each.nbytes))


def best(candidates: Sequence[Candidate]) -> Candidate:
    """Return the fastest; among those as fast, the smallest."""
    fastest = min(each.latency.median_s for each in candidates)
    near = [each for each in candidates if each.latency.median_s <= fastest * NOISE]
    return min(near, key=lambda each: (each.nbytes, each.latency.median_s))


def _beats(one: Candidate, other: Candidate) -> bool:
    mine = (-one.quality.value, one.nbytes, one.latency.median_s)
    its = (-other.quality.value, other.nbytes, other.latency.median_s)
    return one is not other and all(a <= b for a, b in zip(mine, its, strict=True)) and mine != its


def _convolves(model: nn.Module) -> bool:
    return any(isinstance(each, CONVOLUTIONS) for each in model.modules())


def _static(runtime: str, seen: Activations, *, products: bool) -> Callable[[Path, Path], None]:
    from skerry_cloud.models.export import to_litert, to_onnx

    names, data, ranges = seen.names, seen.example, seen.ranges
    ops = to_onnx.PRODUCTS if products else ()

    def make(source: Path, target: Path) -> None:
        if runtime == "onnx":
            if ranges is None:
                to_onnx.static(source, target, names, data, ops=ops)
            else:
                to_onnx.by_ranges(source, target, ranges, ops=ops)
        elif ranges is None:
            to_litert.static(source, target, names, data, products=products)
        else:
            to_litert.by_ranges(source, target, names, data, ranges, products=products)

    return make
