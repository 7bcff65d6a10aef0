"""Working on one task: verify its bundle, fetch its content, run it in a worker, keep the reply."""

import asyncio
import logging
import time
import weakref
from pathlib import Path

from skerry_protos.blobs import LocalBlobs
from skerry_protos.errors import DeadlineError, RejectedError, SkerryError, TrustError
from skerry_protos.messages import BlobRef, DeviceId, Digest, Parcel

from skerry_edge.bundles import Bundle, Bundles
from skerry_edge.clock import Clock
from skerry_edge.config import AgentConfig
from skerry_edge.energy import Budget, Share
from skerry_edge.journal import Journal
from skerry_edge.models.apps import AppPolicy
from skerry_edge.outbox import Ledger, file_name
from skerry_edge.routes import Route
from skerry_edge.states import FEEDBACK, STATE
from skerry_edge.tasks import (
    BESIDE,
    Answer,
    Spent,
    Task,
    answer_of,
    inline,
    job_of,
    kept_states,
    reply_to,
)
from skerry_edge.worker.pool import Workers
from skerry_edge.worker.process import Result

log = logging.getLogger(__name__)

UNAVAILABLE, INVALID_BUNDLE = 5, 7
"""FailureCode of skerry_edge.apps, whose modules are not loaded here."""
LONGEST_S = 24 * 3600.0
"""A task without a deadline is worked on for so long, and so is one whose clock is never told."""
NO_ROOM_S = 5.0


class Workshop:
    """What it takes to work on tasks; one per agent."""

    def __init__(
        self,
        config: AgentConfig,
        device: DeviceId,
        *,
        blobs: LocalBlobs,
        bundles: Bundles,
        ledger: Ledger,
        route: Route,
        clock: Clock,
        journal: Journal,
        budget: Budget,
        policy: AppPolicy,
    ) -> None:
        self._config, self._device = config, device
        self._blobs, self._bundles, self._ledger = blobs, bundles, ledger
        self._route, self._clock, self._journal = route, clock, journal
        self._budget, self._idle_w = budget, config.energy.idle_w
        self._policy = policy
        self._turns: weakref.WeakValueDictionary[str, asyncio.Lock] = weakref.WeakValueDictionary()

    async def perform(self, task: Task, workers: Workers, spent: Spent) -> Parcel:
        """Work on a task and return its reply, which is in the outbox unless it was cancelled.

        Raise DeadlineError when the task's deadline passes first.
        """
        try:
            async with asyncio.timeout(LONGEST_S) as limit:
                watching = asyncio.create_task(self._watch_deadline(task, limit))
                try:
                    async with self._turn(task.parcel.run):
                        return await self._work_on(task, workers, spent)
                finally:
                    watching.cancel()
        except TimeoutError:
            raise DeadlineError(f"task {task.parcel.id} passed its deadline") from None

    async def _watch_deadline(self, task: Task, limit: asyncio.Timeout) -> None:
        """End the work when its deadline has passed, in a clock that may have to be told first.

        The deadline may move meanwhile: a coordinator that was away gives its tasks more time.
        """
        await self._clock.known.wait()
        while (held := self._ledger.inbox.get(task.parcel.id)) and held.deadline_unix_s:
            left_s = held.deadline_unix_s - self._clock.deadlines()
            if left_s <= 0:
                limit.reschedule(asyncio.get_running_loop().time())
                return
            await asyncio.sleep(left_s)

    async def _work_on(self, task: Task, workers: Workers, spent: Spent) -> Parcel:
        folder = workers.folder(f"{self._device}-{file_name(task.parcel.id)}")
        try:
            return await self._answer(task, workers, folder, spent)
        finally:
            workers.clear(folder)

    def _turn(self, run: str) -> asyncio.Lock:
        """Return the lock of a run: its tasks share a state, so they go one after the other."""
        return self._turns.setdefault(run, asyncio.Lock())

    async def _answer(self, task: Task, workers: Workers, folder: Path, spent: Spent) -> Parcel:
        """Return the reply to a task; whatever is wrong becomes a failure in it."""
        states: dict[str, Path] = {}
        try:
            began = time.monotonic()
            bundle = await self._bundle(task)
            content = await self._content(task, folder, spent)
            spent.download_s = time.monotonic() - began
            energy = Share(self._budget, idle_w=self._idle_w)
            result = await self._run(task, bundle, content, workers, folder)
            spent.energy_j = energy.joules(result.outcome.cpu_s)
            limit = self._config.limits.reply_mb * 2**20
            answer = answer_of(result, folder, spent, reply_limit=limit)
            states = kept_states(result, folder, limit=limit)
        except TrustError as error:
            answer = Answer(code=INVALID_BUNDLE, reason=f"refused: {error}")
        except (RejectedError, DeadlineError) as error:
            answer = Answer(code=UNAVAILABLE, reason=f"what the task needs did not come: {error}")
        except (SkerryError, OSError) as error:
            answer = Answer(code=UNAVAILABLE, reason=f"the device cannot work on it: {error}")
        except Exception as error:  # one bad task must not stop the device again and again
            log.exception("task %s", task.parcel.id)
            reason = f"the agent failed at it: {type(error).__name__}: {error}"
            answer = Answer(code=UNAVAILABLE, reason=reason)
        if answer.content is None:
            workers.clear(folder)  # what a failed task wrote may be what fills the disk
        return await self._keep(task, answer, states)

    async def _bundle(self, task: Task) -> Bundle:
        """Return the task's bundle, verified and unpacked, if it may run here."""
        found = await asyncio.to_thread(self._bundles.find, task.bundle.digest)
        if found is None:
            file = await self._fetch(task.bundle)
            found = await asyncio.to_thread(self._bundles.add, task.bundle.digest, file)
        await self._policy.require(task.parcel, found, self._fetch)
        return found

    async def _content(self, task: Task, folder: Path, spent: Spent) -> Path:
        """Return the records file the task asks with; what goes with it is in the folder."""
        if task.content is not None:
            if task.body.beside:
                (folder / BESIDE).write_bytes(task.body.beside)
            if self._blobs.path(task.content.digest) is not None:
                spent.held_bytes = task.content.size
            return await self._fetch(task.content)
        path = folder / "content"
        path.write_bytes(task.body.content)  # a few KiB, read by the worker at once
        return path

    async def _fetch(self, ref: BlobRef) -> Path:
        here = self._blobs.path(ref.digest)
        return here or await self._route.fetch(ref, deadline_s=LONGEST_S)

    async def _run(
        self, task: Task, bundle: Bundle, content: Path, workers: Workers, folder: Path
    ) -> Result:
        """Run the task in a worker."""
        job = job_of(
            task,
            bundle,
            device=self._device,
            content=content,
            folder=folder,
            states={
                name: self._ledger.states.current(task.parcel.run, name)
                for name in (STATE, FEEDBACK)
            },
            node=self._config.node,
            labels=self._config.labels,
        )
        wanted = task.body.limits
        bounds = workers.bounds(
            seconds=wanted.seconds,
            memory_bytes=wanted.memory_bytes,
            output_bytes=wanted.output_bytes,
        )

        def on_line(when: float, text: str) -> None:
            self._journal.add(text, run=task.parcel.run, source="app", when=when)

        fresh = task.body.fresh_worker
        return await workers.run(job, bundle.digest, bounds, fresh=fresh, on_line=on_line)

    async def _keep(self, task: Task, answer: Answer, states: dict[str, Path]) -> Parcel:
        """Put the reply into the outbox; without room a failure; without even that, wait."""
        while True:
            try:
                return await asyncio.to_thread(self._store, task, answer, states)
            except (SkerryError, OSError) as error:
                why = f"the reply cannot be kept on the device: {error}"
            if answer.content is not None:
                answer.content.unlink(missing_ok=True)
                answer, states = Answer(code=UNAVAILABLE, reason=why, report=answer.report), {}
                continue
            self._journal.add(why, run=task.parcel.run, level="error")
            await asyncio.sleep(NO_ROOM_S)

    def _store(self, task: Task, answer: Answer, states: dict[str, Path]) -> Parcel:
        """Keep the content, then the reply that names it; both are on the disk then."""
        content, blob = inline(answer), None
        if answer.content is not None and content is None:
            blob = self._blobs.adopt(answer.content, role="content")
        reply = reply_to(task, answer, content=content, blob=blob)
        if not self._ledger.answer(task.parcel, reply, states):
            self.tidy(reply)
        return reply

    def tidy(self, over: Parcel) -> None:
        """Let go of the blobs of a reply that is over, and of the oldest beyond the limit."""
        wanted = self._ledger.wanted()
        for ref in over.blobs:
            if ref.digest not in wanted:
                self._blobs.remove(ref.digest)
        room = self._config.limits.blobs_mb * 2**20
        for age, size, digest in sorted(self._sizes(), reverse=True):
            del age
            room -= size
            if room < 0 and digest not in wanted:
                self._blobs.remove(digest)

    def _sizes(self) -> list[tuple[float, int, Digest]]:
        found = []
        for digest in self._blobs.digests():
            path = self._blobs.path(digest)
            if path is not None:
                status = path.stat()
                found.append((status.st_mtime, status.st_size, digest))
        return found
