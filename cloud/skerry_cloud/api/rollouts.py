"""Routes about rollouts: begin, watch, pause, take back."""

import asyncio
import time
from collections import Counter
from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request
from pydantic import BaseModel, ConfigDict, Field

from skerry_cloud.api.auth import Caller, needs, note
from skerry_cloud.rollouts.engine import Rollouts
from skerry_cloud.rollouts.lifecycle import OPEN
from skerry_cloud.store import models as kept_models
from skerry_cloud.store import rollouts as kept
from skerry_cloud.store.devices import Device
from skerry_cloud.store.models import Report
from skerry_cloud.store.operators import Role
from skerry_cloud.store.rollouts import Rollout

WAIT_LIMIT_S = 60.0
LOOK_S = 0.5
MEMBER_FIELDS = (
    "device",
    "wave",
    "state",
    "why",
    "target",
    "readings",
    "asked_at",
    "changed_at",
)

Named = Annotated[str, Path(max_length=64, description="A rollout's id, or a beginning of it.")]


class RolloutWish(BaseModel):
    """A rollout to begin."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "example": {
                "model": "digits@3",
                "channel": "canary",
                "plan": {"waves": ["10%", "100%"], "soak_s": "10m"},
            }
        },
    )
    model: str = Field(max_length=200, description="model@version, model@label, or model.")
    channel: str = Field("stable", pattern="^(stable|canary)$")
    plan: dict[str, Any] = Field(default_factory=dict, description="See docs/rollout.md.")
    queue: bool = Field(False, description="Begin after an open rollout with the same devices.")


class RolloutView(BaseModel):
    """A rollout in a list."""

    id: str
    model: str
    version: int
    channel: str
    state: str
    why: str
    wave: int
    waves: int
    waiting: dict[str, Any] | None = Field(description="why, until_unix_s")
    counts: dict[str, int] = Field(description="How many devices are in which state.")
    created_at: float
    created_by: str
    ended_at: float | None


class RolloutDetail(RolloutView):
    """A rollout with its plan and devices."""

    plan: dict[str, Any]
    devices: list[dict[str, Any]]


class RolloutList(BaseModel):
    """Rollouts, the newest first."""

    items: list[RolloutView]


class EventPage(BaseModel):
    """Events in order; ask again with `after` = the last one's id."""

    items: list[dict[str, Any]]


def router(rollouts: Rollouts) -> APIRouter:
    """Return the routes."""
    routes = APIRouter(prefix="/v1/rollouts", tags=["rollouts"])
    store = rollouts.store

    async def detail(rollout: Rollout) -> RolloutDetail:
        members = await store.read(lambda c: kept.members(c, rollout.id))
        reports = await store.read(lambda c: kept_models.reports(c, model=rollout.model))
        heard = {each.device: each for each in reports}
        seen = await rollouts.seen()
        return RolloutDetail(
            **_fields(rollouts, rollout, members),
            plan=dict(rollout.plan),
            devices=[_member(each, heard.get(each.device), seen) for each in members],
        )

    @routes.get("", dependencies=[needs(Role.VIEWER)])
    async def list_rollouts(
        model: Annotated[str | None, Query(max_length=64)] = None,
    ) -> RolloutList:
        """List rollouts, the newest first."""
        found = await store.read(lambda c: kept.listed(c, model))
        items = []
        for rollout in found:
            members = await store.read(lambda c, name=rollout.id: kept.members(c, name))  # type: ignore[misc]
            items.append(RolloutView(**_fields(rollouts, rollout, members)))
        return RolloutList(items=items)

    @routes.post("", dependencies=[needs(Role.OPERATOR)])
    async def begin(wish: RolloutWish, caller: Caller, request: Request) -> RolloutDetail:
        """Begin a rollout."""
        made = await rollouts.begin(
            model=wish.model,
            channel=wish.channel,
            plan=wish.plan,
            by=caller.name,
            queue=wish.queue,
        )
        note(request, rollout=made.id, model=made.model, version=made.version)
        return await detail(made)

    @routes.get("/{rollout}", dependencies=[needs(Role.VIEWER)])
    async def show(rollout: Named) -> RolloutDetail:
        """Show a rollout: its wave, what it waits for, its devices."""
        return await detail(await rollouts.get(rollout))

    @routes.get("/{rollout}/events", dependencies=[needs(Role.VIEWER)])
    async def events(
        rollout: Named,
        request: Request,
        after: Annotated[int, Query(ge=0)] = 0,
        wait_s: Annotated[float, Query(ge=0, le=WAIT_LIMIT_S)] = 0,
    ) -> EventPage:
        """Return the journal after an event; wait for more when there is none yet."""
        found = await rollouts.get(rollout)
        until = time.monotonic() + wait_s
        while True:
            rows = await store.read(lambda c: kept.journal(c, found.id, after))
            now = await rollouts.get(found.id)
            if rows or now.state not in OPEN or time.monotonic() >= until:
                return EventPage(items=rows)
            await asyncio.sleep(LOOK_S)
            if await request.is_disconnected():
                return EventPage(items=[])

    for name, order in (
        ("pause", rollouts.pause),
        ("resume", rollouts.resume),
        ("abort", rollouts.abort),
        ("undo", rollouts.undo),
    ):
        _add_order(routes, name, order, detail)
    return routes


def _member(
    member: kept.RolloutDevice, report: Report | None, seen: Mapping[str, Device]
) -> dict[str, Any]:
    """Return a device in a rollout: its state, what it said of this version, whether it is here.

    `asked_at` is when it took the word that asks it; None: it has not been told yet.
    """
    device = seen.get(member.device)
    row = {name: getattr(member, name) for name in MEMBER_FIELDS}
    row["connected"] = device is not None and device.connected
    row["last_seen_at"] = device.last_seen_at if device is not None else None
    about = report is not None and (report.rollout, report.digest) == (
        member.rollout,
        member.digest,
    )
    row["phase"] = report.phase if report is not None and about else ""
    row["choice"] = dict(report.choice) if report is not None and about else {}
    return row


def _add_order(routes: APIRouter, name: str, order: Any, detail: Any) -> None:
    async def give(rollout: Named, caller: Caller, request: Request) -> RolloutDetail:
        note(request, rollout=rollout)
        made: RolloutDetail = await detail(await order(rollout, caller.name))
        return made

    give.__doc__ = order.__doc__
    routes.add_api_route(
        f"/{{rollout}}/{name}",
        give,
        methods=["POST"],
        name=f"{name}_rollout",
        dependencies=[needs(Role.OPERATOR)],
        response_model=RolloutDetail,
    )


def _fields(
    rollouts: Rollouts, rollout: Rollout, members: list[kept.RolloutDevice]
) -> dict[str, Any]:
    waits = rollouts.waiting(rollout.id) if rollout.state in OPEN else None
    fields = {
        name: getattr(rollout, name)
        for name in RolloutView.model_fields
        if name not in {"waves", "waiting", "counts"}
    }
    return {
        **fields,
        "waves": len(rollout.plan.get("waves", ())),
        "waiting": {"why": waits.why, "until_unix_s": waits.until} if waits else None,
        "counts": dict(Counter(each.state.value for each in members)),
    }
