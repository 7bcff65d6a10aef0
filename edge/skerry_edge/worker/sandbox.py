"""What a worker does to itself before it runs the code of others (in the child, Linux).

It dies with the agent, yields the CPU and the disk, is the first to go when memory runs out, leaves
no core files, adopts its orphans, cannot read the device's keys, and where the agent is root gives
up root.
"""

import contextlib
import ctypes
import os
import resource
import signal
from pathlib import Path

from skerry_protos.hiding import hide

from skerry_edge.worker.messages import Sandbox

_PR_SET_PDEATHSIG = 1
_PR_SET_NO_NEW_PRIVS = 38
_PR_SET_CHILD_SUBREAPER = 36


def enter(sandbox: Sandbox) -> None:
    """Limit this process; what the system does not offer is left out."""
    os.nice(sandbox.niceness)
    if sandbox.io_idle:
        _yield_the_disk()
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("800")
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sandbox.file_bytes:
        resource.setrlimit(resource.RLIMIT_FSIZE, (sandbox.file_bytes, sandbox.file_bytes))
        # Beyond the limit a write fails with EFBIG, which the app sees, instead of a signal.
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    if sandbox.data_bytes:
        resource.setrlimit(resource.RLIMIT_DATA, (sandbox.data_bytes, sandbox.data_bytes))
    if sandbox.uid >= 0:
        _drop(sandbox)
    control(_PR_SET_NO_NEW_PRIVS, 1)
    hide(Path(folder) for folder in sandbox.hidden)
    belong_to(sandbox.agent_pid)  # after a change of user, which undoes it


def belong_to(parent: int) -> None:
    """Adopt the orphans below this process and die with its parent; a fork inherits neither."""
    control(_PR_SET_CHILD_SUBREAPER, 1)
    control(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        raise SystemExit("the agent is gone")


def control(option: int, value: int) -> None:
    """Set a property of this process (prctl(2)); one that the system does not have is left out."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)


def _drop(sandbox: Sandbox) -> None:
    if sandbox.processes:
        limit = sandbox.processes * 16  # threads count too
        resource.setrlimit(resource.RLIMIT_NPROC, (limit, limit))
    os.setgroups([])
    os.setresgid(sandbox.gid, sandbox.gid, sandbox.gid)
    os.setresuid(sandbox.uid, sandbox.uid, sandbox.uid)


def _yield_the_disk() -> None:
    import psutil

    with contextlib.suppress(OSError, AttributeError, psutil.Error):
        psutil.Process().ionice(psutil.IOPRIO_CLASS_IDLE)
