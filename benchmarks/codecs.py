"""Accuracy against bytes, codec by codec: Fashion-MNIST over 20 devices that hold unlike data.

A small CNN is trained by federated averaging; classes fall to devices by Dirichlet draws. Codecs,
aggregation are the real ones, called in one process: what is measured is what codecs do to a model,
and the bytes of its updates as records, not the wire. Every way has the same rounds, data, batches
and first weights as uncompressed averaging, seed by seed. `lossless` is checked to be bit-exact, so
its accuracy is that of `none`; `topk_open` is topk without error feedback: what that is worth.
"""

import multiprocessing
import statistics
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from skerry_cloud.strategies.mean import Mean
from skerry_protos.codecs import Codec
from skerry_protos.codecs.updates import (
    Feedback,
    coded_group,
    decode_model,
    decode_update,
    encode_model,
    encode_update,
)
from skerry_protos.records import Records, encode, size_of
from skerry_protos.tensors import Tensor
from skerry_protos.weights import load_tensors, tensors_of, torch_of
from torch import nn

from benchmarks._measure import QUICK, REPO, finish

DEVICES = 20
ALPHA = 0.5
SEEDS = (1,) if QUICK else (1, 2, 3)
ROUNDS = 30 if QUICK else 60
STEPS = 8
BATCH = 32
LR = 0.05
TESTED = 4000 if QUICK else 10_000
LAST = 3
"""Accuracy is the mean of so many last rounds: with unlike data single rounds jump by a point."""
PROCESSES = 2

Weights = Mapping[str, Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """One way to send updates."""

    name: str
    codec: Codec
    feedback: bool = True
    broadcast: str = "none"


WAYS = (
    Way(name="none", codec=Codec()),
    Way(name="bf16", codec=Codec(name="bf16")),
    Way(name="int8", codec=Codec(name="int8")),
    Way(name="int4", codec=Codec(name="int4")),
    Way(name="topk", codec=Codec(name="topk", ratio=0.01)),
    Way(name="topk_open", codec=Codec(name="topk", ratio=0.01), feedback=False),
    Way(name="powersgd", codec=Codec(name="powersgd", rank=4)),
    Way(name="int8_both", codec=Codec(name="int8"), broadcast="int8"),
)


@dataclass(slots=True)
class Figures:
    """What one way came to with one seed."""

    way: str
    seed: int
    accuracies: list[float] = field(default_factory=list)
    ratio: float = 0.0  # bytes of all updates as records, over their float32 payload
    down: float = 0.0  # the same of the model on its way to the devices
    lossless: float = 0.0  # of the same updates without loss (way "none" alone)
    code_s: float = 0.0
    train_s: float = 0.0

    @property
    def accuracy(self) -> float:
        """Return the mean accuracy of the last rounds, percent."""
        return 100 * statistics.fmean(self.accuracies)


# Data and model.


def load(part: str) -> tuple[torch.Tensor, NDArray[np.uint8]]:
    """Return images (N x 1 x 28 x 28, mean 0, deviation 1) and labels."""
    sys.path.insert(0, str(REPO / "examples" / "fashion"))
    from fashion import source  # the example's: it checks what it fetches

    pixels, labels = source.load(part)
    images = (pixels[:, None].astype(np.float32) / 255 - 0.286) / 0.353
    return torch.from_numpy(images), labels


def split(labels: NDArray[np.uint8], rng: np.random.Generator) -> list[NDArray[np.intp]]:
    """Return each device's images; classes are shared out by Dirichlet draws (Hsu et al. 2019)."""
    parts: list[list[NDArray[np.intp]]] = [[] for _ in range(DEVICES)]
    for label in range(10):
        places = rng.permutation(np.flatnonzero(labels == label))
        shares = rng.dirichlet([ALPHA] * DEVICES)
        cuts = (np.cumsum(shares)[:-1] * places.size).astype(int)
        for part, some in zip(parts, np.split(places, cuts), strict=True):
            part.append(some)
    return [np.concatenate(part) for part in parts]


def network() -> nn.Module:
    """Return the CNN: 52,266 weights."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 5, stride=2, padding=2),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16 * 7 * 7, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )


# One way with one seed.


class Federation:
    """Twenty devices and a server, as one object."""

    def __init__(self, way: Way, seed: int) -> None:
        torch.manual_seed(seed)
        torch.set_num_threads(1)
        self.way, self.seed = way, seed
        self.images, labels = load("train")
        self.labels = torch.from_numpy(labels.astype(np.int64))
        self.parts = split(labels, np.random.default_rng(seed))
        self.model = network()
        self.weights: Weights = copied(tensors_of(self.model))
        self.feedback = [Feedback() for _ in range(DEVICES)]
        self.made = Figures(way=way.name, seed=seed)
        self.sums: dict[str, list[int]] = {"up": [], "down": [], "lossless": []}

    def run(self) -> Figures:
        """Train for all rounds and return what it came to."""
        images, labels = load("t10k")
        truth = torch.from_numpy(labels[:TESTED].astype(np.int64))
        for number in range(ROUNDS):
            self.round(number)
            if number >= ROUNDS - LAST:
                self.made.accuracies.append(self.accuracy(images[:TESTED], truth))
        payload = sum(one.nbytes for one in self.weights.values())
        for name, attribute in (("up", "ratio"), ("down", "down"), ("lossless", "lossless")):
            if self.sums[name]:
                setattr(self.made, attribute, statistics.fmean(self.sums[name]) / payload)
        return self.made

    def accuracy(self, images: torch.Tensor, truth: torch.Tensor) -> float:
        """Return the share of test images that the weights name rightly."""
        load_tensors(self.model, self.weights)
        with torch.no_grad():
            guessed = torch.cat([self.model(part).argmax(1) for part in images.split(1000)])
        return float((guessed == truth).float().mean())

    def round(self, number: int) -> None:
        """Train on every device and take the mean of what the server decodes."""
        received, exact = self.broadcast()
        began = time.perf_counter()
        every = self.train(received, number)
        self.made.train_s += time.perf_counter() - began
        mean = Mean(self.weights)
        began = time.perf_counter()
        for device, (part, trained) in enumerate(zip(self.parts, every, strict=True)):
            decoded = self.crossed(device, number, received, trained, exact=exact)
            mean.add(decoded, float(part.size))
        self.made.code_s += time.perf_counter() - began
        result = mean.result()
        assert result is not None
        self.weights = result

    def broadcast(self) -> tuple[Weights, bool]:
        """Return the weights as the devices get them, and whether they are exact."""
        if self.way.broadcast == "none":
            self.sums["down"].append(
                size_of(encode(Records(arrays={"arrays": dict(self.weights)})))
            )
            return self.weights, True
        coded = encode_model(Codec(name=self.way.broadcast), self.weights)
        self.sums["down"].append(size_of(encode(Records(arrays={"arrays": coded_group(coded)}))))
        return decode_model(coded)

    def train(self, received: Weights, number: int) -> list[Weights]:
        """Return each device's weights after `STEPS` steps of SGD with momentum on its images.

        The devices are trained side by side, as groups of one network: the same numbers, less time.
        """
        rngs = [np.random.default_rng([self.seed, number, device]) for device in range(DEVICES)]
        names = list(received)
        side = [grouped(torch_of(one)).requires_grad_() for one in received.values()]
        momentum = [torch.zeros_like(one) for one in side]
        for _ in range(STEPS):
            drawn = zip(self.parts, rngs, strict=True)
            places = np.stack([rng.choice(part, BATCH) for part, rng in drawn], axis=1)
            guess = forward(self.images[places].squeeze(2), side)
            truth = self.labels[places].T.reshape(-1)
            loss = nn.functional.cross_entropy(guess.reshape(-1, 10), truth, reduction="sum")
            slopes = torch.autograd.grad(loss / BATCH, side)
            with torch.no_grad():
                for one, velocity, slope in zip(side, momentum, slopes, strict=True):
                    one.sub_(velocity.mul_(0.9).add_(slope), alpha=LR)
        parts = [one.detach().unflatten(0, (DEVICES, -1)).numpy() for one in side]
        shapes = [received[name].shape for name in names]
        return [
            {
                name: Tensor.of(part[device].reshape(shape))
                for name, part, shape in zip(names, parts, shapes, strict=True)
            }
            for device in range(DEVICES)
        ]

    def crossed(
        self, device: int, number: int, received: Weights, trained: Weights, *, exact: bool
    ) -> Weights:
        """Return the trained weights as the server sees them; count their bytes."""
        metrics: dict[str, Any] = {"metrics": {"num-examples": int(self.parts[device].size)}}
        rng = np.random.default_rng([9, self.seed, number, device])
        if self.way.codec.name == "none":
            plain = Records(arrays={"arrays": dict(trained)}, metrics=metrics)
            self.sums["up"].append(size_of(encode(plain)))
            coded, _ = encode_update(Codec(name="lossless"), received, trained, Feedback(), rng)
            self.count("lossless", coded, metrics)
            back = dict(decode_update(coded, self.weights))
            assert all(back[name].data == one.data for name, one in trained.items())
            return trained
        coded, after = encode_update(
            self.way.codec, received, trained, self.feedback[device], rng, exact=exact
        )
        if self.way.feedback:
            self.feedback[device] = after
        self.count("up", coded, metrics)
        return dict(decode_update(coded, self.weights))

    def count(self, name: str, coded: Tensor, metrics: Any) -> None:
        """Note the bytes of a reply with this coded update."""
        reply = Records(arrays={"arrays": coded_group(coded)}, metrics=metrics)
        self.sums[name].append(size_of(encode(reply)))


def grouped(weight: torch.Tensor) -> torch.Tensor:
    """Return a weight as many times as there are devices, one below the other (axis 0)."""
    return weight.repeat(DEVICES, *[1] * (weight.ndim - 1))


def forward(images: torch.Tensor, side: list[torch.Tensor]) -> torch.Tensor:
    """Return devices x batch x classes for images (batch x devices x 28 x 28): `network` in groups.

    `side` holds the weights of `network` in order, as `grouped` makes them.
    """
    conv, relu = nn.functional.conv2d, nn.functional.relu
    hidden = relu(conv(images, side[0], side[1], stride=2, padding=2, groups=DEVICES))
    hidden = relu(conv(hidden, side[2], side[3], stride=2, padding=1, groups=DEVICES))
    hidden = hidden.unflatten(1, (DEVICES, -1)).flatten(2).transpose(0, 1)
    for weight, bias in ((side[4], side[5]), (side[6], side[7])):
        if weight is side[6]:
            hidden = relu(hidden)
        own = weight.unflatten(0, (DEVICES, -1)).mT
        hidden = torch.baddbmm(bias.reshape(DEVICES, 1, -1), hidden, own)
    return hidden


def copied(weights: Weights) -> Weights:
    """Return the same weights in memory of their own."""
    return {name: Tensor.of(one.numpy().copy()) for name, one in weights.items()}


def measured(job: tuple[Way, int]) -> Figures:
    """Run one way with one seed (in a process of its own)."""
    return Federation(*job).run()


def main() -> None:
    """Measure every way and print the table and the result."""
    jobs = [(way, seed) for seed in SEEDS for way in WAYS]
    began = time.monotonic()
    found: dict[str, list[Figures]] = {way.name: [] for way in WAYS}
    with multiprocessing.get_context("spawn").Pool(PROCESSES) as pool:
        for one in pool.imap_unordered(measured, jobs):
            found[one.way].append(one)
            print(
                f"{one.way:10} seed {one.seed}: {one.accuracy:.2f} %  {one.ratio:.4f}x up  "
                f"{one.down:.3f}x down  {one.train_s:.0f} s training  {one.code_s:.1f} s coding",
                flush=True,
            )
    finish({**summary(found), "seconds": round(time.monotonic() - began, 1)})


def summary(found: Mapping[str, list[Figures]]) -> dict[str, object]:
    """Return the means over the seeds, each way beside `none` with the same seed."""
    plain = {one.seed: one for one in found["none"]}
    result: dict[str, object] = {
        "devices": DEVICES,
        "rounds": ROUNDS,
        "seeds": len(plain),
        "weights": sum(one.numel() for one in network().parameters()),
        "none_accuracy": round(statistics.fmean(one.accuracy for one in plain.values()), 2),
        "none_accuracy_spread": round(spread([one.accuracy for one in plain.values()]), 2),
    }
    for way in WAYS:
        ones = found[way.name]
        result[f"{way.name}_bytes"] = round(statistics.fmean(one.ratio for one in ones), 4)
        drops = [plain[one.seed].accuracy - one.accuracy for one in ones]
        result[f"{way.name}_drop_points"] = round(statistics.fmean(drops), 2)
        if way.broadcast != "none":
            result[f"{way.name}_down_bytes"] = round(statistics.fmean(one.down for one in ones), 4)
    result["lossless_bytes"] = round(statistics.fmean(one.lossless for one in plain.values()), 4)
    result["lossless_drop_points"] = 0.0
    return result


def spread(values: list[float]) -> float:
    """Return the standard deviation, 0 of one value."""
    return statistics.stdev(values) if len(values) > 1 else 0.0


if __name__ == "__main__":
    main()
