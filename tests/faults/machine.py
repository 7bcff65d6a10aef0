"""What worlds need of the machine they run on: proxies, small disks, processes and their memory."""

import asyncio
import contextlib
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Coroutine, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import psutil

from tests.faults.proxy import FaultProxy

WINDOW = 32 * 1024

T = TypeVar("T")


class Background:
    """An event loop in a thread of its own; `do` has it do something and waits."""

    def __init__(self, name: str) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, name=name, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()

    def do(self, coroutine: Coroutine[Any, Any, T], timeout_s: float = 20.0) -> T:
        """Return what a coroutine returns."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(timeout_s)


class Proxies:
    """Fault proxies in an event loop of their own; leaving the block closes them."""

    def __init__(self) -> None:
        self._background = Background("proxies")
        self._open: list[FaultProxy] = []

    def __enter__(self) -> Self:
        self._background.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for proxy in self._open:
            self._background.do(proxy.__aexit__(None, None, None))
        self._background.stop()

    def open(self, port: int) -> FaultProxy:
        """Return a proxy in front of a port of this machine."""
        proxy = FaultProxy(port, window=WINDOW)
        self._background.do(proxy.__aenter__())
        self._open.append(proxy)
        return proxy

    def cut(self, proxy: FaultProxy) -> None:
        """Reset a proxy's connections."""
        self._background.loop.call_soon_threadsafe(proxy.cut)


def resident(processes: Sequence[psutil.Process]) -> dict[str, int]:
    """Return the largest memory that each kind of process ever held, bytes."""
    found: dict[str, int] = {}
    for process in processes:
        with contextlib.suppress(psutil.Error, OSError, StopIteration):
            command = " ".join(process.cmdline())
            kind = next(
                kind
                for kind, mark in (
                    ("worker", "skerry_edge.worker"),
                    ("agent", "skerry_edge"),
                    ("server side", "skerry_cloud.runs"),
                    ("coordinator", "skerry_cloud"),
                    ("broker", "mosquitto"),
                )
                if mark in command
            )
            status = Path(f"/proc/{process.pid}/status").read_text().splitlines()
            line = next(each for each in status if each.startswith("VmHWM:"))
            found[kind] = max(found.get(kind, 0), int(line.split()[1]) * 1024)
    return found


def wait_gone(processes: Sequence[psutil.Process], whose: str) -> None:
    """Wait until processes run no more; who adopted them may take its time to bury them."""
    ends = time.monotonic() + 10
    while left := [each for each in processes if _runs(each)]:
        assert time.monotonic() < ends, f"left behind by {whose}: {left}"
        time.sleep(0.005)


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def free_port(held: contextlib.ExitStack) -> int:
    listener = held.enter_context(socket.create_server(("127.0.0.1", 0)))
    return int(listener.getsockname()[1])


@contextlib.contextmanager
def small_disk(folder: Path, megabytes: float) -> Iterator[Path]:
    """Mount a file system of this size; OSError where this user may not."""
    folder.mkdir(parents=True, exist_ok=True)
    size = f"size={int(megabytes * 1024)}k"
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", size, "tmpfs", str(folder)], check=False, capture_output=True
    )
    if done.returncode:
        raise OSError(f"cannot mount a small file system: {done.stderr.decode().strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)
        shutil.rmtree(folder, ignore_errors=True)
