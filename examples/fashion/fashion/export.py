"""What skerry models export asks of the app; training needs none of it."""

from typing import Protocol

import numpy as np
from torch import Tensor

from fashion.source import load
from fashion.task import load_share, make_model, tensors

LABELS = [
    "T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot",
]  # fmt: skip
PREPROCESSING = {"dtype": "uint8", "scale": 1 / 255, "mean": 0.286, "std": 0.353}
CALIBRATED_BY = 512
ALPHA = 0.5  # of the shares, as pyproject.toml has it

model = make_model


class Device(Protocol):
    """What Skerry says about the device that runs this."""

    partition: int
    partitions: int


def held_out() -> tuple[Tensor, Tensor]:
    """Return the test images and their classes."""
    return tensors(*load("t10k"))


def calibration() -> Tensor:
    """Return some training images, to take the ranges of activations from."""
    images, labels = load("train")
    rows = np.linspace(0, len(images) - 1, CALIBRATED_BY).astype(int)
    return tensors(images[rows], labels[rows])[0]


def device_calibration(device: Device) -> Tensor:
    """Return a device's own training images, for a calibration by the devices."""
    (images, _), _ = load_share(device.partition, device.partitions, ALPHA)
    return images


def training() -> tuple[Tensor, Tensor]:
    """Return the training images and their classes, for what trains a model once more."""
    return tensors(*load("train"))
