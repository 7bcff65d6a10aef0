"""The seam `Runtime`: what runs an exported model. One module per implementation, loaded by need.

A `LoadedModel` is used by one thread at a time, unless it says that several may (`parallel`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from skerry_protos.errors import ConfigError, SkerryError

Arrays = Mapping[str, NDArray[Any]]

MODULES = {"onnx": ("onnxruntime",), "litert": ("ai_edge_litert", "tflite_runtime")}
"""Runtime: modules any of which gives it; tflite_runtime is what older device images have."""


class ModelError(SkerryError):
    """The model cannot be loaded, or failed at an input."""

    code = "model"
    exit_code = 1


class InputError(SkerryError):
    """A request is not what the model takes."""

    code = "bad-input"
    exit_code = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    """One input or output: its name, its shape with None where the size is free, its type."""

    name: str
    shape: tuple[int | None, ...]
    dtype: np.dtype[Any]


class LoadedModel(Protocol):
    """A model in memory."""

    inputs: Sequence[Spec]
    outputs: Sequence[Spec]
    parallel: bool
    """Whether several threads may run it at once."""

    def run(self, inputs: Arrays) -> dict[str, NDArray[Any]]:
        """Run the model once; raise ModelError naming the runtime's reason."""
        ...

    def close(self) -> None:
        """Give its memory back."""
        ...


class Runtime(Protocol):
    """Loads models of one format."""

    name: str

    def load(self, file: Path, *, threads: int) -> LoadedModel:
        """Load a model file; raise ModelError naming what the runtime lacks."""
        ...


def installed() -> list[str]:
    """Return the runtimes that are installed here, without loading them."""
    return [name for name, modules in MODULES.items() if any(map(find_spec, modules))]


def open_runtime(name: str) -> Runtime:
    """Return the runtime of that name; raise ConfigError when it is not installed."""
    if name not in MODULES:
        raise ConfigError(f"there is no runtime {name!r}", hint=f"there are {sorted(MODULES)}")
    if name not in installed():
        raise ConfigError(
            f"the runtime {name!r} is not installed on this device",
            hint=f"pip install 'skerry-edge[{name}]'",
        )
    found: Runtime = import_module(f"skerry_edge.inference.runtimes.{name}").RUNTIME
    return found
