"""Exported files in their runtimes, on one thread, as a device will run them."""

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from skerry_protos.manifest import Port

from skerry_cloud.models.export.source import Arrays

BATCH = 64
ERROR = 3
BLOCK_S = 0.02
BLOCKS = 15


Order = tuple[Sequence[str], Sequence[str]]
"""Names of inputs and of outputs; a LiteRT signature has its own order."""


class File(Protocol):
    """A loaded model file."""

    @property
    def inputs(self) -> Sequence[Port]: ...

    @property
    def outputs(self) -> Sequence[Port]: ...

    def answer(self, inputs: Arrays) -> Arrays:
        """Return the outputs for every example."""
        ...

    def once(self) -> object:
        """Run the one example that was given to `prepare`."""
        ...

    def prepare(self, example: Arrays) -> None:
        """Take the example that `once` runs."""
        ...


class OnnxFile:
    """A model in ONNX Runtime."""

    def __init__(self, path: Path) -> None:
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = ERROR
        self._session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self.inputs = [_onnx_port(each) for each in self._session.get_inputs()]
        self.outputs = [_onnx_port(each) for each in self._session.get_outputs()]
        self._names = [each.name for each in self.outputs]
        self._example: dict[str, NDArray[Any]] = {}

    def answer(self, inputs: Arrays) -> Arrays:
        size = 1 if self.inputs[0].shape[:1] == (1,) else BATCH
        found = [
            self._session.run(
                self._names,
                {
                    port.name: each[at : at + size]
                    for port, each in zip(self.inputs, inputs, strict=True)
                },
            )
            for at in range(0, len(inputs[0]), size)
        ]
        return tuple(np.concatenate(each) for each in zip(*found, strict=True))

    def prepare(self, example: Arrays) -> None:
        self._example = {
            port.name: each[:1] for port, each in zip(self.inputs, example, strict=True)
        }

    def once(self) -> None:
        self._session.run(self._names, self._example)


class LiteRtFile:
    """A model in LiteRT; one example at a time."""

    def __init__(self, path: Path, order: Order = ((), ()), *, keep: bool = False) -> None:
        from ai_edge_litert.interpreter import Interpreter

        self.interpreter = Interpreter(
            model_path=str(path), num_threads=1, experimental_preserve_all_tensors=keep
        )
        # Before the signature's runner is made: that holds tensors, and then it is refused.
        self.interpreter.allocate_tensors()
        self.key = next(iter(self.interpreter.get_signature_list()))
        runner = self.interpreter.get_signature_runner(self.key)
        self._in = _ordered(runner.get_input_details(), order[0])
        self._out = _ordered(runner.get_output_details(), order[1])
        self.inputs = [_litert_port(name, each) for name, each in self._in.items()]
        self.outputs = [_litert_port(name, each) for name, each in self._out.items()]
        self._example: list[tuple[int, NDArray[Any]]] = []

    def answer(self, inputs: Arrays) -> Arrays:
        found = [
            self._one(tuple(each[row : row + 1] for each in inputs))
            for row in range(len(inputs[0]))
        ]
        return tuple(np.concatenate(each) for each in zip(*found, strict=True))

    def _one(self, example: Arrays) -> list[NDArray[Any]]:
        self.prepare(example)
        return self.once()

    def prepare(self, example: Arrays) -> None:
        self._example = [
            (int(detail["index"]), np.ascontiguousarray(each[:1]))
            for detail, each in zip(self._in.values(), example, strict=True)
        ]

    def once(self) -> list[NDArray[Any]]:
        for index, values in self._example:
            self.interpreter.set_tensor(index, values)
        self.interpreter.invoke()
        return [self.interpreter.get_tensor(each["index"]) for each in self._out.values()]


def load(runtime: str, path: Path, order: Order) -> OnnxFile | LiteRtFile:
    """Return a file in its runtime, its inputs and outputs in the model's order."""
    return OnnxFile(path) if runtime == "onnx" else LiteRtFile(path, order)


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """Seconds of one example on one thread: the median and the 95th percentile."""

    median_s: float
    p95_s: float


def latencies(files: Sequence[File], example: Arrays) -> list[Latency]:
    """Measure several files side by side, in turns, so that other work slows all of them alike.

    Each gives the block of calls with the least median: what the machine does undisturbed.
    """
    best: list[tuple[float, float]] = [(float("inf"), float("inf"))] * len(files)
    for each in files:
        each.prepare(example)
        for _ in range(20):
            each.once()
    for _ in range(BLOCKS):
        for place, each in enumerate(files):
            best[place] = min(best[place], _block(each))
    return [Latency(median_s=median, p95_s=p95) for median, p95 in best]


def _block(file: File) -> tuple[float, float]:
    taken: list[float] = []
    end = time.perf_counter() + BLOCK_S
    while (start := time.perf_counter()) < end or len(taken) < 5:
        file.once()
        taken.append(time.perf_counter() - start)
    taken.sort()
    return statistics.median(taken), taken[min(len(taken) - 1, int(len(taken) * 0.95))]


def _ordered(details: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    return {name: details[name] for name in names} if names else dict(details)


def _onnx_port(given: Any) -> Port:
    types = {"float": "float32", "double": "float64"}
    dtype = given.type.removeprefix("tensor(").removesuffix(")")
    shape = tuple(size if isinstance(size, int) else None for size in given.shape)
    return Port(name=given.name, dtype=types.get(dtype, dtype), shape=shape)


def _litert_port(name: str, detail: Any) -> Port:
    shape = tuple(int(size) for size in detail["shape"])
    return Port(name=name, dtype=np.dtype(detail["dtype"]).name, shape=shape)
