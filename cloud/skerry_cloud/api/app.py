"""The API put together; serving.py serves it."""

import asyncio
import time
from collections.abc import Iterable, Mapping

from fastapi import APIRouter, FastAPI
from pydantic import BaseModel, Field
from skerry_protos.versions import installed_version

from skerry_cloud.api import devices, enrol, invites, metrics, operators
from skerry_cloud.api.auth import Guard
from skerry_cloud.api.enrol import LinkView
from skerry_cloud.api.errors import handle_errors
from skerry_cloud.identity import Authority
from skerry_cloud.registry import Registry
from skerry_cloud.store import Store

DESCRIPTION = """\
What operators and their programs ask of a Skerry coordinator; the `skerry` command is its client.

Send `Authorization: Bearer <token>`. A viewer reads; an operator also runs, labels, invites,
cordons and drains; an admin also revokes devices and manages operators. Devices may be named by any
beginning of their id that is unique. Lists answer `{"items": [...]}`; whatever is refused answers
`{"error": {"code", "message", "hint"}}`, and the code is stable. Times are seconds since 1970, UTC.
"""


class Health(BaseModel):
    """Whether the coordinator does its work."""

    status: str = Field(description="ok, or degraded: it waits for something, see why")
    why: str = ""
    version: str
    unix_time_s: float


def make_app(
    *,
    store: Store,
    authority: Authority,
    registry: Registry,
    url: str,
    links: Iterable[LinkView],
    routers: Iterable[APIRouter] = (),
    large_bodies: Mapping[str, int] | None = None,
) -> FastAPI:
    """Return the API; `routers` are other parts' (the runs), `large_bodies` their paths' limits."""
    version = installed_version("skerry-cloud")
    app = FastAPI(
        title="Skerry coordinator",
        version=version,
        description=DESCRIPTION,
        docs_url=None,  # both pages load their scripts from elsewhere
        redoc_url=None,
    )

    @app.get("/v1/health", tags=["health"])
    async def health() -> Health:
        """Say whether the coordinator does its work; open to probes."""
        stuck = store.stuck
        return Health(
            status="degraded" if stuck else "ok",
            why=str(stuck.message) if stuck else "",
            version=version,
            unix_time_s=time.time(),
        )

    app.include_router(
        enrol.router(store, authority, links=list(links), heartbeat_s=registry.heartbeat_s)
    )
    app.include_router(devices.router(registry, store))
    app.include_router(invites.router(store, url=url, pin=authority.pin))
    app.include_router(operators.router(store))
    app.include_router(metrics.router(registry, store))
    for router in routers:
        app.include_router(router)
    handle_errors(app)
    app.state.stopping = asyncio.Event()
    app.add_middleware(
        Guard, store=store, large_bodies=large_bodies or {}, stopping=app.state.stopping
    )
    return app
