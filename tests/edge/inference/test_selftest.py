"""The self test of a release, in its own process."""

import time
from pathlib import Path
from typing import Any

import pytest
from skerry_edge.inference.selftest import LINES_KEPT, Trials
from skerry_protos.errors import DeadlineError, SkerryError

from tests.edge.inference.test_service import slot


async def test_a_good_release_passes_and_is_measured(tmp_path: Path) -> None:
    found = await Trials().test(slot(tmp_path), timeout_s=60)
    assert found["agreement"] == found["accuracy"] == 1
    assert {"load_s", "latency_p95_s", "memory_bytes"} <= set(found)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"golden_from": 7}, "of the golden set; 90.0% are needed"),
        ({"broken": "nan"}, "numbers that are not finite"),
        ({"broken": "file"}, "cannot load model.onnx"),
    ],
)
async def test_a_bad_release_says_why(tmp_path: Path, options: dict[str, Any], why: str) -> None:
    with pytest.raises(SkerryError, match=why):
        await Trials().test(slot(tmp_path, **options), timeout_s=60)


async def test_limits(tmp_path: Path) -> None:
    with pytest.raises(DeadlineError, match="took more than"):
        await Trials().test(slot(tmp_path), timeout_s=0.01)
    with pytest.raises(SkerryError):
        await Trials(memory_bytes=1 << 20).test(slot(tmp_path), timeout_s=60)


async def test_what_the_runtime_printed_as_it_died_is_in_the_reason_and_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The interpreter of the trial is real; a module of the runtime's name stands in its way."""
    ill = tmp_path / "path"
    ill.mkdir()
    monkeypatch.setenv("PYTHONPATH", str(ill))
    shouts = "import os, sys\nsys.stderr.write('x' * 5_000_000 + '\\n')\n"
    (ill / "onnxruntime.py").write_text(
        shouts + "sys.stderr.write('illegal \\x1b[31m opcode\\n' * 20)\nos.abort()\n"
    )
    with pytest.raises(SkerryError, match=r"died by signal 6: illegal  ?\[31m opcode$"):
        await Trials().test(slot(tmp_path), timeout_s=60)
    assert len([each for each in caplog.messages if "illegal" in each]) == LINES_KEPT
    assert all(each.isprintable() for each in caplog.messages)

    (ill / "onnxruntime.py").write_text("raise RuntimeError('libstdc++ is too old')\n")
    with pytest.raises(SkerryError, match="libstdc"):
        await Trials().test(slot(tmp_path), timeout_s=60)

    (ill / "onnxruntime.py").write_text(
        "import subprocess, sys, time\nsubprocess.Popen(['sleep', '20'])\n"
        "sys.stderr.write('waits for a licence')\nsys.stderr.flush()\ntime.sleep(60)\n"
    )
    began = time.monotonic()
    with pytest.raises(DeadlineError, match=r"took more than 3 s: waits for a licence"):
        await Trials().test(slot(tmp_path), timeout_s=3)
    assert time.monotonic() - began < 15, "a process of the runtime's own holds nobody up"
