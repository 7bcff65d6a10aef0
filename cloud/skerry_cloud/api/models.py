"""Routes about models: import, list, compare, label, retire."""

import asyncio
import tempfile
from collections.abc import Mapping
from pathlib import Path as FilePath
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request
from fastapi.responses import FileResponse
from pydantic import BaseModel, ConfigDict, Field
from skerry_protos.blobs import LocalBlobs
from skerry_protos.errors import ConfigError

from skerry_cloud.api.auth import Caller, needs, note
from skerry_cloud.api.errors import ApiError
from skerry_cloud.models.registry import Models, custom_of, differences, target_path
from skerry_cloud.store import Store
from skerry_cloud.store import models as kept
from skerry_cloud.store.models import Artefact, Version
from skerry_cloud.store.operators import Role

ARTEFACT_LIMIT = 4 * 1024**3
"""Largest artefact that the API takes, bytes."""
BLOCK = 1024**2
UPLOAD_PATH = "/v1/uploads"

Named = Annotated[str, Path(max_length=200, description="model, model@version or model@label.")]


class ArtefactView(BaseModel):
    """One file of a version."""

    file: str
    digest: str
    size: int
    runtime: str
    profile: str
    manifest: dict[str, Any]
    signed: list[str] = Field(description="The channels that have signed these very bytes.")
    custom: dict[str, Any] = Field(description="What a signer says of it, for devices.")


class VersionView(BaseModel):
    """A model's version."""

    model: str
    version: int
    created_at: float
    created_by: str
    labels: list[str]
    lineage: dict[str, Any]
    retired_at: float | None
    retired_why: str
    quarantined_at: float | None
    quarantined_why: str
    artefacts: list[ArtefactView]
    devices: dict[str, int] = Field(
        default_factory=dict, description="How many devices say they are at which phase with it."
    )


class VersionList(BaseModel):
    """Versions, the newest of each model first."""

    items: list[VersionView]


class ImportWish(BaseModel):
    """A new version, of files that were uploaded before."""

    model_config = ConfigDict(extra="forbid")
    model: str = Field(max_length=64)
    files: dict[str, str] = Field(description="Artefact's file name: digest of the upload.")
    lineage: dict[str, Any] = Field(default_factory=dict)


class LabelWish(BaseModel):
    """A label for a version."""

    model_config = ConfigDict(extra="forbid")
    label: str = Field(max_length=32)


class Reason(BaseModel):
    """Why, for people who look later."""

    model_config = ConfigDict(extra="forbid")
    why: str = Field("", max_length=500)


def router(models: Models, store: Store, blobs: LocalBlobs) -> APIRouter:
    """Return the routes."""
    routes = APIRouter(prefix="/v1", tags=["models"])

    async def shown(version: Version) -> VersionView:
        reports = await store.read(lambda c: kept.reports(c, model=version.model))
        return _view(models, version, reports)

    @routes.get("/models", dependencies=[needs(Role.VIEWER)])
    async def list_models(
        model: Annotated[str | None, Query(max_length=64)] = None,
    ) -> VersionList:
        """List models and their versions."""
        found = await store.read(lambda c: kept.listed(c, model))
        return VersionList(items=[await shown(version) for version in found])

    @routes.get("/models/{model}", dependencies=[needs(Role.VIEWER)])
    async def show_model(model: Named) -> VersionView:
        """Show a version: its artefacts, figures, lineage, signatures, and where it serves."""
        return await shown(await models.find(model))

    @routes.get("/models/{model}/diff", dependencies=[needs(Role.VIEWER)])
    async def diff_models(
        model: Named, other: Annotated[str, Query(max_length=200)]
    ) -> dict[str, Any]:
        """Compare a version with another one."""
        old, new = await models.find(model), await models.find(other)
        return {
            "old": f"{old.model}@{old.version}",
            "new": f"{new.model}@{new.version}",
            "artefacts": differences(old.artefacts, new.artefacts),
            "lineage": _changed(old.lineage, new.lineage),
        }

    @routes.get("/models/{model}/artefacts/{file}", dependencies=[needs(Role.VIEWER)])
    async def artefact(model: Named, file: str) -> FileResponse:
        """Return an artefact's bytes."""
        version = await models.find(model)
        found = next((each for each in version.artefacts if each.file == file), None)
        path = await asyncio.to_thread(blobs.path, found.digest) if found else None
        if found is None or path is None:
            raise ApiError(404, "not-found", f"{model} has no artefact {file[:80]!r} here")
        return FileResponse(
            path,
            media_type="application/octet-stream",
            filename=file,
            headers={"X-Skerry-Digest": found.digest},
        )

    @routes.post("/uploads", dependencies=[needs(Role.OPERATOR)])
    async def upload(request: Request) -> dict[str, Any]:
        """Keep a file for a version that is made of it next."""
        with tempfile.TemporaryDirectory(dir=blobs.root, prefix="upload-") as folder:
            path = FilePath(folder) / "file"
            with path.open("wb") as file:
                async for block in request.stream():
                    await asyncio.to_thread(file.write, block)
            ref = await asyncio.to_thread(blobs.adopt, path)
        return {"digest": ref.digest, "size": ref.size}

    @routes.post("/models", dependencies=[needs(Role.OPERATOR)])
    async def import_model(wish: ImportWish, caller: Caller, request: Request) -> VersionView:
        """Make a new version of a model from uploaded artefacts."""
        with tempfile.TemporaryDirectory(dir=blobs.root, prefix="import-") as folder:
            files: dict[str, FilePath] = {}
            for place, (name, digest) in enumerate(wish.files.items()):
                source = _uploaded(blobs, digest)
                files[name] = FilePath(folder) / str(place)
                await asyncio.to_thread(files[name].hardlink_to, source)
            version = await models.add(wish.model, files, lineage=wish.lineage, by=caller.name)
        note(request, model=version.model, version=version.version)
        return await shown(version)

    @routes.post("/models/{model}/label", dependencies=[needs(Role.OPERATOR)])
    async def label_model(model: Named, wish: LabelWish, caller: Caller) -> VersionView:
        """Let a label name this version."""
        return await shown(await models.label(model, wish.label, caller.name))

    @routes.post("/models/{model}/retire", dependencies=[needs(Role.OPERATOR)])
    async def retire_model(model: Named, reason: Reason, request: Request) -> VersionView:
        """Take a version out of use."""
        version = await models.retire(model, reason.why)
        note(request, model=version.model, version=version.version)
        return await shown(version)

    return routes


def _uploaded(blobs: LocalBlobs, digest: str) -> FilePath:
    path = blobs.path(digest)  # type: ignore[arg-type]
    if path is None:
        raise ConfigError(f"no file with digest {digest[:12]} was uploaded", hint="send it again")
    return path


def _view(models: Models, version: Version, reports: list[kept.Report]) -> VersionView:
    phases: dict[str, int] = {}
    digests = {each.digest for each in version.artefacts}
    for report in reports:
        if report.digest in digests:
            phases[report.phase] = phases.get(report.phase, 0) + 1
    fields = {
        name: getattr(version, name)
        for name in VersionView.model_fields
        if name not in {"artefacts", "devices"}
    }
    return VersionView(
        **fields,
        artefacts=[_artefact(models, each) for each in version.artefacts],
        devices=phases,
    )


def _artefact(models: Models, each: Artefact) -> ArtefactView:
    signed = []
    for channel in ("canary", "stable"):
        found = models.repository.target(str(target_path(channel, each)))
        if found is not None and found.hashes.get("sha256") == each.digest:
            signed.append(channel)
    return ArtefactView(
        file=each.file,
        digest=each.digest,
        size=each.size,
        runtime=each.runtime,
        profile=each.profile,
        manifest=dict(each.manifest),
        signed=signed,
        custom=custom_of(each),
    )


def _changed(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, list[Any]]:
    return {
        key: [old.get(key), new.get(key)]
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
    }
