"""Starting a worker's process: the interpreter, its environment, its place on the disk."""

import asyncio
import os
import socket
import sys
from pathlib import Path

from skerry_edge.worker import processes

PASSED = (
    *("PATH", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "PYTHONPATH", "VIRTUAL_ENV", "LD_LIBRARY_PATH"),
    *("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "MKL_NUM_THREADS"),
)
"""Environment variables every worker sees; all others are the agent's own business."""


def environment(folder: Path, token: str, passed: tuple[str, ...] = ()) -> dict[str, str]:
    """Return a worker's environment: harmless variables, its own home, no telemetry of others."""
    kept = {name: os.environ[name] for name in (*PASSED, *passed) if name in os.environ}
    return {
        **kept,
        "HOME": str(folder / "home"),
        "TMPDIR": str(folder / "tmp"),
        "FLWR_HOME": str(folder / "home" / "flwr"),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        processes.MARK: token,
    }


async def start(
    module: str,
    control: socket.socket,
    *arguments: str,
    folder: Path,
    token: str,
    passed: tuple[str, ...] = (),
    output: int = asyncio.subprocess.DEVNULL,
) -> asyncio.subprocess.Process:
    """Start a module of this package with our end of its socket, in a session of its own."""
    return await asyncio.create_subprocess_exec(
        sys.executable,
        *("-P", "-u", "-X", "faulthandler", "-m", f"skerry_edge.worker.{module}"),
        str(control.fileno()),
        *arguments,
        pass_fds=(control.fileno(),),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        cwd=folder / "tmp",
        env=environment(folder, token, passed),
        start_new_session=True,
    )
