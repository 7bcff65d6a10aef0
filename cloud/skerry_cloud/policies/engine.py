"""Looks at what devices report, and begins the runs that policies ask for.

That a run is about to begin is in the database before it begins: a coordinator that is killed in
between begins none, rather than two, until the cooldown is over. How a run ended is read from the
runs themselves, so a restart changes nothing.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Protocol, Self

import sqlalchemy as sa
from skerry_protos.errors import SkerryError

from skerry_cloud.policies.begun import in_service
from skerry_cloud.policies.policy import Policy, Verdict, judge
from skerry_cloud.runs import Runs
from skerry_cloud.selectors import Selector
from skerry_cloud.store import Store, StoreError, audit
from skerry_cloud.store import models as kept_models
from skerry_cloud.store import policies as kept
from skerry_cloud.store.devices import Device
from skerry_cloud.store.models import Report

log = logging.getLogger(__name__)

LOOK_S = 30.0
"""How often cooldowns and ends of runs are looked at, without any news."""
GATHER_S = 0.25
"""News of a moment are looked at together."""
AGAIN_S = 300.0
"""When a run could not begin it is tried again, sooner than the cooldown."""


class NoPolicyError(SkerryError):
    """There is no policy for this model."""

    code = "not-found"
    exit_code = 3


class Roster(Protocol):
    """Who is enrolled (skerry_cloud.registry.Registry)."""

    async def devices(self, selector: Selector | None = None) -> list[Device]: ...


class Policies:
    """Every policy; an async context manager."""

    def __init__(
        self,
        *,
        store: Store,
        runs: Runs,
        roster: Roster,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._store, self._runs, self._roster, self._now = store, runs, roster, now
        self._news = asyncio.Event()
        self._looking: asyncio.Task[None] | None = None
        self._turn = asyncio.Lock()

    async def __aenter__(self) -> Self:
        self._looking = asyncio.create_task(self._look_on(), name="policies")
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.wait({self._looking})

    def heard(self, report: Report) -> None:  # noqa: ARG002
        """Look anew: a device has reported."""
        self._news.set()

    # What operators ask.

    async def keep(self, policy: Policy) -> Policy:
        """Keep a policy, in place of the model's old one; its cooldown goes on."""
        digest = await self._runs.find_app(policy.app)
        async with self._turn:
            made = replace(policy, app=digest)
            await self._store.write(lambda c: kept.keep(c, made))
        self._news.set()
        return await self.get(policy.model)

    async def remove(self, model: str) -> None:
        """Forget a policy; runs that it began go on."""
        await self.get(model)
        async with self._turn:
            await self._store.write(lambda c: kept.remove(c, model))

    async def get(self, model: str) -> Policy:
        """Return a model's policy, or raise NoPolicyError."""
        for each in await self._store.read(kept.listed):
            if each.model == model:
                return each
        raise NoPolicyError(
            f"model {model[:80]!r} has no policy", hint="skerry models policy set MODEL APP"
        )

    async def listed(self) -> list[tuple[Policy, Verdict]]:
        """Return every policy with what it says now."""
        found = await self._store.read(kept.listed)
        return [(each, await self._verdict(each)) for each in found]

    # Looking.

    async def _look_on(self) -> None:
        while True:
            self._news.clear()
            try:
                await self.look()
            except (SkerryError, StoreError) as error:
                log.error("policies could not be looked at: %s", error)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_S):
                    await self._news.wait()
                    await asyncio.sleep(GATHER_S)

    async def look(self) -> None:
        """Begin what is to begin now."""
        for policy in await self._store.read(kept.listed):
            async with self._turn:
                # Since the list was read it may have been changed or taken away.
                newest = {each.model: each for each in await self._store.read(kept.listed)}
                now = newest.get(policy.model)
                if now is not None and (verdict := await self._verdict(now)).begin:
                    await self._begin(now, verdict)

    async def _verdict(self, policy: Policy) -> Verdict:
        def read(connection: sa.Connection) -> tuple[list[Report], str]:
            reports = kept_models.reports(connection, model=policy.model)
            return reports, kept.open_run(connection, policy.by)

        reports, open_run = await self._store.read(read)
        devices = await self._roster.devices()
        enrolled = {each.id for each in devices if each.revoked_at is None}
        return judge(policy, reports, now=self._now(), enrolled=enrolled, open_run=open_run)

    async def _options(self, policy: Policy, verdict: Verdict) -> tuple[dict[str, Any], str]:
        """Return the run's options, and in words what it begins with: the model in service."""
        options = dict(policy.options)
        if named := str(options.get("initial", "")):
            return options, f"the model of run {named}, as the policy says"
        found, why = await self._store.read(lambda c: in_service(c, policy.model, verdict.devices))
        if not found:
            return options, f"the app's own model: {why}"
        options |= {"initial": found, "initial_if_fits": True}
        return options, f"the model of run {found}, {why}"

    async def _begin(self, policy: Policy, verdict: Verdict) -> None:
        """Begin a run; the turn is held."""
        now = self._now()
        detail = {"model": policy.model, "why": verdict.why, "devices": list(verdict.devices[:20])}

        def intend(connection: sa.Connection) -> int:
            kept.note(connection, policy.model, at=now, run="", why="a run is being begun")
            return audit.begin(
                connection,
                operator=policy.by,
                action="begin_run_by_policy",
                target=policy.model,
                detail=detail,
            )

        number = await self._store.write(intend)
        options, begins = await self._options(policy, verdict)
        try:
            run = await self._runs.begin(
                app=policy.app,
                name=f"{policy.model} drifted",
                options=options,
                by=policy.by,
            )
        except SkerryError as error:
            log.warning("the policy of model %s could not begin a run: %s", policy.model, error)
            at = now - policy.cooldown_s + min(AGAIN_S, policy.cooldown_s)
            name, why, outcome = "", f"no run could begin: {error}", error.code
        else:
            log.info("run %s was begun by the policy of model %s", run.id, policy.model)
            at, name, outcome = now, str(run.id), "200"
            why = f"{verdict.why}; it begins with {begins}"

        def done(connection: sa.Connection) -> None:
            kept.note(connection, policy.model, at=at, run=name, why=why)
            audit.finish(
                connection, number, "begin_run_by_policy", outcome, {**detail, "run": name}
            )

        await self._store.write(done)
