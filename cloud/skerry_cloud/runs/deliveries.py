"""Tasks on their way to devices: sent, sent again, taken back. One `Deliveries` per run."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Coroutine, Iterable, Mapping
from dataclasses import replace
from typing import Any

from skerry_protos import steady
from skerry_protos.errors import LinkError, RejectedError, SkerryError
from skerry_protos.failpoints import failpoint
from skerry_protos.messages import BlobRef, DeviceId, Parcel, ParcelId, RunId

from skerry_cloud.runs import traces
from skerry_cloud.runs.exchange import Exchange, Part
from skerry_cloud.runs.lifecycle import TaskEvent
from skerry_cloud.runs.tasks import NODE_UNAVAILABLE, OUTAGE_S, cancel_parcel
from skerry_cloud.runs.world import World
from skerry_cloud.store import tasks as kept

log = logging.getLogger(__name__)

CANCEL_DEADLINE_S = 10.0

Spawn = Callable[[Coroutine[Any, Any, None]], "asyncio.Task[None]"]
Fail = Callable[[ParcelId, int, str], Coroutine[Any, Any, None]]


class Deliveries:
    """A run's tasks that are being sent."""

    def __init__(self, run: RunId, world: World, spawn: Spawn, fail: Fail) -> None:
        self._run = run
        self._world = world
        self._spawn = spawn
        self._fail = fail
        self._under_way: dict[ParcelId, asyncio.Task[None]] = {}
        self.held = False

    def hold(self) -> None:
        """Send nothing more until `go`."""
        self.held = True
        for task in self._under_way.values():
            task.cancel()

    def go(self) -> None:
        """Send again."""
        self.held = False

    def announce(self, exchange: Exchange) -> None:
        """Let a transport with broadcast send what several devices are about to want, once."""
        wanted: dict[str, tuple[BlobRef, list[DeviceId]]] = {}
        for part in exchange.open:
            for ref in part.parcel.blobs:
                wanted.setdefault(ref.digest, (ref, []))[1].append(part.device)
        for ref, devices in wanted.values():
            if len(devices) > 1:
                self._world.fleet.cast(ref, devices)

    def send(self, exchange: Exchange, part: Part) -> None:
        """Send a device its task, unless that is being done."""
        if not self.held and part.task not in self._under_way:
            task = self._spawn(self._deliver(exchange, part))
            self._under_way[part.task] = task
            task.add_done_callback(lambda done: self._over(part.task, done))

    def _over(self, name: ParcelId, task: "asyncio.Task[None]") -> None:
        if self._under_way.get(name) is task:
            del self._under_way[name]

    async def _deliver(self, exchange: Exchange, part: Part) -> None:
        """Send one task; a device that is away gets it when it is present again."""
        # The deadline may have moved since the task was made.
        parcel = replace(part.parcel, deadline_unix_s=exchange.deadline + OUTAGE_S)
        try:
            async with asyncio.timeout(max(0.0, exchange.deadline - steady.unix_s())):
                with traces.delivering(self._run, part):
                    await self._world.fleet.deliver(part.device, parcel)
        except RejectedError as error:
            await self._fail(part.task, NODE_UNAVAILABLE, f"the device rejects it: {error.message}")
        except (LinkError, TimeoutError) as error:
            log.debug("task %s is not at %s yet: %s", part.task, part.device, error)
        else:
            failpoint("send.acknowledged")
            if not part.stored:
                part.stored = True
                await self._world.write(
                    lambda c: kept.move(c, part.task, TaskEvent.STORED, sent_at=time.time())
                )

    def forget(self, exchange: Exchange) -> None:
        """Stop sending what a closed question asked."""
        for task in exchange.parts:
            delivering = self._under_way.get(task)
            if delivering is not None and delivering is not asyncio.current_task():
                delivering.cancel()

    def cancel(self, parts: Iterable[Part], why: str) -> list[asyncio.Task[None]]:
        """Tell devices to stop working on these."""
        by_device: dict[DeviceId, list[ParcelId]] = {}
        for part in parts:
            by_device.setdefault(part.device, []).append(part.task)
        return self._cancel(by_device, why)

    def end(
        self, parts: Iterable[Part], kept: Iterable[DeviceId], why: str
    ) -> list[asyncio.Task[None]]:
        """Tell devices to stop working on these, and who keeps something that the run is over."""
        by_device: dict[DeviceId, list[ParcelId]] = {device: [] for device in kept}
        for part in parts:
            by_device.setdefault(part.device, []).append(part.task)
        return self._cancel(by_device, why, run_over=True)

    def _cancel(
        self, by_device: Mapping[DeviceId, list[ParcelId]], why: str, *, run_over: bool = False
    ) -> list[asyncio.Task[None]]:
        return [
            self._spawn(
                self._deliver_cancel(
                    device, cancel_parcel(self._run, tasks, why, run_over=run_over)
                )
            )
            for device, tasks in by_device.items()
        ]

    async def _deliver_cancel(self, device: DeviceId, parcel: Parcel) -> None:
        """Tell one device to stop; one that is away learns it from the task's deadline."""
        with contextlib.suppress(SkerryError, TimeoutError):
            async with asyncio.timeout(CANCEL_DEADLINE_S):
                await self._world.fleet.deliver(device, parcel)
