"""ONNX Runtime, on the processor."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from skerry_edge.inference.runtimes import Arrays, LoadedModel, ModelError, Spec

TYPES: dict[str, np.dtype[Any]] = {
    "tensor(float)": np.dtype(np.float32),
    "tensor(float16)": np.dtype(np.float16),
    "tensor(double)": np.dtype(np.float64),
    "tensor(bool)": np.dtype(np.bool_),
    **{
        f"tensor({sign}int{bits})": np.dtype(f"{sign}int{bits}")
        for sign in ("", "u")
        for bits in (8, 16, 32, 64)
    },
}
ERROR = 3
"""A log severity of ONNX Runtime."""


class OnnxModel:
    """An inference session; what several calls share is only read (its Run is thread-safe)."""

    parallel = True

    def __init__(self, session: Any) -> None:
        self._session = session
        self.inputs: Sequence[Spec] = [_spec(one) for one in session.get_inputs()]
        self.outputs: Sequence[Spec] = [_spec(one) for one in session.get_outputs()]
        self._names = [one.name for one in self.outputs]

    def run(self, inputs: Arrays) -> dict[str, NDArray[Any]]:
        try:
            found = self._session.run(self._names, dict(inputs))
        except Exception as error:  # its exceptions have no common class that is public
            raise ModelError(f"ONNX Runtime failed: {_line(error)}") from error
        return dict(zip(self._names, found, strict=True))

    def close(self) -> None:
        self._session = None


class OnnxRuntime:
    """Loads .onnx files."""

    name = "onnx"

    def load(self, file: Path, *, threads: int) -> LoadedModel:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = ERROR
        # Threads that spin between requests would drain a battery for microseconds.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            session = onnxruntime.InferenceSession(
                str(file), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # as above
            raise ModelError(f"ONNX Runtime cannot load {file.name}: {_line(error)}") from error
        return OnnxModel(session)


def _spec(one: Any) -> Spec:
    if one.type not in TYPES:
        raise ModelError(f"{one.name!r} is {one.type}, which is not served")
    shape = tuple(size if isinstance(size, int) else None for size in one.shape)
    return Spec(name=one.name, shape=shape, dtype=TYPES[one.type])


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:500]


RUNTIME = OnnxRuntime()
