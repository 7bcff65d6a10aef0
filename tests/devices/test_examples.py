"""The examples: their shares, their checksums, and that they learn."""

import gzip
import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.devices.conftest import REPOSITORY

pytestmark = pytest.mark.timeout(300)  # they train for real

EXAMPLES = REPOSITORY / "examples"
DATA = os.environ.get("SKERRY_DATA") or str(REPOSITORY.parent / "shared" / "data")
needs_data = pytest.mark.skipif(not Path(DATA).is_dir(), reason="SKERRY_DATA is not set")

DIGITS = """
import types, torch, app
shares = [app.data(types.SimpleNamespace(partition=i, partitions=4)) for i in range(4)]
assert sum(len(s) for s in shares) == 1437, [len(s) for s in shares]
assert sum(len(s.test_digits) for s in shares) == 360
rows = {tuple(x.flatten().tolist()) for s in shares for x in s.images}
held = {tuple(x.flatten().tolist()) for s in shares for x in s.test_images}
assert not rows & held
counts = torch.stack([torch.bincount(s.digits, minlength=10) for s in shares]).float()
uneven = (counts / counts.sum(0)).std(0).mean().item()
weights = app.model().state_dict()
for number in range(1, 9):
    trained = []
    for share in shares:
        model = app.model()
        model.load_state_dict(weights)
        app.train(model, share, {"lr": 0.03, "epochs": 3, "batch_size": 16, "server-round": number})
        trained.append((len(share), model.state_dict()))
    total = sum(size for size, _ in trained)
    weights = {k: sum(size * state[k] for size, state in trained) / total for k in weights}
model.load_state_dict(weights)
right = sum(app.evaluate(model, s)["accuracy"] * len(s.test_digits) for s in shares)
print(uneven, right / 360)
"""

SPEECH = """
import types, app
shares = [app.data(types.SimpleNamespace(partition=i, partitions=6)) for i in range(6)]
for share in shares:
    assert share.train[0].shape == (450, 1, 32, 64), share.train[0].shape
    assert share.test[1].bincount().tolist() == [5] * 10
first = {share.train[0].sum().item() for share in shares}
assert len(first) == 6
model = app.model()
settings = {"lr": 0.002, "lr_decay": 1.0, "epochs": 3, "batch_size": 16, "server-round": 1}
said = app.train(model, shares[0], settings)
print(said["num_examples"], app.evaluate(model, shares[0])["accuracy"])
"""

FASHION = """
from fashion.task import load_share, make_model, train, evaluate
(images, labels), (tests, answers) = load_share(1, 4, 0.5)
assert len(tests) == 2500
model = make_model()
train(model, (images, labels), epochs=1, lr=0.03, batch_size=32, most=1500, seed=1)
print(len(images), evaluate(model, (tests[:500], answers[:500]))[1])
"""


def call(code: str, folder: str) -> list[float]:
    said = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        cwd=EXAMPLES / folder,
        env={**os.environ, "SKERRY_DATA": DATA, "PYTHONDONTWRITEBYTECODE": "1"},
    )
    assert said.returncode == 0, said.stderr
    return [float(word) for word in said.stdout.split()]


@pytest.mark.slow  # the demo trains it in every run of the tests
def test_digits_learns_from_shares_that_are_uneven_and_complete() -> None:
    uneven, accuracy = call(DIGITS, "digits")
    assert uneven > 0.1  # even shares: about 0
    assert accuracy >= 0.93


@needs_data
@pytest.mark.slow
def test_each_device_has_one_speaker_and_the_official_test_takes() -> None:
    examples, accuracy = call(SPEECH, "spoken-digits")
    assert examples == 450
    assert accuracy > 0.5


@needs_data
def test_fashion_learns() -> None:
    examples, accuracy = call(FASHION, "fashion")
    assert examples > 1500
    assert accuracy > 0.3  # ten classes


def source_of(folder: str) -> dict[str, Any]:
    return runpy.run_path(str(EXAMPLES / folder))


def test_fashion_refuses_images_that_are_not_the_originals(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "fashion_mnist").mkdir()
    for name in ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"):
        (tmp_path / "fashion_mnist" / name).write_bytes(gzip.compress(b"something else"))
    monkeypatch.setenv("SKERRY_DATA", str(tmp_path))
    with pytest.raises(ValueError, match="SHA-256"):
        source_of("fashion/fashion/source.py")["load"]("t10k")


def test_spoken_digits_refuses_recordings_that_are_not_the_originals() -> None:
    with pytest.raises(ValueError, match="not those of"):
        source_of("spoken-digits/source.py")["check"]({"0_x_0.wav": b"something else"})
