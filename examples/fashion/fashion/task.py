"""The model, the shares, and how one device trains and tests."""

from functools import lru_cache

import numpy as np
import torch
from datasets import Dataset
from flwr_datasets.partitioner import DirichletPartitioner, IidPartitioner
from torch import Tensor, nn

from fashion.source import load

SEED = 7

torch.set_num_threads(1)

Images = tuple[Tensor, Tensor]


def make_model() -> nn.Module:
    """Return a new convolutional network of 70 thousand parameters."""
    torch.manual_seed(SEED)
    return nn.Sequential(
        nn.Conv2d(1, 24, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(24, 48, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(48, 64, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(64 * 7 * 7, 10),
    )


@lru_cache(maxsize=1)
def load_share(partition: int, partitions: int, alpha: float) -> tuple[Images, Images]:
    """Return one device's training images, uneven by class, and its even part of the test's."""
    images, labels = load("train")
    by_class = DirichletPartitioner(
        num_partitions=partitions, partition_by="label", alpha=alpha, seed=SEED
    )
    train = share(labels, by_class, partition)
    test_images, test_labels = load("t10k")
    test = share(test_labels, IidPartitioner(num_partitions=partitions), partition)
    return tensors(images[train], labels[train]), tensors(test_images[test], test_labels[test])


def share(
    labels: np.ndarray, partitioner: DirichletPartitioner | IidPartitioner, partition: int
) -> np.ndarray:
    """Return the rows of one share."""
    partitioner.dataset = Dataset.from_dict({"row": np.arange(len(labels)), "label": labels})
    return np.asarray(partitioner.load_partition(partition)["row"])


def tensors(images: np.ndarray, labels: np.ndarray) -> Images:
    """Return images as N x 1 x 28 x 28 floats around 0, and classes."""
    pixels = torch.from_numpy(images.astype(np.float32) / 255).unsqueeze(1)
    return (pixels - 0.286) / 0.353, torch.from_numpy(labels.astype(np.int64))


def train(
    model: nn.Module, data: Images, *, epochs: int, lr: float, batch_size: int, most: int, seed: int
) -> tuple[float, int]:
    """Train in place on at most `most` images; return the mean loss and how many there were."""
    images, classes = data
    dice = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    model.train()
    losses = []
    chosen = torch.randperm(len(images), generator=dice)[: most or None]
    for _ in range(epochs):
        for batch in chosen[torch.randperm(len(chosen), generator=dice)].split(batch_size):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(images[batch]), classes[batch])
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return float(np.mean(losses)), len(chosen)


@torch.no_grad()
def evaluate(model: nn.Module, data: Images) -> tuple[float, float]:
    """Return loss and accuracy."""
    model.eval()
    images, classes = data
    scores = torch.cat([model(batch) for batch in images.split(500)])
    loss = nn.functional.cross_entropy(scores, classes).item()
    return loss, (scores.argmax(1) == classes).float().mean().item()
