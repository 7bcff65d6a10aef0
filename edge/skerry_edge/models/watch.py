"""Watching what serves: a release on trial is confirmed or taken back, a live one that fails too.

Nothing here needs the network. A health period is the director's wish; what is measured comes from
who serves the model, or, where nobody does yet, from testing it again.
"""

import asyncio
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from skerry_protos.artefacts import HealthLimits, Phase, unwell
from skerry_protos.errors import ConfigError, SkerryError

from skerry_edge.models import SelfTest, Service
from skerry_edge.models.lifecycle import Event, advance
from skerry_edge.models.reports import Reports
from skerry_edge.models.slots import Release, Slot, Slots

log = logging.getLogger(__name__)

STARTS_LIMIT = 3
"""An agent that starts more often during one trial takes the release back: it may be the cause."""
TEST_S = 120.0
REPORT_S = 300.0
"""How often a release that is past its trial is reported on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What the director asks of a trial."""

    period_s: float = 30.0
    trial_s: float = 60.0
    retry: bool = False
    limits: HealthLimits = field(default_factory=HealthLimits)

    @classmethod
    def of(cls, release: Release) -> "Wish":
        """Return the wish for a release; what makes no sense is our default."""
        table = release.wish

        def seconds(key: str, default: float) -> float:
            value = table.get(key)
            sane = isinstance(value, int | float) and 0 < value <= 7 * 86_400
            return float(value) if sane else default  # type: ignore[arg-type]

        try:
            limits = HealthLimits.parse(table.get("gates", {}))
        except ConfigError as error:
            log.warning("release %s: %s", release.target, error)
            limits = HealthLimits()
        return cls(
            period_s=seconds("period_s", 30.0),
            trial_s=seconds("trial_s", 60.0),
            retry=table.get("retry") is True,
            limits=limits,
        )


class Watch:
    """One model's health; `run` it while the agent runs."""

    def __init__(
        self,
        model: str,
        slots: Slots,
        *,
        self_test: SelfTest,
        service: Service | None,
        reports: Reports,
        turn: asyncio.Lock,
    ) -> None:
        self.model, self.slots = model, slots
        self._self_test, self._service, self._reports = self_test, service, reports
        self._turn = turn  # held while the slots are changed
        self._began = time.monotonic()
        self._said = 0.0
        self._changed = asyncio.Event()

    async def begin(self) -> None:
        """Serve what the slots say after a start of the agent, once they are mended."""
        before = self.slots.live
        mended = self.slots.recover()
        live = self.slots.live
        if live is not None and self.slots.on_trial:
            starts = self.slots.started()
            if starts > STARTS_LIMIT:
                await self._take_back(live, f"the agent started {starts} times during the trial")
                return
        if mended and before is not None and (live is None or live.folder != before.folder):
            self._say(Phase.ROLLED_BACK, before.release, why=mended)
        if self._service is not None:
            await self.serve(live)

    async def serve(self, slot: Slot | None) -> bool:
        """Hand a release to who serves; return whether it serves."""
        if self._service is None:
            return True
        try:
            await self._service.swap(self.model, slot)
        except SkerryError as error:
            log.error("release %s cannot be served: %s", slot and slot.release.target, error)
            if slot is not None and self.slots.live == slot:
                why = f"it cannot be served: {error.message}"
                # A setting that an operator has to edit is not the release's fault.
                bad = not isinstance(error, ConfigError)
                await self._take_back(slot, why, swap=False, bad=bad)
            return False
        return True

    def trial_begins(self) -> None:
        """Note that a release has just been promoted."""
        self._began = time.monotonic()
        self._changed.set()

    async def run(self) -> None:
        """Look at the live release once in each health period, until cancelled."""
        while True:
            live = self.slots.live
            wish = Wish.of(live.release) if live is not None else Wish()
            self._changed.clear()
            try:
                async with asyncio.timeout(wish.period_s):
                    await self._changed.wait()
                continue  # another release: its own period begins
            except TimeoutError:
                pass
            async with self._turn:
                await self.look()

    async def look(self) -> None:
        """Judge the live release now; the turn is held."""
        live = self.slots.live
        if live is None:
            return
        wish = Wish.of(live.release)
        trial = self.slots.on_trial
        readings, wrong = await self._readings(live, trial=trial)
        wrong = wrong or unwell(readings, wish.limits)
        if wrong is not None:
            await self._take_back(live, wrong, readings)
        elif trial and time.monotonic() - self._began >= wish.trial_s:
            self.slots.confirm()
            log.info("release %s is healthy: its trial is over", live.release.target)
            self._say(advance(Phase.TRIAL, Event.HEALTHY), live.release, readings=readings)
        elif readings and (trial or time.monotonic() - self._said >= REPORT_S):
            phase = Phase.TRIAL if trial else Phase.LIVE
            self._say(phase, live.release, readings=readings)

    async def _readings(self, live: Slot, *, trial: bool) -> tuple[Mapping[str, float], str | None]:
        """Return what is measured of the live release, and what is wrong with measuring it."""
        measured = self._service.readings(self.model) if self._service is not None else None
        if measured is not None or not trial:
            return measured or {}, None
        try:
            return await self._self_test.test(live, timeout_s=TEST_S), None
        except SkerryError as error:
            return {}, error.message

    async def _take_back(
        self,
        slot: Slot,
        why: str,
        readings: Mapping[str, float] | None = None,
        *,
        swap: bool = True,
        bad: bool = True,
    ) -> None:
        """Let the last good release serve again."""
        log.warning("release %s is taken back: %s", slot.release.target, why)
        now = self.slots.revert(why, bad=bad)
        if self._service is not None and swap:
            try:
                await self._service.swap(self.model, now)
            except SkerryError as error:
                why = f"{why}; and the one before cannot be served: {error.message}"
        self._say(Phase.ROLLED_BACK, slot.release, why=why, readings=readings)

    def _say(
        self,
        phase: Phase,
        release: Release,
        *,
        why: str = "",
        readings: Mapping[str, float] | None = None,
    ) -> None:
        self._said = time.monotonic()
        live = self.slots.live
        self._reports.say(
            phase, release, why=why, readings=readings, serving=live.release if live else None
        )
