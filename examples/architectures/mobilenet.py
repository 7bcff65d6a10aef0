"""MobileNetV2 (Sandler et al. 2018, arXiv 1801.04381), 2.2 million parameters, at 32 x 32."""

import torch
from digits import LABELS, SEED, data, evaluate, held_out, train, training
from torch import Tensor, nn

__all__ = ["LABELS", "data", "evaluate", "held_out", "model", "train", "training"]

# Expansion, channels, blocks, stride of the first block: the paper's table 2.
STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
FIRST, LAST = 32, 1280


class Bottleneck(nn.Module):
    """An inverted residual: wider, filtered channel by channel, narrow again."""

    def __init__(self, inside: int, outside: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = inside * expansion
        layers = convolution(inside, wide, 1) if expansion > 1 else []
        layers += convolution(wide, wide, 3, stride=stride, groups=wide)
        layers += [nn.Conv2d(wide, outside, 1, bias=False), nn.BatchNorm2d(outside)]
        self.layers = nn.Sequential(*layers)
        self.residual = stride == 1 and inside == outside

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output."""
        return x + self.layers(x) if self.residual else self.layers(x)


def convolution(
    inside: int, outside: int, size: int, *, stride: int = 1, groups: int = 1
) -> list[nn.Module]:
    """Return a convolution with its normalisation and activation."""
    return [
        nn.Conv2d(
            inside, outside, size, stride=stride, padding=size // 2, groups=groups, bias=False
        ),
        nn.BatchNorm2d(outside),
        nn.ReLU6(),
    ]


def model() -> nn.Module:
    """Return a new network."""
    torch.manual_seed(SEED)
    # The paper's first stride is 2, for 224 pixels; 32 pixels are too few to halve five times.
    layers: list[nn.Module] = [nn.Upsample(size=(32, 32), mode="nearest")]
    layers += convolution(1, FIRST, 3, stride=1)
    inside = FIRST
    for expansion, outside, blocks, stride in STAGES:
        for block in range(blocks):
            layers.append(Bottleneck(inside, outside, stride if block == 0 else 1, expansion))
            inside = outside
    layers += convolution(inside, LAST, 1)
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(LAST, 10))
