"""Routes about apps and runs: send an app, begin a run of it, watch it, take its model."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request
from fastapi.responses import FileResponse
from pydantic import BaseModel, ConfigDict, Field
from skerry_protos import bundles

from skerry_cloud.api.auth import Caller, needs, note
from skerry_cloud.api.errors import ApiError
from skerry_cloud.runs.engine import NotFoundError, Runs
from skerry_cloud.runs.lifecycle import OPEN_RUNS
from skerry_cloud.runs.tables import device_rows, round_rows
from skerry_cloud.store import Store
from skerry_cloud.store import runs as kept
from skerry_cloud.store import tasks as kept_tasks
from skerry_cloud.store.operators import Role
from skerry_cloud.store.runs import Run

BUNDLE_LIMIT = bundles.SIZE_LIMIT + 4 * 1024**2
"""Largest request body of POST /v1/apps, bytes."""
WAIT_LIMIT_S = 60.0

Named = Annotated[str, Path(max_length=64, description="A run's id, or a beginning of it.")]
After = Annotated[int, Query(ge=0, description="The id of the last one you have.")]
WaitS = Annotated[float, Query(ge=0, le=WAIT_LIMIT_S, description="How long to wait for more.")]


class AppView(BaseModel):
    """An app that was taken."""

    digest: str
    name: str
    kind: str
    version: str


class RunWish(BaseModel):
    """A run to begin."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "example": {
                "app": "9f86d081884c",
                "name": "digits",
                "options": {"selector": "site=north", "rounds": 5, "quorum": 0.8},
            }
        },
    )
    app: str = Field(min_length=6, max_length=64, description="An app's digest, or a beginning.")
    name: str = Field("", max_length=200)
    options: dict[str, Any] = Field(default_factory=dict, description="See docs/runs.md.")


class RunView(BaseModel):
    """A run in a list."""

    id: str
    number: str = Field(description="The run's number for Flower, as text: it has 63 bits.")
    name: str
    app: str
    app_kind: str
    state: str
    why: str
    waiting: dict[str, Any] | None = Field(description="what, why, until_unix_s, on (devices)")
    round: int
    rounds: int
    options: dict[str, Any]
    created_at: float
    created_by: str
    started_at: float | None
    ended_at: float | None
    model: str | None = Field(description="The digest of the model; GET …/model has its bytes.")


class RunDetail(RunView):
    """A run with everything that is known of it."""

    rounds_table: list[dict[str, Any]] = Field(description="What came of each round's phases.")
    devices: list[dict[str, Any]] = Field(description="What came of each device's tasks.")
    unwanted: list[dict[str, Any]] = Field(
        description="What devices sent that was not taken: device, reason, times, last_why, last_at"
    )


class RunList(BaseModel):
    """Runs, the newest first."""

    items: list[RunView]


class EventView(BaseModel):
    """One line of a run's journal."""

    id: int
    at: float
    kind: str
    round: int
    device: str
    data: dict[str, Any]


class EventPage(BaseModel):
    """Events in order; ask again with `after` = the last one's id."""

    items: list[EventView]


class LineView(BaseModel):
    """One line that the server side printed."""

    id: int
    at: float
    text: str


class LinePage(BaseModel):
    """Lines in order; ask again with `after` = the last one's id."""

    items: list[LineView]


class MetricPage(BaseModel):
    """Every number of a run: of whole rounds, and with `device` of one device's."""

    items: list[dict[str, Any]]


async def _named(runs: Runs, run: str) -> Run:
    try:
        return await runs.get(run)
    except NotFoundError as error:
        raise _not_found(error) from error


def _add_orders(routes: APIRouter, runs: Runs) -> None:
    """Add the routes that tell a run under way what to do."""

    @routes.post("/runs/{run}/stop", dependencies=[needs(Role.OPERATOR)])
    async def stop(run: Named, caller: Caller, request: Request) -> RunView:
        """End a run; devices are told to stop working for it."""
        found = await _named(runs, run)
        note(request, run=found.id)
        return _view(runs, await runs.stop(found.id, caller.name))

    @routes.post("/runs/{run}/pause", dependencies=[needs(Role.OPERATOR)])
    async def pause(run: Named, caller: Caller, request: Request) -> RunView:
        """Let a run rest: devices get nothing new, and what they answer is kept."""
        found = await _named(runs, run)
        note(request, run=found.id)
        return _view(runs, await runs.pause(found.id, caller.name))

    @routes.post("/runs/{run}/resume", dependencies=[needs(Role.OPERATOR)])
    async def resume(run: Named, caller: Caller, request: Request) -> RunView:
        """Let a paused run go on where it was."""
        found = await _named(runs, run)
        note(request, run=found.id)
        return _view(runs, await runs.resume(found.id, caller.name))


def router(runs: Runs) -> APIRouter:
    """Return the routes."""
    routes = APIRouter(prefix="/v1", tags=["runs"])
    store = runs.store

    async def named(run: str) -> Run:
        return await _named(runs, run)

    _add_orders(routes, runs)

    @routes.post("/apps", dependencies=[needs(Role.OPERATOR)], status_code=201)
    async def add_app(request: Request) -> AppView:
        """Take an app's bundle (an unsigned zip); it is checked, signed and kept."""
        digest, manifest = await runs.add_app(await request.body())
        note(request, app=digest, name=manifest.name)
        return AppView(
            digest=digest, name=manifest.name, kind=manifest.kind, version=manifest.version
        )

    @routes.post("/runs", dependencies=[needs(Role.OPERATOR)], status_code=201)
    async def begin(wish: RunWish, caller: Caller, request: Request) -> RunView:
        """Begin a run of an app."""
        try:
            run = await runs.begin(
                app=wish.app, name=wish.name, options=wish.options, by=caller.name
            )
        except NotFoundError as error:
            raise _not_found(error) from error
        note(request, run=run.id, app=run.app)
        return _view(runs, run)

    @routes.get("/runs", dependencies=[needs(Role.VIEWER)])
    async def list_runs(limit: Annotated[int, Query(ge=1, le=1000)] = 200) -> RunList:
        """List runs, the newest first."""
        found = await store.read(lambda c: kept.listed(c, limit))
        return RunList(items=[_view(runs, run) for run in found])

    @routes.get("/runs/{run}", dependencies=[needs(Role.VIEWER)])
    async def show(run: Named) -> RunDetail:
        """Show a run: its state, what it waits for and why, its rounds and devices."""
        return await _detail(runs, await named(run))

    @routes.get("/runs/{run}/events", dependencies=[needs(Role.VIEWER)])
    async def events(
        run: Named, request: Request, after: After = 0, wait_s: WaitS = 0
    ) -> EventPage:
        """Return a run's journal after an event; wait for more when there is none yet."""
        found = await named(run)
        rows = await _fresh(
            runs, request, found, wait_s, lambda: _journal(store, found, after, logs=False)
        )
        return EventPage(items=[EventView(**row) for row in rows])

    @routes.get("/runs/{run}/logs", dependencies=[needs(Role.VIEWER)])
    async def logs(run: Named, request: Request, after: After = 0, wait_s: WaitS = 0) -> LinePage:
        """Return what a run's server side printed; wait for more when there is none yet."""
        found = await named(run)
        rows = await _fresh(
            runs, request, found, wait_s, lambda: _journal(store, found, after, logs=True)
        )
        return LinePage(
            items=[LineView(id=row["id"], at=row["at"], text=row["data"]["text"]) for row in rows]
        )

    @routes.get("/runs/{run}/metrics", dependencies=[needs(Role.VIEWER)])
    async def metrics(run: Named) -> MetricPage:
        """Return every metric of a run."""
        found = await named(run)
        return MetricPage(items=await store.read(lambda c: kept.metric_table(c, found.id)))

    @routes.get("/runs/{run}/model", dependencies=[needs(Role.VIEWER)])
    async def model(run: Named) -> FileResponse:
        """Return a run's model as a records file (docs/wire.md)."""
        found = await named(run)
        if found.model is None:
            raise ApiError(
                404,
                "not-found",
                f"run {found.id} is {found.state.value} and has no model",
                hint=found.why or "it has one when its first model was handed over",
            )
        path = await asyncio.to_thread(runs.blobs.path, found.model)
        if path is None:
            raise ApiError(410, "gone", f"the model {found.model[:12]} is not here any more")
        return FileResponse(
            path,
            media_type="application/octet-stream",
            filename=f"{found.id}.skr",
            headers={"X-Skerry-Digest": found.model},
        )

    @routes.get("/runs/{run}/app", dependencies=[needs(Role.OPERATOR)])
    async def app(run: Named) -> FileResponse:
        """Return the bundle of a run's app: its code, signed, as devices got it."""
        found = await named(run)
        path = await asyncio.to_thread(runs.blobs.path, found.app)
        if path is None:
            raise ApiError(410, "gone", f"the app {found.app[:12]} is not here any more")
        return FileResponse(
            path, media_type="application/zip", headers={"X-Skerry-Digest": found.app}
        )

    return routes


def _view(runs: Runs, run: Run) -> RunView:
    return RunView(**_fields(runs, run))


def _fields(runs: Runs, run: Run) -> dict[str, Any]:
    conductor = runs.under_way(run.id)
    waiting = run.waiting
    if conductor is not None and run.state in OPEN_RUNS:
        waiting = conductor.waiting()
    fields = {name: getattr(run, name) for name in RunView.model_fields}
    return {**fields, "number": str(run.number), "state": run.state.value, "waiting": waiting}


async def _detail(runs: Runs, run: Run) -> RunDetail:
    tasks = await runs.store.read(lambda c: kept_tasks.task_table(c, run.id))
    metrics = await runs.store.read(lambda c: kept.metric_table(c, run.id))
    conductor = runs.under_way(run.id)
    progress = conductor.questions.progress_of if conductor is not None else None
    return RunDetail(
        **_fields(runs, run),
        rounds_table=round_rows(tasks, metrics),
        devices=device_rows(tasks, connected=runs.connected(), progress=progress),
        unwanted=await runs.unwanted.rows(run.id),
    )


async def _journal(store: Store, run: Run, after: int, *, logs: bool) -> list[dict[str, Any]]:
    return await store.read(lambda c: kept.journal(c, run.id, after, logs=logs))


async def _fresh(
    runs: Runs,
    request: Request,
    run: Run,
    wait_s: float,
    look: Callable[[], Awaitable[list[dict[str, Any]]]],
) -> list[dict[str, Any]]:
    """Return what `look` finds, waiting for the first of it while the run may bring more."""
    until = time.monotonic() + wait_s
    stopping: asyncio.Event | None = getattr(request.app.state, "stopping", None)
    while True:
        news = runs.news.next()
        rows = await look()
        left = until - time.monotonic()
        over = runs.under_way(run.id) is None or (stopping is not None and stopping.is_set())
        if rows or left <= 0 or over:
            return rows
        # Not all of it at once: the coordinator may stop, or the caller may have gone.
        await runs.news.wait(news, min(left, 1.0))
        if await request.is_disconnected():
            return []


def _not_found(error: NotFoundError) -> ApiError:
    return ApiError(404, "not-found", error.message, hint=error.hint)
