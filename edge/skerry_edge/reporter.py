"""What a device tells: heartbeats and lines to the coordinator, its status to this machine."""

import asyncio
import contextlib
import math
import os

from skerry_protos.allocator import give_memory_back
from skerry_protos.errors import DeadlineError, RejectedError
from skerry_protos.messages import DeviceId, Parcel, ParcelId, ParcelKind, new_id

from skerry_edge import telemetry
from skerry_edge.clock import Clock
from skerry_edge.conditions import Readings
from skerry_edge.config import AgentConfig
from skerry_edge.energy import Budget
from skerry_edge.heartbeat import State, heartbeat
from skerry_edge.journal import Journal
from skerry_edge.outbox import Ledger
from skerry_edge.renewal import Renewal
from skerry_edge.routes import Route
from skerry_edge.status import Status, write_status

JOURNAL_S = 1.0
STATUS_S = 0.5
"""The status is written so often at most, but for the last one."""


class Reporter:
    """Knows what the agent does now and what it waits for, and says so."""

    def __init__(
        self,
        config: AgentConfig,
        device: DeviceId,
        *,
        route: Route,
        ledger: Ledger,
        clock: Clock,
        journal: Journal,
        renewal: Renewal,
        budget: Budget,
    ) -> None:
        self._config, self._device = config, device
        self._route, self._ledger = route, ledger
        self._clock, self._journal, self._renewal = clock, journal, renewal
        self._budget = budget
        self._every_s = config.agent.heartbeat_s or renewal.identity.heartbeat_s
        self._metered = config.agent.metered
        self._now = asyncio.Event()
        self._working = 0
        self._worked = False
        self._waiting = ""
        self._wrote_s = -math.inf
        self._due: asyncio.TimerHandle | None = None

    @property
    def state(self) -> State:
        """What the agent does now, in a word."""
        if self._working:
            return "working"
        return "waiting" if self._waiting else "idle"

    def work(self, change: int) -> None:
        """Note that so many tasks more (or less) are worked on."""
        self._working += change
        self._worked = True
        self.changed()

    def wait(self, why: str) -> None:
        """Note what keeps the agent from working; nothing does when empty."""
        if why != self._waiting:
            self._waiting = why
            self._now.set()
            self.changed()

    def welcome(self, unix_s: float, deadlines_s: float, every_s: float) -> None:
        """Take the coordinator's time and wish at the begin of a session."""
        self._clock.set(unix_s, deadlines_s)
        self._every_s = self._config.agent.heartbeat_s or every_s or self._every_s
        self._now.set()

    def look(self) -> Readings:
        """Return how the machine is now."""
        return telemetry.read_machine(self._config.home, metered=self._metered)

    async def beat(self) -> None:
        """Send heartbeats while there is a connection; the newest replaces all before it."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._every_s):
                    await self._now.wait()
            self._now.clear()
            if self._worked and not self._working:
                self._worked = False
                give_memory_back()
            if self._config.agent.metered is None:
                self._metered = await asyncio.to_thread(telemetry.ask_metered)
            energy_j = self._budget.update()
            if self._route.connected:
                said = heartbeat(
                    self.look(),
                    profile=self._config.agent.profile,
                    state=self.state,
                    waiting_for=self._waiting,
                    tasks=[parcel.id for parcel in self._ledger.inbox],
                    energy_today_j=energy_j,
                    energy_source=self._budget.source,
                    labels=self._config.labels,
                )
                await self.send(ParcelKind.HEARTBEAT, said.SerializeToString())

    async def ask_renewal(self, csr: bytes) -> None:
        """Ask for a new certificate; the answer comes as a parcel."""
        await self.send(ParcelKind.RENEW, csr)

    async def send(self, kind: ParcelKind, body: bytes) -> None:
        """Send a parcel that is worth nothing once the next one is due."""
        deadline = self._clock.deadlines() + self._every_s
        parcel = Parcel(
            id=ParcelId(new_id(f"{kind}-")), kind=kind, deadline_unix_s=deadline, body=body
        )
        with contextlib.suppress(DeadlineError, RejectedError):
            await self._route.deliver(parcel)

    async def print(self) -> None:
        """Send lines of apps and of our own, in batches."""
        while True:
            await self._journal.filled.wait()
            await asyncio.sleep(JOURNAL_S)
            if not self._route.connected:
                continue
            for parcel in self._journal.parcels():
                with contextlib.suppress(DeadlineError, RejectedError):
                    await self._route.deliver(parcel)

    def changed(self, state: str = "") -> None:
        """Write what the agent does now where `skerry-agent status` looks, twice a second at most.

        A last `state` is written at once.
        """
        loop = asyncio.get_running_loop()
        wait_s = self._wrote_s + STATUS_S - loop.time()
        if self._due is not None:
            if not state:
                return
            self._due.cancel()
        if wait_s > 0 and not state:
            self._due = loop.call_later(wait_s, self._write, state)
        else:
            self._write(state)

    def _write(self, state: str) -> None:
        self._due, self._wrote_s = None, asyncio.get_running_loop().time()
        route = self._route
        status = Status(
            pid=os.getpid(),
            device=self._device,
            state=state or self.state,
            link=route.address.url if route.address else "",
            connected=route.connected,
            why=route.why,
            waiting_for=self._waiting,
            tasks=[parcel.id for parcel in self._ledger.inbox],
            replies=len(self._ledger.outbox),
            clock_offset_s=round(self._clock.offset_s, 3),
            certificate_until=self._renewal.identity.valid_until,
        )
        with contextlib.suppress(OSError):  # a full disk: the heartbeat says so
            write_status(self._config.home, status)
