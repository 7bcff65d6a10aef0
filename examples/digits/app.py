"""Handwritten digits on non-IID shares: the offline default example.

The data are the 1797 images of 8 x 8 pixels that come with scikit-learn. A fifth is held out for
the test. Each device trains on its own share of the rest, drawn unevenly by digit (Dirichlet), and
tests on its own equal part of the held-out fifth, so the mean over the devices, weighted by the
number of images, is the accuracy on the whole held-out set.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

ALPHA = 0.5  # of the Dirichlet distribution: smaller is less even
SEED = 7
SCALE = 1 / 16  # pixels are 0 to 16

# What an exported model's manifest says (docs/models.md).
LABELS = [str(digit) for digit in range(10)]
PREPROCESSING = {"dtype": "uint8", "scale": SCALE}

torch.set_num_threads(1)


class Device(Protocol):
    """What Skerry says about the device that runs this."""

    partition: int
    partitions: int


@dataclass(frozen=True)
class Share:
    """One device's images (N x 1 x 8 x 8, 0 to 1) and digits."""

    images: Tensor
    digits: Tensor
    test_images: Tensor
    test_digits: Tensor

    def __len__(self) -> int:
        return len(self.digits)


def model() -> nn.Module:
    """Return a new convolutional network of 38 thousand parameters."""
    torch.manual_seed(SEED)
    return nn.Sequential(
        nn.Conv2d(1, 48, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(48, 64, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(64 * 4 * 4, 10),
    )


def images() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return training images, test images, training digits and test digits."""
    # Imported where they are used: who only wants the model need not load them.
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    pixels, digits = load_digits(return_X_y=True)
    return train_test_split(
        (pixels * SCALE).astype(np.float32).reshape(-1, 1, 8, 8),
        digits.astype(np.int64),
        test_size=0.2,
        random_state=SEED,
        stratify=digits,
    )


def held_out() -> tuple[np.ndarray, np.ndarray]:
    """Return the test images and digits, to judge an exported model by."""
    _, pictures, _, digits = images()
    return pictures, digits


def training() -> tuple[np.ndarray, np.ndarray]:
    """Return images and digits to take ranges of activations from when a model is exported."""
    pictures, _, digits, _ = images()
    return pictures, digits


def data(device: Device) -> Share:
    """Return the device's share of the training images and of the test images."""
    train_x, test_x, train_y, test_y = images()
    mine = uneven_share(train_y, device.partition, device.partitions)
    tested = slice(device.partition, None, device.partitions)
    return Share(
        images=torch.from_numpy(train_x[mine]),
        digits=torch.from_numpy(train_y[mine]),
        test_images=torch.from_numpy(test_x[tested]),
        test_digits=torch.from_numpy(test_y[tested]),
    )


def device_calibration(device: Device) -> Tensor:
    """Return the device's images, for a calibration by the devices; only ranges leave it."""
    return data(device).images


def uneven_share(digits: np.ndarray, partition: int, partitions: int) -> np.ndarray:
    """Return the rows of one of `partitions` shares, the same on every device for the same seed."""
    from datasets import Dataset
    from flwr_datasets.partitioner import DirichletPartitioner

    rows = Dataset.from_dict({"row": range(len(digits)), "digit": digits})
    partitioner = DirichletPartitioner(
        num_partitions=partitions,
        partition_by="digit",
        alpha=ALPHA,
        min_partition_size=min(20, len(digits) // partitions // 2),
        self_balancing=False,
        seed=SEED,
    )
    partitioner.dataset = rows
    return np.asarray(partitioner.load_partition(partition)["row"])


def train(model: nn.Module, data: Share, config: dict[str, float]) -> dict[str, float]:
    """Train in place for `epochs` passes over the device's share."""
    rng = torch.Generator().manual_seed(int(config.get("server-round", 0)))
    optimizer = torch.optim.SGD(model.parameters(), lr=config["lr"], momentum=0.9)
    model.train()
    loss = torch.tensor(0.0)
    for _ in range(int(config["epochs"])):
        order = torch.randperm(len(data), generator=rng)
        for batch in order.split(int(config["batch_size"])):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(data.images[batch]), data.digits[batch])
            loss.backward()
            optimizer.step()
    return {"loss": loss.item(), "num_examples": len(data)}


@torch.no_grad()
def evaluate(model: nn.Module, data: Share) -> dict[str, float]:
    """Return the accuracy and loss on the device's part of the held-out images."""
    model.eval()
    scores = model(data.test_images)
    return {
        "accuracy": (scores.argmax(1) == data.test_digits).float().mean().item(),
        "loss": nn.functional.cross_entropy(scores, data.test_digits).item(),
        "num_examples": len(data.test_digits),
    }
