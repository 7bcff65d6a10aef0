"""The calibration set: what static quantization takes the ranges of activations from."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from skerry_cloud.models.export import DataError
from skerry_cloud.models.export.source import Arrays, check_like

MOST = 512
"""Examples used: more cost time and change no range worth keeping."""
DECILES = np.linspace(0, 1, 11)
SAMPLE = 1_000_000


def chosen(arrays: Arrays | None, example: Sequence[torch.Tensor], seed: int) -> Arrays | None:
    """Return the examples to calibrate with, or raise DataError for a set that says nothing."""
    if arrays is None:
        return None
    if not len(arrays[0]):
        raise DataError(
            "the calibration set is empty",
            hint="static int8 needs examples like those the device will see; --quantize dynamic "
            "needs none",
        )
    check_like("calibration", arrays, example)
    for place, values in enumerate(arrays):
        if (values == values.flat[0]).all():
            raise DataError(
                f"the calibration set is constant: every value of input {place} is "
                f"{values.flat[0]}",
                hint="give examples like those the device will see",
            )
    if len(arrays[0]) <= MOST:
        return arrays
    rows = np.random.default_rng(seed).choice(len(arrays[0]), MOST, replace=False)
    return tuple(each[np.sort(rows)] for each in arrays)


def statistics(
    names: Sequence[str], arrays: Arrays, output: str, scores: NDArray[Any], *, classes: bool
) -> dict[str, Any]:
    """Return the reference for drift: how inputs and outputs are spread (docs/models.md)."""
    made: dict[str, Any] = {"examples": len(arrays[0]), "inputs": {}, "outputs": {}}
    for name, values in zip(names, arrays, strict=True):
        if values.dtype.kind not in "fiu":
            continue
        rows = values.reshape(len(values), -1).astype(np.float64)
        flat = rows.ravel()
        some = flat[:: max(1, len(flat) // SAMPLE)]
        made["inputs"][name] = {
            "min": float(flat.min()),
            "max": float(flat.max()),
            "mean": float(flat.mean()),
            "std": float(flat.std()),
            "value": _deciles(some),
            "mean_of_example": _deciles(rows.mean(axis=1)),
            "std_of_example": _deciles(rows.std(axis=1)),
        }
    if classes:
        chances = softmax(scores)
        counts = np.bincount(chances.argmax(-1).ravel(), minlength=chances.shape[-1])
        made["outputs"][output] = {
            "confidence": _deciles(chances.max(-1)),
            "classes": [float(each) for each in counts / counts.sum()],
        }
    else:
        made["outputs"][output] = {"value": _deciles(scores)}
    return made


def softmax(scores: NDArray[Any]) -> NDArray[np.float64]:
    """Return scores over the last axis as probabilities."""
    shifted = scores.astype(np.float64) - scores.max(axis=-1, keepdims=True)
    raised = np.exp(shifted)
    return np.asarray(raised / raised.sum(axis=-1, keepdims=True))


def _deciles(values: NDArray[Any]) -> list[float]:
    return [float(each) for each in np.quantile(values.astype(np.float64), DECILES)]
