"""A loaded artefact: raw values in, answers out; the model with its pre- and post-processing.

    predictor = Predictor.load(Path("digits"))
    predictor.predict([{"x": images}])     # [{"logits": …, "probabilities": …, "class": …}]

One thread at a time, unless `parallel` says otherwise. What an artefact holds is described in
docs/models.md.
"""

import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from skerry_protos.drift import Reference
from skerry_protos.errors import PeerError
from skerry_protos.manifest import Manifest
from skerry_protos.packing import read_artefact
from skerry_protos.processing import CLASS, PROBABILITIES, meaning, prepared

from skerry_edge.inference.runtimes import Arrays, LoadedModel, ModelError, Spec, open_runtime

PLATFORMS = {"onnx": "onnx_onnxruntime", "litert": "tflite_litert"}
DRIFT = "drift"
"""Key of the manifest's lineage that holds the reference (skerry_protos.drift)."""
UNSURE = "unsure_below"
"""Key of the manifest's figures: the confidence below which the cloud may be asked."""
WARM_RUNS = 3


class Predictor:
    """An artefact that is ready to answer."""

    def __init__(
        self, manifest: Manifest, model: LoadedModel, *, name: str = "", version: str = "1"
    ) -> None:
        """Serve `model` as `manifest` says; raise ModelError when the two differ."""
        self.name, self.version = name or manifest.model, version
        self.manifest, self._model = manifest, model
        self.platform = PLATFORMS[manifest.runtime]
        for kind, ports, specs in (
            ("input", manifest.inputs, model.inputs),
            ("output", manifest.outputs, model.outputs),
        ):
            if {one.name for one in ports} != {one.name for one in specs}:
                raise ModelError(
                    f"the model has the {kind}s {sorted(one.name for one in specs)}; its manifest "
                    f"names {sorted(one.name for one in ports)}"
                )
        self._takes = {one.name: one.dtype for one in model.inputs}
        self._prepare = {one.input: one for one in manifest.preprocessing}
        self._classes = next(
            (one for one in manifest.postprocessing if one.kind == "classes"), None
        )
        self.inputs = [
            Spec(
                name=one.name,
                shape=(None, *one.shape[1:]),
                dtype=np.dtype(
                    self._prepare[one.name].dtype if one.name in self._prepare else one.dtype
                ),
            )
            for one in manifest.inputs
        ]
        self.batches = all(one.shape[:1] == (None,) for one in manifest.inputs)
        self.outputs = [
            Spec(name=one.name, shape=(None, *one.shape[1:]), dtype=np.dtype(one.dtype))
            for one in manifest.outputs
        ] + self._made_of_classes()
        self.scores = PROBABILITIES
        self.threshold = _share(manifest.figures.get(UNSURE)) if self._classes else None
        self.reference = _reference(manifest)
        self._last = threading.local()

    @property
    def parallel(self) -> bool:
        """Whether several threads may ask it at once."""
        return self._model.parallel

    @property
    def last_s(self) -> float:
        """Seconds the last call of the runtime took, of those this thread made."""
        found: float = getattr(self._last, "seconds", 0.0)
        return found

    @classmethod
    def load(
        cls, folder: Path, *, name: str = "", version: str = "1", threads: int = 1
    ) -> "Predictor":
        """Load an unpacked artefact; raise TrustError, ConfigError or ModelError saying why not."""
        manifest = read_artefact(folder)
        model = open_runtime(manifest.runtime).load(folder / manifest.file, threads=threads)
        return cls(manifest, model, name=name, version=version)

    def predict(self, requests: Sequence[Arrays]) -> list[dict[str, NDArray[Any]]]:
        """Answer several requests, each of arrays (rows, ...) by input; by one call where it can.

        Raise ModelError when the runtime fails, or the model answers with NaN or infinity.
        """
        if len(requests) == 1:
            joined: Arrays = requests[0]
        else:
            joined = {name: np.concatenate([one[name] for one in requests]) for name in requests[0]}
        outputs = self.answer(self.prepare(joined))
        outputs |= self._meaning(outputs)
        if len(requests) == 1:
            return [outputs]
        parts, at = [], 0
        for one in requests:
            end = at + len(next(iter(one.values())))
            parts.append({name: values[at:end] for name, values in outputs.items()})
            at = end
        return parts

    def prepare(self, raw: Arrays) -> dict[str, NDArray[Any]]:
        """Return raw values as the model takes them."""
        return {name: self._prepared(name, values) for name, values in raw.items()}

    def answer(self, inputs: Arrays) -> dict[str, NDArray[Any]]:
        """Answer the model's own inputs (rows, ...), as they are after preprocessing.

        Raise ModelError when the runtime fails, or the model answers with NaN or infinity.
        """
        began = time.perf_counter()
        outputs = self._run(inputs, len(next(iter(inputs.values()))))
        self._last.seconds = time.perf_counter() - began
        for name, values in outputs.items():
            if values.dtype.kind == "f" and not np.isfinite(values).all():
                raise ModelError(f"the model answered with numbers that are not finite ({name!r})")
        return outputs

    def warm(self) -> None:
        """Run it a few times on zeros: runtimes lay out their memory at the first run."""
        zeros = {
            one.name: np.zeros([1 if size is None else size for size in one.shape], one.dtype)
            for one in self.inputs
        }
        inputs = self.prepare(zeros)
        for _ in range(WARM_RUNS):
            self._run(inputs, 1)

    def close(self) -> None:
        """Give the model's memory back."""
        self._model.close()

    def _run(self, inputs: Arrays, rows: int) -> dict[str, NDArray[Any]]:
        if self.batches or rows == 1:
            return self._model.run(inputs)
        each = [
            self._model.run({name: values[at : at + 1] for name, values in inputs.items()})
            for at in range(rows)
        ]
        return {name: np.concatenate([one[name] for one in each]) for name in each[0]}

    def _prepared(self, name: str, raw: NDArray[Any]) -> NDArray[Any]:
        step = self._prepare.get(name)
        if step is None:
            return raw.astype(self._takes[name], copy=False)
        return prepared(step, raw).astype(self._takes[name], copy=False)

    def _meaning(self, outputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Return probabilities, classes and labels, where an output is scores of classes."""
        if self._classes is None:
            return {}
        return meaning(self._classes, outputs[self._classes.output])

    def _made_of_classes(self) -> list[Spec]:
        if self._classes is None:
            return []
        port = next(one for one in self.manifest.outputs if one.name == self._classes.output)
        shape = (None, *port.shape[1:])
        made = [
            Spec(name=PROBABILITIES, shape=shape, dtype=np.dtype(np.float32)),
            Spec(name=CLASS, shape=shape[:-1], dtype=np.dtype(np.int64)),
        ]
        known = {one.name for one in self.manifest.outputs}
        return [one for one in made if one.name not in known]


def _share(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and 0 < value <= 1 else None


def _reference(manifest: Manifest) -> Reference | None:
    said = manifest.lineage.get(DRIFT)
    try:
        return None if said is None else Reference.parse(said)
    except PeerError as error:
        raise ModelError(error.message) from error
