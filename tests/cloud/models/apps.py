"""Small models to export, on the digits of scikit-learn; trained where a test says so."""

import textwrap
from pathlib import Path

HEAD = """
import numpy as np
import torch
from torch import nn
from sklearn.datasets import load_digits

torch.set_num_threads(1)
pixels, digits = load_digits(return_X_y=True)
X = (pixels / 16).astype(np.float32).reshape(-1, 1, 8, 8)
Y = digits.astype(np.int64)
LABELS = [str(n) for n in range(10)]
PREPROCESSING = {"dtype": "uint8", "scale": 1 / 16}


def held_out():
    return X[1500:], Y[1500:]


def training():
    return X[:1500], Y[:1500]


def network():
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10),
    )


def fitted(made, epochs=3):
    torch.manual_seed(1)
    optimizer = torch.optim.Adam(made.parameters(), lr=3e-3)
    x, y = torch.from_numpy(X[:1500]), torch.from_numpy(Y[:1500])
    for _ in range(epochs):
        for rows in torch.randperm(1500).split(50):
            optimizer.zero_grad()
            nn.functional.cross_entropy(made(x[rows]), y[rows]).backward()
            optimizer.step()
    return made.eval()


def model():
    torch.manual_seed(1)
    return fitted(network())
"""


def write_app(folder: Path, more: str = "", name: str = "app") -> Path:
    """Write the module and return its folder; `more` may redefine any of its functions."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.py").write_text(HEAD + textwrap.dedent(more))
    return folder
