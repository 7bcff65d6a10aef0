"""Quantization-aware training: the model learns to live with int8, then it is quantized as usual.

Weights are rounded in the forward pass for each output channel, inputs of the products for each
tensor over a running range; gradients pass straight through (Jacob et al. 2018, arXiv 1712.05877).
The rounding is torch's own; what comes out are float weights that static quantization rounds well.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from skerry_cloud.models.export import ExportError
from skerry_cloud.models.export.mend import copied, lesson, train
from skerry_cloud.models.export.request import Request
from skerry_cloud.models.export.source import Arrays, Subject

RATE = 2e-4
KEPT = 0.95
"""How much of the range seen before is kept at each batch."""
PRODUCTS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


class RoundedWeight(nn.Module):
    """Rounds a weight to 8 bits for each output channel (axis 0)."""

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """Return the rounded weight."""
        rows = weight.detach().abs().reshape(len(weight), -1)
        scale = torch.clamp(rows.amax(dim=1), min=1e-8) / 127
        zero = torch.zeros(len(weight), dtype=torch.int32)
        return torch.fake_quantize_per_channel_affine(weight, scale, zero, 0, -127, 127)


class RoundedInput:
    """Rounds the input of a layer to 8 bits over the range it has had; a forward pre-hook."""

    def __init__(self) -> None:
        self._low = self._high = 0.0
        self._seen = False

    def __call__(self, _layer: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
        values = given[0]
        low, high = min(0.0, float(values.min())), max(0.0, float(values.max()))
        if self._seen:
            low, high = (
                KEPT * self._low + (1 - KEPT) * low,
                KEPT * self._high + (1 - KEPT) * high,
            )
        self._low, self._high, self._seen = low, high, True
        scale = max(high - low, 1e-8) / 255
        zero = max(0, min(255, round(-low / scale)))
        rounded = torch.fake_quantize_per_tensor_affine(values, scale, zero, 0, 255)
        return (rounded, *given[1:])


def trained(
    request: Request, subject: Subject, teacher: nn.Module, calibration: Arrays | None
) -> nn.Module:
    """Return the model after training with rounded weights and inputs."""
    given = lesson(
        subject,
        teacher,
        calibration,
        epochs=request.epochs,
        rate=RATE,
        seed=request.seed,
        what="int8-qat",
    )
    model = copied(subject.model).requires_grad_(requires_grad=True)
    layers = [each for each in model.modules() if type(each) in PRODUCTS]
    if not layers:
        raise ExportError("int8-qat: the model has neither convolutions nor linear layers")
    hooks = []
    for layer in layers:
        parametrize.register_parametrization(layer, "weight", RoundedWeight())
        hooks.append(layer.register_forward_pre_hook(RoundedInput()))
    # Batch normalisation is folded into the weights later: it stays as it is.
    train(model, replace(given, keep_statistics=True))
    for hook in hooks:
        hook.remove()
    for layer in layers:
        parametrize.remove_parametrizations(layer, "weight", leave_parametrized=False)
    return model.requires_grad_(requires_grad=False)
