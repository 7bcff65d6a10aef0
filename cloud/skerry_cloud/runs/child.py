"""A run's server side as a process: python -m skerry_cloud.runs.child FD.

It loads the app's code, which nobody else in the coordinator does, and talks to the coordinator
by the socket whose descriptor is its argument. It dies with the coordinator.
"""

import contextlib
import ctypes
import os
import resource
import signal
import socket
import sys
import traceback
from pathlib import Path
from typing import Any

from skerry_protos.errors import SkerryError
from skerry_protos.hiding import hide

from skerry_cloud.runs import chance
from skerry_cloud.runs.asker import Asker, Before, Counts, EndedError
from skerry_cloud.runs.channel import ChildEnd
from skerry_cloud.runs.coding import Coding
from skerry_cloud.strategies import CALIBRATE, RoundPlan

PR_SET_PDEATHSIG = 1
PR_SET_NO_NEW_PRIVS = 38
NICENESS = 5


def main() -> int:
    """Serve one run."""
    connection = socket.socket(fileno=int(sys.argv[1]))
    connection.set_inheritable(False)
    _limit()
    end = ChildEnd(connection)
    try:
        said, _ = end.receive()
    except EOFError:
        return 1
    hide(Path(folder) for folder in said["hidden"])
    try:
        _run(end, said)
    except EndedError:
        return 1
    except BaseException as error:  # noqa: BLE001 - an app may raise SystemExit or worse
        if not (isinstance(error, SystemExit) and not error.code):
            traceback.print_exc()
            _flush()
            end.finish({"do": "failed", "why": f"the app's server side {describe(error, said)}"})
            return 1
    _flush()
    end.finish({"do": "done"})
    return 0


def _run(end: ChildEnd, said: dict[str, Any]) -> None:
    before = Before(
        checkpoint=Path(said["checkpoint"]) if said["checkpoint"] else None,
        counts=Counts(asked=said["asked"], mustered=said["mustered"]),
        pulls=said["pulls"],
        every_s=said["checkpoint_s"],
    )
    asker = Asker(
        end,
        Path(said["scratch"]),
        round_deadline_s=said["round_deadline_s"],
        max_norm_ratio=said["max_norm_ratio"],
        before=before,
        coding=Coding(used=said["coded"], broadcast=said["broadcast_codec"]),
    )
    chance.begin(said["seed"])
    plan = RoundPlan(
        rounds=said["rounds"],
        fraction=said["fraction"],
        min_devices=said["min_devices"],
        seed=said["seed"],
        run_config=said["run_config"],
        round_deadline_s=said["round_deadline_s"],
        strategy=said["strategy"],
        strategy_options=said["strategy_options"],
        aggregation_memory_bytes=said["aggregation_memory_bytes"],
        initial=Path(said["initial"]) if said["initial"] else None,
        initial_run=said["initial_run"],
        initial_if_fits=said["initial_if_fits"],
    )
    sys.path.insert(0, said["app"])

    def ready() -> None:
        end.send({"do": "ready"})

    if said["kind"] == "flower":
        from skerry_cloud.strategies import flower

        flower.run_app(asker, said["server"], plan, number=said["number"], ready=ready)
    elif plan.strategy == CALIBRATE:
        from skerry_cloud.runs.calibrating import calibrate

        calibrate(asker, Path(said["app"]), plan, ready)
    else:
        from skerry_cloud.runs.native import run_native

        run_native(asker, said["server"].partition(":")[0], plan, ready)


def describe(error: BaseException, said: dict[str, Any]) -> str:
    """Return an exception in one line: what it is, and where in the app it was raised."""
    app = Path(said["app"])
    where = ""
    for frame in traceback.extract_tb(error.__traceback__):
        if Path(frame.filename).is_relative_to(app):
            where = f", in {frame.name}() at {Path(frame.filename).relative_to(app)}:{frame.lineno}"
    if isinstance(error, SkerryError):
        return f"failed: {error}{where}"
    text = " ".join(str(error).split())[:1000]
    return f"raised {type(error).__name__}" + (f": {text}" if text else "") + where


def _limit() -> None:
    """Give way to the coordinator, leave no core dumps, and do not outlive it."""
    with contextlib.suppress(OSError):
        os.nice(NICENESS)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(OSError, ValueError):
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        # A mapped reply holds its file open.
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    if sys.platform == "linux":
        parent = os.getppid()
        libc = ctypes.CDLL(None, use_errno=True)
        libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)  # hiding needs it, and an app needs no setuid
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()


if __name__ == "__main__":
    code = main()
    _flush()
    os._exit(code)  # what an app left running (threads, handlers) does not hold it
