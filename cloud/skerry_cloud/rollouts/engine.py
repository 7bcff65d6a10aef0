"""All rollouts of a coordinator: begun, watched, taken back; everything is in the database first.

`Rollouts.conduct` is the story of one. What devices say is kept by models/updates.py; each look
derives the devices' states from there, so a restart at any moment loses and repeats nothing.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Iterable
from typing import Protocol, Self

import sqlalchemy as sa
from skerry_protos.errors import ConfigError, RejectedError, SkerryError
from skerry_protos.failpoints import failpoint
from skerry_protos.messages import DeviceId, new_id

from skerry_cloud.models.registry import Models
from skerry_cloud.models.updates import Updates
from skerry_cloud.rollouts import asking, taking
from skerry_cloud.rollouts.choosing import choose
from skerry_cloud.rollouts.judging import Member, Move, Verdict, judge
from skerry_cloud.rollouts.latecomers import Latecomers
from skerry_cloud.rollouts.lifecycle import OPEN, DeviceState, RolloutEvent, RolloutState
from skerry_cloud.rollouts.plan import Plan, draw
from skerry_cloud.rollouts.traces import tell_rollout
from skerry_cloud.selectors import Selector
from skerry_cloud.store import Store
from skerry_cloud.store import models as kept_models
from skerry_cloud.store import rollouts as kept
from skerry_cloud.store.devices import Device
from skerry_cloud.store.models import Report
from skerry_cloud.store.rollouts import Rollout, RolloutDevice

log = logging.getLogger(__name__)

GATHER_S = 0.25
"""News of a moment are looked at together."""
LOOK_S = 30.0
AGAIN_S = 5.0


class NoRolloutError(SkerryError):
    """There is no such rollout."""

    code = "not-found"
    exit_code = 3


class Roster(Protocol):
    """Who is enrolled and who is here (skerry_cloud.registry.Registry)."""

    def connected(self) -> frozenset[DeviceId]: ...

    async def devices(self, selector: Selector | None = None) -> list[Device]: ...

    async def device(self, device: str) -> Device | None: ...


class Rollouts:
    """Every rollout; an async context manager."""

    def __init__(self, *, store: Store, models: Models, updates: Updates, roster: Roster) -> None:
        self.store, self.models = store, models
        self._updates, self._roster = updates, roster
        self._conducting: dict[str, asyncio.Task[None]] = {}
        self._news: dict[str, asyncio.Event] = {}
        self._models_of: dict[str, str] = {}
        self._waiting: dict[str, Verdict] = {}
        self._turn = asyncio.Lock()
        updates.on_report.append(self.heard)
        self.latecomers = Latecomers(
            store=store, models=models, updates=updates, roster=roster, turn=self._turn
        )

    async def __aenter__(self) -> Self:
        """Go on with what an earlier coordinator left under way."""
        for rollout in await self.store.read(kept.open_ones):
            self._begin_conducting(rollout.id)
        await self.latecomers.begin()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.latecomers.end()
        every = list(self._conducting.values())
        for task in every:
            task.cancel()
        await asyncio.gather(*every, return_exceptions=True)

    async def seen(self) -> dict[str, Device]:
        """Return every device with what is known of it this moment, by id."""
        return {each.id: each for each in await self._roster.devices()}

    # What operators ask.

    async def begin(
        self, *, model: str, channel: str, plan: object, by: str, queue: bool = False
    ) -> Rollout:
        """Begin a rollout of `model@version` as a channel signed it; return it.

        Raise ConfigError, NoModelError or RejectedError with what is wrong and what to do.
        """
        wished = Plan.parse(plan)
        version = await self.models.find(model)
        asking.require_fit(self.models, version, channel, wished)
        devices = asking.meant(await self._roster.devices(), wished)
        async with self._turn:
            identity = new_id("rollout-")
            waves = draw(identity, wished, {each.id: each.labels for each in devices})
            behind = await self.store.read(
                lambda c: asking.behind(c, version.model, frozenset(waves), queue=queue)
            )
            rollout = Rollout(
                id=identity,
                model=version.model,
                version=version.version,
                channel=channel,
                state=RolloutState.QUEUED,
                why=f"behind {behind}" if behind else "",
                plan=wished.to_json(),
                wave=0,
                wave_at=time.time(),
                behind=behind,
                created_at=time.time(),
                created_by=by,
                ended_at=None,
            )
            members = [
                RolloutDevice(rollout=identity, device=each, wave=wave, state=DeviceState.WAITING)
                for each, wave in waves.items()
            ]
            await self.store.write(lambda c: kept.create(c, rollout, members))
            failpoint("rollout.created")
        self._begin_conducting(identity)
        return rollout

    async def pause(self, rollout: str, by: str) -> Rollout:
        """Let nobody new take the version until `resume`."""
        return await self._order(rollout, RolloutEvent.PAUSE, f"paused by {by}")

    async def resume(self, rollout: str, by: str) -> Rollout:
        """Go on with the wave; devices that failed are left aside, whoever looked at them."""
        return await self._order(rollout, RolloutEvent.RESUME, f"resumed by {by}")

    async def abort(self, rollout: str, by: str) -> Rollout:
        """End it; devices that have the version keep it."""
        return await self._order(rollout, RolloutEvent.ABORT, f"aborted by {by}")

    async def undo(self, rollout: str, by: str) -> Rollout:
        """Let its devices serve again what they served before; also after its end."""
        return await self._order(rollout, RolloutEvent.UNDO, f"undone by {by}")

    async def _order(self, name: str, event: RolloutEvent, why: str) -> Rollout:
        found = await self.get(name)
        told: set[DeviceId] = set()

        def write(connection: sa.Connection) -> RolloutState:
            told.clear()
            before = kept.find(connection, found.id)
            assert before is not None
            after = kept.change(connection, found.id, event, why)
            if after is not before.state:
                told.update(taking.after_order(connection, found.id, event))
            return after

        async with self._turn:
            after = await self.store.write(write)
        if after is found.state:
            raise RejectedError(
                "rollout-state",
                f"rollout {found.id} is {found.state.value}: it cannot {event.value}",
            )
        self._updates.tell(told)
        if after in OPEN:
            self._begin_conducting(found.id)
        self._tell(found.id)
        return await self.get(found.id)

    async def get(self, rollout: str) -> Rollout:
        """Return a rollout by its id or the beginning of it."""
        found = await self.store.read(lambda c: kept.find(c, rollout))
        if found is not None:
            return found
        ids = await self.store.read(lambda c: kept.starting_with(c, rollout)) if rollout else []
        match ids:
            case [one]:
                return await self.get(one)
            case []:
                raise NoRolloutError(
                    f"there is no rollout {rollout[:80]!r}", hint="skerry rollout history"
                )
        raise ConfigError(f"{rollout!r} is the beginning of {', '.join(ids)}", hint="say more")

    def waiting(self, rollout: str) -> Verdict | None:
        """Return what an open rollout waits for now."""
        return self._waiting.get(rollout)

    # Conducting.

    def heard(self, report: Report) -> None:
        """Take note that a device said something of a model."""
        for rollout, model in list(self._models_of.items()):
            if report.model == model:
                self._tell(rollout)
        if report.rollout not in self._conducting:
            self.latecomers.heard(report)

    def _tell(self, rollout: str) -> None:
        if (event := self._news.get(rollout)) is not None:
            event.set()

    def _begin_conducting(self, rollout: str) -> None:
        if rollout in self._conducting:
            return
        self._news[rollout] = asyncio.Event()
        task = asyncio.create_task(self._conduct_always(rollout), name=rollout)
        self._conducting[rollout] = task
        task.add_done_callback(lambda done: self._over(rollout, ended=not done.cancelled()))

    def _over(self, rollout: str, *, ended: bool) -> None:
        self._conducting.pop(rollout, None)
        self._news.pop(rollout, None)
        self._models_of.pop(rollout, None)
        self._waiting.pop(rollout, None)
        for other in self._news.values():  # one of them may be next
            other.set()
        if ended:
            self.latecomers.catch_up_all()

    async def _conduct_always(self, rollout: str) -> None:
        while True:
            try:
                return await self.conduct(rollout)
            except SkerryError as error:
                log.error("rollout %s waits: %s", rollout, error)
            except Exception:
                log.exception("rollout %s", rollout)
            await asyncio.sleep(AGAIN_S)

    async def conduct(self, rollout: str) -> None:
        """Carry a rollout out until it has ended."""
        news = self._news[rollout]
        while True:
            news.clear()
            async with self._turn:
                verdict, told = await self._step(rollout)
            failpoint("rollout.stepped")
            self._updates.tell(told)
            failpoint("rollout.told")
            if verdict is None:
                await tell_rollout(self.store, rollout)
                return
            self._waiting[rollout] = verdict
            if verdict.move is not Move.WAIT:
                continue
            left = verdict.until - time.time() if verdict.until else LOOK_S
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, min(left, LOOK_S))):
                    await news.wait()
                    await asyncio.sleep(GATHER_S)

    async def _step(self, name: str) -> tuple[Verdict | None, set[DeviceId]]:
        """Look once and act on it in one transaction; return whom to tell after it."""
        rollout = await self.get(name)
        if rollout.state not in OPEN:
            return None, set()
        self._models_of[name] = rollout.model
        plan = Plan.parse(rollout.plan)
        here = self._roster.connected()
        devices = {each.id: each for each in await self._roster.devices()}
        version = await self.models.find(f"{rollout.model}@{rollout.version}")
        artefacts = self.models.signed_in(version, rollout.channel)
        told: set[DeviceId] = set()

        def ask(connection: sa.Connection, wave: int) -> None:
            chosen = {
                each.device: choose(artefacts, devices.get(each.device))
                for each in kept.members(connection, name)
                if each.wave == wave
            }
            told.update(taking.ask_wave(connection, rollout, plan, wave, chosen))

        def write(connection: sa.Connection) -> Verdict | None:
            told.clear()
            now_it_is = kept.find(connection, name)
            if now_it_is is None or now_it_is.state not in OPEN:
                return None
            if now_it_is.state is RolloutState.QUEUED:
                return _turn_of(connection, now_it_is, ask)
            taking.hear(connection, now_it_is)
            if now_it_is.state is RolloutState.PAUSED:
                return Verdict(move=Move.WAIT, why=now_it_is.why or "paused")
            verdict = judge(
                now_it_is.state,
                plan,
                _members(connection, now_it_is, here),
                wave=now_it_is.wave,
                wave_at=now_it_is.wave_at or 0.0,
                now=time.time(),
            )
            _act(connection, now_it_is, plan, verdict, ask, told)
            return verdict

        return await self.store.write(write), told


def _act(  # noqa: PLR0917 - the step's own values
    connection: sa.Connection,
    rollout: Rollout,
    plan: Plan,
    verdict: Verdict,
    ask: Callable[[sa.Connection, int], None],
    told: set[DeviceId],
) -> None:
    """Do what a verdict says, all of it in the step's transaction."""
    name, why = rollout.id, verdict.why
    match verdict.move:
        case Move.SETTLED:
            kept.change(connection, name, RolloutEvent.SETTLED, why)
        case Move.NEXT:
            wave = rollout.wave + 1
            kept.change(connection, name, RolloutEvent.SOAKED, why, wave=wave)
            ask(connection, wave)
        case Move.DONE:
            kept.change(connection, name, RolloutEvent.DONE, why)
        case Move.PAUSE:
            kept.change(connection, name, RolloutEvent.PAUSE, why)
        case Move.FAIL if plan.on_failure == "pause":
            kept.change(connection, name, RolloutEvent.PAUSE, why)
            kept_models.quarantine(connection, rollout.model, rollout.version, why)
        case Move.FAIL:
            kept.change(connection, name, RolloutEvent.UNDO, why)
            told.update(taking.after_order(connection, name, RolloutEvent.UNDO))
            kept_models.quarantine(connection, rollout.model, rollout.version, why)
        case Move.REVERTED:
            kept.change(connection, name, RolloutEvent.REVERTED, rollout.why or why)
        case Move.WAIT:
            pass


def _turn_of(
    connection: sa.Connection, rollout: Rollout, ask: Callable[[sa.Connection, int], None]
) -> Verdict:
    """Begin a queued rollout when the one before it has ended."""
    before = kept.find(connection, rollout.behind) if rollout.behind else None
    if before is not None and before.state in OPEN:
        return Verdict(move=Move.WAIT, why=f"waits for the end of {before.id}")
    kept.change(connection, rollout.id, RolloutEvent.TURN)
    ask(connection, 0)
    return Verdict(move=Move.NEXT, why="its turn")


def _members(
    connection: sa.Connection, rollout: Rollout, here: frozenset[DeviceId]
) -> Iterable[Member]:
    return [
        Member(
            device=each.device,
            wave=each.wave,
            state=each.state,
            why=each.why,
            connected=each.device in here,
            readings=each.readings.get("now"),
            before=each.readings.get("before"),
        )
        for each in kept.members(connection, rollout.id)
    ]
