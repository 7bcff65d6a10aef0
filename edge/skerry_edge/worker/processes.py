"""Finding and killing the processes of a worker, whatever its app started.

A worker adopts the orphans below it (PR_SET_CHILD_SUBREAPER), so its tree stays one tree: stop all
of it first, then kill, and nothing can fork in between. What outlives a worker that died by itself
is found by its session and by the mark in its environment.
"""

import contextlib
import os
import signal

import psutil

MARK = "SKERRY_WORKER"
"""Environment variable that marks every process of a worker with its token."""


def tree(pid: int) -> list[psutil.Process]:
    """Return the process and everything below it; empty when it is gone."""
    try:
        root = psutil.Process(pid)
        return [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def resident(processes: list[psutil.Process]) -> int:
    """Return the memory these processes hold, bytes; shared pages count once per process."""
    total = 0
    for process in processes:
        with contextlib.suppress(psutil.Error):
            total += process.memory_info().rss
    return total


def kill_tree(pid: int) -> None:
    """Kill the process and everything below it, so that nothing escapes by forking."""
    stopped: set[int] = set()
    for _ in range(100):
        fresh = [each for each in tree(pid) if each.pid not in stopped]
        if not fresh:
            break
        for each in fresh:
            _signal(each.pid, signal.SIGSTOP)
            stopped.add(each.pid)
    for number in stopped:
        _signal(number, signal.SIGKILL)


def sweep(token: str, session: int) -> int:
    """Kill what is left of a worker: by its mark and its session; return how many.

    A worker's process id, which is its session's too, may by now be another process's: then only
    the mark counts.
    """
    if not token or session <= 1:
        raise ValueError(f"not a worker's mark and session: {token!r}, {session}")
    ours = _is_ours(session)
    found = 0
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.pid == os.getpid() or process.status() == psutil.STATUS_ZOMBIE:
                continue
            same = ours and os.getsid(process.pid) == session
            if same or process.environ().get(MARK) == token:
                _signal(process.pid, signal.SIGKILL)
                found += 1
    return found


def _is_ours(pid: int) -> bool:
    """Return whether the process is a child of this one, or gone."""
    try:
        return psutil.Process(pid).ppid() == os.getpid()
    except psutil.NoSuchProcess:
        return True


def _signal(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)
