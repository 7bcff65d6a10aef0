"""Whether a rollout that is asked for may begin: the version, its signatures, devices, others."""

from collections.abc import Iterable

import sqlalchemy as sa
from skerry_protos.errors import ConfigError, RejectedError
from skerry_protos.messages import DeviceId

from skerry_cloud.models.registry import Models
from skerry_cloud.rollouts.plan import Plan
from skerry_cloud.selectors import parse
from skerry_cloud.store import rollouts as kept
from skerry_cloud.store.devices import Device
from skerry_cloud.store.models import Version


def require_fit(models: Models, version: Version, channel: str, plan: Plan) -> None:
    """Raise RejectedError or ConfigError when a version cannot be rolled out from a channel."""
    name = f"{version.model}@{version.version}"
    if version.retired_at is not None:
        raise RejectedError("model-retired", f"{name} was retired: {version.retired_why}")
    if version.quarantined_at is not None and not plan.force:
        error = RejectedError(
            "model-quarantined", f"{name} was bad on devices: {version.quarantined_why}"
        )
        error.hint = "mend it and import a new version, or say --force"
        raise error
    if not models.signed_in(version, channel):
        raise ConfigError(
            f"no artefact of {name} is signed in the channel {channel!r}",
            hint=f"skerry models sign {name} --channel {channel}",
        )


def meant(devices: Iterable[Device], plan: Plan) -> list[Device]:
    """Return the devices that a plan is about; raise ConfigError when there are none."""
    selector = parse(plan.selector)
    every = [one for one in devices if one.revoked_at is None]
    if not every:
        raise ConfigError("no device is enrolled", hint="invite one: skerry devices invite")
    found = [one for one in every if selector.matches(one.labels)]
    if not found:
        raise ConfigError(
            f"no device matches {plan.selector!r}",
            hint=selector.hint(one.labels for one in every),
        )
    return found


def behind(
    connection: sa.Connection, model: str, devices: frozenset[DeviceId], *, queue: bool
) -> str:
    """Return which open rollout of the model a new one waits for; empty: none.

    Raise RejectedError when one has some of its devices and it is not to wait.
    """
    found = ""
    for other in kept.open_ones(connection, model):
        shared = len({each.device for each in kept.members(connection, other.id)} & devices)
        if not shared:
            continue
        if not queue:
            error = RejectedError(
                "rollout-overlap",
                f"rollout {other.id} ({model}@{other.version}, {other.state.value}) has {shared} "
                "of these devices",
            )
            error.hint = "wait for it, abort it, or say --queue to begin when it has ended"
            raise error
        found = other.id
    return found
