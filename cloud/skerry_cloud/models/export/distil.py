"""Distillation: the app's smaller student() learns the model's answers."""

import torch
from torch import nn

from skerry_cloud.models.export import ExportError
from skerry_cloud.models.export.measure import Judge, run_model
from skerry_cloud.models.export.mend import lesson, train
from skerry_cloud.models.export.request import Request
from skerry_cloud.models.export.source import Arrays, Subject

RATE = 2e-3


def into_student(request: Request, subject: Subject, calibration: Arrays | None) -> nn.Module:
    """Return the trained student."""
    if subject.student is None:
        raise ExportError(
            "--distil needs a smaller model to train",
            hint="let student() in the app return one; it takes the same input",
        )
    student = subject.student()
    if not isinstance(student, nn.Module):
        raise ExportError(f"student() returned {type(student).__name__}, not a torch module")
    given = lesson(
        subject,
        subject.model,
        calibration,
        epochs=request.epochs,
        rate=RATE,
        seed=request.seed,
        what="--distil",
    )
    with torch.no_grad():
        answer = student.eval()(*subject.example)
    first = answer[0] if isinstance(answer, tuple | list) else answer
    if first.shape[1:] != given.taught.shape[1:]:
        raise ExportError(
            f"the student answers {list(first.shape[1:])}, the model {list(given.taught.shape[1:])}"
        )
    train(student, given)
    return student


def shown(model: nn.Module, judge: Judge) -> str:
    """Return how good and how large a model is, in words."""
    quality = judge.judge(run_model(model, judge.data.inputs))
    parameters = sum(each.numel() for each in model.parameters())
    return (
        f"{parameters} parameters, {judge.metric_name} {quality.value:.4f} "
        f"({judge.value:.4f} before)"
    )
