"""Spoken digits with one speaker per device: a native Skerry app.

Each device holds one speaker's recordings of the Free Spoken Digit Dataset. Takes 0 to 4 of every
digit are the official test; each device tests on its own speaker's, 50 recordings each, so the mean
over the six devices is the accuracy on all 300. centralised.py trains the same model on everything
in one place, to compare with.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from sound import picture
from source import Recordings, recordings
from torch import Tensor, nn

SEED = 1
LABELS = [str(digit) for digit in range(10)]
TEST_TAKES = range(5)
SHIFT = 6  # frames to either side

torch.set_num_threads(1)

Pictures = tuple[Tensor, Tensor]


class Device(Protocol):
    """What Skerry says about the device that runs this."""

    partition: int
    partitions: int


@dataclass(frozen=True)
class Share:
    """Spectrograms (N x 1 x bands x frames) and digits to train and test with."""

    train: Pictures
    test: Pictures

    def __len__(self) -> int:
        return len(self.train[1])


def model() -> nn.Module:
    """Return a new convolutional network of 60 thousand parameters.

    Its normalisation is by group, not by batch: batch statistics of one speaker mislead the others.
    It comes after the pooling, so there is a quarter of the numbers to normalise.
    """
    torch.manual_seed(SEED)
    return nn.Sequential(
        nn.Conv2d(1, 24, 5, stride=2, padding=2),
        nn.GroupNorm(4, 24),
        nn.ReLU(),
        nn.Conv2d(24, 48, 3, padding=1),
        nn.MaxPool2d(2),
        nn.GroupNorm(4, 48),
        nn.ReLU(),
        nn.Conv2d(48, 64, 3, padding=1),
        nn.MaxPool2d(2),
        nn.GroupNorm(4, 64),
        nn.ReLU(),
        nn.Flatten(),
        nn.Dropout(0.5),
        nn.Linear(64 * 4 * 8, 10),
    )


def data(device: Device) -> Share:
    """Return the recordings of this device's speaker; with fewer devices some are left out."""
    # Imported where they are used: who only wants the model need not load them.
    from datasets import Dataset
    from flwr_datasets.partitioner import NaturalIdPartitioner

    every = recordings()
    speakers = [speaker for speaker, _, _ in sorted(every)]
    partitioner = NaturalIdPartitioner(partition_by="speaker")
    partitioner.dataset = Dataset.from_dict({"speaker": speakers})
    speaker = partitioner.load_partition(device.partition % 6)["speaker"][0]
    return share({key: samples for key, samples in every.items() if key[0] == speaker})


def share(chosen: Recordings) -> Share:
    """Return recordings as spectrograms, the official test takes apart."""
    return Share(
        train=pictures({key: each for key, each in chosen.items() if key[2] not in TEST_TAKES}),
        test=pictures({key: each for key, each in chosen.items() if key[2] in TEST_TAKES}),
    )


def held_out() -> Pictures:
    """Return every speaker's test takes, to judge an exported model by."""
    return share(recordings()).test


def training() -> Pictures:
    """Return every other take, to take ranges of activations from when a model is exported."""
    return share(recordings()).train


def pictures(chosen: Recordings) -> Pictures:
    """Return spectrograms and digits, in order of their names."""
    keys = sorted(chosen)
    images = np.stack([picture(chosen[key]) for key in keys])[:, None]
    return torch.from_numpy(images), torch.tensor([digit for _, digit, _ in keys])


def train(model: nn.Module, data: Share, config: dict[str, float]) -> dict[str, float]:
    """Train in place for `epochs` passes over the speaker's recordings, each a little shifted."""
    number = int(config["server-round"])
    dice = torch.Generator().manual_seed(number)
    torch.manual_seed(dice.initial_seed())  # of the dropout
    lr = config["lr"] * config["lr_decay"] ** (number - 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    images, digits = data.train
    model.train()
    loss = torch.tensor(0.0)
    for _ in range(int(config["epochs"])):
        for batch in torch.randperm(len(digits), generator=dice).split(int(config["batch_size"])):
            shift = int(torch.randint(-SHIFT, SHIFT + 1, (1,), generator=dice))
            optimizer.zero_grad()
            scores = model(torch.roll(images[batch], shift, dims=3))
            loss = nn.functional.cross_entropy(scores, digits[batch])
            loss.backward()
            optimizer.step()
    return {"loss": loss.item(), "num_examples": len(digits)}


@torch.no_grad()
def evaluate(model: nn.Module, data: Share) -> dict[str, float]:
    """Return accuracy and loss on the test takes."""
    model.eval()
    images, digits = data.test
    scores = model(images)
    return {
        "accuracy": (scores.argmax(1) == digits).float().mean().item(),
        "loss": nn.functional.cross_entropy(scores, digits).item(),
        "num_examples": len(digits),
    }
