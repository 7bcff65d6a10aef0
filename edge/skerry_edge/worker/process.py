"""One worker, seen from the agent: start it, give it jobs, watch its limits, end it.

Whatever the app does (raise, hang, eat memory, fork, print, crash, lie), `Worker.run` returns a
Result within the job's time, and nothing of a worker that broke a limit is left running.
"""

import asyncio
import contextlib
import secrets
import signal
import socket
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import psutil
from skerry_protos.errors import PeerError

from skerry_edge.worker import processes, programs
from skerry_edge.worker.messages import (
    HEAD,
    MESSAGE_LIMIT,
    Job,
    Outcome,
    Sandbox,
    pack,
)
from skerry_edge.worker.output import OnLine, Output
from skerry_edge.worker.zygotes import Forked, Zygote

CRASHED = 8
"""FailureCode.CRASHED; the child's modules are not loaded here."""

LOOK_S = 0.25
TREE_EVERY = 4
STOP_S = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """What one job may take."""

    seconds: float
    memory_bytes: int
    output_bytes: int
    processes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What became of a job, and what it printed last."""

    outcome: Outcome
    log_tail: str
    warm: bool


class Worker:
    """A live child process; `usable` turns false when it must not get another job."""

    def __init__(
        self,
        process: asyncio.subprocess.Process | Forked,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        output: Output,
        token: str,
    ) -> None:
        self._process, self._reader, self._writer = process, reader, writer
        self._output, self._token = output, token
        self._closed = False
        self.jobs = 0
        self.usable = True

    @property
    def pid(self) -> int:
        """Return the child's process id, which is its session's and group's too."""
        return self._process.pid

    @classmethod
    async def start(
        cls,
        folder: Path,
        sandbox: Sandbox,
        passed: tuple[str, ...] = (),
        *,
        zygote: Zygote | None = None,
    ) -> Self:
        """Start a child that lives in `folder`; it has loaded nothing of any app yet.

        With a zygote it is forked from that, which has the same sandbox, or ZygoteError is raised.
        """
        token = secrets.token_hex(8)
        ours, theirs = socket.socketpair()
        output = Output()
        process: asyncio.subprocess.Process | Forked
        try:
            if zygote is not None:
                process = await zygote.fork(theirs, output.write, token)
            else:
                process = await programs.start(
                    "child",
                    theirs,
                    folder=folder,
                    token=token,
                    passed=passed,
                    output=output.write,
                )
        except BaseException:
            output.close()
            ours.close()
            raise
        finally:
            theirs.close()
            output.close_write()
        reader, writer = await asyncio.open_connection(sock=ours, limit=MESSAGE_LIMIT)
        if zygote is None:
            writer.write(pack(sandbox))
        return cls(process, reader, writer, output, token)

    async def run(self, job: Job, bounds: Bounds, on_line: OnLine | None = None) -> Result:
        """Run one job within its bounds; cancelling this kills the worker."""
        warm, self.jobs = self.jobs > 0, self.jobs + 1
        self._output.begin(bounds.output_bytes, on_line)
        began, outcome = time.monotonic(), None
        answer = asyncio.ensure_future(self._answer(job))
        watch = asyncio.ensure_future(self._watch(bounds))
        # Its own end too: a child of it may hold the socket open and never speak.
        death = asyncio.ensure_future(self._process.wait())
        waits = {answer, watch, death}
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            if answer.done():
                outcome = answer.result()
            elif watch.done():
                outcome = _killed(job, watch.result())
            else:
                outcome = _killed(job, _ending(death.result()))
            outcome = replace(outcome, peak_rss_bytes=max(outcome.peak_rss_bytes, self._peak))
        except (PeerError, OSError, EOFError) as error:
            outcome = _killed(job, await self._death(error))
        finally:
            for each in waits:
                each.cancel()
            await asyncio.gather(*waits, return_exceptions=True)
            if outcome is None or outcome.code == CRASHED:
                self._end()
        if not outcome.compute_s:
            outcome = replace(outcome, compute_s=time.monotonic() - began)
        self._output.settle()
        return Result(outcome=outcome, log_tail=self._output.tail(), warm=warm)

    async def stop(self) -> None:
        """End the worker: by closing its socket, and by force when that does not do."""
        if self._closed:
            return
        self._closed, self.usable = True, False
        self._writer.close()
        if self._process.returncode is None and len(processes.tree(self.pid)) == 1:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._process.wait(), STOP_S)
        self._end()
        with contextlib.suppress(TimeoutError):  # it is dead; a zygote that hangs says nothing
            await asyncio.wait_for(self._process.wait(), STOP_S)
        self._output.close()

    def _end(self) -> None:
        """Kill the worker and all it started, now."""
        self.usable = False
        if self._process.returncode is None:
            processes.kill_tree(self.pid)
        processes.sweep(self._token, self.pid)

    async def _answer(self, job: Job) -> Outcome:
        """Give the job and return what the worker says became of it."""
        self._writer.write(pack(job))
        await self._writer.drain()
        head = await self._reader.readexactly(HEAD.size)
        size = HEAD.unpack(head)[0]
        if size > MESSAGE_LIMIT:
            raise PeerError(f"a worker's answer has {size} bytes; expected {MESSAGE_LIMIT} at most")
        outcome = Outcome.parse(await self._reader.readexactly(size))
        if outcome.id != job.id:
            raise PeerError("a worker answered another job than it was given")
        return outcome

    async def _watch(self, bounds: Bounds) -> str:
        """Return why the worker must be killed; never return while it keeps within its bounds."""
        self._peak = 0
        ends = time.monotonic() + bounds.seconds
        for look in range(sys.maxsize):
            left = ends - time.monotonic()
            if left <= 0:
                return f"passed its time limit of {bounds.seconds:g} s and was killed"
            await asyncio.sleep(min(LOOK_S, left))
            if look % TREE_EVERY == 0:
                tree = processes.tree(self.pid)
            if len(tree) - 1 > bounds.processes:
                return f"started {len(tree) - 1} processes; the limit is {bounds.processes}"
            self._peak = max(self._peak, used := processes.resident(tree))
            if used > bounds.memory_bytes and self._unshared(tree) > bounds.memory_bytes:
                return (
                    f"used {used / 2**20:.0f} MB of memory and was killed; "
                    f"the limit is {bounds.memory_bytes / 2**20:.0f} MB"
                )
        raise AssertionError("unreachable")

    def _unshared(self, tree: list[psutil.Process]) -> int:
        """Return the tree's memory with shared pages counted once; slower to find."""
        if len(tree) == 1:
            return processes.resident(tree)
        total = 0
        for process in tree:
            with contextlib.suppress(psutil.Error):
                total += process.memory_full_info().pss
        return total

    async def _death(self, error: Exception) -> str:
        """Return how a worker that no longer answers came to its end."""
        if isinstance(error, PeerError):
            return f"was killed: {error}"
        try:
            return _ending(await asyncio.wait_for(self._process.wait(), STOP_S))
        except TimeoutError:
            return "closed its connection and was killed"


def _ending(status: int) -> str:
    if status == -signal.SIGKILL:
        return "died by SIGKILL: out of memory, most likely"
    if status < 0:
        return f"died by {signal.Signals(-status).name}"
    return f"ended by itself with exit status {status}"


def _killed(job: Job, reason: str) -> Outcome:
    return Outcome(id=job.id, failed=True, code=CRASHED, reason=f"the worker {reason}")
