"""Which device takes what: assignments of a wave, what reports mean, and going back.

Every function takes the writer's connection; together they are one transaction of the engine.
"""

from collections.abc import Mapping

import sqlalchemy as sa
from skerry_protos.artefacts import Phase, TargetPath
from skerry_protos.messages import DeviceId, Digest

from skerry_cloud.models.registry import target_path
from skerry_cloud.rollouts.lifecycle import BAD, DeviceState, RolloutEvent
from skerry_cloud.rollouts.plan import Plan
from skerry_cloud.store import models as kept_models
from skerry_cloud.store import rollouts as kept
from skerry_cloud.store.models import Artefact, Assignment, Report
from skerry_cloud.store.rollouts import Rollout, RolloutDevice

STATES = {
    Phase.VERIFYING: DeviceState.ASKED,
    Phase.FETCHING: DeviceState.ASKED,
    Phase.TESTING: DeviceState.ASKED,
    Phase.TRIAL: DeviceState.TRIAL,
    Phase.LIVE: DeviceState.LIVE,
    Phase.REFUSED: DeviceState.REFUSED,
    Phase.FAILED: DeviceState.FAILED,
    Phase.ROLLED_BACK: DeviceState.FAILED,
}
HAVING = frozenset({DeviceState.ASKED, DeviceState.TRIAL, DeviceState.LIVE})
"""States of devices that have the version, or are about to."""


def ask_wave(
    connection: sa.Connection,
    rollout: Rollout,
    plan: Plan,
    wave: int,
    chosen: Mapping[DeviceId, Artefact | str],
) -> set[DeviceId]:
    """Assign the version to a wave's devices; return whom to tell."""
    told = set()
    held = {each.device: each for each in kept_models.assigned(connection, model=rollout.model)}
    before = {each.device: each for each in kept_models.reports(connection, model=rollout.model)}
    for member in kept.members(connection, rollout.id):
        if member.wave != wave or member.state is not DeviceState.WAITING:
            continue
        artefact = chosen[member.device]
        if isinstance(artefact, str):
            kept.move(connection, member, DeviceState.LEFT, artefact)
            continue
        path = str(target_path(rollout.channel, artefact))
        old, report = held.get(member.device), before.get(member.device)
        readings = {"before": dict(report.readings)} if report is not None else {}
        kept_models.assign(
            connection,
            Assignment(
                device=member.device,
                model=rollout.model,
                target=path,
                digest=artefact.digest,
                size=artefact.size,
                rollout=rollout.id,
                wish=plan.wish(),
            ),
        )
        kept.move(
            connection,
            member,
            DeviceState.ASKED,
            target=path,
            digest=artefact.digest,
            previous=old.target if old is not None else "",
            readings=readings,
        )
        told.add(member.device)
    return told


def hear(connection: sa.Connection, rollout: Rollout) -> None:
    """Take over what the devices have reported."""
    reports = {each.device: each for each in kept_models.reports(connection, model=rollout.model)}
    wanted = {each.device: each for each in kept_models.assigned(connection, model=rollout.model)}
    for member in kept.members(connection, rollout.id):
        report = reports.get(member.device)
        if report is None or member.state in {DeviceState.WAITING, DeviceState.LEFT}:
            continue
        if member.state is DeviceState.REVERTING:
            _hear_reverting(connection, member, report, wanted.get(member.device))
        elif report.rollout == rollout.id and report.digest == member.digest:
            readings = {**member.readings, "now": dict(report.readings)}
            state = STATES[Phase(report.phase)]
            kept.move(connection, member, state, report.why, readings=readings)


def _hear_reverting(
    connection: sa.Connection,
    member: RolloutDevice,
    report: Report,
    wanted: Assignment | None,
) -> None:
    """Note that a device serves what it served before."""
    back = report.serving_digest == (wanted.digest if wanted is not None else "")
    if back and report.serving_digest != member.digest:
        kept.move(connection, member, DeviceState.REVERTED, member.why)


def after_order(connection: sa.Connection, name: str, event: RolloutEvent) -> set[DeviceId]:
    """Do to a rollout's devices what an order means; return whom to tell."""
    rollout = kept.find(connection, name)
    assert rollout is not None
    told: set[DeviceId] = set()
    for member in kept.members(connection, name):
        match event:
            case RolloutEvent.RESUME if member.state in BAD:
                kept.move(connection, member, DeviceState.LEFT, member.why)
            case RolloutEvent.ABORT | RolloutEvent.UNDO if member.state is DeviceState.WAITING:
                kept.move(connection, member, DeviceState.LEFT, "the rollout did not reach it")
            case RolloutEvent.ABORT if member.state is DeviceState.ASKED:
                if _give_back(connection, rollout, member):
                    told.add(member.device)
                kept.move(connection, member, DeviceState.LEFT, "the rollout was aborted")
            case RolloutEvent.UNDO if member.state in HAVING | BAD:
                if not _give_back(connection, rollout, member):
                    continue  # another rollout has the device now
                told.add(member.device)
                if member.state in HAVING:
                    kept.move(connection, member, DeviceState.REVERTING, member.why)
    return told


def _give_back(connection: sa.Connection, rollout: Rollout, member: RolloutDevice) -> bool:
    """Assign what a device had before; return whether the assignment was this rollout's."""
    now = {each.model: each for each in kept_models.assigned(connection, device=member.device)}.get(
        rollout.model
    )
    if now is None or now.rollout != rollout.id:
        return False
    artefact = _artefact(connection, member.previous) if member.previous else None
    kept_models.assign(
        connection,
        Assignment(
            device=member.device,
            model=rollout.model,
            target=member.previous if artefact is not None else "",
            digest=artefact.digest if artefact is not None else Digest(""),
            size=artefact.size if artefact is not None else 0,
            # it is that rollout's again, so that it can be undone too
            rollout=kept.owner(connection, member) or rollout.id,
            wish=now.wish,
        ),
    )
    return True


def _artefact(connection: sa.Connection, path: str) -> Artefact | None:
    target = TargetPath.parse(path)
    version = kept_models.find(connection, target.model, target.version)
    if version is None:
        return None
    return next((each for each in version.artefacts if each.file == target.file), None)
