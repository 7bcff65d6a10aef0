"""Routes about invites: making join tokens, seeing what they admitted, withdrawing them."""

import time
from typing import Annotated, Any

from fastapi import APIRouter, Path, Request
from pydantic import BaseModel, ConfigDict, Field
from skerry_protos.tokens import JoinToken

from skerry_cloud.api.auth import Caller, needs, note
from skerry_cloud.api.errors import ApiError
from skerry_cloud.selectors import check_labels
from skerry_cloud.store import Store, invites
from skerry_cloud.store.invites import LIFE_LIMIT_S, USES_LIMIT, Invite
from skerry_cloud.store.operators import Role


class NewInvite(BaseModel):
    """What a join token shall be good for."""

    model_config = ConfigDict(extra="forbid")
    uses: int = Field(1, ge=1, le=USES_LIMIT, description="How many devices it admits.")
    expires_s: float = Field(3600.0, gt=0, le=LIFE_LIMIT_S, description="How long, in seconds.")
    labels: dict[str, str] = Field({}, max_length=64, description="What its devices are labelled.")


class InviteView(BaseModel):
    """An invite; its secret is shown once, when it is made."""

    id: str
    state: str = Field(description="open, used, expired or revoked")
    uses: int
    uses_left: int
    created_at: float
    created_by: str
    expires_at: float
    labels: dict[str, str]


class MadeInvite(InviteView):
    """A new invite and the token to join by."""

    token: str = Field(description="For `skerry-agent join`; it is not shown again.")
    url: str


class Invites(BaseModel):
    """A list of invites, newest first."""

    items: list[InviteView]


def router(store: Store, *, url: str, pin: str) -> APIRouter:
    """Return the routes; tokens name `url` and the authority with `pin`."""
    routes = APIRouter(prefix="/v1/invites", tags=["invites"])

    @routes.post("", dependencies=[needs(Role.OPERATOR)])
    async def create_invite(asked: NewInvite, caller: Caller, request: Request) -> MadeInvite:
        """Make a join token."""
        check_labels(asked.labels)
        invite, secret = await store.write(
            lambda c: invites.create(
                c,
                uses=asked.uses,
                life_s=asked.expires_s,
                labels=asked.labels,
                operator=caller.name,
            )
        )
        note(request, invite=invite.id, **asked.model_dump())
        token = JoinToken(url=url, pin=pin, invite=invite.id, secret=secret).encode()
        return MadeInvite(**fields(invite), token=token, url=url)

    @routes.get("", dependencies=[needs(Role.VIEWER)])
    async def list_invites() -> Invites:
        """List invites, also those that are used up."""
        found = await store.read(invites.listed)
        return Invites(items=[InviteView(**fields(invite)) for invite in found])

    @routes.delete("/{invite}", status_code=204, dependencies=[needs(Role.OPERATOR)])
    async def withdraw_invite(invite: Annotated[str, Path(max_length=32)]) -> None:
        """Let a join token admit nobody any more; devices that joined by it stay."""
        if not await store.write(lambda c: invites.withdraw(c, invite)):
            raise ApiError(404, "not-found", f"no invite {invite!r}")

    return routes


def fields(invite: Invite) -> dict[str, Any]:
    """Return what the API shows of an invite."""
    shown = {name: getattr(invite, name) for name in InviteView.model_fields if name != "state"}
    return shown | {"state": invite.state(time.time())}
