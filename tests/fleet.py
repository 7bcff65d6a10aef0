"""A whole small fleet in one test: store, registry, runs, one transport, and real agents.

The agents run in this process and share one pool of worker processes; everything else is as in
production. `transport` is "memory", "grpc" or "mqtt".
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from skerry_cloud.brokers import BrokerConfig, open_broker
from skerry_cloud.coordinator import open_models, secrets_in
from skerry_cloud.fleets import Fleet
from skerry_cloud.fleets.grpc import GrpcFleet
from skerry_cloud.fleets.memory import MemoryFleet
from skerry_cloud.fleets.mqtt import MqttFleet
from skerry_cloud.identity import Authority
from skerry_cloud.models.apps import SignedApps
from skerry_cloud.models.registry import Models
from skerry_cloud.models.updates import Updates
from skerry_cloud.registry import Registry
from skerry_cloud.rollouts.engine import Rollouts
from skerry_cloud.runs.engine import Runs
from skerry_cloud.runs.lifecycle import OPEN_RUNS
from skerry_cloud.store import Store, tables
from skerry_cloud.store import runs as kept
from skerry_cloud.store.runs import Run
from skerry_devices.apps import read_app
from skerry_edge.agent import Agent
from skerry_edge.config import AgentConfig, Limits, ModelsTable
from skerry_edge.identity import Identity, LinkAddress
from skerry_edge.links import LinkConfig, open_link
from skerry_edge.links.memory import MemoryLink
from skerry_edge.models import NoSelfTest, SelfTest, Service
from skerry_edge.models.trust import in_process
from skerry_edge.worker.pool import Workers
from skerry_protos.blobs import LocalBlobs
from skerry_protos.messages import DeviceId
from skerry_protos.records import Records, read

TRANSPORTS = ("memory", "grpc", "mqtt")


@dataclass
class SmallFleet:
    """What a test may hold."""

    home: Path
    store: Store
    blobs: LocalBlobs
    registry: Registry
    runs: Runs
    fleet: Fleet
    authority: Authority
    url: str
    workers: Workers
    models: Models
    updates: Updates
    rollouts: Rollouts
    agents: dict[str, asyncio.Task[None]] = field(default_factory=dict)
    running: dict[str, Agent] = field(default_factory=dict)
    self_test: SelfTest | None = None
    service: Callable[[str], Service] | None = None
    models_table: ModelsTable = field(default_factory=ModelsTable)

    async def enrol(
        self, *devices: str, labels: Mapping[str, str] | None = None, first_node: int = 100
    ) -> None:
        """Enrol devices without connecting them."""

        def write(connection: Any) -> None:
            for place, device in enumerate(devices):
                connection.execute(
                    tables.devices.insert().values(
                        id=device, node=first_node + place, enrolled_at=time.time()
                    )
                )
                for key, value in (labels or {}).items():
                    connection.execute(
                        tables.labels.insert().values(device=device, key=key, value=value)
                    )

        await self.store.write(write)

    def start(self, *devices: str) -> None:
        """Start the agents of enrolled devices."""
        for device in devices:
            agent = make_agent(self, device)
            self.running[device] = agent
            self.agents[device] = asyncio.create_task(agent.run(), name=f"agent-{device}")

    async def stop(self, *devices: str) -> None:
        """End agents, as a power cut would."""
        for device in devices:
            task = self.agents.pop(device)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def connected(self, count: int, timeout_s: float = 30.0) -> None:
        """Wait until so many devices are here."""
        async with asyncio.timeout(timeout_s):
            while len(self.registry.connected()) < count:
                for device, task in self.agents.items():
                    if task.done():
                        raise AssertionError(f"{device} ended") from task.exception()
                await self.registry.wait_change(1.0)

    async def begin(self, app: Path, **options: Any) -> Run:
        """Pack an app, send it, and begin a run of it."""
        digest, _ = await self.runs.add_app(read_app(app).bundle)
        return await self.runs.begin(app=digest, name="", options=options, by="test")

    async def ended(self, run: Run, timeout_s: float = 90.0) -> Run:
        """Wait until a run has ended and return it."""
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    news = self.runs.news.next()
                    found = await self.runs.get(run.id)
                    if found.state not in OPEN_RUNS and self.runs.under_way(run.id) is None:
                        return found
                    await self.runs.news.wait(news, 1.0)
        except TimeoutError:
            raise AssertionError(await self.story(run)) from None

    async def train(self, app: Path, **options: Any) -> Run:
        """Run an app to its end, which must be a good one."""
        run = await self.ended(await self.begin(app, **options))
        assert run.state == "completed", await self.story(run)
        return run

    async def events(self, run: Run, *kinds: str) -> list[dict[str, Any]]:
        """Return a run's journal, or what is of these kinds."""
        found = await self.store.read(lambda c: kept.journal(c, run.id))
        return [event for event in found if not kinds or event["kind"] in kinds]

    async def metrics(self, run: Run) -> dict[tuple[int, str, str, str], float]:
        """Return a run's metrics by round, phase, device and name."""
        rows = await self.store.read(lambda c: kept.metric_table(c, run.id))
        return {
            (row["round"], row["phase"], row["device"], row["name"]): row["value"] for row in rows
        }

    async def printed(self, run: Run) -> list[str]:
        """Return what the server side printed."""
        rows = await self.store.read(lambda c: kept.journal(c, run.id, logs=True))
        return [row["data"]["text"] for row in rows]

    async def story(self, run: Run) -> str:
        """Return everything about a run, for a failed test."""
        found = await self.runs.get(run.id)
        conductor = self.runs.under_way(run.id)
        lines = [f"{found.state}: {found.why}", str(conductor and conductor.waiting())]
        lines += [
            f"{event['kind']} {event['round']} {event['device']} {event['data']}"
            for event in await self.events(run)
        ]
        return "\n".join(lines + (await self.printed(run))[-60:])

    def model(self, run: Run) -> Records:
        """Return a run's model."""
        assert run.model is not None
        path = self.blobs.path(run.model)
        assert path is not None
        return read(path)


@contextlib.asynccontextmanager
async def small_fleet(
    home: Path,
    transport: str = "memory",
    devices: Sequence[str] = (),
    *,
    workers: int = 2,
    labels: Mapping[str, str] | None = None,
    self_test: SelfTest | None = None,
    service: Callable[[str], Service] | None = None,
    models_table: ModelsTable | None = None,
) -> AsyncIterator[SmallFleet]:
    """Run a fleet with these devices connected while the block runs."""
    limits = Limits(workers=workers, worker_idle_s=600.0)
    async with contextlib.AsyncExitStack() as stack:
        store = await stack.enter_async_context(Store.open(f"sqlite:///{home}/skerry.db"))
        authority = Authority.open(home)
        blobs = LocalBlobs(home / "blobs")
        registry = await stack.enter_async_context(
            Registry(store=store, authority=authority, heartbeat_s=2.0)
        )
        fleet, url = await _open_fleet(stack, transport, home, registry, blobs)
        models, updates, rollouts = await open_models(
            home, stack, store=store, blobs=blobs, fleet=fleet, registry=registry
        )
        runs = Runs(
            store=store,
            blobs=blobs,
            fleet=fleet,
            roster=registry,
            sign=authority.sign_bundle,
            folder=home / "runs",
            hidden=lambda: secrets_in(home),
            apps=SignedApps(models.repository),
        )
        registry.attach(fleet=fleet, work=runs, serving=updates)
        await stack.enter_async_context(runs)
        await stack.enter_async_context(fleet)  # type: ignore[arg-type]
        pool = await stack.enter_async_context(Workers(home / "work", limits))
        made = SmallFleet(
            home=home,
            store=store,
            blobs=blobs,
            registry=registry,
            runs=runs,
            fleet=fleet,
            authority=authority,
            url=url if url else getattr(fleet, "url", ""),
            workers=pool,
            models=models,
            updates=updates,
            rollouts=rollouts,
            self_test=self_test,
            service=service,
            models_table=models_table or ModelsTable(),
        )
        await made.enrol(*devices, labels=labels)
        made.start(*devices)
        try:
            await made.connected(len(devices))
            yield made
        finally:
            await made.stop(*made.agents)


async def until(claim: Callable[[], bool], timeout_s: float = 30.0) -> None:
    """Wait until a claim holds."""
    async with asyncio.timeout(timeout_s):
        while not claim():  # noqa: ASYNC110 - nothing tells of what tests look at
            await asyncio.sleep(0.02)


async def _open_fleet(
    stack: contextlib.AsyncExitStack,
    transport: str,
    home: Path,
    registry: Registry,
    blobs: LocalBlobs,
) -> tuple[Fleet, str]:
    if transport == "memory":
        name = f"m{abs(hash(str(home)))}"
        return MemoryFleet(name, registry, blobs), f"memory://{name}"
    if transport == "grpc":
        return GrpcFleet(gate=registry, blobs=blobs, host="127.0.0.1", port=0, keys=None), ""
    broker = await stack.enter_async_context(
        open_broker(BrokerConfig(state=home / "broker", port=0))
    )
    return MqttFleet(gate=registry, blobs=blobs, broker=broker), broker.url


def make_agent(fleet: SmallFleet, device: str) -> Agent:
    """Return an enrolled device's agent."""
    home = fleet.home / "devices" / device
    folder = home / "identity"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "bundle.pem").write_text(fleet.authority.bundle_key_pem)
    kind = fleet.url.partition(":")[0]
    identity = Identity(
        folder=folder,
        device=DeviceId(device),
        node=0,
        url="",
        links=(LinkAddress(kind=kind.rstrip("s"), url=fleet.url),),
        heartbeat_s=2.0,
        valid_from=time.time(),
        valid_until=time.time() + 86_400,
    )
    config = AgentConfig(home=home, limits=Limits(workers=4), models=fleet.models_table)

    def opener(config: LinkConfig) -> Any:
        return MemoryLink(config) if config.kind == "memory" else open_link(config)

    return Agent(
        config,
        identity,
        workers=fleet.workers,
        opener=opener,
        self_test=fleet.self_test or NoSelfTest(),
        service=fleet.service(device) if fleet.service else None,
        verify=in_process,
    )
