"""Routes about devices: who they are, their labels and logs, and taking them out of service."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request
from pydantic import BaseModel, ConfigDict, Field
from skerry_protos.messages import DeviceId

from skerry_cloud.api.auth import needs, note
from skerry_cloud.api.errors import ApiError
from skerry_cloud.registry import Registry
from skerry_cloud.selectors import parse
from skerry_cloud.store import Store
from skerry_cloud.store import devices as kept
from skerry_cloud.store import models as kept_models
from skerry_cloud.store.devices import Device
from skerry_cloud.store.operators import Role

Named = Annotated[str, Path(max_length=64, description="A device's id, or a beginning of it.")]


class DeviceView(BaseModel):
    """A device as operators see it."""

    id: str
    node: str = Field(description="The device's number for Flower, as text: it has 63 bits.")
    state: str = Field(description="online, offline, cordoned, drained or revoked")
    profile: str
    labels: dict[str, str] = Field(
        description="What selectors see; a key below device/ is the device's own unless set here."
    )
    stated: dict[str, str] = Field(description="The labels that the device states of itself.")
    capabilities: list[str]
    connected: bool
    transport: str
    agent_version: str
    enrolled_at: float
    invite: str
    last_seen_at: float | None
    last_error: str
    revoked_at: float | None
    revoked_why: str | None
    heartbeat: dict[str, Any] = Field(description="The newest heartbeat: load, memory, versions.")


class ServedModel(BaseModel):
    """A device's newest word on a model."""

    model: str
    rollout: str
    target: str = Field(description="The release that it is about.")
    phase: str
    why: str
    serving: str = Field(description="The release that serves; empty: none.")
    readings: dict[str, float]
    choice: dict[str, Any] = Field(
        description="Of its variants, what the device measured and which it serves: serves, why, "
        "rows; empty where there was no choice."
    )
    at: float


class ServedModels(BaseModel):
    """What a device says of its models."""

    items: list[ServedModel]


class Devices(BaseModel):
    """A list of devices."""

    items: list[DeviceView]
    hint: str = Field("", description="What was probably meant, when no device fits.")


class LabelChanges(BaseModel):
    """Labels to set; null takes one away."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"example": {"labels": {"site": "north", "old": None}}}
    )
    labels: dict[str, str | None] = Field(max_length=64)


class Reason(BaseModel):
    """Why, for the audit log and for the device."""

    model_config = ConfigDict(extra="forbid")
    why: str = Field("", max_length=500)


class LogLine(BaseModel):
    """One line of a device's log."""

    id: int
    at: float
    source: str
    level: str
    text: str


class LogPage(BaseModel):
    """Lines in order; ask again with `after` = the last one's id."""

    items: list[LogLine]


def router(registry: Registry, store: Store) -> APIRouter:
    """Return the routes."""
    routes = APIRouter(prefix="/v1/devices", tags=["devices"])

    async def named(device: str) -> DeviceId:
        found = await store.read(lambda c: kept.with_prefix(c, device))
        match found:
            case [one]:
                return DeviceId(one)
            case []:
                raise ApiError(
                    404, "not-found", f"no device {device!r}", hint="see `skerry devices list`"
                )
        raise ApiError(
            409, "ambiguous", f"{device!r} is the beginning of {', '.join(found)}", hint="say more"
        )

    async def shown(device: DeviceId) -> DeviceView:
        found = await registry.device(device)
        if found is None:
            raise ApiError(404, "not-found", f"no device {device!r}")
        return view(found)

    @routes.get("", dependencies=[needs(Role.VIEWER)])
    async def list_devices(
        selector: Annotated[str, Query(max_length=2000, examples=["site=north,!old"])] = "",
        state: Annotated[
            str | None, Query(pattern="^(online|offline|cordoned|drained|revoked)$")
        ] = None,
    ) -> Devices:
        """List devices that fit a label selector and are in a state."""
        chosen = parse(selector)
        found = await registry.devices(chosen, state=state)
        hint = ""
        if not found and chosen.requirements:
            everyone = await registry.devices(state=state)
            hint = chosen.hint(device.labels for device in everyone)
        return Devices(items=[view(device) for device in found], hint=hint)

    @routes.get("/{device}", dependencies=[needs(Role.VIEWER)])
    async def show_device(device: Named) -> DeviceView:
        """Show one device."""
        return await shown(await named(device))

    _add_models(routes, named, store)

    @routes.patch("/{device}", dependencies=[needs(Role.OPERATOR)])
    async def label_device(device: Named, changes: LabelChanges, request: Request) -> DeviceView:
        """Set and take away labels."""
        one = await named(device)
        note(request, device=one, labels=changes.labels)
        await registry.relabel(one, changes.labels)
        return await shown(one)

    def action(name: str, role: Role, text: str, act: Callable[[DeviceId, str], Any]) -> None:
        async def run(device: Named, request: Request, reason: Reason | None = None) -> DeviceView:
            one = await named(device)
            why = reason.why if reason else ""
            note(request, device=one, why=why)
            await act(one, why)
            return await shown(one)

        routes.add_api_route(
            f"/{{device}}/{name}",
            run,
            methods=["POST"],
            name=f"{name}_device",
            description=text,
            dependencies=[needs(role)],
        )

    action(
        "cordon",
        Role.OPERATOR,
        "Give the device no new work; what it has goes on.",
        lambda device, _: registry.cordon(device),
    )
    action(
        "uncordon",
        Role.OPERATOR,
        "Give the device work again, also after a drain.",
        lambda device, _: registry.uncordon(device),
    )
    action(
        "drain",
        Role.OPERATOR,
        "Give the device no new work and take away what it has.",
        lambda device, _: registry.drain(device),
    )
    action(
        "revoke",
        Role.ADMIN,
        "Shut the device out for good, on every transport, within seconds.",
        registry.revoke,
    )

    @routes.get("/{device}/logs", dependencies=[needs(Role.VIEWER)])
    async def device_logs(
        device: Named,
        after: Annotated[int, Query(ge=0, description="0: the newest lines.")] = 0,
        limit: Annotated[int, Query(ge=1, le=2000)] = 200,
        wait_s: Annotated[float, Query(ge=0, le=60, description="Wait so long for a line.")] = 0,
    ) -> LogPage:
        """Read lines of the device's log, those of its apps included."""
        one = await named(device)
        clock = asyncio.get_running_loop().time
        until = clock() + wait_s
        while True:
            rows = await store.read(lambda c: kept.log_lines(c, one, after=after, limit=limit))
            left = until - clock()
            if rows or left <= 0:
                return LogPage(items=[LogLine(**pick(row)) for row in rows])
            await registry.wait_change(left)

    return routes


def _add_models(
    routes: APIRouter, named: Callable[[str], Awaitable[DeviceId]], store: Store
) -> None:
    @routes.get("/{device}/models", dependencies=[needs(Role.VIEWER)])
    async def device_models(device: Named) -> ServedModels:
        """Show what a device says of its models, and which variant it chose and why."""
        one = await named(device)
        found = await store.read(lambda c: kept_models.reports(c, device=one))
        names = ServedModel.model_fields
        return ServedModels(
            items=[ServedModel(**{name: getattr(each, name) for name in names}) for each in found]
        )


def view(device: Device) -> DeviceView:
    """Return a device as the API shows it."""
    return DeviceView(
        id=device.id,
        node=str(device.node),
        state=device.state,
        profile=device.profile,
        labels=device.labels,
        stated=device.stated,
        capabilities=sorted(device.capabilities),
        connected=device.connected,
        transport=device.transport,
        agent_version=device.agent_version,
        enrolled_at=device.enrolled_at,
        invite=device.invite,
        last_seen_at=device.last_seen_at,
        last_error=device.last_error,
        revoked_at=device.revoked_at,
        revoked_why=device.revoked_why,
        heartbeat=device.heartbeat,
    )


def pick(row: dict[str, Any]) -> dict[str, Any]:
    """Return the columns that LogLine shows."""
    return {name: row[name] for name in LogLine.model_fields}
