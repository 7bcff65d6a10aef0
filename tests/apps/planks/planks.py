"""Each device pulls a matrix towards its own, of low rank; a counter and a vector come along."""

import numpy as np

ROWS, COLUMNS = 120, 100


def model():
    return {
        "w": np.zeros((ROWS, COLUMNS), dtype=np.float32),
        "b": np.zeros(ROWS, dtype=np.float32),
        "steps": np.zeros((), dtype=np.int64),
    }


def data(device):
    rng = np.random.default_rng(device.partition)
    thin = rng.standard_normal((ROWS, 2)), rng.standard_normal((2, COLUMNS))
    return {"w": (thin[0] @ thin[1]).astype(np.float32), "b": np.ones(ROWS, dtype=np.float32)}


def train(model, data, config):
    for name in ("w", "b"):
        model[name] += np.float32(config["step"]) * (data[name] - model[name])
    model["steps"] += 1
    return {"left": float(np.abs(data["w"] - model["w"]).mean()), "num_examples": 1}


def evaluate(model, data):
    return {"error": float(np.abs(data["w"] - model["w"]).mean()), "num_examples": 1}
