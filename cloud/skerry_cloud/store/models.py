"""Models, artefacts, TUF metadata and assignments in the database.

Every function takes the writer's connection (`Store.write`) or a reader's (`Store.read`).
"""

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa
from skerry_protos.messages import DeviceId, Digest

from skerry_cloud.store.tables import (
    artefacts,
    assignments,
    device_models,
    directed,
    model_labels,
    model_versions,
    models,
    tuf_metadata,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Artefact:
    """One file of a model's version, for one runtime and one (or any) device profile."""

    model: str
    version: int
    file: str
    digest: Digest
    size: int
    runtime: str = ""
    profile: str = ""
    manifest: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """A model's version with its artefacts."""

    model: str
    version: int
    created_at: float
    created_by: str
    lineage: Mapping[str, Any]
    retired_at: float | None
    retired_why: str
    quarantined_at: float | None
    quarantined_why: str
    artefacts: tuple[Artefact, ...] = ()
    labels: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Signed:
    """TUF metadata as it was signed."""

    repository: str
    role: str
    version: int
    content: bytes
    expires_at: float
    draft: bool = False
    at: float = 0.0
    by: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """What the director wants a device to serve of a model."""

    device: DeviceId
    model: str
    target: str  # empty: the model is withdrawn from the device
    digest: Digest
    size: int
    rollout: str
    wish: Mapping[str, Any]
    at: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """A device's newest report on a model."""

    device: DeviceId
    model: str
    sequence: int
    rollout: str
    target: str
    digest: str
    phase: str
    why: str
    readings: Mapping[str, float]
    serving: str
    serving_digest: str
    at: float
    choice: Mapping[str, Any] = field(default_factory=dict)  # models.choices


# Models and versions.


def add(
    connection: sa.Connection,
    model: str,
    files: Iterable[Artefact],
    *,
    lineage: Mapping[str, Any],
    by: str,
) -> Version:
    """Keep a new version of a model (made now when it is the first) with these artefacts."""
    now = time.time()
    if connection.execute(sa.select(models.c.name).where(models.c.name == model)).first() is None:
        connection.execute(models.insert().values(name=model, created_at=now, created_by=by))
    newest = sa.select(sa.func.max(model_versions.c.version)).where(model_versions.c.model == model)
    version = (connection.execute(newest).scalar() or 0) + 1
    connection.execute(
        model_versions.insert().values(
            model=model, version=version, created_at=now, created_by=by, lineage=dict(lineage)
        )
    )
    for each in files:
        keep_artefact(connection, each, model=model, version=version)
    found = find(connection, model, version)
    assert found is not None
    return found


def keep_artefact(connection: sa.Connection, each: Artefact, *, model: str, version: int) -> None:
    """Keep an artefact of a version, in place of one of the same name."""
    same = (
        artefacts.c.model == model,
        artefacts.c.version == version,
        artefacts.c.file == each.file,
    )
    connection.execute(artefacts.delete().where(*same))
    connection.execute(
        artefacts.insert().values(
            model=model,
            version=version,
            file=each.file,
            digest=each.digest,
            size=each.size,
            runtime=each.runtime,
            profile=each.profile,
            manifest=dict(each.manifest),
        )
    )


def names(connection: sa.Connection) -> list[str]:
    """Return the names of all models."""
    return list(connection.execute(sa.select(models.c.name).order_by(models.c.name)).scalars())


def find(connection: sa.Connection, model: str, version: int) -> Version | None:
    """Return a version, or None."""
    found = listed(connection, model, version)
    return found[0] if found else None


def listed(
    connection: sa.Connection, model: str | None = None, version: int | None = None
) -> list[Version]:
    """Return versions, the newest of each model first."""
    chosen = sa.select(model_versions).order_by(
        model_versions.c.model, model_versions.c.version.desc()
    )
    held, named = sa.select(artefacts).order_by(artefacts.c.file), sa.select(model_labels)
    if model is not None:
        chosen = chosen.where(model_versions.c.model == model)
        held = held.where(artefacts.c.model == model)
        named = named.where(model_labels.c.model == model)
    if version is not None:
        chosen = chosen.where(model_versions.c.version == version)
        held = held.where(artefacts.c.version == version)
    files: dict[tuple[str, int], list[Artefact]] = {}
    for row in connection.execute(held).mappings():
        files.setdefault((row["model"], row["version"]), []).append(Artefact(**row))
    labels: dict[tuple[str, int], list[str]] = {}
    for row in connection.execute(named).mappings():
        labels.setdefault((row["model"], row["version"]), []).append(row["label"])
    return [
        Version(
            **row,
            artefacts=tuple(files.get((row["model"], row["version"]), ())),
            labels=tuple(sorted(labels.get((row["model"], row["version"]), ()))),
        )
        for row in connection.execute(chosen).mappings()
    ]


def change_version(connection: sa.Connection, model: str, version: int, **values: object) -> None:
    """Set columns of a version."""
    connection.execute(
        model_versions.update()
        .where(model_versions.c.model == model, model_versions.c.version == version)
        .values(**values)
    )


def quarantine(connection: sa.Connection, model: str, version: int, why: str) -> None:
    """Note that a version was bad on devices."""
    now, said = time.time(), why[:500]
    change_version(connection, model, version, quarantined_at=now, quarantined_why=said)


def label(connection: sa.Connection, model: str, name: str, version: int | None, by: str) -> None:
    """Let a label name this version of a model; None: no version."""
    connection.execute(
        model_labels.delete().where(model_labels.c.model == model, model_labels.c.label == name)
    )
    if version is not None:
        connection.execute(
            model_labels.insert().values(
                model=model, label=name, version=version, at=time.time(), by=by
            )
        )


# TUF metadata.


def keep_signed(connection: sa.Connection, *new: Signed) -> None:
    """Keep metadata, in place of a draft of the same version."""
    for each in new:
        connection.execute(
            tuf_metadata.delete().where(
                tuf_metadata.c.repository == each.repository,
                tuf_metadata.c.role == each.role,
                sa.or_(tuf_metadata.c.version == each.version, tuf_metadata.c.draft),
            )
        )
        connection.execute(
            tuf_metadata.insert().values(
                repository=each.repository,
                role=each.role,
                version=each.version,
                content=each.content,
                expires_at=each.expires_at,
                draft=each.draft,
                at=each.at or time.time(),
                by=each.by,
            )
        )


def drop_old(connection: sa.Connection, repository: str, role: str, *, keep: int) -> None:
    """Forget all but the newest versions of a role's metadata."""
    newest = (
        sa.select(tuf_metadata.c.version)
        .where(
            tuf_metadata.c.repository == repository,
            tuf_metadata.c.role == role,
            ~tuf_metadata.c.draft,
        )
        .order_by(tuf_metadata.c.version.desc())
        .limit(keep)
    )
    least = min(connection.execute(newest).scalars(), default=0)
    connection.execute(
        tuf_metadata.delete().where(
            tuf_metadata.c.repository == repository,
            tuf_metadata.c.role == role,
            ~tuf_metadata.c.draft,
            tuf_metadata.c.version < least,
        )
    )


def all_signed(connection: sa.Connection, repository: str) -> list[Signed]:
    """Return a repository's metadata, oldest versions first, drafts too."""
    chosen = (
        sa.select(tuf_metadata)
        .where(tuf_metadata.c.repository == repository)
        .order_by(tuf_metadata.c.role, tuf_metadata.c.version)
    )
    return [Signed(**row) for row in connection.execute(chosen).mappings()]


# Assignments and reports.


def assign(connection: sa.Connection, *new: Assignment) -> None:
    """Say what devices are to serve, in place of what they were to before."""
    for each in new:
        connection.execute(
            assignments.delete().where(
                assignments.c.device == each.device, assignments.c.model == each.model
            )
        )
        connection.execute(
            assignments.insert().values(
                device=each.device,
                model=each.model,
                target=each.target,
                digest=each.digest,
                size=each.size,
                rollout=each.rollout,
                wish=dict(each.wish),
                at=each.at or time.time(),
            )
        )
        renumber(connection, each.device)


def unassign(connection: sa.Connection, device: str, model: str) -> None:
    """Say that a device is to serve nothing new of a model."""
    done = connection.execute(
        assignments.delete().where(assignments.c.device == device, assignments.c.model == model)
    )
    if done.rowcount:
        renumber(connection, device)


def renumber(connection: sa.Connection, device: str) -> int:
    """Return the next number of the director's word to a device."""
    found = connection.execute(
        sa.select(directed.c.number).where(directed.c.device == device)
    ).scalar()
    if found is None:
        connection.execute(directed.insert().values(device=device, number=1))
        return 1
    connection.execute(
        directed.update().where(directed.c.device == device).values(number=found + 1)
    )
    return int(found) + 1


def assigned(
    connection: sa.Connection, *, device: str | None = None, model: str | None = None
) -> list[Assignment]:
    """Return assignments of a device, or of a model, or all."""
    chosen = sa.select(assignments).order_by(assignments.c.device, assignments.c.model)
    if device is not None:
        chosen = chosen.where(assignments.c.device == device)
    if model is not None:
        chosen = chosen.where(assignments.c.model == model)
    return [Assignment(**row) for row in connection.execute(chosen).mappings()]


def number_of(connection: sa.Connection, device: str) -> int:
    """Return the number of the director's newest word to a device; 0: none yet."""
    found = connection.execute(
        sa.select(directed.c.number).where(directed.c.device == device)
    ).scalar()
    return int(found or 0)


def keep_report(connection: sa.Connection, report: Report) -> bool:
    """Keep a device's report when it is newer than the one kept; return whether it is."""
    same = (
        device_models.c.device == report.device,
        device_models.c.model == report.model,
    )
    held = connection.execute(sa.select(device_models.c.sequence).where(*same)).scalar()
    if held is not None and held >= report.sequence:
        return False
    values = {name: getattr(report, name) for name in Report.__dataclass_fields__}
    connection.execute(device_models.delete().where(*same))
    connection.execute(
        device_models.insert().values(
            **{**values, "readings": dict(report.readings), "choice": dict(report.choice)}
        )
    )
    return True


def reports(
    connection: sa.Connection, *, model: str | None = None, device: str | None = None
) -> list[Report]:
    """Return the newest report of each device on each model."""
    chosen = sa.select(device_models).order_by(device_models.c.device, device_models.c.model)
    if model is not None:
        chosen = chosen.where(device_models.c.model == model)
    if device is not None:
        chosen = chosen.where(device_models.c.device == device)
    return [Report(**row) for row in connection.execute(chosen).mappings()]
