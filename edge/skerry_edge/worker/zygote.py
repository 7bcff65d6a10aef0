"""The zygote: a warmed process that forks fresh workers (in the child; python -m … FD LIBRARIES).

It has loaded the libraries that apps of one kind load first, but nothing of any app, and it has no
threads; so a worker forked from it is as fresh as a new process and starts in milliseconds. It
limits itself before it loads anything, which its workers inherit, and dies with the agent, they
with it. `zygotes` is the agent's side.
"""

import atexit
import ctypes
import gc
import json
import os
import select
import socket
import sys
from collections.abc import Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

from skerry_protos.hiding import hide, set_apart

from skerry_edge.worker import child, processes, sandbox
from skerry_edge.worker.messages import HEAD, LIBRARIES, Sandbox

_PR_SET_DUMPABLE = 4
_ENV_START = 47
"""Place of env_start in /proc/PID/stat after the command's name; env_end is the next (proc(5))."""


def main() -> None:
    """Serve the agent at the other end of the socket whose descriptor is the first argument."""
    control = socket.socket(fileno=int(sys.argv[1]))
    control.set_inheritable(False)
    first = child.receive(control)
    if first is None:
        return
    wanted = Sandbox(**first)
    sandbox.enter(replace(wanted, hidden=()))  # each worker hides what is there when it begins
    for name in sys.argv[2].split(","):
        if name in LIBRARIES:
            import_module(LIBRARIES[name])
    _say(control, {"unfit": _unfit()})
    # No app may read or write what the next ones begin with (ptrace, /proc/PID/mem).
    sandbox.control(_PR_SET_DUMPABLE, 0)
    gc.collect()
    gc.freeze()  # a collection in a worker then does not touch, and so copy, these pages
    _serve(control, wanted.hidden)


def _unfit() -> str:
    """Return why this process must not fork workers, or nothing.

    A fork copies one thread: locks that others hold stay locked for ever. OpenBLAS's threads end
    by themselves when a process forks, and come back when they are needed, so a trial fork, whose
    child does nothing, tells them from threads that stay.
    """
    if _mark_address() is None:
        return "its environment is not where it should be"
    trial = os.fork()
    if trial == 0:
        os._exit(0)
    os.waitpid(trial, 0)
    threads = sum(1 for _ in Path("/proc/self/task").iterdir())
    return f"it has {threads} threads" if threads > 1 else ""


def _serve(control: socket.socket, hidden: Sequence[str]) -> None:
    """Fork workers as the agent asks, and tell it how each ended."""
    workers: dict[int, int] = {}  # by the descriptor that tells of the end
    while True:
        ready, _, _ = select.select([control.fileno(), *workers], [], [])
        for found in workers.keys() & set(ready):
            _, status = os.waitpid(workers[found], 0)
            _say(control, {"ended": workers.pop(found), "status": status})
            os.close(found)
        if control.fileno() in ready:
            head, passed, _, _ = socket.recv_fds(control, HEAD.size, 2)
            if len(head) < HEAD.size or len(passed) != 2:
                return
            said = json.loads(child.exactly(control, HEAD.unpack(head)[0]) or b"{}")
            parent, pid = os.getpid(), os.fork()
            if pid == 0:
                for each in (control.detach(), *workers):
                    os.close(each)
                _work(parent, passed[0], passed[1], str(said["token"]), hidden)
            for each in passed:
                os.close(each)
            workers[os.pidfd_open(pid)] = pid
            _say(control, {"forked": pid})


def _work(zygote: int, control: int, output: int, token: str, hidden: Sequence[str]) -> NoReturn:
    """Be a worker; its sandbox is inherited but for what a fork takes away."""
    try:
        os.setsid()
        sandbox.control(_PR_SET_DUMPABLE, 1)
        for standard in (1, 2):
            os.dup2(output, standard)
        os.close(output)
        _mark(token)
        if not hide(Path(folder) for folder in hidden):
            set_apart()
        sandbox.belong_to(zygote)
        gc.unfreeze()
        _reseed()
        child.serve(socket.socket(fileno=control))
        atexit._run_exitfuncs()
    except BaseException:  # noqa: BLE001 - it must not go on as a second zygote
        sys.excepthook(*sys.exc_info())
        os._exit(1)
    finally:
        child.flush()
    os._exit(0)  # to take apart the modules that it shares would only copy them


def _reseed() -> None:
    """Give the generators that seed themselves at import a seed of this process's own.

    Python's own `random` does it by itself.
    """
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed()
    if torch := sys.modules.get("torch"):
        torch.seed()


def _mark(token: str) -> None:
    """Mark this process, where others read it: in the environment that it was started with."""
    address = _mark_address()
    if address is None or len(token) != len(os.environ[processes.MARK]):
        raise RuntimeError("a worker cannot be marked")
    ctypes.memmove(address, token.encode(), len(token))
    os.environ[processes.MARK] = token


def _mark_address() -> int | None:
    """Return where the mark's value is in the memory that /proc/PID/environ shows."""
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    start, end = int(fields[_ENV_START]), int(fields[_ENV_START + 1])
    mark = f"{processes.MARK}={os.environ[processes.MARK]}\0".encode()
    place = ctypes.string_at(start, end - start).find(mark) if 0 < start < end else -1
    return None if place < 0 else start + place + len(processes.MARK) + 1


def _say(control: socket.socket, said: dict[str, Any]) -> None:
    data = json.dumps(said).encode()
    control.sendall(HEAD.pack(len(data)) + data)


if __name__ == "__main__":
    try:
        main()
    except (KeyboardInterrupt, BrokenPipeError, ConnectionResetError):
        os._exit(1)
