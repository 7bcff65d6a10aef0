"""A simulated device: the real agent on its own folder; only its worker and its wire are leaves."""

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from skerry_edge.agent import Agent
from skerry_edge.config import AgentConfig, Limits
from skerry_edge.energy import Budget
from skerry_edge.identity import Identity, LinkAddress
from skerry_edge.links import LinkConfig
from skerry_edge.links.crossing import Connection, Crossing
from skerry_edge.worker.coding import whole
from skerry_edge.worker.messages import Job, Outcome
from skerry_edge.worker.pool import Workers
from skerry_edge.worker.process import Result
from skerry_protos import records
from skerry_protos.messages import DeviceId

from tests.simulator import app
from tests.simulator.disk import Disk
from tests.simulator.loop import EPOCH_S, Node, SimulatedLoop
from tests.simulator.network import Network
from tests.simulator.scenario import DevicePlan
from tests.simulator.trace import Trace

HEARTBEAT_S = 15.0


class SimulatedMeter:
    """Counts two watts in the story's time: no real meter says the same again."""

    source = "estimated"

    def joules(self) -> float:
        """Return the joules since the story began."""
        return 2.0 * time.monotonic()


class SimulatedWorkers(Workers):
    """A pool whose jobs take virtual time and are pure functions of task and device."""

    def __init__(
        self, folder: Path, limits: Limits, plan: DevicePlan, trained: Callable[[str, str], None]
    ) -> None:
        super().__init__(folder, limits)
        self._plan = plan
        self._trained = trained

    async def run(self, job: Job, *_: Any, **_named: Any) -> Result:
        async with self._slots:
            dice = random.Random(f"{self._plan.seed}/{job.message_type}/{job.round}")
            self._trained(job.id, "begins")
            slowness = self._plan.stuck_s if dice.random() < self._plan.stuck else 1.0
            await asyncio.sleep(self._plan.compute_s * (0.5 + dice.random()) * slowness)
            failed = dice.random() < self._plan.fails
            if not failed:
                train = job.message_type == "train"
                asked = whole(job, records.read(Path(job.content)))
                reply = app.answer(asked, job.device, train=train)
                if dice.random() < self._plan.spoils:
                    reply = app.spoiled(reply, dice)
                await asyncio.to_thread(Path(job.reply).write_bytes, records.to_bytes(reply))
            self._trained(job.id, "fails" if failed else "ends")
            outcome = Outcome(
                id=job.id, failed=failed, code=6 if failed else 0, reason="planned" * failed
            )
            return Result(outcome=outcome, log_tail="", warm=True)


class SimulatedLink(Crossing):
    """A link over the simulated sea."""

    def __init__(self, config: LinkConfig, network: Network) -> None:
        super().__init__(config, self._connect)
        self._network = network

    @contextlib.asynccontextmanager
    async def _connect(self) -> AsyncIterator[Connection]:
        end = await self._network.dial(self._config.device)
        try:
            yield end
        finally:
            end.close()


class Device:
    """One device through all its lives."""

    def __init__(
        self,
        plan: DevicePlan,
        disk: Disk,
        *,
        loop: SimulatedLoop,
        network: Network,
        trace: Trace,
        bundle_key_pem: bytes,
        on_training: Callable[["Device", str], None],
    ) -> None:
        self.plan, self.disk, self.home = plan, disk, disk.root
        self.node = Node(plan.name, wrong_s=plan.wrong_s, slow_s=plan.slow_s)
        self._on_training = on_training
        self._loop, self._network, self._trace = loop, network, trace
        self._running: asyncio.Task[None] | None = None
        folder = self.home / "identity"
        folder.mkdir(parents=True)
        (folder / "bundle.pem").write_bytes(bundle_key_pem)
        self._identity = Identity(
            folder=folder,
            device=DeviceId(plan.name),
            node=0,
            url="",
            links=(LinkAddress(kind="memory", url="memory://sea"),),
            heartbeat_s=HEARTBEAT_S,
            valid_from=EPOCH_S,
            valid_until=EPOCH_S + 3650 * 86_400.0,
        )

    @property
    def up(self) -> bool:
        """Whether it runs now."""
        return self._running is not None

    @property
    def ended(self) -> BaseException | None:
        """Why the agent has ended by itself, which it never should."""
        if self._running is None or not self._running.done():
            return None
        return self._running.exception() or RuntimeError("the agent returned")

    def start(self) -> None:
        """Begin a life."""
        old = self.node
        self.node = Node(self.plan.name, wrong_s=old.wrong_s, slow_s=old.slow_s)
        self._running = self._loop.create_task(self._live(), context=self.node.context)
        self._trace.note(self.plan.name, "starts")

    async def _live(self) -> None:
        limits = Limits(workers=self.plan.workers)
        config = AgentConfig(home=self.home, limits=limits)
        async with SimulatedWorkers(
            self.home / "work", limits, self.plan, self._note_trained
        ) as workers:
            # The clock is named late: in this module's words it is the story's.
            budget = Budget(
                SimulatedMeter(),
                self.home / "energy.json",
                now=lambda: time.time(),  # noqa: PLW0108
            )
            agent = Agent(config, self._identity, workers=workers, opener=self._open, budget=budget)
            await agent.run()

    def _open(self, config: LinkConfig) -> SimulatedLink:
        return SimulatedLink(config, self._network)

    def _note_trained(self, task: str, what: str) -> None:
        self._trace.note(self.plan.name, f"training for {task} {what}")
        if what == "begins":
            self._on_training(self, task)

    def kill(self) -> None:
        """End this life now, wherever it is; wires are left to the network."""
        self._loop.kill(self.node)
        self._running = None
        self._trace.note(self.plan.name, "is killed")
