"""A worker: takes jobs from the agent one by one, runs the app, answers (python -m … FD).

It stays between jobs, so that what an app imports is loaded once. What an app prints goes to the
agent by the pipe that is its stdout; what it returns goes into the file the job names.
"""

import json
import mmap
import os
import resource
import socket
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from skerry_protos.errors import SkerryError
from skerry_protos.records import Records, decode, write

from skerry_edge.apps import App, AppFailure, FailureCode, load_app
from skerry_edge.worker import coding, sandbox
from skerry_edge.worker.messages import HEAD, LIBRARIES, REASON_LIMIT, Job, Outcome, Sandbox, pack


def main() -> None:
    """Serve the agent at the other end of the socket whose descriptor is the argument."""
    control = socket.socket(fileno=int(sys.argv[1]))
    control.set_inheritable(False)
    first = receive(control)
    if first is None:
        return
    sandbox.enter(Sandbox(**first))
    serve(control)


def serve(control: socket.socket) -> None:
    """Take jobs until the agent hangs up."""
    apps: dict[tuple[str, str], App] = {}
    while (said := receive(control)) is not None:
        outcome = perform(Job(**said), apps)
        flush()
        control.sendall(pack(outcome))


def flush() -> None:
    """Hand what was printed to the agent."""
    sys.stdout.flush()
    sys.stderr.flush()


def perform(job: Job, apps: dict[tuple[str, str], App]) -> Outcome:
    """Run one job and return what became of it; nothing an app raises leaves here."""
    began, cpu = time.monotonic(), _cpu_s()
    code, reason, state = 0, "", False
    said = coding.Said(reply=Records())
    try:
        app = _app(job, apps)
        content, _ = coding.opened(coding.whole(job, _read(Path(job.content))))
        reply, kept = app.handle(job, content, _state(job))
        said = coding.said(job, reply)
        write(said.reply, Path(job.reply))
        if kept is not None and job.state_out:
            write(kept, Path(job.state_out))
            state = True
    except AppFailure as failure:
        if failure.__cause__ is not None:
            traceback.print_exception(failure.__cause__)
        code, reason = failure.code, failure.reason
    except SkerryError as error:
        code, reason = FailureCode.RAISED, str(error)
    except BaseException as error:  # noqa: BLE001 - an app may raise SystemExit or worse
        traceback.print_exc()
        code, reason = FailureCode.RAISED, describe(error, Path(job.app))
    return Outcome(
        id=job.id,
        failed=bool(reason),
        code=code,
        reason=" ".join(reason.split())[:REASON_LIMIT],
        state=state,
        feedback=said.feedback,
        codec=said.codec,
        plain_bytes=said.plain_bytes,
        compute_s=time.monotonic() - began,
        cpu_s=_cpu_s() - cpu,
        peak_rss_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        libraries=",".join(name for name in LIBRARIES if LIBRARIES[name] in sys.modules),
    )


def describe(error: BaseException, app: Path) -> str:
    """Return an exception in one line: its type, its message, and where in the app it was."""
    where = ""
    for frame in traceback.extract_tb(error.__traceback__):
        if Path(frame.filename).is_relative_to(app):
            where = f", in {frame.name}() at {Path(frame.filename).relative_to(app)}:{frame.lineno}"
    if isinstance(error, OSError) and error.filename is None:
        text = error.strerror or str(error)
    else:
        text = str(error)
    return f"{type(error).__name__}: {text[:500]}{where}" if text else type(error).__name__ + where


def _app(job: Job, apps: dict[tuple[str, str], App]) -> App:
    """Return the job's app, loaded once per worker."""
    key = (job.app, job.entry)
    if key not in apps:
        try:
            apps[key] = load_app(job)
        except BaseException as error:
            if isinstance(error, AppFailure):
                raise
            reason = f"the app does not load: {describe(error, Path(job.app))}"
            raise AppFailure(FailureCode.LOAD, reason) from error
    return apps[key]


def _read(path: Path) -> Records:
    """Return the records of a file as private memory: an app may write to its arrays."""
    with path.open("rb") as file:
        return decode(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY))


def _state(job: Job) -> Records | None:
    return _read(Path(job.state)) if job.state else None


def _cpu_s() -> float:
    return sum(
        usage.ru_utime + usage.ru_stime
        for usage in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    )


def receive(control: socket.socket) -> dict[str, Any] | None:
    """Return the agent's next message, or None when it has closed."""
    head = exactly(control, HEAD.size)
    if head is None:
        return None
    body = exactly(control, HEAD.unpack(head)[0])
    return None if body is None else dict(json.loads(body))


def exactly(control: socket.socket, size: int) -> bytes | None:
    """Return `size` bytes, or None when the agent has closed."""
    data = bytearray()
    while len(data) < size:
        got = control.recv(size - len(data))
        if not got:
            return None
        data += got
    return bytes(data)


if __name__ == "__main__":
    try:
        main()
    except (KeyboardInterrupt, BrokenPipeError, ConnectionResetError):
        os._exit(1)
