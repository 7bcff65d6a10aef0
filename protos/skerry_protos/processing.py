"""What stands before and behind a model: raw values to its input, its output to what it means.

Needs numpy: for the processes that run models, on the device and in the cloud.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from skerry_protos.manifest import Postprocessing, Preprocessing

PROBABILITIES, CLASS, LABEL = "probabilities", "class", "label"
"""Outputs made of scores of classes."""


def prepared(step: Preprocessing, raw: NDArray[Any]) -> NDArray[np.float32]:
    """Return `(raw * scale - mean) / std` as float32; `raw` has shape (rows, ...)."""
    values = raw.astype(np.float32)
    if step.scale != 1.0:
        values *= np.float32(step.scale)
    for numbers, apply in ((step.mean, np.subtract), (step.std, np.divide)):
        if numbers:
            wide = [1] * values.ndim
            if len(numbers) > 1:
                wide[step.axis] = len(numbers)
            apply(values, np.asarray(numbers, dtype=np.float32).reshape(wide), out=values)
    return values


def meaning(step: Postprocessing, scores: NDArray[Any]) -> dict[str, NDArray[Any]]:
    """Return what scores of shape (rows, ..., classes) mean: probabilities, class and label."""
    wide = scores.astype(np.float32, copy=False)
    if step.scores == "logits":
        wide = np.exp(wide - wide.max(axis=-1, keepdims=True))
        wide /= wide.sum(axis=-1, keepdims=True)
    best = wide.argmax(axis=-1)
    found: dict[str, NDArray[Any]] = {PROBABILITIES: wide, CLASS: best}
    if step.labels and len(step.labels) == wide.shape[-1]:
        found[LABEL] = np.asarray(step.labels)[best]
    return found
