"""Child processes: stopped with all they started, and never left behind by a parent that dies."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from skerry_devices.children import ChildError, Children

SLEEP = "import time; time.sleep(600)"
# A child that starts a grandchild, says its process id, and ignores polite requests to end.
STUBBORN = f"""
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
made = subprocess.Popen([sys.executable, "-c", {SLEEP!r}], start_new_session=True)
print(made.pid, flush=True)
time.sleep(600)
"""
# A parent that starts a child and says its process id.
PARENT = f"""
import sys, time
from pathlib import Path
from skerry_devices.children import Children
with Children() as children:
    child = children.start("c", [sys.executable, "-c", {SLEEP!r}], log=Path(sys.argv[1]))
    print(child.pid, flush=True)
    time.sleep(600)
"""


def eventually(holds: Callable[[], bool], what: str, timeout_s: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_leaving_the_block_ends_children_and_grandchildren(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("skerry_devices.children.STOP_S", 0.5)
    log = tmp_path / "log"
    with Children() as children:
        child = children.start("c", [sys.executable, "-c", STUBBORN], log=log)
        eventually(lambda: log.read_text().endswith("\n"), "the child says its grandchild")
        grandchild = int(log.read_text())
        assert not gone(child.pid)
        assert not gone(grandchild)
    assert gone(child.pid)
    assert gone(grandchild)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's promise is Linux's")
def test_a_parent_that_is_killed_takes_its_children_with_it(
    tmp_path: Path, number: signal.Signals
) -> None:
    command = [sys.executable, "-c", PARENT, str(tmp_path / "log")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        os.kill(parent.pid, number)
        parent.wait(timeout=20)
    eventually(lambda: gone(child), "the child ends with its parent")


def test_a_child_that_stops_by_itself_is_reported_with_its_last_words(tmp_path: Path) -> None:
    code = "import sys; print('starting'); sys.exit('the port is in use\\nhint: choose another')"
    with Children() as children:
        child = children.start("the server", [sys.executable, "-c", code], log=tmp_path / "log")
        assert child.wait(20) == 1
        with pytest.raises(ChildError) as caught:
            children.check()
    assert "the server stopped with status 1: the port is in use" in str(caught.value)
    assert str(tmp_path / "log") in caught.value.hint
