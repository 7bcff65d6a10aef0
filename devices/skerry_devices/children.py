"""Child processes that never outlive their parent: each in its own session, logging to a file.

On Linux the kernel itself sends a child SIGTERM when the parent dies, however it dies.
"""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil
from skerry_protos.errors import SkerryError
from skerry_protos.kin import dying_with_parent

from skerry_devices.signals import shielded

STOP_S = 10.0


class ChildError(SkerryError):
    """A process that was started here has stopped by itself."""

    code = "child"


class Children:
    """Processes started here; leaving the block stops them all, newest first."""

    def __init__(self) -> None:
        self._started: list[Child] = []

    def start(
        self, name: str, command: Sequence[str], *, log: Path, env: Mapping[str, str] | None = None
    ) -> "Child":
        """Start a process; call this from the main thread, or the thread's end is its end."""
        child = Child(name, command, log=log, env=env or {})
        self._started.append(child)
        return child

    def __iter__(self) -> Iterator["Child"]:
        """Yield the processes that should run."""
        return iter(list(self._started))

    def check(self) -> None:
        """Raise ChildError when a process that should run has stopped."""
        for child in self._started:
            child.check()

    def forget(self, child: "Child") -> None:
        """Expect nothing more of a child."""
        self._started.remove(child)

    def stop(self) -> None:
        """Stop every process and what it started, politely first."""
        with shielded():
            trees = [child.tree() for child in self._started]
            for child in reversed(self._started):
                child.terminate()
            deadline = time.monotonic() + STOP_S
            for child in reversed(self._started):
                child.wait(max(0.0, deadline - time.monotonic()))
            _kill(process for tree in trees for process in tree)
            for child in self._started:
                child.wait(STOP_S)  # what was killed is to be reaped, too
            self._started.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()


class Child:
    """One process, its log, and everything below it."""

    def __init__(
        self, name: str, command: Sequence[str], *, log: Path, env: Mapping[str, str]
    ) -> None:
        self.name = name
        self.log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [*dying_with_parent(signal.SIGTERM), *command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **env},
                start_new_session=True,  # a Ctrl-C at the terminal is ours to pass on
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.poll()

    def check(self) -> None:
        """Raise ChildError when the process has stopped, with the last thing it said."""
        if (status := self.returncode) is not None:
            raise ChildError(
                f"{self.name} stopped with status {status}: {self.last_words()}",
                hint=f"its log is {self.log}",
            )

    def last_words(self) -> str:
        """Return the last line that says something; an error's line rather than its hint."""
        lines = [line.strip() for line in self.log.read_text(errors="replace").splitlines()]
        said = [line for line in lines[-50:] if line and not line.startswith("hint:")]
        return said[-1][:300] if said else "it said nothing"

    def tree(self) -> list[psutil.Process]:
        """Return the process and all below it that live now."""
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(self.pid)
            return [process, *process.children(recursive=True)]
        return []

    def terminate(self) -> None:
        """Ask the process to end."""
        if self.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.terminate()

    def wait(self, timeout_s: float) -> int | None:
        """Return its exit status, or None when it still runs after so long."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self._process.wait(timeout_s)
        return None


def _kill(processes: Iterable[psutil.Process]) -> None:
    """Kill what is left, and wait until it is gone."""
    left = []
    for process in processes:
        with contextlib.suppress(psutil.Error):
            if process.is_running():  # compares start times: a reused pid is somebody else
                process.kill()
                left.append(process)
    psutil.wait_procs(left, timeout=5.0)
