"""Devices that come after a rollout: they take what the last completed one brought to their kind.

A device counts when it was enrolled after the newest completed rollout of a model from the channel
`stable` had begun, matches its selector, and is in no rollout of that model begun since. It joins
that rollout in its last wave, so that an undo takes it back too. What canary brought, or a rollout
that was for a share of the devices, is for those it was drawn for.
"""

from collections.abc import Mapping

import sqlalchemy as sa
from skerry_protos.messages import DeviceId

from skerry_cloud.models.registry import Models
from skerry_cloud.rollouts import taking
from skerry_cloud.rollouts.choosing import choose
from skerry_cloud.rollouts.lifecycle import DeviceState, RolloutState
from skerry_cloud.rollouts.plan import Plan, is_for_newcomer
from skerry_cloud.store import rollouts as kept
from skerry_cloud.store.devices import Device
from skerry_cloud.store.models import Artefact
from skerry_cloud.store.rollouts import Rollout, RolloutDevice

CHANNEL = "stable"


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
