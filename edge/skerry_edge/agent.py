"""The agent: one enrolled device that takes tasks, works on them and delivers the replies.

Start at `Agent.run`. What it took survives any crash (`outbox`), what it runs is signed (`bundles`)
and runs in another process (`worker`), and each wait has a reason that the heartbeat tells.
"""

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import AsyncIterator
from datetime import datetime

from skerry_protos.blobs import LocalBlobs
from skerry_protos.disk import explained
from skerry_protos.errors import (
    DeadlineError,
    RejectCode,
    RejectedError,
    SkerryError,
)
from skerry_protos.messages import Parcel, ParcelId, ParcelKind
from skerry_protos.seams import Stream
from skerry_protos.v1 import work_pb2
from skerry_protos.versions import installed_version

from skerry_edge import spans
from skerry_edge.bundles import Bundles
from skerry_edge.clock import Clock
from skerry_edge.conditions import interrupted_by, waiting_for
from skerry_edge.config import AgentConfig
from skerry_edge.energy import Budget, Throttle, open_budget
from skerry_edge.identity import Identity, LinkAddress
from skerry_edge.journal import Journal
from skerry_edge.links import LinkConfig, open_link
from skerry_edge.models import NoSelfTest, SelfTest, Service
from skerry_edge.models.apps import AppPolicy
from skerry_edge.models.trust import Verify, in_child, one_at_a_time
from skerry_edge.models.updates import Updates
from skerry_edge.outbox import HELD_LIMIT, REPLY, Ledger, Seen, reply_id
from skerry_edge.renewal import Renewal
from skerry_edge.reporter import Reporter
from skerry_edge.routes import Open, Route, ways
from skerry_edge.tasks import Spent, Task, read_task
from skerry_edge.work import Workshop
from skerry_edge.worker.pool import Workers

log = logging.getLogger(__name__)

QUESTION_PART = 256 * 1024
RECHECK_S = 5.0
"""How often unmet conditions are looked at again."""
JOURNAL_S = 1.0


class Agent:
    """One device. Several may live in one process and share `workers` (simulated devices)."""

    def __init__(
        self,
        config: AgentConfig,
        identity: Identity,
        *,
        workers: Workers | None = None,
        opener: Open = open_link,
        budget: Budget | None = None,
        self_test: SelfTest | None = None,
        service: Service | None = None,
        verify: Verify = in_child,
    ) -> None:
        self._config, self._device, self._shared = config, identity.device, workers
        self._clock = Clock()
        self._journal = Journal(self._clock)
        self._budget = budget or open_budget(config.home, config.energy)
        self._renewal = Renewal(identity, self._clock)
        self._ledger = Ledger(config.home, states_limit=config.limits.states_mb * 2**20)
        self._blobs = LocalBlobs(config.home / "blobs", brief={"content"})
        self._route = Route(
            ways(identity.links, config.agent.link),
            self._link_config,
            failover_s=config.agent.failover_s,
            opener=opener,
        )
        self._reporter = Reporter(
            config,
            identity.device,
            route=self._route,
            ledger=self._ledger,
            clock=self._clock,
            journal=self._journal,
            renewal=self._renewal,
            budget=self._budget,
        )
        self._route.on_change = self._reporter.changed
        verify = one_at_a_time(verify)
        self.updates = Updates(
            config.home,
            identity.device,
            route=self._route,
            blobs=self._blobs,
            self_test=self_test or NoSelfTest(),
            service=service,
            state=config.models.state,
            root_sha256=config.models.root_sha256,
            profile=config.agent.profile,
            verify=verify,
            now=self._clock.deadlines,
        )
        self._workshop = Workshop(
            config,
            identity.device,
            blobs=self._blobs,
            bundles=Bundles(
                config.home / "apps", identity.bundle_key_pem, keep=config.limits.bundles
            ),
            ledger=self._ledger,
            route=self._route,
            clock=self._clock,
            journal=self._journal,
            budget=self._budget,
            policy=AppPolicy(
                required=config.models.signed_apps,
                trust=self.updates.trust,
                device=identity.device,
                root_sha256=config.models.root_sha256,
                verify=verify,
                server_now=self.updates.server_now,
            ),
        )
        self._queue: asyncio.Queue[tuple[Task, float]] = asyncio.Queue()
        self._working: dict[ParcelId, asyncio.Task[Parcel]] = {}
        self._offered: dict[ParcelId, asyncio.Task[None]] = {}
        self._group: asyncio.TaskGroup | None = None

    def note(self, text: str) -> None:
        """Put a line where people read what devices say."""
        self._journal.add(text)

    async def run(self) -> None:
        """Serve the coordinator until cancelled; raise a SkerryError when that is no use."""
        await self._renewal.if_expired()
        try:
            async with self._open_workers() as workers, asyncio.TaskGroup() as group:
                self._group = group
                await self._go_on()
                for _ in range(self._config.limits.workers):
                    group.create_task(self._work(workers), name="work")
                group.create_task(self._reporter.beat(), name="heartbeat")
                group.create_task(self._renewal.run(self._reporter.ask_renewal), name="renewal")
                group.create_task(self._reporter.print(), name="journal")
                group.create_task(self._route.run(), name="route")
                group.create_task(self.updates.run(), name="updates")
        except BaseExceptionGroup as several:
            raise _first(several) from several
        finally:
            self._reporter.changed("stopped")

    @contextlib.asynccontextmanager
    async def _open_workers(self) -> AsyncIterator[Workers]:
        if self._shared is not None:
            yield self._shared
            return
        home = self._config.home
        hidden = (home / "identity", home / "inbox", home / "outbox")
        async with Workers(home / "work", self._config.limits, hidden=hidden) as workers:
            yield workers

    async def _go_on(self) -> None:
        """Take up what a former life of this agent left: replies to deliver, tasks to work on."""
        for reply in self._ledger.outbox:
            self._offer(reply)
        for parcel in self._ledger.inbox:
            try:
                self._queue.put_nowait((read_task(parcel), time.monotonic()))
            except RejectedError as error:
                log.warning("forgetting a task: %s", error)
                await self._close(parcel.id)

    # What arrives (skerry_protos.seams.Receiver).

    async def accept(self, parcel: Parcel) -> None:
        """Store a parcel's effect; it is acknowledged when this returns."""
        match parcel.kind:
            case ParcelKind.TASK:
                await self._take(parcel)
            case ParcelKind.CANCEL:
                await self._cancel(parcel)
            case ParcelKind.CERTIFICATE:
                await self._renewal.install(parcel)
            case ParcelKind.UPDATE:
                await self.updates.accept(parcel)
            case _:
                message = f"this agent takes no parcels of kind {parcel.kind!r}"
                raise RejectedError(RejectCode.UNEXPECTED, message)

    async def ask_cloud(
        self, model: str, inputs: bytes, wait_s: float, traceparent: str = ""
    ) -> bytes:
        """Return the answer of the cloud's bigger model to raw inputs (encoded records).

        `traceparent` is the trace context of who asked the device, as it came.
        Raise SkerryError, within `wait_s` seconds, when it is not in reach or will not answer.
        """
        try:
            with spans.asking_cloud(model, await spans.caller(traceparent)) as trace:
                async with (
                    asyncio.timeout(wait_s),
                    await self._route.open_stream(
                        "infer", deadline_s=wait_s, trace=trace
                    ) as stream,
                ):
                    await stream.send(json.dumps({"model": model}).encode())
                    for at in range(0, len(inputs), QUESTION_PART):
                        await stream.send(memoryview(inputs)[at : at + QUESTION_PART])
                    await stream.finish()
                    return b"".join([part async for part in stream])
        except TimeoutError:
            raise DeadlineError(f"the cloud did not answer within {wait_s:g} s") from None

    async def serve(self, stream: Stream) -> None:
        """Refuse a stream: nothing on this device serves one yet."""
        await stream.abort("unexpected", f"this agent serves no streams of kind {stream.kind!r}")

    async def _take(self, parcel: Parcel) -> None:
        """Note a task on the disk; one that is known is not worked on again."""
        task = read_task(parcel)
        if parcel.expired(self._clock.deadlines()):
            raise RejectedError(RejectCode.EXPIRED, f"task {parcel.id} came after its deadline")
        if len(self._ledger.inbox) >= HELD_LIMIT:
            raise SkerryError(f"the device holds {HELD_LIMIT} tasks already")
        with explained(self._config.home, "note a task"):
            seen = await asyncio.to_thread(self._ledger.take, parcel)
        log.debug("task %s: %s", parcel.id, seen.value)
        if seen is Seen.NEW:
            self._queue.put_nowait((task, time.monotonic()))
        elif seen is Seen.ANSWERED:
            self._reoffer(parcel.id)

    async def _cancel(self, parcel: Parcel) -> None:
        """Stop working on tasks that are no longer wanted, and send nothing for them."""
        said = work_pb2.Cancel.FromString(parcel.body)
        for name in said.tasks:
            task = ParcelId(name)
            if self._ledger.seen(task) in (Seen.NEW, Seen.DONE):
                continue
            await self._close(task)
            for doing in (self._working.get(task), self._offered.get(reply_id(task))):
                if doing is not None:
                    doing.cancel()
        if said.run_over:
            await asyncio.to_thread(self._ledger.forget, parcel.run)

    # Working.

    async def _work(self, workers: Workers) -> None:
        """Work on noted tasks, one after the other, when the conditions hold."""
        while True:
            task, noted = await self._queue.get()
            if await self._allowed(task):
                await self._perform(task, workers, Spent(queued_s=time.monotonic() - noted))

    async def _allowed(self, task: Task) -> bool:
        """Wait until the conditions hold; return whether the task is still wanted then."""
        while (held := self._ledger.inbox.get(task.parcel.id)) is not None:
            if self._clock.known.is_set() and held.expired(self._clock.deadlines()):
                await self._drop(task, "its deadline passed while it waited")
                return False
            conditions, look = self._config.conditions, self._reporter.look()
            why = waiting_for(conditions, look, datetime.now()) or self._sparing()
            self._reporter.wait(why)
            if not why:
                return True
            await asyncio.sleep(RECHECK_S)
        self._reporter.wait("")
        return False

    def _sparing(self) -> str:
        """Return why no new task is begun for want of energy; empty when there is enough."""
        return self._budget.why() if self._budget.throttle >= Throttle.SCARCE else ""

    async def _perform(self, task: Task, workers: Workers, spent: Spent) -> None:
        """Work on one task to its reply, its deadline or its cancellation."""
        name = task.parcel.id
        doing = asyncio.create_task(self._workshop.perform(task, workers, spent), name=name)
        self._working[name] = doing
        minding = asyncio.create_task(self._mind(task, doing))
        self._reporter.work(+1)
        try:
            with spans.working(task.parcel, spent) as told:
                reply = await doing
                told(reply)
            if reply.id in self._ledger.outbox:  # else the task was cancelled in the last moment
                self._offer(reply)
        except DeadlineError:
            await self._drop(task, "its deadline passed while it was worked on")
        except asyncio.CancelledError:
            if not doing.cancelled() or _being_cancelled():
                doing.cancel()
                await asyncio.wait({doing})
                raise
            if name in self._ledger.inbox:  # interrupted: it begins again when it may
                self._queue.put_nowait((task, time.monotonic()))
            else:
                self._journal.add(f"task {name} was cancelled", run=task.parcel.run)
        finally:
            minding.cancel()
            del self._working[name]
            self._reporter.work(-1)

    async def _mind(self, task: Task, doing: "asyncio.Task[Parcel]") -> None:
        """Stop a task that has begun when the conditions say so."""
        while self._config.conditions.interrupt:
            await asyncio.sleep(RECHECK_S)
            why = interrupted_by(self._config.conditions, self._reporter.look(), datetime.now())
            if why is not None:
                self._journal.add(f"task {task.parcel.id} interrupted: {why}", run=task.parcel.run)
                doing.cancel()
                return

    async def _drop(self, task: Task, why: str) -> None:
        """Give a task up, and say why."""
        self._reporter.wait("")
        log.warning("task %s dropped: %s", task.parcel.id, why)
        self._journal.add(
            f"task {task.parcel.id} dropped: {why}", run=task.parcel.run, level="warning"
        )
        await self._close(task.parcel.id)

    async def _close(self, task: str) -> None:
        """Forget a task for good, as soon as the disk lets us."""
        while True:
            try:
                return await asyncio.to_thread(self._ledger.close, task)
            except OSError as error:
                log.error("task %s cannot be noted as done: %s", task, error)
                await asyncio.sleep(RECHECK_S)

    # Delivering.

    def _offer(self, reply: Parcel) -> None:
        """Begin to deliver a reply, once."""
        if self._group is not None and reply.id not in self._offered:
            offering = self._group.create_task(self._deliver(reply), name=reply.id)
            self._offered[reply.id] = offering
            offering.add_done_callback(lambda _: self._offered.pop(reply.id, None))

    def _reoffer(self, task: ParcelId) -> None:
        for reply in self._ledger.outbox:
            if reply.id == reply_id(task):
                self._offer(reply)

    async def _deliver(self, reply: Parcel) -> None:
        """Deliver a reply until the cloud has it, or will never take it; then forget it."""
        try:
            with spans.replying(reply):
                await self._route.deliver(reply)
        except (RejectedError, DeadlineError) as error:
            log.warning("reply %s: %s", reply.id, error)
            self._journal.add(f"reply {reply.id}: {error}", run=reply.run, level="warning")
        await self._close(reply.id.removesuffix(REPLY))
        await asyncio.to_thread(self._workshop.tidy, reply)
        self._reporter.changed()

    # Identity and link.

    def _link_config(self, address: LinkAddress) -> LinkConfig:
        secure = address.url.startswith(("grpcs:", "mqtts:"))
        return LinkConfig(
            kind=address.kind,
            url=address.url,
            device=self._device,
            agent_version=installed_version("skerry-edge"),
            credentials=self._renewal.identity.credentials if secure else None,
            blobs=self._blobs,
            receiver=self,
            on_state=self._route.state,
            on_welcome=self._welcome if secure else self._reporter.welcome,
            now=self._clock.deadlines,
            on_refused=self._route.refused,
        )

    def _welcome(self, unix_s: float, deadlines_s: float, every_s: float) -> None:
        """Take the coordinator's time over mutual TLS: it counts for verifying updates too."""
        self.updates.welcome(unix_s)
        self._reporter.welcome(unix_s, deadlines_s, every_s)


def _first(several: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return the error that ended a group: a SkerryError when there is one."""
    found: list[BaseException] = []
    queue: list[BaseException] = [several]
    while queue:
        each = queue.pop(0)
        if isinstance(each, BaseExceptionGroup):
            queue.extend(each.exceptions)
        else:
            found.append(each)
    return next((each for each in found if isinstance(each, SkerryError)), found[0])


def _being_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
