"""One run from its server side's first word to its last: start at `Conductor.conduct`.

The server side (a child process) says what it wants: devices (muster.py), a question to some of
them (questions.py); and what it has found (reports.py). Whatever a person may want to know is
journalled in the transaction that makes it true.

A run may have several server sides, one after the other: when it was paused, or when the
coordinator was stopped or killed. The next one begins at the newest checkpoint and hears again what
is recorded (takingup.py); what a device has answered once is never asked again.
"""

import asyncio
import contextlib
import logging
import shutil
from collections.abc import Coroutine, Mapping
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from skerry_protos import bundles
from skerry_protos.errors import PeerError, SkerryError
from skerry_protos.failpoints import failpoint
from skerry_protos.messages import BlobRef, DeviceId, RunId

from skerry_cloud.runs import takingup, wishes
from skerry_cloud.runs.apps import AppPlan
from skerry_cloud.runs.conversation import Conversation
from skerry_cloud.runs.exchange import Exchange
from skerry_cloud.runs.initial import initial_model
from skerry_cloud.runs.lifecycle import RESTING, RunEvent, RunState
from skerry_cloud.runs.muster import Muster
from skerry_cloud.runs.plan import RunOptions
from skerry_cloud.runs.printed import Printed
from skerry_cloud.runs.process import ServerProcess
from skerry_cloud.runs.questions import Questions
from skerry_cloud.runs.reports import Reports
from skerry_cloud.runs.takingup import Resume
from skerry_cloud.runs.tasks import AppCode, TaskMaker
from skerry_cloud.runs.world import BrokenRunError, DamagedError, Waiting, World
from skerry_cloud.store import blobs as kept_blobs
from skerry_cloud.store import questions as recorded
from skerry_cloud.store import runs as kept
from skerry_cloud.store import tasks as kept_tasks
from skerry_cloud.store.runs import Run

log = logging.getLogger(__name__)

LOADING = Waiting(what="server", why="the app's server side is loading")
COMPUTING = Waiting(what="server", why="the app's server side computes")
AGAIN = "--- the server side begins again: lines may repeat ---"


class Conductor:
    """A run that is under way."""

    def __init__(self, run: Run, plan: AppPlan, options: RunOptions, world: World) -> None:
        self.run = run
        self.stopped_by = ""
        self.muster = Muster(options, world.roster)
        self._plan = plan
        self.options = options
        self._world = world
        self._folder = world.folder / run.id
        scratch = self._folder / "scratch"
        self.questions = Questions(
            run=run,
            world=world,
            options=options,
            muster=self.muster,
            scratch=scratch,
            say=self._say,
            spawn=self._spawn,
        )
        self._reports = Reports(run.id, world, self.muster, self.questions, scratch)
        self._printed = Printed(run.id, world)
        self._process: ServerProcess | None = None
        self._maker: TaskMaker | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._failure: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting = LOADING
        self._talk: Conversation | None = None
        self._mustering: set[asyncio.Task[None]] = set()
        self._taken_up = False
        self._rest = asyncio.Event()
        self._awake = asyncio.Event()
        self._checkpointing: asyncio.Task[None] | None = None
        if run.state in RESTING:
            self._rest.set()
        else:
            self._awake.set()

    def take_up(self, exchanges: list[Exchange]) -> None:
        """Go on with a run of an earlier coordinator: replies count from now on."""
        self._taken_up = True
        self.questions.deliveries.hold()
        self.questions.take_up(exchanges)

    async def conduct(self) -> None:
        """Run the server side to its end and leave the run in a final state."""
        event, why = RunEvent.BROKE, ""
        try:
            if self._taken_up:
                await takingup.check_blobs(self._world, self.run)
                await self.muster.restore(self.run.partitions)
                failpoint("resume.loaded")
            while self._rest.is_set() or not await self._serve():
                await self._sleep()
            event = RunEvent.DONE
        except DamagedError as error:
            event, why = RunEvent.LOST, str(error)
            log.error("run %s cannot go on: %s", self.run.id, why)
        except SkerryError as error:
            why = str(error)
        except asyncio.CancelledError:
            if not self.stopped_by:
                await self._leave()
                raise
        except Exception as error:
            log.exception("run %s failed in the coordinator", self.run.id)
            why = f"the coordinator failed at it ({type(error).__name__}); its log says why"
        if self.stopped_by:
            event, why = RunEvent.ENDED, f"stopped by {self.stopped_by}"
        await self._finish(event, why)

    def pause(self) -> None:
        """End the server side and give devices nothing new, until `resume`."""
        self._awake.clear()
        self._rest.set()

    def resume(self) -> None:
        """Go on."""
        self._rest.clear()
        self._awake.set()

    def waiting(self) -> dict[str, Any]:
        """Return what the run waits for now."""
        if self._rest.is_set():
            open_ = sum(len(one.open) for one in self.questions.exchanges)
            why = f"it is paused; go on with: skerry runs resume {self.run.id}"
            if open_:
                why += f" ({open_} devices may still answer: what comes is kept)"
            return Waiting(what="person", why=why).to_json()
        return (self.questions.waiting() or self._waiting).to_json()

    async def withdraw(self, device: DeviceId, why: str) -> None:
        """Take a device's open tasks away and give it no more."""
        self.muster.lose(device)
        await self.questions.withdraw(device, why)

    # One server side, from its start to its end.

    async def _serve(self) -> bool:
        """Serve one server side; return True when it is done, False when it is to rest."""
        try:
            resume = await takingup.resume(self._world, self.run.id)
            self.questions.begin(resume.recall, resume.last)
            self._reports.begin(len(resume.pulls))
            await self._start(resume)
            await self.questions.go()
            return await self._converse()
        finally:
            await self._end_process()

    async def _start(self, resume: Resume) -> None:
        bundle = self._world.blobs.path(self.run.app)
        if bundle is None:
            raise DamagedError(f"the app's bundle {self.run.app[:12]} is not here any more")
        manifest = self._plan.manifest
        ref = BlobRef(digest=self.run.app, size=bundle.stat().st_size, role="bundle")
        apps = self._world.apps
        if apps is not None:
            await apps.add(manifest)  # keys may have been made since it came
            await apps.prepare()
        self._maker = TaskMaker(
            run=self.run.id,
            number=self.run.number,
            app=AppCode(kind=manifest.kind, name=manifest.name, entry=manifest.client, bundle=ref),
            options=self.options,
            run_config=self._plan.run_config,
            metadata=apps.metadata if apps is not None else lambda: None,
        )

        def prepare() -> None:
            # What the app wrote is its own: kept where it goes on, gone where it begins again.
            names = ("app", "scratch") if resume.checkpoint else ("app", "scratch", "files")
            for name in names:
                shutil.rmtree(self._folder / name, ignore_errors=True)
            for name in ("app", "files", "scratch"):
                (self._folder / name).mkdir(parents=True, exist_ok=True)
            # We signed it when it was stored: only its structure is looked at again.
            bundles.unpack(bundle, self._folder / "app", lambda _signature, _manifest: None)

        model = await initial_model(self._world, self.options.initial)
        await asyncio.to_thread(prepare)
        await self._world.write(lambda c: kept.change(c, self.run.id, RunEvent.STARTED))
        if resume.recall.again:
            self._printed.add([AGAIN])
        self._waiting = LOADING
        self._process = await ServerProcess.start(
            self._folder / "files",
            self.options.server_limits,
            self._printed.add,
            hash_seed=self.options.seed % 2**32,
        )
        self._say(self._instructions(resume, model), b"")

    def _instructions(self, resume: Resume, model: Path | None) -> dict[str, Any]:
        """Return what the server side has to know; `model` is what it begins with."""
        return {
            "do": "start",
            "kind": self._plan.manifest.kind,
            "app": str(self._folder / "app"),
            "scratch": str(self._folder / "scratch"),
            "hidden": [str(path) for path in self._world.hidden()],
            "server": self._plan.manifest.server,
            "number": self.run.number,
            "run_config": dict(self._plan.run_config),
            "rounds": self._plan.rounds,
            "strategy": self._plan.strategy,
            "strategy_options": dict(self._plan.strategy_options),
            "fraction": self.options.fraction,
            "min_devices": self.options.min_devices,
            "seed": self.options.seed,
            "round_deadline_s": self.options.round_deadline_s,
            "max_norm_ratio": self.options.max_norm_ratio,
            "aggregation_memory_bytes": self.options.aggregation_memory_bytes,
            "coded": self.questions.codecs.used,
            "broadcast_codec": self.options.broadcast_codec,
            "checkpoint_s": self.options.checkpoint_s,
            "checkpoint": str(resume.checkpoint or ""),
            "asked": resume.asked,
            "mustered": resume.mustered,
            "pulls": resume.pulls,
            "initial": str(model or ""),
            "initial_run": self.options.initial,
            "initial_if_fits": self.options.initial_if_fits,
        }

    async def _converse(self) -> bool:
        """Grant wishes until the server side is done, or is to rest; raise when it is neither."""
        assert self._process is not None
        self._talk = Conversation(
            self._process,
            self._grant,
            busy=lambda: bool(self._mustering) or self.questions.open,
            silence_s=self.options.server_limits.silence_s,
        )
        resting = asyncio.create_task(self._rest.wait())
        try:
            done = await self._talk.hold(resting, self._failure)
            if done and self._checkpointing is not None:
                await asyncio.wait({self._checkpointing})
            return done
        finally:
            resting.cancel()

    async def _grant(self, said: Mapping[str, Any], body: bytes) -> None:
        assert self._maker is not None
        match said["do"]:
            case "ready":
                self._waiting = COMPUTING
                await self._world.write(lambda c: kept.change(c, self.run.id, RunEvent.READY))
            case "failed":
                raise BrokenRunError(wishes.text(said, "why", 2000))
            case "nodes":
                answering = self._spawn(self._answer_nodes(wishes.whole(said, "number")))
                self._mustering.add(answering)
                answering.add_done_callback(self._mustering.discard)
            case "ask":
                await self.questions.ask(wishes.Question.parse(said, body), self._maker)
            case "checkpoint":
                # Beside the conversation: the round goes on while the disk works.
                self._checkpointing = self._spawn(self._reports.checkpoint(wishes.Kept.parse(said)))
            case other:
                if not await self._reports.take(said):
                    raise PeerError(f"the run's server side said {other[:40]!r}")

    def _say(self, said: Mapping[str, Any], body: bytes) -> None:
        if self._talk is not None:
            self._talk.heard()
        if self._process is not None:
            self._process.say(dict(said), body)

    async def _answer_nodes(self, number: int) -> None:
        """Tell the server side which devices it has, once there are enough; or had, if recorded."""
        nodes = self.questions.recall.musters.pop(number, None)
        if nodes is None:
            devices = await self.muster.gather(self._note_waiting)
            nodes = [(device.node, device.id) for device in devices]
            failpoint("nodes.before-commit")
            new, partitions = nodes, dict(self.muster.partitions)

            def write(connection: sa.Connection) -> None:
                recorded.keep_muster(connection, self.run.id, number, new)
                kept.update(connection, self.run.id, partitions=partitions)

            await self._world.write(write)
            failpoint("nodes.committed")
        said = [{"node": node, "device": device} for node, device in nodes]
        decodes = self.muster.nodes_where(self.questions.codecs.decodes)
        beside = self.muster.nodes_where(self.questions.codecs.beside)
        self._say({"do": "nodes", "nodes": said, "decodes": decodes, "beside": beside}, b"")

    def _note_waiting(self, waiting: Waiting | None) -> None:
        self._waiting = waiting or COMPUTING

    async def _end_process(self) -> None:
        """End the server side and what was done for it; questions stay open, their clocks stop."""
        process, self._process = self._process, None
        if process is not None:
            await process.end()
        for task in self._mustering:
            task.cancel()
        await asyncio.gather(*self._mustering, return_exceptions=True)
        if self._checkpointing is not None:
            await asyncio.wait({self._checkpointing})
        await self.questions.hold()
        with contextlib.suppress(SkerryError):
            await self._printed.close()

    async def _sleep(self) -> None:
        """Rest until somebody wants the run to go on."""
        await self._world.write(lambda c: kept.change(c, self.run.id, RunEvent.RESTED))
        awake = asyncio.create_task(self._awake.wait())
        try:
            either: set[asyncio.Future[Any]] = {awake, self._failure}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        finally:
            awake.cancel()
        if self._failure.done():
            self._failure.result()

    # The end.

    async def _leave(self) -> None:
        """End what is done here and leave the run as it is: the next coordinator goes on."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _finish(self, event: RunEvent, why: str) -> None:
        """Take open tasks away, and put the run into its final state."""
        parts = self.questions.end()
        await self._leave()
        failpoint("finish.before-commit")
        state = await self._world.write(lambda c: end(c, self.run.id, event, why))
        failpoint("finish.committed")
        self.questions.traces.ended(state.value, why, self.questions.round)
        await self._world.sweep()
        await asyncio.to_thread(self._clean)
        keep = self.questions.codecs.kept_by & self._world.roster.connected()
        await asyncio.gather(*self.questions.deliveries.end(parts, keep, "the run has ended"))

    def _clean(self) -> None:
        for name in ("app", "scratch"):
            shutil.rmtree(self._folder / name, ignore_errors=True)
        with contextlib.suppress(OSError):  # what the app wrote there stays
            (self._folder / "files").rmdir()
            self._folder.rmdir()

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) and not self._failure.done():
            self._failure.set_exception(error)
            self._failure.exception()  # looked at: nobody may wait for it any more


def end(connection: sa.Connection, run: RunId, event: RunEvent, why: str) -> RunState:
    """Record a run's end; what it moved is not needed any more, but where a person may look."""
    kept_tasks.cancel_open(connection, run, "the run ended")
    if event is RunEvent.ENDED:
        kept.change(connection, run, RunEvent.STOP, why)
    state = kept.change(connection, run, event, why)
    recorded.forget_run(connection, run)
    kept_blobs.release_run(connection, run, ("task", "reply", "checkpoint"))
    return state
