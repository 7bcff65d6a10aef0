"""The app that simulated fleets train: pure functions whose every bit follows from their arguments.

A device's share of a round is different from every other's, so a reply that is lost, repeated or
folded twice shows in the final model's bits.
"""

import hashlib
import random
import struct
from collections.abc import Iterable, Mapping
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from skerry_protos import bundles
from skerry_protos.records import Records
from skerry_protos.tensors import Tensor

MODULE = "simulated_app"
Array = NDArray[Any]
Weights = Mapping[str, Array]


def bundle() -> bytes:
    """Return the app's bundle, not signed yet; no file of it is ever loaded here."""
    settings = f'[app]\nname = "simulated"\nmodule = "{MODULE}"\n[run]\nrounds = 1\n'
    files = {
        "skerry.toml": settings.encode(),
        f"{MODULE}.py": b"# stands for tests/simulator/app.py\n",
    }
    return bundles.pack(
        files,
        kind="native",
        name="simulated",
        version="1",
        client=f"{MODULE}:train",
        server=f"{MODULE}:model",
    )


def module(size: int, *, evaluates: bool) -> ModuleType:
    """Return the app's module, as the server side imports it."""
    made = ModuleType(MODULE)
    made.model = lambda: first_weights(size)  # type: ignore[attr-defined]
    if evaluates:
        made.evaluate = lambda *_: None  # type: ignore[attr-defined] # devices do it
    return made


def first_weights(size: int) -> dict[str, Array]:
    """Return the model of `size` parameters before the first round.

    The bias is float64, as the sums are: in float32 the order of a sum would hardly show.
    """
    bias = max(1, size // 10)
    return {
        "bias": np.linspace(-1, 1, bias, dtype=np.float64),
        "weight": np.linspace(0, 1, max(1, size - bias), dtype=np.float32).reshape(-1, 1),
    }


def trained(weights: Weights, device: str, round_: int) -> tuple[Weights, int]:
    """Return what a device makes of the weights, and how many examples it has."""
    seed = hashlib.sha256(f"{device}/{round_}".encode()).digest()
    a, b, count = struct.unpack("<HHH", seed[:6])
    scale, shift = 0.5 + a / 131072, b / 65536 - 0.5
    made = {name: value * value.dtype.type(scale) + shift for name, value in weights.items()}
    return {name: value.astype(weights[name].dtype) for name, value in made.items()}, 1 + count % 97


def answer(content: Records, device: str, *, train: bool) -> Records:
    """Return the reply to a task."""
    weights = {name: tensor.numpy() for name, tensor in content.arrays["arrays"].items()}
    round_ = content.configs["config"]["server-round"]
    assert isinstance(round_, int)
    made, examples = trained(weights, device, round_)
    metrics = {"metrics": {"num-examples": float(examples), "loss": 1.0 / (round_ + examples)}}
    if not train:
        return Records(metrics=dict(metrics))  # type: ignore[arg-type]
    arrays = {"arrays": {name: Tensor.of(value) for name, value in made.items()}}
    return Records(arrays=arrays, metrics=dict(metrics))  # type: ignore[arg-type]


def spoiled(reply: Records, dice: random.Random) -> Records:
    """Return a reply that screening must refuse."""
    for group in reply.arrays.values():
        name = dice.choice(sorted(group))
        value = group[name].numpy().copy()
        value.reshape(-1)[0] = np.nan
        group[name] = Tensor.of(value)
    return reply


def merged(weights: Weights, devices: Iterable[str], round_: int) -> Weights:
    """Return the weighted mean of what these devices return, folded in this order.

    Said again here, apart from strategies/mean.py, so that the two can be compared bit for bit.
    """
    sums = {name: np.zeros(value.shape, dtype=np.float64) for name, value in weights.items()}
    total = 0.0
    for device in devices:
        made, examples = trained(weights, device, round_)
        total += examples
        for name, value in made.items():
            sums[name] += value.astype(np.float64) * float(examples)
    if not total:
        return weights
    return {name: (value / total).astype(weights[name].dtype) for name, value in sums.items()}
