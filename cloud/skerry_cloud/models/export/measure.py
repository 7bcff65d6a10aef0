"""An exported file against the float model: accuracy, agreement, deviation."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from skerry_cloud.models.export import DataError, ExportError
from skerry_cloud.models.export.source import Arrays, Labelled, Metric, Subject

BATCH = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Quality:
    """How good a file's answers are; `drop_points` is 100 x what was lost of the metric."""

    value: float
    drop_points: float
    agreement: float
    max_deviation: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Judge:
    """What the float model answers on the held-out set, and how answers are judged."""

    data: Labelled
    answers: Arrays
    metric_name: str
    metric: Metric
    value: float
    classes: bool

    def judge(self, found: Arrays) -> Quality:
        """Return how these answers compare; raise ExportError when they are not finite."""
        if not all(np.isfinite(each).all() for each in found if each.dtype.kind == "f"):
            raise ExportError("it answers held-out examples with NaN or infinite numbers")
        value = self.metric(found[0], self.data.labels)
        lost = 100 * (self.value - value)
        if self.metric_name != "accuracy" and abs(self.value) > 1:
            lost /= abs(self.value)
        return Quality(
            value=value,
            drop_points=lost,
            agreement=agreement(self.answers[0], found[0], classes=self.classes),
            max_deviation=max(
                float(np.abs(a.astype(np.float64) - b).max())
                for a, b in zip(self.answers, found, strict=True)
            ),
        )


def judge_of(subject: Subject) -> Judge:
    """Return the judge by the float model; raise DataError where nothing can be judged."""
    data = subject.held_out
    answers = run_model(subject.model, data.inputs)
    classes = answers[0].ndim >= 2 and answers[0].shape[-1] > 1 and answers[0].dtype.kind == "f"
    name, metric = _metric(subject, data, answers[0])
    value = metric(answers[0], data.labels)
    if not np.isfinite(value):
        raise DataError(f"the float model's {name} on the held-out set is {value}")
    return Judge(
        data=data, answers=answers, metric_name=name, metric=metric, value=value, classes=classes
    )


@torch.no_grad()
def run_model(model: torch.nn.Module, inputs: Arrays) -> Arrays:
    """Return the float model's outputs for every example."""
    found: list[Sequence[Any]] = []
    for at in range(0, len(inputs[0]), BATCH):
        answer = model(*(torch.from_numpy(each[at : at + BATCH]) for each in inputs))
        several = answer if isinstance(answer, tuple | list) else (answer,)
        found.append([each.numpy() for each in several])
    return tuple(np.concatenate(each) for each in zip(*found, strict=True))


def agreement(one: NDArray[Any], other: NDArray[Any], *, classes: bool) -> float:
    """Return the share of examples with the same class; of plain numbers, that are close."""
    if classes:
        return float((one.argmax(-1) == other.argmax(-1)).mean())
    near = 0.05 * float(np.std(one)) + 1e-6
    return float((np.abs(one - other) <= near).mean())


def _metric(subject: Subject, data: Labelled, answers: NDArray[Any]) -> tuple[str, Metric]:
    if subject.metric is not None:
        given = subject.metric

        def measured(outputs: Any, labels: Any) -> float:
            tensors = (torch.from_numpy(np.ascontiguousarray(outputs)), _tensor(labels))
            return float(given(*tensors))

        return subject.metric_name, measured
    labels = data.labels
    if labels is None:
        classes = answers.ndim >= 2 and answers.shape[-1] > 1
        return "agreement", lambda outputs, _: agreement(answers, outputs, classes=classes)
    if labels.dtype.kind in "iu" and labels.ndim == 1 and answers.ndim == 2:
        return "accuracy", lambda outputs, right: float((outputs.argmax(-1) == right).mean())
    raise DataError(
        f"outputs of shape {list(answers.shape)} and labels of {list(labels.shape)} are no classes",
        hint="let metric(outputs, labels) in the app return a number; higher is better",
    )


def _tensor(labels: Any) -> Any:
    return None if labels is None else torch.from_numpy(np.ascontiguousarray(labels))
