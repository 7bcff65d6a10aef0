"""A 2 MB model that each device changes in its own way, and a note of every training.

Deterministic: what a device adds in a round follows from its partition and the round, so a test can
say what the model must be from who has answered. Each training leaves a line when it begins and one
when it ends, in `report`/DEVICE, so that a training done twice is seen.
"""

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

FLOATS = 500_000


def model() -> dict[str, Floats]:
    return {"w": np.zeros(FLOATS, np.float32)}


def data(device: Any) -> Any:
    return device


def weight_of(partition: int) -> int:
    """How many examples a device says it has."""
    return 10 + 7 * partition


def update_of(partition: int, round_: int) -> Floats:
    """What a device adds in a round; another for every device and round."""
    return np.random.default_rng([partition, round_]).standard_normal(FLOATS, np.float32)


def drawn(share: float, partition: int, round_: int, partitions: int) -> bool:
    """Whether a device is among this share of them in a round: another part in each round."""
    return share > 0 and (partition + 3 * round_) % partitions < round(share * partitions)


def train(model: dict[str, Floats], device: Any, config: Mapping[str, Any]) -> dict[str, Any]:
    round_ = int(config["server-round"])
    note(config, device, round_, "begin")
    if drawn(config["away"], device.partition, round_, device.partitions):
        raise RuntimeError("away this round")
    slow = drawn(config["slow"], device.partition + 1, round_, device.partitions)
    time.sleep(config["slow_s"] if slow else config["train_s"])
    model["w"] += update_of(device.partition, round_) + np.float32(config["more"])
    note(config, device, round_, "end")
    return {"num-examples": weight_of(device.partition)}


def note(config: Mapping[str, Any], device: Any, round_: int, what: str) -> None:
    """Append one line: who, which round, what, when."""
    if not config["report"]:
        return
    line = json.dumps({"round": round_, "what": what, "at": time.time()}) + "\n"
    file = os.open(Path(config["report"], device.id), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    try:
        os.write(file, line.encode())
    finally:
        os.close(file)
