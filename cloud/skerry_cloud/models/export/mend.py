"""Training by a teacher: what distillation, pruning and QAT have in common.

The loss is Hinton's (Hinton, Vinyals, Dean 2015, arXiv 1503.02531): cross entropy with the labels,
where there are any, and the divergence from the teacher's softened scores, times the temperature
squared. Without labels the teacher alone is enough, so a calibration set can mend a model.
"""

import copy
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from skerry_cloud.models.export import DataError, ExportError
from skerry_cloud.models.export.measure import run_model
from skerry_cloud.models.export.source import Arrays, Subject

BATCH = 32
TEMPERATURE = 4.0
HARD = 0.5
"""How much the labels weigh."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lesson:
    """What a model is trained with."""

    inputs: tuple[torch.Tensor, ...]
    taught: torch.Tensor  # the teacher's first output
    labels: torch.Tensor | None
    epochs: int
    rate: float
    seed: int
    keep_statistics: bool = False  # batch normalisation stays as it is


def lesson(
    subject: Subject,
    teacher: nn.Module,
    calibration: Arrays | None,
    *,
    epochs: int,
    rate: float,
    seed: int,
    what: str,
) -> Lesson:
    """Return the lesson from the app's training data, or from its calibration inputs alone."""
    data, labels = calibration, None
    if subject.training is not None:
        data, labels = subject.training.inputs, subject.training.labels
    if data is None:
        raise DataError(
            f"{what} needs data to train with",
            hint="let training() in the app return (inputs, labels), or name a --calibration set",
        )
    taught = torch.from_numpy(run_model(teacher, data)[0])
    known = None
    if labels is not None and labels.dtype.kind in "iu" and labels.ndim == taught.ndim - 1 == 1:
        known = torch.from_numpy(labels.astype(np.int64))
    return Lesson(
        inputs=tuple(torch.from_numpy(each) for each in data),
        taught=taught,
        labels=known,
        epochs=epochs,
        rate=rate,
        seed=seed,
    )


def train(model: nn.Module, given: Lesson) -> None:
    """Train a model in place; raise ExportError when the loss is not finite."""
    dice = torch.Generator().manual_seed(given.seed)
    model.requires_grad_(requires_grad=True)
    model.train()
    if given.keep_statistics:
        for each in model.modules():
            if isinstance(each, nn.modules.batchnorm._BatchNorm):
                each.eval()
    count = len(given.taught)
    steps = given.epochs * -(-count // BATCH)
    optimizer = torch.optim.Adam(model.parameters(), lr=given.rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(given.epochs):
        for rows in torch.split(torch.randperm(count, generator=dice), BATCH):
            if len(rows) < 2 < count:
                continue  # batch normalisation needs two
            optimizer.zero_grad()
            answer = model(*(each[rows] for each in given.inputs))
            first = answer[0] if isinstance(answer, tuple | list) else answer
            right = None if given.labels is None else given.labels[rows]
            loss = _loss(first, given.taught[rows], right)
            if not torch.isfinite(loss):
                raise ExportError("training diverged: its loss is not finite")
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    model.eval()
    model.requires_grad_(requires_grad=False)


def copied(model: nn.Module) -> nn.Module:
    """Return a copy that may be changed."""
    return copy.deepcopy(model)


def _loss(answer: torch.Tensor, taught: torch.Tensor, labels: torch.Tensor | None) -> torch.Tensor:
    if taught.ndim < 2 or taught.shape[-1] < 2:
        return functional.mse_loss(answer, taught)
    soft = functional.kl_div(
        functional.log_softmax(answer / TEMPERATURE, dim=-1),
        functional.log_softmax(taught / TEMPERATURE, dim=-1),
        log_target=True,
        reduction="batchmean",
    )
    soft = soft * TEMPERATURE**2
    if labels is None:
        return soft
    return (1 - HARD) * soft + HARD * functional.cross_entropy(answer, labels)
