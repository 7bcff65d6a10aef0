"""What the tests of rollouts share: a quick plan, waiting for an end, the devices' slots."""

import asyncio
from collections.abc import Callable
from typing import Any

from skerry_cloud.rollouts.lifecycle import OPEN
from skerry_cloud.store import rollouts as kept
from skerry_cloud.store.rollouts import Rollout
from skerry_edge.models.slots import Slots

from tests.fleet import SmallFleet

QUICK: dict[str, Any] = {
    "waves": ["25%", "100%"],
    "soak_s": 0.2,
    "period_s": 0.2,
    "trial_s": 0.2,
}


async def ended(fleet: SmallFleet, rollout: Rollout, within_s: float = 60.0) -> Rollout:
    """Wait until a rollout has ended and return it."""
    return await reached(fleet, rollout, lambda found: found.state not in OPEN, within_s)


async def reached(
    fleet: SmallFleet, rollout: Rollout, claim: Callable[[Rollout], bool], within_s: float = 60.0
) -> Rollout:
    """Wait until a claim holds of a rollout and return it."""
    try:
        async with asyncio.timeout(within_s):
            while not claim(found := await fleet.rollouts.get(rollout.id)):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
    except TimeoutError:
        raise AssertionError(await story(fleet, rollout)) from None
    return found


async def story(fleet: SmallFleet, rollout: Rollout) -> str:
    """Return a rollout's journal, for a failed test."""
    now = await fleet.rollouts.get(rollout.id)
    events = await fleet.store.read(lambda c: kept.journal(c, rollout.id))
    lines = [f"{e['kind']} {e['wave']} {e['device']} {e['data']}" for e in events]
    return "\n".join([f"{now.state}: {now.why} {fleet.rollouts.waiting(rollout.id)}", *lines])


async def states(fleet: SmallFleet, rollout: Rollout) -> dict[str, str]:
    """Return each device's state in a rollout."""
    members = await fleet.store.read(lambda c: kept.members(c, rollout.id))
    return {each.device: each.state.value for each in members}


def slots_of(fleet: SmallFleet, device: str, model: str = "digits") -> Slots:
    """Return a device's slots as they are on its disk."""
    home = fleet.home / "devices" / device
    return Slots(home / "models" / model, home / "trust" / "slots" / f"{model}.json")


def serving(fleet: SmallFleet, *devices: str, model: str = "digits") -> list[int]:
    """Return the version that each device serves; 0: none."""
    found = [slots_of(fleet, device, model).live for device in devices]
    return [slot.release.version if slot else 0 for slot in found]
