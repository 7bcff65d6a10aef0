"""Zygotes, seen from the agent: start one, have it fork workers, learn how each ended.

What goes wrong with one is a ZygoteError: the worker is then started as a process of its own.
"""

import asyncio
import contextlib
import json
import os
import secrets
import signal
import socket
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Self

from skerry_protos.errors import SkerryError

from skerry_edge.worker import processes, programs
from skerry_edge.worker.messages import HEAD, Sandbox, pack

WARM_S = 60.0
"""How long a zygote may take to load its libraries; torch takes two seconds of processor time."""
FORK_S = 5.0
SAID_LIMIT = 4096


class ZygoteError(SkerryError):
    """The zygote cannot fork workers; they are started without it."""


class Forked:
    """A worker that a zygote forked, as asyncio's Process shows its own."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._over = asyncio.Event()

    async def wait(self) -> int:
        """Return the exit status once it has ended."""
        await self._over.wait()
        assert self.returncode is not None
        return self.returncode

    def ended(self, returncode: int) -> None:
        """Note its end."""
        self.returncode = returncode
        self._over.set()


class Zygote:
    """A process that forks workers; make it with `start`, end it with `stop`."""

    def __init__(
        self, process: asyncio.subprocess.Process, connection: socket.socket, token: str
    ) -> None:
        self._process, self._connection, self._token = process, connection, token
        self._asking = asyncio.Lock()
        self._answers: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._workers: dict[int, Forked] = {}
        self._hearing = asyncio.create_task(self._hear(), name="zygote")
        self.used_s = time.monotonic()
        self.usable = True

    @property
    def pid(self) -> int:
        """Return its process id, the parent of the workers it forks."""
        return self._process.pid

    @classmethod
    async def start(
        cls, folder: Path, sandbox: Sandbox, libraries: str, passed: tuple[str, ...] = ()
    ) -> Self:
        """Start one that has loaded these libraries, or raise ZygoteError."""
        token = secrets.token_hex(8)
        ours, theirs = socket.socketpair()
        try:
            process = await programs.start(
                "zygote", theirs, libraries, folder=folder, token=token, passed=passed
            )
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        ours.setblocking(False)
        zygote = cls(process, ours, token)
        try:
            async with zygote._turn(WARM_S):
                ours.send(pack(sandbox))
                if unfit := (await zygote._answers.get()).get("unfit"):
                    raise ZygoteError(f"a process with {libraries} cannot fork workers: {unfit}")
        except BaseException:
            await zygote.stop()
            raise
        return zygote

    async def fork(self, control: socket.socket, output: int, token: str) -> Forked:
        """Return a new worker at the other ends of these descriptors, or raise ZygoteError."""
        data = json.dumps({"token": token}).encode()
        async with self._turn(FORK_S):
            message = [HEAD.pack(len(data)) + data]
            socket.send_fds(self._connection, message, [control.fileno(), output])
            pid = (await self._answers.get()).get("forked")
            if not isinstance(pid, int) or pid not in self._workers:
                raise ZygoteError("the zygote has ended")
            self.used_s = time.monotonic()
            return self._workers[pid]

    async def stop(self) -> None:
        """End it, and with it the workers that it forked."""
        self.usable = False
        self._hearing.cancel()
        await asyncio.gather(self._hearing, return_exceptions=True)
        self._connection.close()
        if self._process.returncode is None:
            processes.kill_tree(self.pid)
        processes.sweep(self._token, self.pid)
        await self._process.wait()
        self._over()

    @property
    def busy(self) -> bool:
        """Whether a worker that it forked is alive."""
        return bool(self._workers)

    @contextlib.asynccontextmanager
    async def _turn(self, seconds: float) -> AsyncIterator[None]:
        """Ask one thing at a time; one who does not answer in time is asked nothing again."""
        async with self._asking:
            if not self.usable:
                raise ZygoteError("the zygote has ended")
            try:
                async with asyncio.timeout(seconds):
                    yield
            except (TimeoutError, OSError) as error:
                self.usable = False
                raise ZygoteError(f"the zygote does not answer: {error}") from error
            except BaseException:
                self.usable = False  # its answer would be taken for that to the next question
                raise

    async def _hear(self) -> None:
        """Take what the zygote says until it is gone; it may be anybody's code that says it."""
        reader, writer = await asyncio.open_connection(
            sock=self._connection.dup(), limit=SAID_LIMIT
        )
        try:
            while True:
                size = HEAD.unpack(await reader.readexactly(HEAD.size))[0]
                said = json.loads(await reader.readexactly(min(size, SAID_LIMIT)))
                if (pid := said.get("forked")) is not None:
                    self._workers[pid] = Forked(pid)
                if "ended" in said:
                    status = os.waitstatus_to_exitcode(said["status"])
                    self._workers.pop(said["ended"]).ended(status)
                else:
                    self._answers.put_nowait(said)
        except (OSError, EOFError, ValueError, KeyError, TypeError, AttributeError):
            self.usable = False
            self._answers.put_nowait({"unfit": "it has ended"})
            self._over()
        finally:
            writer.close()

    def _over(self) -> None:
        """Note that its workers die with it."""
        while self._workers:
            self._workers.popitem()[1].ended(-signal.SIGKILL)
