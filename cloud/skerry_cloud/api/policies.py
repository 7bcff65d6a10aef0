"""Routes about policies: a run that begins when a model's inputs have drifted."""

import time
from typing import Annotated, Any

from fastapi import APIRouter, Path, Request
from pydantic import BaseModel, ConfigDict, Field

from skerry_cloud.api.auth import Caller, needs, note
from skerry_cloud.policies.engine import Policies
from skerry_cloud.policies.policy import DAY_S, Policy, Verdict
from skerry_cloud.store.operators import Role

Named = Annotated[str, Path(max_length=64, description="A model's name.")]


class PolicyWish(BaseModel):
    """A policy to keep."""

    model_config = ConfigDict(extra="forbid")
    app: str = Field(max_length=64, description="Digest of an app that was sent, or its beginning.")
    options: dict[str, Any] = Field(default_factory=dict, description="Options of the run.")
    threshold: float = Field(0.2, description="Index of drift from which on a device counts.")
    min_devices: int = Field(1, description="How many devices must count.")
    window_s: float = Field(DAY_S, description="Older reports do not count.")
    cooldown_s: float = Field(DAY_S, description="At least so long between two runs.")
    enabled: bool = True


class PolicyView(BaseModel):
    """A policy, and what it says now."""

    model: str
    app: str
    options: dict[str, Any]
    threshold: float
    min_devices: int
    window_s: float
    cooldown_s: float
    enabled: bool
    created_at: float
    created_by: str
    last_at: float | None = Field(description="When a run was begun last.")
    last_run: str
    last_why: str
    now: str = Field(description="Why no run begins now.")
    drifting: list[str] = Field(description="The devices that count, the farthest first.")


class PolicyList(BaseModel):
    """Policies, by model."""

    items: list[PolicyView]


def router(policies: Policies) -> APIRouter:
    """Return the routes."""
    routes = APIRouter(prefix="/v1/policies", tags=["models"])

    async def shown(model: str) -> PolicyView:
        every = await policies.listed()
        found = next((pair for pair in every if pair[0].model == model), None)
        return _view(*found) if found else _view(await policies.get(model), _NOTHING)

    @routes.get("", dependencies=[needs(Role.VIEWER)])
    async def list_policies() -> PolicyList:
        """List policies and what they say now."""
        return PolicyList(items=[_view(*each) for each in await policies.listed()])

    @routes.put("/{model}", dependencies=[needs(Role.OPERATOR)])
    async def set_policy(
        model: Named, wish: PolicyWish, caller: Caller, request: Request
    ) -> PolicyView:
        """Keep a model's policy, in place of its old one."""
        policy = Policy.parse(model, wish.model_dump(), by=caller.name, now=time.time())
        await policies.keep(policy)
        note(request, **wish.model_dump(exclude={"options"}))
        return await shown(model)

    @routes.delete("/{model}", dependencies=[needs(Role.OPERATOR)], status_code=204)
    async def remove_policy(model: Named) -> None:
        """Forget a model's policy; a run that it began goes on."""
        await policies.remove(model)

    return routes


_NOTHING = Verdict(begin=False, why="")


def _view(policy: Policy, verdict: Verdict) -> PolicyView:
    values: dict[str, Any] = {name: getattr(policy, name, None) for name in PolicyView.model_fields}
    values["options"] = dict(policy.options)
    values |= {"now": verdict.why, "drifting": [str(each) for each in verdict.devices[:100]]}
    return PolicyView(**values)
