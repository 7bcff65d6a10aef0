"""One run from its server side's first word to its last: start at `Conductor.conduct`.

The server side (a child process) says what it wants: devices (muster.py), a question to some of
them (questions.py), a metric, a model. Whatever a person may want to know is journalled in the
transaction that makes it true.
"""

import asyncio
import contextlib
import logging
import shutil
import time
from collections.abc import Coroutine, Mapping
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from skerry_protos import bundles
from skerry_protos.errors import PeerError, SkerryError
from skerry_protos.messages import BlobRef, DeviceId

from skerry_cloud.runs import wishes
from skerry_cloud.runs.apps import AppPlan
from skerry_cloud.runs.lifecycle import RunEvent, TaskEvent
from skerry_cloud.runs.muster import Muster
from skerry_cloud.runs.plan import RunOptions
from skerry_cloud.runs.printed import Printed
from skerry_cloud.runs.process import ServerProcess
from skerry_cloud.runs.questions import Questions
from skerry_cloud.runs.tasks import AppCode, TaskMaker
from skerry_cloud.runs.world import BrokenRunError, GoneError, Waiting, World
from skerry_cloud.store import runs as kept
from skerry_cloud.store.runs import Event, Metric, Run

log = logging.getLogger(__name__)

INTERRUPTED = (
    "the coordinator stopped while it ran; its journal, replies and metrics are kept: "
    "start it again with skerry run"
)
CRASH_S = 3.0
"""How long the last words of a process that has ended may take to be heard."""
LOADING = Waiting(what="server", why="the app's server side is loading")
COMPUTING = Waiting(what="server", why="the app's server side computes")


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
        self.questions = Questions(
            run=run.id,
            world=world,
            options=options,
            muster=self.muster,
            scratch=self._folder / "scratch",
            say=self._say,
            spawn=self._spawn,
        )
        self._printed = Printed(run.id, world)
        self._process: ServerProcess | None = None
        self._maker: TaskMaker | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._failure: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting = LOADING
        self._heard_at = time.monotonic()
        self._mustering = 0

    async def conduct(self) -> None:
        """Run the server side to its end and leave the run in a final state."""
        event, why = RunEvent.BROKE, ""
        try:
            await self._start()
            await self._converse()
            event = RunEvent.DONE
        except SkerryError as error:
            why = str(error)
        except asyncio.CancelledError:
            if not self.stopped_by:
                await self._finish(RunEvent.LOST, INTERRUPTED)
                raise
        except Exception as error:
            log.exception("run %s failed in the coordinator", self.run.id)
            why = f"the coordinator failed at it ({type(error).__name__}); its log says why"
        if self.stopped_by:
            event, why = RunEvent.ENDED, f"stopped by {self.stopped_by}"
        await self._finish(event, why)

    def waiting(self) -> dict[str, Any]:
        """Return what the run waits for now."""
        return (self.questions.waiting() or self._waiting).to_json()

    async def withdraw(self, device: DeviceId, why: str) -> None:
        """Take a device's open tasks away and give it no more."""
        self.muster.lose(device)
        await self.questions.withdraw(device, why)

    # The conversation with the server side.

    async def _start(self) -> None:
        bundle = self._world.blobs.path(self.run.app)
        if bundle is None:
            raise BrokenRunError(f"the app's bundle {self.run.app[:12]} is not here any more")
        manifest = self._plan.manifest
        ref = BlobRef(digest=self.run.app, size=bundle.stat().st_size, role="bundle")
        self._maker = TaskMaker(
            run=self.run.id,
            number=self.run.number,
            app=AppCode(kind=manifest.kind, name=manifest.name, entry=manifest.client, bundle=ref),
            options=self.options,
            run_config=self._plan.run_config,
        )

        def prepare() -> None:
            shutil.rmtree(self._folder, ignore_errors=True)
            for name in ("app", "files", "scratch"):
                (self._folder / name).mkdir(parents=True)
            # We signed it when it was stored: only its structure is looked at again.
            bundles.unpack(bundle, self._folder / "app", lambda _signature, _manifest: None)

        await asyncio.to_thread(prepare)
        await self._world.write(lambda c: kept.change(c, self.run.id, RunEvent.STARTED))
        self._process = await ServerProcess.start(
            self._folder / "files", self.options.server_limits, self._printed.add
        )
        self._say(self._instructions(), b"")

    def _instructions(self) -> dict[str, Any]:
        """Return what the server side has to know."""
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
        }

    async def _converse(self) -> None:
        """Grant wishes until the server side is done; raise when it is not, or is silent."""
        assert self._process is not None
        hearing = asyncio.create_task(self._hear(self._process))
        tasks = [
            hearing,
            asyncio.create_task(self._watch_silence()),
            asyncio.create_task(self._watch_end(self._process, hearing)),
        ]
        every = {*tasks, self._failure}
        try:
            done, _ = await asyncio.wait(every, return_when=asyncio.FIRST_COMPLETED)
            for one in done:
                one.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _hear(self, process: ServerProcess) -> None:
        while (message := await process.hear()) is not None:
            self._heard_at = time.monotonic()
            said, body = message
            if said["do"] == "done":
                return
            await self._grant(said, body)
        try:
            async with asyncio.timeout(CRASH_S):
                raise BrokenRunError(await self._crash(process))
        except TimeoutError:
            raise BrokenRunError("the app's server side closed its channel and went on") from None

    async def _grant(self, said: Mapping[str, Any], body: bytes) -> None:
        assert self._maker is not None
        match said["do"]:
            case "ready":
                self._waiting = COMPUTING
                await self._world.write(lambda c: kept.change(c, self.run.id, RunEvent.READY))
            case "failed":
                raise BrokenRunError(wishes.text(said, "why", 2000))
            case "nodes":
                self._spawn(self._answer_nodes())
            case "ask":
                await self.questions.ask(wishes.Question.parse(said, body), self._maker)
            case "refused":
                await self._refuse(wishes.refusals(said))
            case "round":
                await self._begin_round(wishes.whole(said, "round"), wishes.whole(said, "rounds"))
            case "metrics":
                await self._keep_metrics(wishes.metrics(said))
            case "model":
                await self._keep_model(wishes.file_name(said))
            case "note":
                data = {"text": wishes.text(said, "text", 500)}
                await self._note(Event(kind="note", round=self.questions.round, data=data))
            case other:
                raise PeerError(f"the run's server side said {other[:40]!r}")

    async def _crash(self, process: ServerProcess) -> str:
        """Return why the server side's channel closed before it was done."""
        how = await process.ended()
        if process.passed:
            return f"the app's server side {process.passed} and was killed"
        last = next((line for line in reversed(process.tail) if line.strip()), "")
        return f"the app's server side {how}" + (f"; it last printed: {last[:300]}" if last else "")

    async def _watch_end(self, process: ServerProcess, hearing: "asyncio.Task[None]") -> None:
        """Raise when the process is gone though its channel is open: what it forked holds it."""
        why = await self._crash(process)
        await asyncio.wait({hearing}, timeout=CRASH_S)
        raise BrokenRunError(why)

    async def _watch_silence(self) -> None:
        """Return only by raising: the server side computes too long without asking anything."""
        most = self.options.server_limits.silence_s
        while (left := self._heard_at + most - time.monotonic()) > 0:
            await asyncio.sleep(left)
            if self._mustering or self.questions.open:
                self._heard_at = time.monotonic()
        raise BrokenRunError(
            f"the app's server side asked for nothing in {most:g} s and was killed "
            "(server_limits.silence_s)"
        )

    def _say(self, said: Mapping[str, Any], body: bytes) -> None:
        self._heard_at = time.monotonic()
        if self._process is not None:
            self._process.say(dict(said), body)

    async def _answer_nodes(self) -> None:
        """Tell the server side which devices it has, once there are enough."""
        self._mustering += 1
        try:
            devices = await self.muster.gather(self._note_waiting)
        finally:
            self._mustering -= 1
        nodes = [{"node": device.node, "device": device.id} for device in devices]
        self._say({"do": "nodes", "nodes": nodes}, b"")

    def _note_waiting(self, waiting: Waiting | None) -> None:
        self._waiting = waiting or COMPUTING

    # What the server side reports.

    async def _refuse(self, refused: list[tuple[str, str]]) -> None:
        """Journal the replies that screening left out."""

        def write(connection: sa.Connection) -> None:
            for task, why in refused:
                row = kept.find_task(connection, task)
                if row is None or row.run != self.run.id:
                    continue
                if kept.move(connection, task, TaskEvent.REFUSE, why):
                    data = {"task": task, "phase": row.message_type.partition(".")[0], "why": why}
                    event = Event(kind="refused", round=row.round, device=row.device, data=data)
                    kept.note(connection, self.run.id, event)

        await self._world.write(write)

    async def _begin_round(self, number: int, rounds: int) -> None:
        event = Event(kind="round", round=number, data={"rounds": rounds})

        def write(connection: sa.Connection) -> None:
            kept.update(connection, self.run.id, round=number, rounds=rounds)
            kept.note(connection, self.run.id, event)

        await self._world.write(write)

    async def _keep_metrics(self, new: list[wishes.Measured]) -> None:
        rows, whole = [], dict[tuple[int, str], dict[str, float]]()
        for one in new:
            device = self.muster.device_of(one.node) if one.node else ""
            if one.node and not device:
                continue
            if not one.node:
                whole.setdefault((one.round, one.phase), {})[one.name] = one.value
            rows.append(
                Metric(
                    round=one.round, phase=one.phase, name=one.name, value=one.value, device=device
                )
            )
        events = [
            Event(kind="metrics", round=number, data={"phase": phase, "values": values})
            for (number, phase), values in whole.items()
        ]

        def write(connection: sa.Connection) -> None:
            kept.keep_metrics(connection, self.run.id, rows)
            kept.note(connection, self.run.id, *events)

        await self._world.write(write)

    async def _keep_model(self, name: str) -> None:
        path = self._folder / "scratch" / name
        while True:
            with contextlib.suppress(GoneError):
                await self._adopt_model(path)
                self._world.adopted(path)
                return

    async def _adopt_model(self, path: Path) -> None:
        ref = await self._world.adopt(path, "model")
        data = {"digest": ref.digest, "bytes": ref.size}
        event = Event(kind="model", round=self.questions.round, data=data)

        def write(connection: sa.Connection) -> None:
            self._world.require(ref)
            kept.keep_blob(connection, ref, "model", self.run.id)
            kept.update(connection, self.run.id, model=ref.digest)
            kept.note(connection, self.run.id, event)

        await self._world.write(write)

    async def _note(self, event: Event) -> None:
        await self._world.write(lambda c: kept.note(c, self.run.id, event))

    # The end.

    async def _finish(self, event: RunEvent, why: str) -> None:
        """End the process, take open tasks away, and put the run into its final state."""
        if self._process is not None:
            await self._process.end()
        parts = self.questions.end()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        with contextlib.suppress(SkerryError):
            await self._printed.close()

        def write(connection: sa.Connection) -> None:
            for part in parts:
                kept.move(connection, part.task, TaskEvent.CANCEL, "the run ended")
            if event is RunEvent.ENDED:
                kept.change(connection, self.run.id, RunEvent.STOP, why)
            kept.change(connection, self.run.id, event, why)
            if event is not RunEvent.LOST:
                gone = kept.forget_blobs(connection, self.run.id, ("task", "reply"))
                self._world.let_go(gone)

        await self._world.write(write)
        await asyncio.to_thread(self._clean)
        if event is not RunEvent.LOST:
            await asyncio.gather(*self.questions.cancel(parts, "the run has ended"))

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
