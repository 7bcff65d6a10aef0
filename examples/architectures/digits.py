"""The digits of scikit-learn, and how a device or a person trains a classifier of them.

A fifth of the 1797 images is held out; devices have equal parts of the rest, in a mixed order.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

SEED = 7
LABELS = [str(digit) for digit in range(10)]

torch.set_num_threads(1)

Labelled = tuple[Tensor, Tensor]


class Device(Protocol):
    """What Skerry says about the device that runs this."""

    partition: int
    partitions: int


@dataclass(frozen=True)
class Share:
    """One device's images (N x 1 x 8 x 8, 0 to 1) and digits."""

    train: Labelled
    test: Labelled

    def __len__(self) -> int:
        return len(self.train[1])


@lru_cache(maxsize=1)
def images() -> tuple[Labelled, Labelled]:
    """Return the training and the held-out images with their digits."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    pixels, digits = load_digits(return_X_y=True)
    train_x, test_x, train_y, test_y = train_test_split(
        (pixels / 16).astype(np.float32).reshape(-1, 1, 8, 8),
        digits.astype(np.int64),
        test_size=0.2,
        random_state=SEED,
        stratify=digits,
    )
    return (
        (torch.from_numpy(train_x), torch.from_numpy(train_y)),
        (torch.from_numpy(test_x), torch.from_numpy(test_y)),
    )


def held_out() -> Labelled:
    """Return the images to judge an exported model by."""
    return images()[1]


def training() -> Labelled:
    """Return the images to calibrate and to train with."""
    return images()[0]


def data(device: Device) -> Share:
    """Return the device's share of both parts."""
    mine = slice(device.partition, None, device.partitions)
    (train_x, train_y), (test_x, test_y) = images()
    return Share(train=(train_x[mine], train_y[mine]), test=(test_x[mine], test_y[mine]))


def train(model: nn.Module, data: Share, config: dict[str, float]) -> dict[str, float]:
    """Train in place for `epochs` passes over the share."""
    dice = torch.Generator().manual_seed(int(config.get("server-round", 0)))
    torch.manual_seed(dice.initial_seed())  # of dropout
    optimizer = torch.optim.AdamW(model.parameters(), lr=config["lr"])
    inputs, digits = data.train
    model.train()
    loss = torch.tensor(0.0)
    for _ in range(int(config["epochs"])):
        for batch in torch.randperm(len(digits), generator=dice).split(int(config["batch_size"])):
            if len(batch) < 2:
                continue  # batch normalisation needs two
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(inputs[batch]), digits[batch])
            loss.backward()
            optimizer.step()
    return {"loss": loss.item(), "num_examples": len(digits)}


@torch.no_grad()
def evaluate(model: nn.Module, data: Share) -> dict[str, float]:
    """Return accuracy and loss on the device's held-out images."""
    model.eval()
    inputs, digits = data.test
    scores = model(inputs)
    return {
        "accuracy": (scores.argmax(1) == digits).float().mean().item(),
        "loss": nn.functional.cross_entropy(scores, digits).item(),
        "num_examples": len(digits),
    }
