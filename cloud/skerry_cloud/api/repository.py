"""Routes about the TUF repository: what is signed by whom, and taking what an operator signed."""

import asyncio
import json
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import BaseModel, Field
from skerry_protos.blobs import LocalBlobs
from skerry_protos.errors import PeerError

from skerry_cloud.api.auth import Caller, needs, note
from skerry_cloud.api.errors import ApiError
from skerry_cloud.models.registry import Models
from skerry_cloud.models.repository import OFFERED, Repository
from skerry_cloud.models.standing import NotInitialisedError
from skerry_cloud.store.operators import Role

METADATA_LIMIT = 8 * 1024**2
METADATA_PATH = "/v1/repository"


class RoleView(BaseModel):
    """A role of the repository."""

    role: str
    version: int
    expires_at: float
    threshold: int
    keys: list[str]
    targets: int
    draft: bool = Field(description="Whether a newer version waits for more signatures.")


class RepositoryView(BaseModel):
    """How the repository is."""

    initialised: bool
    roles: list[RoleView]
    online: dict[str, Any] = Field(description="The coordinator's public keys, by role.")


def router(models: Models, blobs: LocalBlobs) -> APIRouter:
    """Return the routes."""
    routes = APIRouter(prefix=METADATA_PATH, tags=["models"])
    repository = models.repository

    @routes.get("", dependencies=[needs(Role.VIEWER)])
    async def show_repository() -> RepositoryView:
        """Show the repository's roles: versions, expiry, keys, drafts."""
        return RepositoryView(
            initialised=repository.initialised,
            roles=_roles(repository),
            online={
                role: {"keyid": key.keyid, **key.to_dict()}
                for role, key in repository.online.public().items()
            },
        )

    @routes.get("/files/{role}", dependencies=[needs(Role.VIEWER)])
    async def metadata(role: str, draft: bool = False) -> Response:
        """Return a role's newest metadata, or its draft, as it was signed."""
        found = repository.metadata(role, draft=draft)
        if found is None:
            raise ApiError(404, "not-found", f"there is no {'draft of ' * draft}{role[:40]!r}")
        return Response(found.to_bytes(), media_type="application/json")

    @routes.get("/set", dependencies=[needs(Role.VIEWER)])
    async def metadata_set() -> Response:
        """Return all metadata in one piece, as devices get it."""
        ref = await repository.as_blob()
        path = await asyncio.to_thread(blobs.path, ref.digest)
        assert path is not None
        return Response(await asyncio.to_thread(path.read_bytes), media_type="application/json")

    @routes.post("/next-keys", dependencies=[needs(Role.ADMIN)])
    async def next_keys() -> dict[str, Any]:
        """Make the coordinator's next keys; they count once a signed root names them."""
        made = await asyncio.to_thread(repository.online.prepare)
        return {role: {"keyid": key.keyid, **key.to_dict()} for role, key in made.items()}

    @routes.post("", dependencies=[needs(Role.OPERATOR)])
    async def offer(request: Request, caller: Caller) -> dict[str, int]:
        """Take signed metadata by role; answer how many signatures each lacks (0: it counts)."""
        try:
            said = json.loads(await request.body())
            offered = {str(role): str(text).encode() for role, text in said.items()}
        except (ValueError, AttributeError) as error:
            raise PeerError(f"this is not metadata by role: {error}") from error
        if set(offered) & {"root", "director-root", "targets"} and not caller.role.includes(
            Role.ADMIN
        ):
            raise ApiError(403, "forbidden", "root and targets are an admin's to change")
        note(request, roles=sorted(set(offered) & set(OFFERED)))
        lacking = await repository.accept(offered, caller.name)
        if repository.initialised:
            await models.follow_channels(caller.name)
        return lacking

    return routes


def _roles(repository: Repository) -> list[RoleView]:
    try:
        root = repository.root
    except NotInitialisedError:
        return []
    found = []
    targets = repository.metadata("targets")
    for role in ("root", "targets", "stable", "canary", "apps", "snapshot", "timestamp"):
        metadata = repository.metadata(role)
        if metadata is None:
            continue
        top = role in root.roles
        rights = root.roles[role] if top else targets.signed.delegations.roles[role]  # type: ignore[union-attr]
        found.append(
            RoleView(
                role=role,
                version=metadata.signed.version,
                expires_at=metadata.signed.expires.timestamp(),
                threshold=rights.threshold,
                keys=list(rights.keyids),
                targets=len(getattr(metadata.signed, "targets", ())),
                draft=repository.metadata(role, draft=True) is not None,
            )
        )
    return found
