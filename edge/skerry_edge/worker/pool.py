"""Who works on what: warm workers by bundle, a bounded number of jobs at once.

A worker belongs to one bundle for life, so apps never see each other. A pool may serve several
agents in one process (simulated devices): jobs carry everything that is the device's own.
"""

import asyncio
import contextlib
import logging
import os
import pwd
import shutil
import time
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil
from skerry_protos.errors import ConfigError
from skerry_protos.messages import Digest

from skerry_edge.config import Limits
from skerry_edge.worker.messages import Job, Sandbox
from skerry_edge.worker.output import OnLine
from skerry_edge.worker.process import Bounds, Result, Worker
from skerry_edge.worker.warmth import Warmth
from skerry_edge.worker.zygotes import Zygote, ZygoteError

log = logging.getLogger(__name__)

AT_ONCE = 2
"""Times a device's memory limit that the kernel lets one process of a worker allocate.

The limit itself is of memory in use and is watched; this one holds between two looks. Not beside a
GPU: its drivers reserve far more addresses than they use.
"""


@dataclass(slots=True)
class _Idle:
    bundle: Digest
    worker: Worker
    since: float


class Workers:
    """At most `limits.workers` jobs at once, each in a worker of its bundle."""

    def __init__(self, folder: Path, limits: Limits, *, hidden: Iterable[Path] = ()) -> None:
        """Prepare a pool that lives in `folder`; its workers cannot read what is `hidden`."""
        self._folder, self._limits = folder, limits
        self._hidden = tuple(str(path) for path in hidden)
        self._slots = asyncio.Semaphore(limits.workers)
        self._idle: list[_Idle] = []
        self._stopping: set[asyncio.Task[None]] = set()
        self._user = _user(limits.user)
        self._warmth = Warmth(
            lambda libraries: Zygote.start(
                folder, self._sandbox, libraries, limits.pass_environment
            )
        )
        self._reaper: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._prepare()
        self._reaper = asyncio.create_task(self._reap(), name="idle workers")
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._reaper is not None:
            self._reaper.cancel()
            await asyncio.gather(self._reaper, return_exceptions=True)
        await self._stop_idle(lambda _: True)
        await self._warmth.cool(0.0)

    def folder(self, task: str) -> Path:
        """Return an empty folder for one task's files, which the worker may write."""
        made = self._folder / "tasks" / task
        shutil.rmtree(made, ignore_errors=True)
        made.mkdir(parents=True)
        self._give(made)
        return made

    def clear(self, folder: Path) -> None:
        """Remove a task's folder."""
        shutil.rmtree(folder, ignore_errors=True)

    def bounds(self, *, seconds: float, memory_bytes: int, output_bytes: int) -> Bounds:
        """Return what a job may take: what it asks for, within this device's limits."""
        limits = self._limits
        memory = limits.memory_mb * 2**20 or psutil.virtual_memory().total * 8 // 10
        return Bounds(
            seconds=min(seconds or limits.seconds, limits.seconds),
            memory_bytes=min(memory_bytes or memory, memory),
            output_bytes=min(output_bytes or limits.output_kb * 1024, limits.output_kb * 1024),
            processes=limits.processes,
        )

    async def run(
        self,
        job: Job,
        bundle: Digest,
        bounds: Bounds,
        *,
        fresh: bool = False,
        on_line: OnLine | None = None,
    ) -> Result:
        """Run a job in a worker of its bundle, when one of the slots is free."""
        fresh = fresh or self._limits.fresh_worker
        async with self._slots, self._worker(bundle, job.kind, fresh=fresh) as worker:
            result = await worker.run(job, bounds, on_line)
            self._warmth.note(bundle, result.outcome.libraries)
            return result

    @property
    def idle(self) -> int:
        """Return how many workers wait for something to do."""
        return len(self._idle)

    @contextlib.asynccontextmanager
    async def _worker(self, bundle: Digest, kind: str, *, fresh: bool) -> AsyncIterator[Worker]:
        """Lend a worker; it goes back to the idle ones unless it is spent."""
        worker = None if fresh else self._take(bundle)
        worker = worker or await self._start(bundle, kind, fresh=fresh)
        try:
            yield worker
        finally:
            if worker.usable and not fresh:
                self._idle.append(_Idle(bundle, worker, time.monotonic()))
            else:
                self._end(worker)

    def _take(self, bundle: Digest) -> Worker | None:
        for idle in reversed(self._idle):
            if idle.bundle == bundle:
                self._idle.remove(idle)
                return idle.worker
        return None

    async def _start(self, bundle: Digest, kind: str, *, fresh: bool) -> Worker:
        # Room first: another bundle's idle worker holds memory that this one wants.
        await self._stop_idle(lambda idle: idle.bundle != bundle)
        passed = self._limits.pass_environment
        if fresh and (zygote := await self._warmth.find(bundle, kind)) is not None:
            try:
                return await Worker.start(self._folder, self._sandbox, passed, zygote=zygote)
            except ZygoteError as error:
                log.info("%s; a new process takes its place", error)
        return await Worker.start(self._folder, self._sandbox, passed)

    @property
    def _sandbox(self) -> Sandbox:
        uid, gid = self._user
        return Sandbox(
            agent_pid=os.getpid(),
            niceness=self._limits.niceness,
            io_idle=self._limits.io_idle,
            file_bytes=self._limits.reply_mb * 2**20,
            data_bytes=0 if _has_gpu() else self._limits.memory_mb * 2**20 * AT_ONCE,
            uid=uid,
            gid=gid,
            processes=self._limits.processes,
            hidden=self._hidden,
        )

    async def _reap(self) -> None:
        """Stop workers that have been idle for too long, so that an idle agent is small."""
        keep = self._limits.worker_idle_s
        while True:
            await asyncio.sleep(min(max(keep / 4, 0.1), 10))
            await self._stop_idle(lambda idle: time.monotonic() - idle.since >= keep)
            await self._warmth.cool(keep)

    async def _stop_idle(self, which: Callable[[_Idle], bool]) -> None:
        chosen = [idle for idle in self._idle if which(idle)]
        self._idle = [idle for idle in self._idle if idle not in chosen]
        for idle in chosen:
            self._end(idle.worker)
        await self._ended()

    def _end(self, worker: Worker) -> None:
        """Begin to stop a worker; who asked for it may be cancelled, the stopping may not."""
        stopping = asyncio.create_task(worker.stop())
        self._stopping.add(stopping)
        stopping.add_done_callback(self._stopping.discard)

    async def _ended(self) -> None:
        if self._stopping:
            await asyncio.wait(self._stopping)

    def _prepare(self) -> None:
        """Make the workers' folders; what tasks of a former life left is removed."""
        shutil.rmtree(self._folder / "tmp", ignore_errors=True)
        shutil.rmtree(self._folder / "tasks", ignore_errors=True)
        for name in ("home", "tmp", "tasks"):
            (self._folder / name).mkdir(parents=True, exist_ok=True)
            self._give(self._folder / name)

    def _give(self, path: Path) -> None:
        uid, gid = self._user
        if uid >= 0:
            os.chown(path, uid, gid)


def _has_gpu() -> bool:
    return any(Path("/dev", name).exists() for name in ("nvidia0", "nvhost-gpu", "kfd"))


def _user(name: str) -> tuple[int, int]:
    """Return the user that workers become; (-1, -1): they stay who the agent is."""
    if not name:
        return -1, -1
    if os.geteuid() != 0:
        raise ConfigError(
            f"limits.user is {name!r}, but only an agent started by root can change users",
            hint="remove the setting; the systemd unit already runs the agent without rights",
        )
    try:
        entry = pwd.getpwnam(name)
    except KeyError:
        raise ConfigError(f"limits.user: there is no user {name!r} on this device") from None
    return entry.pw_uid, entry.pw_gid
