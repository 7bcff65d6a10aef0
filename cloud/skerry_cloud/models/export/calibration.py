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


def softmax(scores: NDArray[Any]) -> NDArray[np.float64]:
    """Return scores over the last axis as probabilities."""
    shifted = scores.astype(np.float64) - scores.max(axis=-1, keepdims=True)
    raised = np.exp(shifted)
    return np.asarray(raised / raised.sum(axis=-1, keepdims=True))
