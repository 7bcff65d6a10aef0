"""A convolutional network of 420 thousand parameters over the digits at 28 x 28 pixels."""

import torch
from digits import LABELS, SEED, data, evaluate, held_out, train, training
from torch import nn

__all__ = ["LABELS", "data", "evaluate", "held_out", "model", "train", "training"]


def model() -> nn.Module:
    """Return a new network."""
    torch.manual_seed(SEED)
    return nn.Sequential(
        nn.Upsample(size=(28, 28), mode="nearest"),
        nn.Conv2d(1, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(64 * 7 * 7, 128),
        nn.ReLU(),
        nn.Linear(128, 10),
    )


def student() -> nn.Module:
    """Return a network of 52 thousand parameters, to distil the other into."""
    torch.manual_seed(SEED)
    return nn.Sequential(
        nn.Upsample(size=(28, 28), mode="nearest"),
        nn.Conv2d(1, 16, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * 7 * 7, 30),
        nn.ReLU(),
        nn.Linear(30, 10),
    )
