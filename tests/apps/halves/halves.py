"""Each device pulls the weights towards its own number; `bad` makes one device misbehave."""

import os
import sys
import time

import numpy as np

SIZE = 3


def model():
    return {"w": np.zeros(SIZE, dtype=np.float32), "steps": np.zeros((), dtype=np.int64)}


def data(device):
    return {"target": float(device.partition + 1), "partition": device.partition}


def train(model, data, config):
    first = data["partition"] == 0 and config["server-round"] >= config["when"]
    model["w"] += config["step"] * (data["target"] - model["w"])
    model["steps"] += 1
    metrics = {"target": data["target"], "num_examples": data["partition"] + 1}
    if not first or not config["bad"]:
        return metrics
    match config["bad"]:
        case "nan":
            model["w"][0] = np.nan
        case "shape":
            model["w"] = np.zeros(2, dtype=np.float32)
        case "dtype":
            model["w"] = model["w"].astype(np.float64)
        case "missing":
            del model["w"]
        case "raise":
            raise ValueError("no more data")
        case "exit":
            os._exit(3)
        case "slow":
            time.sleep(15)
        case "pause":
            time.sleep(4)
        case "weight":
            metrics["num_examples"] = 0
        case "metric":
            metrics["target"] = float("nan")
        case "flood":
            sys.stdout.write("x" * 1_000_000)
    return metrics


def evaluate(model, data):
    return {"error": float(abs(model["w"][0] - data["target"])), "num_examples": 1}
