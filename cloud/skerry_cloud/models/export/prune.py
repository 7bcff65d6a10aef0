"""Structured pruning: whole channels are taken out, so that every runtime gets a smaller model.

Torch-Pruning (Fang et al. 2023, arXiv 2301.12900) finds which layers depend on each other; those
channels go whose norm over the whole group is smallest. The rest is trained to answer as before.
"""

import torch
from torch import nn

from skerry_cloud.models.export import ExportError
from skerry_cloud.models.export.mend import copied, lesson, train
from skerry_cloud.models.export.request import Request
from skerry_cloud.models.export.source import Arrays, Subject

RATE = 1e-3
ROUND_TO = 4
"""Channels are left in fours: kernels work on vectors."""


def without_channels(
    request: Request, subject: Subject, teacher: nn.Module, calibration: Arrays | None
) -> nn.Module:
    """Return the model with a share of its channels taken out, mended by its former answers."""
    import torch_pruning

    given = lesson(
        subject,
        teacher,
        calibration,
        epochs=request.epochs,
        rate=RATE,
        seed=request.seed,
        what="--prune",
    )
    model = copied(subject.model).requires_grad_(requires_grad=True)
    before = sum(each.numel() for each in model.parameters())
    try:
        pruner = torch_pruning.pruner.BasePruner(
            model,
            subject.example,
            importance=torch_pruning.importance.GroupMagnitudeImportance(p=2),
            pruning_ratio=request.prune,
            ignored_layers=_last(model, subject),
            round_to=ROUND_TO,
        )
        pruner.step()
        with torch.no_grad():
            model.eval()(*subject.example)
    except Exception as error:
        line = " ".join(str(error).split())[:300]
        raise ExportError(
            f"the model's channels cannot be pruned: {type(error).__name__}: {line}",
            hint="recurrent layers and reshapes over channels often cannot; leave --prune out",
        ) from error
    if sum(each.numel() for each in model.parameters()) == before:
        raise ExportError(f"--prune {request.prune} took no channel out: the layers are too small")
    train(model, given)
    return model


def _last(model: nn.Module, subject: Subject) -> list[nn.Module]:
    """Return the layer that makes the answer: its channels are the answer's places."""
    seen: list[nn.Module] = []
    hooks = [
        each.register_forward_hook(lambda layer, _given, _answer: seen.append(layer))
        for each in model.modules()
        if isinstance(each, nn.Linear | nn.modules.conv._ConvNd)
    ]
    with torch.no_grad():
        model(*subject.example)
    for hook in hooks:
        hook.remove()
    return seen[-1:]
