"""All runs of a coordinator: begun, stopped, found, and fed with what devices answer.

`Runs` is the registry's `Work`. Its context begins by ending what an earlier coordinator left
under way, and ends by ending what is under way now.
"""

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Self, TypeVar

import sqlalchemy as sa
from skerry_protos import bundles
from skerry_protos.blobs import LocalBlobs
from skerry_protos.errors import (
    ConfigError,
    PeerError,
    RejectCode,
    RejectedError,
    SkerryError,
    TrustError,
)
from skerry_protos.messages import BlobRef, DeviceId, Digest, Parcel, ParcelId, RunId, new_id
from skerry_protos.seams import Stream
from skerry_protos.v1.work_pb2 import Progress

from skerry_cloud.fleets import Fleet
from skerry_cloud.runs.apps import plan_app
from skerry_cloud.runs.conductor import INTERRUPTED, Conductor
from skerry_cloud.runs.exchange import Exchange, Outcome, Part
from skerry_cloud.runs.lifecycle import OPEN_TASKS, RunEvent, RunState, TaskEvent
from skerry_cloud.runs.plan import RunOptions
from skerry_cloud.runs.tasks import Answer, cancel_parcel, read_reply, shown, task_of
from skerry_cloud.runs.world import News, Roster, World, naming
from skerry_cloud.selectors import parse
from skerry_cloud.store import Store
from skerry_cloud.store import runs as kept
from skerry_cloud.store.devices import Device
from skerry_cloud.store.runs import Event, Run

log = logging.getLogger(__name__)

T = TypeVar("T")

RUNS_LIMIT = 32
"""Most runs under way at once: each is a process."""
FETCH_S = 3600.0
CANCEL_S = 10.0
LATE_FETCH_S = 1.0
"""The least time a reply's content gets, when its round is about to close."""


class NotFoundError(SkerryError):
    """There is no such run, app or model."""

    code = "not-found"
    exit_code = 3


class Runs:
    """Every run; an async context manager."""

    def __init__(
        self,
        *,
        store: Store,
        blobs: LocalBlobs,
        fleet: Fleet,
        roster: Roster,
        sign: bundles.Sign,
        folder: Path,
        hidden: Callable[[], list[Path]] = list,
    ) -> None:
        """Keep runs' files in `folder`; `hidden` names what their server sides must not see."""
        self.news = News()
        self._world = World(
            store=store,
            blobs=blobs,
            fleet=fleet,
            roster=roster,
            folder=folder,
            hidden=hidden,
            news=self.news,
        )
        self.store = store
        self.blobs = blobs
        self._sign = sign
        self._conductors: dict[RunId, Conductor] = {}
        self._conducting: dict[RunId, asyncio.Task[None]] = {}
        self._cancelled: dict[DeviceId, list[Parcel]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        """End what an earlier coordinator left under way."""
        self._world.folder.mkdir(parents=True, exist_ok=True)
        left = await self._world.write(_interrupt)
        for run, tasks in left:
            log.warning("run %s was interrupted: the coordinator had stopped", run)
            for device, ids in tasks.items():
                parcel = cancel_parcel(run, ids, "the run was interrupted")
                self._cancelled.setdefault(device, []).append(parcel)
        return self

    async def __aexit__(self, *_: object) -> None:
        """End what is under way: it is marked interrupted."""
        every = [*self._conducting.values(), *self._tasks]
        for task in every:
            task.cancel()
        await asyncio.gather(*every, return_exceptions=True)

    # Apps.

    async def add_app(self, bundle: bytes) -> tuple[Digest, bundles.Manifest]:
        """Sign and keep an app's bundle; the same app is the same bundle."""
        try:
            signed = await asyncio.to_thread(bundles.sign, bundle, self._sign)
        except TrustError as error:
            raise ConfigError(f"the app cannot be taken: {error.message}") from error
        ref = await asyncio.to_thread(self._world.blobs.put, signed, role="bundle")
        await self._world.write(lambda c: kept.keep_blob(c, ref, "app"))
        return ref.digest, bundles.inspect(signed)

    # Runs.

    async def begin(self, *, app: str, name: str, options: object, by: str) -> Run:
        """Begin a run and return it; ConfigError says what is wrong with what was asked."""
        wished = RunOptions.parse(options)
        if len(self._conducting) >= RUNS_LIMIT:
            raise ConfigError(
                f"{RUNS_LIMIT} runs are under way", hint="stop one with: skerry runs stop ID"
            )
        digest = await self._app(app)
        bundle = self._world.blobs.path(digest)
        if bundle is None:
            raise NotFoundError(f"the bundle of app {digest[:12]} is gone", hint="send it again")
        plan = await asyncio.to_thread(plan_app, bundle, wished)
        await self._require_devices(wished)
        run = Run(
            id=RunId(new_id("run-")),
            number=secrets.randbits(62) + 2,
            name=shown(name, 200) or plan.manifest.name,
            app=digest,
            app_kind=plan.manifest.kind,
            state=RunState.CREATED,
            why="",
            waiting=None,
            options=wished.to_json(),
            round=0,
            rounds=plan.rounds,
            created_at=time.time(),
            created_by=by,
            started_at=None,
            ended_at=None,
            model=None,
        )
        await self._world.write(lambda c: kept.create(c, run))
        conductor = Conductor(run, plan, wished, self._world)
        self._conductors[run.id] = conductor
        task = asyncio.create_task(conductor.conduct(), name=f"run-{run.id}")
        self._conducting[run.id] = task
        task.add_done_callback(lambda done: self._over(run.id, done))
        return run

    async def _app(self, app: str) -> Digest:
        found = await self.store.read(lambda c: kept.apps_starting_with(c, app))
        return _only(found, app, "app", "send it with POST /v1/apps, or skerry run PATH")

    async def _require_devices(self, options: RunOptions) -> None:
        """Raise ConfigError when no enrolled device could ever be meant."""
        selector = parse(options.selector)
        every = [one for one in await self._world.roster.devices() if one.revoked_at is None]
        if not every:
            raise ConfigError("no device is enrolled", hint="invite one: skerry devices invite")
        matching = [device for device in every if selector.matches(device.labels)]
        if not matching:
            hint = selector.hint(device.labels for device in every)
            raise ConfigError(f"no device matches {options.selector!r}", hint=hint)
        if len(matching) < options.min_devices:
            raise ConfigError(
                f"min_devices is {options.min_devices}, but only {len(matching)} enrolled devices "
                f"match: {naming(device.id for device in matching)}"
            )
        for capability in options.capabilities:
            _require_capability(capability, matching)

    def _over(self, run: RunId, task: asyncio.Task[None]) -> None:
        self._conducting.pop(run, None)
        self._conductors.pop(run, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("run %s did not end well", run, exc_info=error)
        self.news.tell()

    async def stop(self, run: RunId, by: str) -> Run:
        """End a run that is under way and return it ended."""
        found = await self.get(run)
        conductor, task = self._conductors.get(found.id), self._conducting.get(found.id)
        if conductor is None or task is None:
            return found
        await self._world.write(
            lambda c: kept.change(c, found.id, RunEvent.STOP, f"stopped by {by}")
        )
        if not conductor.stopped_by:
            conductor.stopped_by = by
            task.cancel()
        await asyncio.wait({task})
        return await self.get(found.id)

    async def get(self, run: str) -> Run:
        """Return a run by its id or the beginning of it."""
        found = await self.store.read(lambda c: kept.find(c, run))
        if found is not None:
            return found
        ids = await self.store.read(lambda c: kept.starting_with(c, run))
        chosen = _only(ids, run, "run", "skerry runs list shows them")
        return await self.get(chosen)

    def connected(self) -> frozenset[DeviceId]:
        """Return the devices that are here now."""
        return self._world.roster.connected()

    def under_way(self, run: RunId) -> Conductor | None:
        """Return a run's conductor while it is under way."""
        return self._conductors.get(run)

    # What devices say: skerry_cloud.registry.Work.

    async def reply(self, device: DeviceId, parcel: Parcel) -> None:
        """Store a reply, idempotently; the device may forget it when this returns."""
        try:
            task = task_of(parcel)
        except PeerError as error:
            raise RejectedError(RejectCode.MALFORMED, error.message) from error
        conductor = self._conductors.get(parcel.run)
        found = conductor.questions.find(task) if conductor is not None else None
        if conductor is None or found is None or found[1].device != device:
            await self._reply_out_of_place(device, task)
            return
        exchange, part = found
        if part.outcome is not Outcome.OPEN:
            return  # said again: its acknowledgement was lost
        try:
            answer = read_reply(parcel)
            content = await self._content(device, conductor, exchange, part, answer)
        except (PeerError, TrustError, RejectedError) as error:
            code = error.code if isinstance(error, RejectedError) else RejectCode.MALFORMED
            await conductor.questions.fail(task, 0, f"its reply was not taken: {error.message}")
            raise RejectedError(code, error.message) from error
        if answer.failed:
            await conductor.questions.fail(
                task, answer.code, answer.reason, log_tail=answer.log_tail
            )
        elif content:
            await conductor.questions.replied(exchange, part, answer, parcel)

    async def _content(
        self,
        device: DeviceId,
        conductor: Conductor,
        exchange: Exchange,
        part: Part,
        answer: Answer,
    ) -> bool:
        """Fetch a reply's blob; return False when the round closed meanwhile."""
        if answer.failed or not isinstance(answer.content, BlobRef):
            return True
        if answer.content.size > conductor.options.reply_bytes:
            raise RejectedError(
                RejectCode.OVERSIZE,
                f"the reply has {answer.content.size} bytes; this run takes "
                f"{conductor.options.reply_bytes} (reply_bytes)",
            )
        left = max(LATE_FETCH_S, min(FETCH_S, exchange.deadline - time.time()))
        part.text = "sends its reply"
        await self._world.fleet.fetch(device, answer.content, deadline_s=left)
        return True

    async def _reply_out_of_place(self, device: DeviceId, task: str) -> None:
        """Accept a reply nobody waits for, so that the device forgets it; refuse one not asked."""

        def look(connection: sa.Connection) -> None:
            row = kept.find_task(connection, task)
            if row is None or row.device != device:
                raise RejectedError(
                    RejectCode.UNEXPECTED, f"no task {task[:80]!r} was given to {device!r}"
                )
            if row.state in OPEN_TASKS:
                kept.move(connection, task, TaskEvent.CANCEL, "its run has ended")
            data = {"task": task, "why": f"it came after the task was {row.state.value}"}
            event = Event(kind="late-reply", round=row.round, device=device, data=data)
            if kept.reply_out_of_place(connection, task):
                kept.note(connection, row.run, event)

        await self._world.write(look)

    async def progress(self, device: DeviceId, parcel: Parcel) -> None:
        """Show how far a device is."""
        try:
            said = Progress.FromString(parcel.body)
        except ValueError as error:
            raise RejectedError(RejectCode.MALFORMED, "the progress cannot be read") from error
        conductor = self._conductors.get(parcel.run)
        found = conductor.questions.find(ParcelId(said.task)) if conductor is not None else None
        if found is not None and found[1].device == device:
            found[1].progress = min(1.0, max(0.0, said.fraction)) if said.fraction > 0 else 0.0
            found[1].text = shown(said.text, 200)

    async def present(self, device: DeviceId) -> None:
        """Send a device that is here (again) what it has not answered, and what it should stop."""
        for conductor in self._conductors.values():
            conductor.questions.present(device)
        if parcels := self._cancelled.pop(device, []):
            self._spawn(self._cancel(device, parcels))

    async def stream(self, device: DeviceId, stream: Stream) -> None:
        """Refuse a stream: no run takes one yet."""
        await stream.abort(RejectCode.UNEXPECTED, f"no run of {device!r} takes {stream.kind!r}")

    async def withdraw(self, device: DeviceId, why: str) -> None:
        """Take the device's open tasks away: it was drained or revoked."""
        for conductor in list(self._conductors.values()):
            await conductor.withdraw(device, why)

    async def _cancel(self, device: DeviceId, parcels: list[Parcel]) -> None:
        for parcel in parcels:
            with contextlib.suppress(SkerryError, TimeoutError):
                async with asyncio.timeout(CANCEL_S):
                    await self._world.fleet.deliver(device, parcel)

    def _spawn(self, coroutine: Any) -> None:
        task: asyncio.Task[None] = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _interrupt(connection: sa.Connection) -> list[tuple[RunId, dict[DeviceId, list[ParcelId]]]]:
    """End every open run; return their open tasks by device."""
    found = []
    for run in kept.open_runs(connection):
        tasks: dict[DeviceId, list[ParcelId]] = {}
        for task, _ in kept.open_tasks(connection, run=run.id):
            kept.move(connection, task.id, TaskEvent.CANCEL, "the run was interrupted")
            tasks.setdefault(task.device, []).append(task.id)
        kept.change(connection, run.id, RunEvent.LOST, INTERRUPTED)
        found.append((run.id, tasks))
    return found


def _only(found: Sequence[T], prefix: str, what: str, hint: str) -> T:
    """Return the one thing a prefix names."""
    if not found or not prefix:
        raise NotFoundError(f"there is no {what} {prefix[:80]!r}", hint=hint)
    if len(found) > 1:
        raise ConfigError(f"{prefix[:80]!r} begins more than one {what}", hint="write more of it")
    return found[0]


def _require_capability(capability: str, matching: list[Device]) -> None:
    """Raise ConfigError when every matching device has said what it can, and none can this."""
    offered = {one for device in matching for one in device.capabilities}
    if capability not in offered and all(device.capabilities for device in matching):
        near = get_close_matches(capability, offered, n=1)
        raise ConfigError(
            f"no device that matches has {capability!r}",
            hint=f"did you mean {near[0]!r}?" if near else f"they have: {naming(sorted(offered))}",
        )
