"""All runs of a coordinator: begun, stopped, found, and fed with what devices answer.

`Runs` is the registry's `Work`. Its context begins by taking up what an earlier coordinator left
under way (takingup.py), and leaves what is under way to the next one.
"""

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from difflib import get_close_matches
from itertools import islice
from pathlib import Path
from typing import Any, Self, TypeVar

from skerry_protos import bundles
from skerry_protos.blobs import LocalBlobs
from skerry_protos.errors import ConfigError, RejectCode, SkerryError, TrustError
from skerry_protos.failpoints import failpoint
from skerry_protos.messages import DeviceId, Digest, Parcel, ParcelId, RunId, new_id
from skerry_protos.seams import Stream
from skerry_protos.versions import installed_version

from skerry_cloud.fleets import Fleet
from skerry_cloud.runs import initial, takingup
from skerry_cloud.runs.apps import plan_app
from skerry_cloud.runs.conductor import Conductor, end
from skerry_cloud.runs.exchange import Outcome
from skerry_cloud.runs.held import HELD_LIMIT, unwanted_of
from skerry_cloud.runs.intake import Intake
from skerry_cloud.runs.lifecycle import RunEvent, RunState
from skerry_cloud.runs.plan import RunOptions
from skerry_cloud.runs.recall import JOURNAL
from skerry_cloud.runs.tasks import cancel_parcel, shown
from skerry_cloud.runs.unwanted import Reason, Unwanted, reason_of
from skerry_cloud.runs.world import Apps, DamagedError, News, Roster, Waiting, World, naming
from skerry_cloud.selectors import parse
from skerry_cloud.store import Store
from skerry_cloud.store import blobs as kept_blobs
from skerry_cloud.store import questions as recorded
from skerry_cloud.store import runs as kept
from skerry_cloud.store import tasks as kept_tasks
from skerry_cloud.store.devices import Device
from skerry_cloud.store.runs import Event, Run

log = logging.getLogger(__name__)

T = TypeVar("T")

RUNS_LIMIT = 32
"""Most runs under way at once: each is a process."""
CANCEL_S = 10.0
CHANGE_S = 20.0
"""How long a pause may take until the one who asked for it is answered."""


class NotFoundError(SkerryError):
    """There is no such run, app or model."""

    code = "not-found"
    exit_code = 3


class StateError(SkerryError):
    """The run is in a state in which that cannot be done."""

    code = "run-state"
    exit_code = 8


class StoppingError(SkerryError):
    """The coordinator is stopping, and did not do it; the next one will, if asked again."""

    code = "stopping"
    exit_code = 4


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
        apps: Apps | None = None,
    ) -> None:
        """Keep runs' files in `folder`; `hidden` names what their server sides must not see.

        `apps` has apps signed, where there is a models' repository.
        """
        self.news = News()
        self._world = World(
            store=store,
            blobs=blobs,
            fleet=fleet,
            roster=roster,
            folder=folder,
            hidden=hidden,
            news=self.news,
            apps=apps,
        )
        self.store = store
        self.blobs = blobs
        self._sign = sign
        self._conductors: dict[RunId, Conductor] = {}
        self._conducting: dict[RunId, asyncio.Task[None]] = {}
        self._left: set[RunId] = set()
        self.unwanted = Unwanted(self._world)
        self._intake = Intake(self._world, self.unwanted)
        self._cancelled: dict[DeviceId, list[Parcel]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopping = False

    async def __aenter__(self) -> Self:
        """Take up the runs that an earlier coordinator left under way."""
        self._world.folder.mkdir(parents=True, exist_ok=True)
        await self._world.sweep()
        failpoint("start.checked")
        for run in await self.store.read(kept.open_runs):
            await self._take_up(run)
        return self

    async def __aexit__(self, *_: object) -> None:
        """End what is done here; runs stay under way, and the next coordinator goes on."""
        self._stopping = True
        every = [*self._conducting.values(), *self._tasks]
        for task in every:
            task.cancel()
        await asyncio.gather(*every, return_exceptions=True)
        with contextlib.suppress(SkerryError):
            await self.unwanted.write_all()

    async def _take_up(self, run: Run) -> None:
        """Go on with a run, or say why that cannot be."""
        if run.state is RunState.STOPPING:
            await self._give_up(run, run.why)
            return
        if (why := takingup.too_new(run)) is not None:
            log.error("run %s is left alone: %s", run.id, why)
            waiting = Waiting(what="coordinator", why=why).to_json()
            await self._world.write(lambda c: kept.update(c, run.id, waiting=waiting))
            self._left.add(run.id)
            return
        try:
            takingup.require_whole(run)
            options = RunOptions.parse(run.options)
            plan = await asyncio.to_thread(plan_app, self._bundle(run.app), options)
            exchanges = await takingup.open_exchanges(self._world, run, options)
        except SkerryError as error:
            log.error("run %s cannot go on: %s", run.id, error)
            await self._give_up(run, str(error))
            return
        away = await self.store.read(lambda c: recorded.last_sign(c, run.id))
        data = {
            "away_s": round(max(0.0, time.time() - away), 1),
            "open": sum(len(one.open) for one in exchanges),
            "replied": sum(one.count(Outcome.REPLIED) for one in exchanges),
        }
        await self._world.write(
            lambda c: kept.note(c, run.id, Event(kind="resumed", round=run.round, data=data))
        )
        log.info("run %s goes on in round %d: %s", run.id, run.round, data)
        conductor = Conductor(run, plan, options, self._world)
        conductor.take_up(exchanges)
        self._begin(conductor)

    async def _give_up(self, run: Run, why: str) -> None:
        """End a run that cannot go on, or was being stopped; its devices are told to stop."""
        left = await self.store.read(lambda c: kept_tasks.open_tasks(c, run=run.id))
        await self._world.write(lambda c: end(c, run.id, RunEvent.LOST, why))
        by_device: dict[DeviceId, list[ParcelId]] = {}
        for task in left:
            by_device.setdefault(task.device, []).append(task.id)
        for device, ids in by_device.items():
            parcel = cancel_parcel(run.id, ids, "the run has ended")
            self._cancelled.setdefault(device, []).append(parcel)

    def _bundle(self, digest: Digest) -> Path:
        bundle = self._world.blobs.path(digest)
        if bundle is None:
            raise DamagedError(f"the app's bundle {digest[:12]} is gone")
        return bundle

    def _begin(self, conductor: Conductor) -> None:
        run = conductor.run.id
        self._conductors[run] = conductor
        task = asyncio.create_task(conductor.conduct(), name=f"run-{run}")
        self._conducting[run] = task
        task.add_done_callback(lambda done: self._over(run, done))

    # Apps.

    async def add_app(self, bundle: bytes) -> tuple[Digest, bundles.Manifest]:
        """Sign and keep an app's bundle; the same app is the same bundle."""
        try:
            signed = await asyncio.to_thread(bundles.sign, bundle, self._sign)
        except TrustError as error:
            raise ConfigError(f"the app cannot be taken: {error.message}") from error
        ref = await asyncio.to_thread(self._world.blobs.put, signed, role="bundle")
        await self._world.write(lambda c: kept_blobs.keep_blob(c, ref, "app"))
        manifest = bundles.inspect(signed)
        if self._world.apps is not None:
            await self._world.apps.add(manifest)
        return ref.digest, manifest

    # Runs.

    async def begin(self, *, app: str, name: str, options: object, by: str) -> Run:
        """Begin a run and return it; ConfigError says what is wrong with what was asked."""
        wished = RunOptions.parse(options)
        if not wished.seed:
            wished = replace(wished, seed=secrets.randbits(62) + 1)
        if wished.initial:
            wished = replace(wished, initial=await self._initial(wished.initial))
        if len(self._conducting) >= RUNS_LIMIT:
            raise ConfigError(
                f"{RUNS_LIMIT} runs are under way", hint="stop one with: skerry runs stop ID"
            )
        digest = await self.find_app(app)
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
            journal=JOURNAL,
            written_by=installed_version("skerry-cloud"),
        )
        await self._world.write(lambda c: kept.create(c, run))
        self._begin(Conductor(run, plan, wished, self._world))
        return run

    async def _initial(self, name: str) -> RunId:
        """Return the id of a run that another may begin with; ConfigError says why it may not."""
        found = await self.get(name)
        if (why := initial.flaw(found, name)) is not None:
            raise ConfigError(f"run options: initial: {why}")
        return found.id

    async def find_app(self, app: str) -> Digest:
        """Return the digest of the app that begins so; raise NotFoundError or ConfigError."""
        found = await self.store.read(lambda c: kept_blobs.apps_starting_with(c, app))
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
        why = f"stopped by {by}"
        conductor, task = self._conductors.get(found.id), self._conducting.get(found.id)
        if found.id in self._left:
            await self._world.write(lambda c: kept.change(c, found.id, RunEvent.STOP, why))
            await self._give_up(found, why)
            self._left.discard(found.id)
        if conductor is None or task is None:
            return await self.get(found.id)
        await self._world.write(lambda c: kept.change(c, found.id, RunEvent.STOP, why))
        if not conductor.stopped_by:
            conductor.stopped_by = by
            task.cancel()
        await asyncio.wait({task})
        return await self.get(found.id)

    async def pause(self, run: str, by: str) -> Run:
        """Let a run rest: its devices get nothing new, what they answer is kept."""
        found, conductor = await self._under_way(run, "pause")
        await self._world.write(
            lambda c: kept.change(c, found.id, RunEvent.PAUSE, f"paused by {by}")
        )
        conductor.pause()
        return await self._changed(found.id, RunState.PAUSING)

    async def resume(self, run: str, by: str) -> Run:
        """Let a paused run go on."""
        found, conductor = await self._under_way(run, "resume")
        if found.state is not RunState.PAUSED:
            raise StateError(f"run {found.id} is {found.state.value}, not paused")
        await self._world.write(
            lambda c: kept.change(c, found.id, RunEvent.RESUME, f"resumed by {by}")
        )
        conductor.resume()
        return await self.get(found.id)

    async def _under_way(self, run: str, what: str) -> tuple[Run, Conductor]:
        found = await self.get(run)
        conductor = self._conductors.get(found.id)
        if self._stopping:
            raise StoppingError(
                f"the coordinator is stopping: it did not {what} run {found.id}",
                hint="ask again once it has started",
            )
        if conductor is None or found.state is RunState.STOPPING:
            raise StateError(f"cannot {what} run {found.id}: it is {found.state.value}")
        return found, conductor

    async def _changed(self, run: RunId, state: RunState) -> Run:
        """Return the run when it is in this state no longer, or after a while as it is."""
        until = time.monotonic() + CHANGE_S
        while True:
            news = self.news.next()
            found = await self.get(run)
            if found.state is not state or time.monotonic() > until:
                return found
            await self.news.wait(news, 1.0)

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

    # What devices say and need: skerry_cloud.registry.Work.

    async def reply(self, device: DeviceId, parcel: Parcel) -> None:
        """Store a reply, idempotently; the device may forget it when this returns."""
        if parcel.run in self._left:
            raise SkerryError(f"run {parcel.run} waits for another coordinator: offer it again")
        await self._intake.reply(device, parcel, self._conductors.get(parcel.run))

    async def progress(self, device: DeviceId, parcel: Parcel) -> None:
        """Show how far a device is."""
        self._intake.progress(device, parcel, self._conductors.get(parcel.run))

    def refused(self, device: DeviceId, run: str, error: SkerryError) -> None:
        """Count what was refused of a device before any run saw it.

        What names no run counts for those that wait for the device.
        """
        if run:
            found = self._conductors.get(RunId(run))
            concerned = [] if found is None else [found]
            reason = reason_of(error)
        else:
            every = self._conductors.values()
            concerned = [one for one in every if one.questions.waits_for(device)]
            reason = Reason.PROTOCOL
        for conductor in concerned:
            name, number = conductor.run.id, conductor.questions.round
            if self.unwanted.count(name, device, reason, error.message, round_=number):
                self._spawn(self.unwanted.write((name, device, reason)))

    async def present(self, device: DeviceId) -> None:
        """Send a device that is here (again) what it has not answered, and what it should stop."""
        for conductor in self._conductors.values():
            conductor.questions.present(device)
        if parcels := self._cancelled.pop(device, []):
            self._spawn(self._cancel(device, parcels))

    async def holds(self, device: DeviceId, tasks: Collection[str]) -> None:
        """Tell a device to stop what it says that it holds and nobody waits for."""
        conducted = self._conductors.values()
        asked = [
            task
            for task in islice(tasks, HELD_LIMIT)
            if not any(one.questions.find(ParcelId(task)) for one in conducted)
        ]
        if not asked:
            return
        parcels = await self.store.read(lambda c: unwanted_of(c, device, asked))
        if parcels:
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
