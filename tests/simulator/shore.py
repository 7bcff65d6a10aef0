"""The coordinator of a simulation: its real parts, a database in memory, a simulated sea."""

import asyncio
import contextlib
import functools
import importlib
import sqlite3
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from skerry_cloud.fleets.sessions import Sessions
from skerry_cloud.identity import Authority
from skerry_cloud.registry import Registry
from skerry_cloud.runs import Runs
from skerry_cloud.store import Store, tables
from skerry_cloud.store.engine import GROUP_LIMIT, _Job
from skerry_cloud.store.migrate import migrate
from skerry_protos.blobs import LocalBlobs
from skerry_protos.errors import LinkError, RefusedError
from skerry_protos.session.handshake import HELLO_S

from tests.simulator.devices import HEARTBEAT_S
from tests.simulator.disk import Disk
from tests.simulator.loop import EPOCH_S, Node, PowerCutError, SimulatedLoop
from tests.simulator.network import End, Network
from tests.simulator.trace import Trace


class _Turns:
    """The writer's queue: what came within a moment is committed together, in the loop."""

    def __init__(self, store: "SimulatedStore") -> None:
        self._store = store
        self._jobs: list[_Job] = []

    def put(self, job: _Job | None) -> None:
        if job is None:
            return
        self._jobs.append(job)
        if len(self._jobs) == 1:
            node = self._store.node
            delay_s = self._store.loop.moment(node.slow_s)
            self._store.loop.call_later(delay_s, self._commit)

    def _commit(self) -> None:
        jobs, self._jobs = self._jobs[:GROUP_LIMIT], self._jobs[GROUP_LIMIT:]
        with contextlib.suppress(PowerCutError):
            self._store._commit([one for one in jobs if one.future.set_running_or_notify_cancel()])
        if self._jobs:
            self._store.loop.call_soon(self._commit)


class SimulatedStore(Store):
    """A Store whose writer is no thread: the same groups, transactions and savepoints."""

    def __init__(self, engine: sa.Engine, node: Node, loop: SimulatedLoop) -> None:
        self.url = engine.url
        self.node, self.loop = node, loop
        self._writer = self._reader = engine
        self._jobs: Any = _Turns(self)
        self._pool = None  # type: ignore[assignment]
        self._closed = False
        self._stuck = None

    async def close(self) -> None:
        self._closed = True


@functools.cache
def _engine() -> sa.Engine:
    """Return this process's one database, in memory; compiled statements are kept with it."""
    engine = sa.create_engine(
        "sqlite://", poolclass=sa.StaticPool, connect_args={"check_same_thread": False}
    )

    @sa.event.listens_for(engine, "connect")
    def configure(connection: sqlite3.Connection, _record: object) -> None:
        connection.isolation_level = None
        connection.execute("PRAGMA foreign_keys=ON")

    @sa.event.listens_for(engine, "begin")
    def begin(connection: sa.Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    migrate(engine)
    return engine


@functools.cache
def _empty_database() -> bytes:
    return _raw(_engine()).serialize()


def _raw(engine: sa.Engine) -> sqlite3.Connection:
    connection = engine.raw_connection().driver_connection
    assert isinstance(connection, sqlite3.Connection)
    return connection


KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
"""Signs bundles; the same in every process, so that stories are the same."""
KEY_PEM = KEY.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


@functools.cache
def _authority() -> Authority:
    """Return an authority for the registry; no simulated device renews its certificate."""
    with tempfile.TemporaryDirectory() as folder:
        return Authority.open(Path(folder))


def make_ready() -> None:
    """Make what a process makes once and keeps: its first story is told as all the others."""
    _authority()
    _empty_database()
    importlib.import_module("numpy.random")  # draws a secret when it is loaded


class _Fleet(Sessions):
    """The session side of a fleet over the simulated sea."""

    def __init__(self, registry: Registry, blobs: LocalBlobs) -> None:
        super().__init__(
            gate=registry, blobs=blobs, transport="memory", heartbeat_s=HEARTBEAT_S, resume_s=120.0
        )
        self._wires: set[asyncio.Task[None]] = set()

    def connected(self, end: End) -> None:
        task = asyncio.ensure_future(self._read(end))
        self._wires.add(task)
        task.add_done_callback(self._wires.discard)

    async def _read(self, end: End) -> None:
        try:
            async with asyncio.timeout(HELLO_S):
                visit = await self.greet(
                    await end.receive(),
                    end,
                    identity=None,
                    close=end.close,
                    max_packet=end.max_received,
                )
        except (LinkError, RefusedError, TimeoutError):
            end.close()
            return
        try:
            with contextlib.suppress(LinkError):
                while True:
                    visit.receive(await end.receive())
        finally:
            end.close()
            await self.leave(visit, "the device closed the wire")

    async def finish(self) -> None:
        await self.close()
        for task in self._wires:
            task.cancel()
        if self._wires:
            await asyncio.wait(self._wires)


class Shore:
    """The coordinator through all its lives."""

    def __init__(
        self, disk: Disk, *, slow_s: float, loop: SimulatedLoop, network: Network, trace: Trace
    ) -> None:
        self.disk, self.home = disk, disk.root
        self.engine = _engine()
        _raw(self.engine).deserialize(_empty_database())
        self.node = Node("coordinator", slow_s=slow_s)
        self._loop, self._network, self._trace = loop, network, trace
        self._running: asyncio.Task[None] | None = None
        self._ready = asyncio.Event()
        self.runs: Runs
        self.registry: Registry
        self.store: SimulatedStore
        self.blobs: LocalBlobs

    @property
    def up(self) -> bool:
        """Whether it runs now."""
        return self._running is not None

    @property
    def ready(self) -> bool:
        """Whether devices and operators may come."""
        return self.up and self._ready.is_set()

    @property
    def ended(self) -> BaseException | None:
        """Why the coordinator has ended by itself, which it never should."""
        if self._running is None or not self._running.done():
            return None
        return self._running.exception() or RuntimeError("the coordinator returned")

    async def start(self) -> None:
        """Begin a life; return when devices may connect."""
        old = self.node
        self.node = Node("coordinator", wrong_s=old.wrong_s, slow_s=old.slow_s)
        self._ready = asyncio.Event()
        self._trace.note("coordinator", "starts")
        self._running = self._loop.create_task(self._live(), context=self.node.context)
        ready = self._loop.create_task(self._ready.wait())
        await asyncio.wait({self._running, ready}, return_when=asyncio.FIRST_COMPLETED)
        ready.cancel()

    async def _live(self) -> None:
        self.store = SimulatedStore(self.engine, self.node, self._loop)
        self.blobs = LocalBlobs(self.home / "blobs")
        async with Registry(
            store=self.store, authority=_authority(), heartbeat_s=HEARTBEAT_S
        ) as self.registry:
            fleet = _Fleet(self.registry, self.blobs)
            self.runs = Runs(
                store=self.store,
                blobs=self.blobs,
                fleet=fleet,
                roster=self.registry,
                sign=KEY.sign,
                folder=self.home / "runs",
            )
            self.registry.attach(fleet=fleet, work=self.runs)
            context = self.node.context
            async with self.runs:
                self._network.welcome = lambda _device, end: context.run(fleet.connected, end)
                self._ready.set()
                try:
                    await asyncio.Event().wait()
                finally:
                    self._network.welcome = None
                    await fleet.finish()

    async def enrol(self, devices: list[str]) -> None:
        """Enrol devices without a certificate."""

        def write(connection: sa.Connection) -> None:
            for place, device in enumerate(devices):
                connection.execute(
                    tables.devices.insert().values(
                        id=device, node=100 + place, enrolled_at=EPOCH_S + place
                    )
                )

        await self.store.write(write)

    def call(self, coroutine: Any) -> "asyncio.Task[Any]":
        """Do something as the coordinator does it: it dies with it."""
        return self._loop.create_task(coroutine, context=self.node.context)

    def kill(self) -> None:
        """End this life now, wherever it is; wires are left to the network."""
        self._loop.kill(self.node)
        self._network.welcome = None
        self._running = None
        self._trace.note("coordinator", "is killed")

    async def stop(self) -> None:
        """End this life as SIGTERM does."""
        assert self._running is not None
        self._trace.note("coordinator", "is stopped")
        self._running.cancel()
        await asyncio.wait({self._running})
        self._loop.kill(self.node)  # with its process ends what a start that was cut short began
        self._network.welcome = None
        self._running = None

    def states(self) -> dict[str, str]:
        """Return every run's state."""
        return dict(_raw(self.engine).execute("SELECT id, state FROM run"))

    def rows(self, table: sa.Table) -> Iterator[dict[str, Any]]:
        """Yield what the database holds, whether the coordinator lives or not."""
        with self.engine.connect() as connection:
            order = table.c[table.primary_key.columns.keys()[0]]
            for row in connection.execute(sa.select(table).order_by(order)).mappings():
                yield dict(row)
