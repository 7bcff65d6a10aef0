"""LiteRT (ai-edge-litert), or tflite_runtime where that is what the device's image has."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skerry_edge.inference.runtimes import Arrays, LoadedModel, ModelError, Spec

try:
    from ai_edge_litert.interpreter import Interpreter
except ImportError:
    from tflite_runtime.interpreter import Interpreter

Detail = dict[str, Any]


class LiteRtModel:
    """An interpreter with its tensors laid out for the sizes that came last."""

    parallel = False  # an interpreter has one set of tensors

    def __init__(self, interpreter: Any) -> None:
        self._interpreter = interpreter
        signatures = interpreter.get_signature_list()
        self._key = next(iter(signatures), None)
        inputs, outputs = interpreter.get_input_details(), interpreter.get_output_details()
        # The names of a signature are those the exporter gave; a tensor's own are internal.
        if self._key is not None:
            runner = interpreter.get_signature_runner(self._key)
            self._in = dict(runner.get_input_details())
            self._out = dict(runner.get_output_details())
        else:
            self._in = {one["name"]: one for one in inputs}
            self._out = {one["name"]: one for one in outputs}
        self.inputs: Sequence[Spec] = [_spec(name, one) for name, one in self._in.items()]
        self.outputs: Sequence[Spec] = [_spec(name, one) for name, one in self._out.items()]

    def run(self, inputs: Arrays) -> dict[str, NDArray[Any]]:
        try:
            self._resize(inputs)
            for name, values in inputs.items():
                self._interpreter.set_tensor(self._in[name]["index"], np.ascontiguousarray(values))
            self._interpreter.invoke()
            return {
                name: self._interpreter.get_tensor(one["index"]) for name, one in self._out.items()
            }
        except (RuntimeError, ValueError) as error:
            raise ModelError(f"LiteRT failed: {' '.join(str(error).split())[:500]}") from error

    def close(self) -> None:
        self._interpreter = None

    def _resize(self, inputs: Arrays) -> None:
        """Lay the tensors out anew when an input's size differs from the last one's."""
        changed = False
        for name, values in inputs.items():
            detail = self._in[name]
            if tuple(detail["shape"]) != values.shape:
                self._interpreter.resize_tensor_input(detail["index"], values.shape, strict=True)
                detail["shape"] = np.array(values.shape)
                changed = True
        if changed:
            self._interpreter.allocate_tensors()


class LiteRtRuntime:
    """Loads .tflite files."""

    name = "litert"

    def load(self, file: Path, *, threads: int) -> LoadedModel:
        try:
            interpreter = Interpreter(model_path=str(file), num_threads=threads or None)
            interpreter.allocate_tensors()
        except (RuntimeError, ValueError) as error:
            line = " ".join(str(error).split())[:500]
            raise ModelError(f"LiteRT cannot load {file.name}: {line}") from error
        return LiteRtModel(interpreter)


def _spec(name: str, detail: Detail) -> Spec:
    free = detail.get("shape_signature")
    shape = detail["shape"] if free is None or not len(free) else free
    sizes = tuple(None if size < 0 else int(size) for size in shape)
    return Spec(name=name, shape=sizes, dtype=np.dtype(detail["dtype"]))


RUNTIME = LiteRtRuntime()
