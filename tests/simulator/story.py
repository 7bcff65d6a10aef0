"""One seed from begin to end: start at `tell`.

A coordinator and its devices come up, runs begin, things go wrong as the scenario says, calm
returns, and then everything promised must have come true.
"""

import asyncio
import contextlib
import contextvars
import logging
import os
import random
import secrets
import sys
import tempfile
import traceback
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from skerry_cloud.runs import asker, conductor
from skerry_cloud.runs.engine import StoppingError
from skerry_cloud.runs.lifecycle import OPEN_RUNS
from skerry_edge import heartbeat, reporter, telemetry
from skerry_edge.conditions import Readings
from skerry_edge.links import crossing
from skerry_edge.outbox import REPLY, Ledger
from skerry_edge.routes import Route
from skerry_protos import steady
from skerry_protos.errors import SkerryError
from skerry_protos.messages import Parcel, ParcelKind, RunId

from tests.simulator import app, loop
from tests.simulator.devices import Device
from tests.simulator.disk import Disk, watched
from tests.simulator.invariants import (
    BrokenError,
    at_every_moment,
    at_the_end,
    when_acknowledged,
    when_training_begins,
)
from tests.simulator.loop import BEGIN_S, EPOCH_S, NODE, PowerCutError, SimulatedLoop
from tests.simulator.network import Network
from tests.simulator.scenario import Fault, Scenario, draw
from tests.simulator.server import SimulatedServer
from tests.simulator.shore import KEY_PEM, Shore, make_ready
from tests.simulator.threads import Threading
from tests.simulator.trace import SHOWN, Trace

LOOK_S = 10.0
"""How often what must hold at every moment is looked at."""
QUIET_S = 900.0
"""How long after the last run's end devices may take to deliver and to forget."""
RAM = "/dev/shm" if os.path.isdir("/dev/shm") else None  # noqa: PTH112 - a constant


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """What a story came to."""

    seed: int
    trace: str
    events: int
    virtual_s: float
    ended: tuple[str, ...]  # the runs' final states
    short: bool = False
    broken: str = ""
    last: tuple[str, ...] = ()


def tell(seed: int, *, short: bool = False, shown: int = SHOWN) -> Told:
    """Tell the story of a seed; what it breaks is in the result."""
    scenario = draw(seed, short=short)
    story = Story(scenario, shown=shown)
    broken = ""
    make_ready()
    with _leaves(story), _listening(story):
        try:
            loop.run(story.run, random.Random(f"disks {seed}"))
        except BrokenError as error:
            broken = str(error)
        except Exception as error:
            broken = f"{type(error).__name__}: {error}"
            if shown > SHOWN:
                raise
    return Told(
        seed=seed,
        trace=story.trace.hash,
        events=story.trace.events,
        virtual_s=story.now_s,
        ended=tuple(story.ended),
        short=short,
        broken=broken,
        last=tuple(story.trace.last()) if broken or shown > SHOWN else (),
    )


class Story:
    """Everything of one seed."""

    def __init__(self, scenario: Scenario, *, shown: int) -> None:
        self.scenario = scenario
        self.trace = Trace(shown=shown)
        self.ended: list[str] = []
        self.runs: list[RunId] = []
        self.now_s = 0.0
        self.shore: Shore
        self.devices: dict[str, Device] = {}
        self.network: Network
        self.errors: list[str] = []
        self.answered: set[tuple[str, str]] = set()  # devices and tasks whose reply is on a disk

    async def run(self, world: SimulatedLoop) -> None:
        """Tell it; raise BrokenError where something does not hold."""
        world.set_exception_handler(lambda _loop, context: self._uncaught(context))
        with tempfile.TemporaryDirectory(dir=RAM, prefix="simulator-") as folder:
            try:
                await self._run(world, Path(folder))
            finally:
                self.now_s = world.time() - BEGIN_S

    async def _run(self, world: SimulatedLoop, folder: Path) -> None:
        scenario, trace = self.scenario, self.trace
        self.network = Network(scenario.seed, scenario.weathers, trace)
        self.shore = Shore(
            Disk(folder / "shore"),
            slow_s=scenario.shore_slow_s,
            loop=world,
            network=self.network,
            trace=trace,
        )
        self._disk_dice = random.Random(f"power {scenario.seed}")
        for plan in scenario.devices:
            self.devices[plan.name] = Device(
                plan,
                Disk(folder / plan.name),
                loop=world,
                network=self.network,
                trace=trace,
                bundle_key_pem=KEY_PEM,
                on_training=self._look_at_training,
            )
        disks = [self.shore.disk, *(device.disk for device in self.devices.values())]
        with watched(disks):
            await self.shore.start()
            await self.shore.call(self.shore.enrol(list(self.devices)))
            for device in self.devices.values():
                device.start()
            await self._begin()
            weather = world.create_task(self._weather())
            await self._until_over()
            weather.cancel()
            self._calm()
            await self._until_quiet()
        self.now_s = world.time() - BEGIN_S
        at_the_end(self)

    async def _begin(self) -> None:
        async def begin() -> None:
            digest, _ = await self.shore.runs.add_app(app.bundle())
            for number in range(self.scenario.runs):
                options = {**self.scenario.options, "seed": number}
                run = await self.shore.runs.begin(app=digest, name="", options=options, by="seed")
                self.runs.append(run.id)

        await self.shore.call(begin())

    def _uncaught(self, context: dict[str, Any]) -> None:
        if not isinstance(context.get("exception"), PowerCutError):
            self.errors.append(f"nobody caught {context}")

    # What goes wrong.

    async def _weather(self) -> None:
        """Let faults happen when their time has come, and calm return."""
        clock = asyncio.get_running_loop()
        for fault in self.scenario.faults:
            await asyncio.sleep(max(0.0, BEGIN_S + fault.at_s - clock.time()))
            clock.create_task(self._happen(fault))
        await asyncio.sleep(max(0.0, BEGIN_S + self.scenario.calm_s - clock.time()))
        self._calm()

    def _calm(self) -> None:
        self.trace.note("weather", "calm")
        self.network.calm()

    async def _happen(self, fault: Fault) -> None:
        device = self.devices.get(fault.device)
        self.trace.note("weather", f"{fault.kind} {fault.device} {fault.lasts_s:g} s")
        match fault.kind:
            case "cut":
                self.network.cut(fault.device)
            case "silence":
                self.network.silence(fault.device)
            case "block" | "block-up" | "block-down":
                up, down = fault.kind != "block-down", fault.kind != "block-up"
                self.network.block(fault.device, up=up, down=down)
                await asyncio.sleep(fault.lasts_s)
                self.network.block(fault.device, up=False, down=False)
            case "kill" | "power" if device is not None and device.up:
                await self._end_device(device, fault)
            case "kill-within" | "power-within" if device is not None and device.up:
                device.disk.on_death = lambda: self._die(device, self._end_device(device, fault))
                device.disk.arm(int(fault.amount * 40))
            case "shore-kill" | "shore-stop" | "shore-power" if self.shore.up:
                await self._end_shore(fault)
            case "shore-kill-within" | "shore-power-within" if self.shore.up:
                self.shore.disk.on_death = lambda: self._die(self.shore, self._end_shore(fault))
                self.shore.disk.arm(int(fault.amount * 40))
            case "pause" if self.shore.up:
                await self._pause(fault)
            case "clock" if device is not None:
                device.node.wrong_s += _step(fault.amount)
            case "shore-clock":
                self.shore.node.wrong_s += _step(fault.amount)

    async def _pause(self, fault: Fault) -> None:
        """Have an operator pause a run, and resume it, whatever lies between."""
        run = self.runs[int(fault.amount * len(self.runs))]
        for order, then_s in (("pause", fault.lasts_s), ("resume", 0.0)):
            while not await self._ordered(order, run):  # noqa: ASYNC110 - nothing tells of it
                await asyncio.sleep(5.0)  # the operator tries again
            await asyncio.sleep(then_s)

    async def _ordered(self, order: str, run: RunId) -> bool:
        """Give the coordinator an order; return whether it heard it, whatever it said.

        One that says that it is stopping has not.
        """
        if not self.shore.ready:
            return False
        given = self.shore.call(getattr(self.shore.runs, order)(run, "operator"))
        await asyncio.wait({given}, timeout=60.0)
        if not given.done():
            return False
        with contextlib.suppress(SkerryError):
            try:
                given.result()
            except StoppingError:
                return False
        return True

    def _die(self, who: Device | Shore, then: Coroutine[Any, Any, None]) -> None:
        """Kill a node whose own code is on the stack; the rest comes when that has gone."""
        who.kill()
        asyncio.get_running_loop().create_task(then, context=contextvars.Context())

    async def _end_device(self, device: Device, fault: Fault) -> None:
        """Kill a device (a power cut also takes what was not synced), and start it again."""
        if device.up:
            device.kill()
        device.disk.arm(-1)
        if fault.kind.startswith("power"):
            self.trace.note(device.plan.name, device.disk.cut_power(self._disk_dice))
        self._lose_wires(fault, device.plan.name)
        await asyncio.sleep(fault.lasts_s)
        device.start()

    async def _end_shore(self, fault: Fault) -> None:
        """Stop the coordinator in one way or another, and start it again."""
        if fault.kind == "shore-stop":
            await self.shore.stop()
        elif self.shore.up:
            self.shore.kill()
        self.shore.disk.arm(-1)
        if fault.kind.startswith("shore-power"):
            self.trace.note("coordinator", self.shore.disk.cut_power(self._disk_dice))
        self._lose_wires(fault, *self.devices)
        await asyncio.sleep(fault.lasts_s)
        await self.shore.start()

    def _lose_wires(self, fault: Fault, *devices: str) -> None:
        """Lose the wires of who died: its kernel says so, or nothing does any more."""
        for name in devices:
            (self.network.cut if fault.amount * 10 % 1 < 0.5 else self.network.silence)(name)

    # How it ends.

    async def _until_over(self) -> None:
        """Wait until every run has ended, looking at what must hold meanwhile."""
        options, calm = self.scenario.options, self.scenario.calm_s
        phases = options["rounds"] * (2 if self.scenario.evaluates else 1)
        longest = (
            calm
            + 300.0
            + phases * (options["round_deadline_s"] + options["wait_deadline_s"] + 60.0)
        )
        clock = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(LOOK_S)
            self.look()
            found = self.shore.states()
            if all(found[run] not in OPEN_RUNS for run in self.runs) and self.shore.up:
                self.ended = [found[run] for run in self.runs]
                return
            if clock.time() - BEGIN_S > longest:
                raise BrokenError(f"a run has not ended after {longest:g} s: {found}")

    async def _until_quiet(self) -> None:
        """Wait until every device has delivered what it had and forgotten the rest."""
        clock = asyncio.get_running_loop()
        until = clock.time() + QUIET_S
        while any(not device.up or not _idle(device) for device in self.devices.values()):
            await asyncio.sleep(LOOK_S)
            self.look()
            if clock.time() > until:
                held = {name: _held(device) for name, device in self.devices.items()}
                raise BrokenError(f"devices still hold parcels {QUIET_S:g} s after the end: {held}")

    def noting(self, answer: Callable[..., bool]) -> Callable[..., bool]:
        """Return the ledger's `answer`, which then notes what is on the disk when it returns."""

        def noted(ledger: Ledger, task: Parcel, *rest: Any) -> bool:
            kept = answer(ledger, task, *rest)
            if kept:
                self.answered.add((str(NODE.get()), task.id))
            return kept

        return noted

    def acknowledging(
        self, deliver: Callable[[Route, Parcel], Coroutine[Any, Any, None]]
    ) -> Callable[[Route, Parcel], Coroutine[Any, Any, None]]:
        """Return the agent's `deliver`, which then looks at what an acknowledgement is worth."""

        async def looked(route: Route, parcel: Parcel) -> None:
            await deliver(route, parcel)
            if parcel.kind == ParcelKind.REPLY:
                device = self.devices[str(NODE.get())]
                self._check(when_acknowledged, device, parcel.id.removesuffix(REPLY))

        return looked

    def _look_at_training(self, device: Device, task: str) -> None:
        self._check(when_training_begins, device, task)

    def _check(
        self, claim: Callable[["Story", Device, str], None], device: Device, task: str
    ) -> None:
        """Keep what a claim says for the next look: a node's own code is on the stack."""
        try:
            claim(self, device, task)
        except BrokenError as error:
            self.errors.append(str(error))

    def look(self) -> None:
        """Raise BrokenError unless all is well now."""
        if self.errors:
            raise BrokenError(self.errors[0])
        for device in self.devices.values():
            if device.ended is not None:
                raise BrokenError(f"{device.plan.name} ended by itself: {device.ended!r}")
        if self.shore.ended is not None:
            raise BrokenError(f"the coordinator ended by itself: {self.shore.ended!r}")
        at_every_moment(self)


class _Log(logging.Handler):
    """Puts what the product logs into the trace; an exception among it is an error."""

    def __init__(self, story: Story) -> None:
        super().__init__(logging.WARNING)
        self._story = story

    def emit(self, record: logging.LogRecord) -> None:
        node = NODE.get()
        self._story.trace.note(str(node), f"[{record.levelname.lower()}] {record.getMessage()}")
        if record.getMessage().startswith("reply ") and "past its deadline" in record.getMessage():
            self._story.errors.append(f"{node} gave up a reply: {record.getMessage()}")
        if record.exc_info and record.exc_info[1] is not None:
            error = record.exc_info[1]
            where = traceback.extract_tb(error.__traceback__)[-1]
            self._story.errors.append(
                f"{node} logged {record.getMessage()!r}: {type(error).__name__}: {error} "
                f"({Path(where.filename).name}:{where.lineno})"
            )


@contextlib.contextmanager
def _listening(story: Story) -> Iterator[None]:
    """Hear what the product logs."""
    root, handler = logging.getLogger(), _Log(story)
    before, root.handlers = root.handlers, [handler]
    try:
        yield
    finally:
        root.handlers = before


def _began() -> float:
    """Return what the clock of the node showed when its life began."""
    node = NODE.get()
    return EPOCH_S - BEGIN_S if node is None else node.began_s


def _held(device: Device) -> list[str]:
    return [
        f"{place}/{path.name}"
        for place in ("inbox", "outbox")
        for path in sorted((device.home / place).glob("*.parcel"))
    ]


def _idle(device: Device) -> bool:
    return not _held(device)


def _step(amount: float) -> float:
    """Return by how much a clock jumps, seconds."""
    steps = (43_200.0, -43_200.0, 172_800.0, 400 * 86_400.0, -20 * 365 * 86_400.0, 5.0)
    return steps[int(amount * len(steps))]


@contextlib.contextmanager
def _leaves(story: Story) -> Iterator[None]:
    """Put what is simulated in place of what is real, for one story."""
    scenario, seed = story.scenario, story.scenario.seed
    dice = random.Random(f"secrets {seed}")
    SimulatedServer.dice = random.Random(f"server {seed}")
    path = list(sys.path)
    sys.modules[app.MODULE] = app.module(scenario.size, evaluates=scenario.evaluates)
    replaced = [
        (secrets, "randbits", dice.getrandbits),
        (secrets, "token_hex", lambda size=32: dice.randbytes(size).hex()),
        (steady, "_began", _began),
        (crossing, "random", random.Random(f"jitter {seed}")),
        (asker, "threading", Threading()),
        (conductor, "ServerProcess", SimulatedServer),
        (telemetry, "read_machine", lambda _home, metered=None: Readings(metered=metered)),
        (telemetry, "ask_metered", lambda: None),
        (telemetry, "STARTED", 0.0),
        (heartbeat, "capabilities", lambda: ("cpu",)),
        (heartbeat, "versions", dict),
        (reporter, "give_memory_back", lambda: None),
        (Route, "deliver", story.acknowledging(Route.deliver)),
        (Ledger, "answer", story.noting(Ledger.answer)),
    ]
    before = [(module, name, getattr(module, name)) for module, name, _ in replaced]
    for module, name, value in replaced:
        setattr(module, name, value)
    try:
        yield
    finally:
        for module, name, value in before:
            setattr(module, name, value)
        sys.path[:] = path
        sys.modules.pop(app.MODULE, None)
