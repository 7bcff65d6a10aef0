"""Devices that come after a rollout: they take what the last completed one brought to their kind.

A device counts when it was enrolled after the newest completed rollout of a model from the channel
`stable` had begun, matches its selector, and is in no rollout of that model begun since. It joins
that rollout in its last wave, so that an undo takes it back too. What canary brought, or a rollout
that was for a share of the devices, is for those it was drawn for.
"""

import asyncio
import logging
from collections.abc import Coroutine, Mapping
from typing import Protocol

import sqlalchemy as sa
from skerry_protos.messages import DeviceId

from skerry_cloud.models.registry import Models
from skerry_cloud.models.updates import Updates
from skerry_cloud.rollouts import taking
from skerry_cloud.rollouts.choosing import choose
from skerry_cloud.rollouts.lifecycle import DeviceState, RolloutState
from skerry_cloud.rollouts.plan import Plan, is_for_newcomer
from skerry_cloud.store import Store
from skerry_cloud.store import rollouts as kept
from skerry_cloud.store.devices import Device
from skerry_cloud.store.models import Artefact, Report
from skerry_cloud.store.rollouts import Rollout, RolloutDevice

log = logging.getLogger(__name__)

CHANNEL = "stable"
AGAIN_S = 5.0
LOOKS = 6
"""How often a device that came is looked at until there is an artefact for it."""


class Roster(Protocol):
    """Who is enrolled and who is here (skerry_cloud.registry.Registry)."""

    def connected(self) -> frozenset[DeviceId]: ...

    async def device(self, device: str) -> Device | None: ...


class Latecomers:
    """Sees to devices that come, beside the rollouts; `turn` is held while rollouts change."""

    def __init__(
        self, *, store: Store, models: Models, updates: Updates, roster: Roster, turn: asyncio.Lock
    ) -> None:
        self._store, self._models, self._updates = store, models, updates
        self._roster, self._turn = roster, turn
        self._late: set[tuple[str, DeviceId]] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        updates.on_present = self.catch_up

    async def begin(self) -> None:
        """Go on hearing those that an earlier coordinator had let join."""
        self._late = await self._store.read(unsettled)

    async def end(self) -> None:
        """Stop."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def heard(self, report: Report) -> None:
        """Take note that a device said something of a rollout that is over."""
        late = (report.rollout, report.device)
        if late in self._late:
            self._spawn(self._hear(*late))

    def catch_up_all(self) -> None:
        """Let those who came during a rollout have what it has brought, now that it is over."""
        self._spawn(self._catch_up_all())

    async def catch_up(self, device: DeviceId, looks: int = LOOKS) -> None:
        """Let a device that came after a rollout have what it brought."""
        found = await self._roster.device(device)
        if found is None:
            return
        async with self._turn:
            missed = await self._store.read(lambda c: due(c, found))
            if not missed:
                return
            chosen = await choose_for(self._models, missed, found)
            if len(chosen) < len(missed) and looks > 1:  # it has yet to say what it is and has
                self._spawn(self._catch_up_later(device, looks - 1))
            if not chosen:
                return
            told = await self._store.write(lambda c: join(c, found, chosen))
            self._late |= {(rollout, device) for rollout in chosen}
        log.info("device %s takes what %s brought", device, ", ".join(chosen))
        self._updates.tell(told)

    async def _catch_up_later(self, device: DeviceId, looks: int) -> None:
        await asyncio.sleep(AGAIN_S)
        if device in self._roster.connected():
            await self.catch_up(device, looks)

    async def _catch_up_all(self) -> None:
        for device in sorted(self._roster.connected()):
            await self.catch_up(device)

    async def _hear(self, rollout: str, device: DeviceId) -> None:
        if not await self._store.write(lambda c: hear(c, rollout, device)):
            self._late.discard((rollout, device))

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._over)

    def _over(self, done: "asyncio.Task[None]") -> None:
        self._tasks.discard(done)
        if not done.cancelled() and (error := done.exception()) is not None:
            log.error("latecomers: %s", error or type(error).__name__, exc_info=error)


def due(connection: sa.Connection, device: Device) -> list[Rollout]:
    """Return the completed rollouts that a device is to join."""
    if device.revoked_at is not None:
        return []
    return [
        rollout
        for rollout in kept.newest_completed(connection, CHANNEL)
        if device.enrolled_at > rollout.created_at
        and is_for_newcomer(Plan.parse(rollout.plan), device.labels)
        and not kept.is_member_since(connection, rollout, device.id)
    ]


async def choose_for(
    models: Models, rollouts: list[Rollout], device: Device
) -> dict[str, Artefact]:
    """Return, by rollout, the artefact that a device is to have; those that must not, are left."""
    found = {}
    for rollout in rollouts:
        version = await models.find(f"{rollout.model}@{rollout.version}")
        if version.retired_at is not None or version.quarantined_at is not None:
            continue
        artefact = choose(models.signed_in(version, rollout.channel), device)
        if isinstance(artefact, Artefact):
            found[rollout.id] = artefact
    return found


def join(
    connection: sa.Connection, device: Device, chosen: Mapping[str, Artefact]
) -> set[DeviceId]:
    """Let a device join rollouts and assign what they brought; return whom to tell."""
    told: set[DeviceId] = set()
    for rollout in due(connection, device):  # looked at again: an order may have come between
        if (artefact := chosen.get(rollout.id)) is None:
            continue
        plan = Plan.parse(rollout.plan)
        wave = len(plan.waves) - 1
        late = RolloutDevice(
            rollout=rollout.id, device=device.id, wave=wave, state=DeviceState.WAITING
        )
        kept.add_member(connection, late)
        told |= taking.ask_wave(connection, rollout, plan, wave, {device.id: artefact})
    return told


def hear(connection: sa.Connection, rollout: str, device: DeviceId) -> bool:
    """Take over what a device says of a rollout that is over; return whether more may come."""
    found = kept.find(connection, rollout)
    if found is None or found.state is not RolloutState.COMPLETED:
        return False
    taking.hear(connection, found)
    return any(
        (each.rollout, each.device) == (rollout, device)
        for each in kept.unsettled_in_completed(connection)
    )


def unsettled(connection: sa.Connection) -> set[tuple[str, DeviceId]]:
    """Return the rollouts that are over, with devices in them that have yet to settle."""
    return {(each.rollout, each.device) for each in kept.unsettled_in_completed(connection)}
