"""`skerry demo` and `skerry up` as a person runs them: they do what they say and leave nothing."""

import os
import re
import secrets
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from skerry_devices.waiting import until
from skerry_protos.packing import peek_artefact

pytestmark = [
    pytest.mark.network,
    pytest.mark.timeout(300),
    pytest.mark.xdist_group("who takes the usual ports"),
]

COMMAND = [sys.executable, "-m", "skerry_devices"]


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Return an environment by which everything started from it can be found."""
    return {
        **os.environ,
        "SKERRY_CONFIG": str(tmp_path / "config.toml"),
        "TMPDIR": str(tmp_path),
        "SKERRY_TEST_MARK": secrets.token_hex(8),
    }


def left_running(mark: str) -> list[str]:
    """Return the command lines of processes whose environment has the mark."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("SKERRY_TEST_MARK") == mark:
                found.append(" ".join(process.cmdline()))
        except psutil.Error:
            continue
    return found


def test_the_demo_trains_saves_a_model_and_leaves_nothing(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    began = time.monotonic()
    said = subprocess.run(
        [*COMMAND, "demo"],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env=environment,
        timeout=280,
    )
    assert said.returncode == 0, said.stdout + said.stderr
    print(f"the demo took {time.monotonic() - began:.0f} s")
    online = re.search(r"^online after .*$", said.stdout, re.MULTILINE)
    assert online is not None
    assert online[0].count("(mqtt)") == online[0].count("(grpc)") == 2
    accuracy = re.search(r"^test accuracy ([\d.]+)%", said.stdout, re.MULTILINE)
    assert accuracy is not None
    assert float(accuracy[1]) >= 93.0
    assert "ROUND  PHASE" in said.stdout
    assert re.search(r"^device-4 ", said.stdout, re.MULTILINE)
    with np.load(tmp_path / "skerry-demo" / "digits.npz", allow_pickle=False) as arrays:
        state = {name: torch.from_numpy(arrays[name]) for name in arrays}
    assert state["0.weight"].shape == (48, 1, 3, 3)
    assert left_running(environment["SKERRY_TEST_MARK"]) == []
    assert [path.name for path in tmp_path.glob("skerry-*")] == ["skerry-demo"]


@pytest.mark.slow  # it exports twice: a minute of one core
@pytest.mark.skipif(find_spec("litert_torch") is None, reason="needs skerry-cloud[litert]")
def test_the_full_demo_releases_a_good_model_and_stops_a_bad_one(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    said = subprocess.run(
        [*COMMAND, "demo", "--full", "--devices", "2"],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env=environment,
        timeout=280,
    )
    assert said.returncode == 0, said.stdout + said.stderr
    for command in (
        r"models export run-\w+ --out skerry-demo/exported --unsure-risk 0.03",
        "keys init",
        r"models import digits skerry-demo/exported/digits-litert-int8.zip .*-onnx-int8.zip",
        "models sign digits@1 --channel stable",
        "rollout start digits@1 -w 25% -w 100% --gate min_accuracy=.*",
        "models sign digits@2 --channel canary",
        "rollout start digits@2 --channel canary .*",
    ):
        assert re.search(rf"^\$ skerry {command}$", said.stdout, re.MULTILINE), command
    last = said.stdout.partition("== What you have seen")[2]
    answered = re.search(r"answered +360 questions, 0 failed, ([\d.]+)% right", last)
    assert answered is not None, last
    assert float(answered[1]) > 90
    assert re.search(r"rolled out +digits@1: completed, told to 2 of 2 devices$", last, re.M)
    assert re.search(
        r"stopped +digits@2: rolled-back, told to 1 of 2 devices \(device-\d\): "
        r"1 of 1 devices failed: accuracy on the golden set is 0",
        last,
    ), last
    assert re.search(r"meanwhile +\d+ questions, 0 failed, .* by version 1$", last, re.M), last
    for name in ("onnx", "litert"):
        manifest = peek_artefact(tmp_path / f"skerry-demo/exported/digits-{name}-int8.zip")
        assert manifest.lineage["run_name"] == "digits"
        assert 0 < manifest.figures["unsure_below"] <= 1
    assert not (tmp_path / "config.toml").exists()  # the person's own contexts are left alone
    assert left_running(environment["SKERRY_TEST_MARK"]) == []
    assert [path.name for path in tmp_path.glob("skerry-*")] == ["skerry-demo"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_up_starts_a_fleet_again_and_ends_with_it(
    tmp_path: Path, environment: dict[str, str], number: signal.Signals
) -> None:
    command = [*COMMAND, "up", "--devices", "2", "--home", str(tmp_path / "home")]
    mark = environment["SKERRY_TEST_MARK"]
    output = tmp_path / "out"

    def ready() -> bool | None:
        assert up.poll() is None, output.read_text()
        return "Ctrl-C stops everything" in output.read_text() or None

    for _ in range(1 if number is signal.SIGKILL else 2):
        with (
            output.open("w") as file,
            subprocess.Popen(command, stdout=file, stderr=file, env=environment) as up,
        ):
            until(ready, timeout_s=100, what="skerry up")
            listed = subprocess.run(
                [*COMMAND, "devices", "list", "-o", "jsonl"],
                capture_output=True,
                text=True,
                check=True,
                env=environment,
            )
            assert listed.stdout.count('"state": "online"') == 2
            up.send_signal(number)
            status = up.wait(timeout=60)
        assert status == (-number if number is signal.SIGKILL else 0), output.read_text()
        until(lambda: not left_running(mark) or None, timeout_s=30, what="the end of everything")


def test_a_port_in_use_is_said_in_one_line(tmp_path: Path, environment: dict[str, str]) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        home = tmp_path / "home" / "coordinator"
        home.mkdir(parents=True)
        (home / "coordinator.toml").write_text(f"http_port = {port}\n")
        said = subprocess.run(
            [*COMMAND, "up", "--home", str(tmp_path / "home")],
            capture_output=True,
            text=True,
            check=False,
            env=environment,
            timeout=60,
        )
    assert said.returncode == 1
    assert said.stderr.startswith("error[child]: the coordinator stopped with status 2")
    assert f"cannot listen on 127.0.0.1:{port}" in said.stderr
    assert "Traceback" not in said.stderr
