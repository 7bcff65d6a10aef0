"""Parts of `skerry demo --full`: what it needs, the bad model, questions, commands as typed."""

import os
import socket
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from skerry_devices import contexts
from skerry_devices.demo import releasing, training
from skerry_devices.demo.asking import Answer, Endpoint, Tally, Traffic
from skerry_devices.demo.showing import typed
from skerry_devices.waiting import until
from skerry_protos.errors import ConfigError

from tests.devices.conftest import Skerry


def test_the_full_demo_says_at_once_what_is_not_installed(
    skerry: Skerry, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        training, "find_spec", lambda name: None if name == "litert_torch" else find_spec(name)
    )
    said = skerry("demo", "--full")
    assert said.status == 2
    assert said.err == (
        "error[config]: the demo needs litert_torch\n"
        "hint: pip install 'skerry-cloud[litert]' 'skerry-edge[onnx]'\n"
    )
    assert list(tmp_path.iterdir()) == []
    refused = skerry("demo", "--full", "--devices", "0")
    assert refused.status == 2
    assert "devices" in refused.err


def test_the_bad_model_takes_every_digit_for_the_next_one(tmp_path: Path) -> None:
    import torch

    body = torch.nn.Linear(64, 10)
    arrays = {name: value.numpy() for name, value in body.state_dict().items()}
    np.savez(tmp_path / "good.npz", **arrays, other=np.ones(3, np.float32))
    releasing.misread(tmp_path / "good.npz", tmp_path / "bad.npz")
    with np.load(tmp_path / "bad.npz") as found:
        np.testing.assert_array_equal(found["other"], np.ones(3))
        bad = torch.nn.Linear(64, 10)
        bad.load_state_dict({name: torch.from_numpy(found[name]) for name in arrays})
    images = torch.rand(50, 64)
    assert torch.equal(bad(images).argmax(1), (body(images).argmax(1) + 1) % 10)


def test_held_out_digits_are_as_a_camera_gives_them() -> None:
    found = releasing.load_held_out(training.digits())
    assert found.images.shape == (360, 1, 8, 8)
    assert found.images.dtype == np.uint8
    assert (found.images.min(), found.images.max()) == (0, 16)
    assert sorted(set(found.digits.tolist())) == list(range(10))


def test_questions_that_nobody_answers_are_counted_and_end_with_the_block() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    images, digits = np.zeros((2, 1, 8, 8), np.uint8), np.zeros(2, np.int64)
    with Endpoint(f"http://127.0.0.1:{port}", "digits") as endpoint:
        assert not endpoint.ready()
        with Traffic([endpoint], images, digits) as traffic:
            until(lambda: len(traffic.tally.failures) > 2 or None, timeout_s=5, what="failures")
    assert traffic.tally.asked == len(traffic.tally.failures)
    assert "did not answer" in traffic.tally.failures[0]
    assert traffic.tally.accuracy == 0


def test_a_tally_says_what_came_of_questions() -> None:
    tally = Tally()
    for digit, right in ((1, 1), (2, 2), (3, 3), (4, 5)):
        tally.count(
            Answer(digit=digit, confidence=0.9, version="1", seconds=0.002, parameters={}), right
        )
    assert releasing.tally_line(tally) == (
        "4 questions, 0 failed, 75.0% right, p50 2.0 ms, p95 2.0 ms, by version 1"
    )


def test_commands_are_shown_as_they_are_typed_and_raise_what_they_raise(
    config: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    del config
    typed("config", "set-context", "a b", "--url", "https://127.0.0.1:1")
    assert capfd.readouterr().out.startswith("\n$ skerry config set-context 'a b' --url https://")
    with pytest.raises(ConfigError, match="no context 'c'"):
        typed("config", "use-context", "c")
    assert "SKERRY_KEYS_PASSWORD" not in os.environ


def test_a_command_that_is_interrupted_ends_the_demo(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    del config

    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(contexts, "chosen", interrupted)
    with pytest.raises(KeyboardInterrupt):
        typed("config", "current-context")
