"""What a rollout does next, from what its devices say: values in, a verdict out."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from statistics import median

from skerry_protos.artefacts import Reading, unwell
from skerry_protos.messages import DeviceId

from skerry_cloud.rollouts.lifecycle import BAD, SETTLED, DeviceState, RolloutState
from skerry_cloud.rollouts.plan import Plan

NAMED = 5


class Move(StrEnum):
    """What to do."""

    WAIT = "wait"
    SETTLED = "settled"
    NEXT = "next"
    DONE = "done"
    FAIL = "fail"  # a gate does not hold
    PAUSE = "pause"  # nobody can tell: a person has to look
    REVERTED = "reverted"


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """A device in a rollout."""

    device: DeviceId
    wave: int
    state: DeviceState
    why: str = ""
    connected: bool = False
    readings: Mapping[str, float] | None = None
    before: Mapping[str, float] | None = None  # readings of the version it had before


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What to do and why; `until` is when the wait ends by itself (0: by news only)."""

    move: Move
    why: str
    until: float = 0.0


def judge(
    state: RolloutState,
    plan: Plan,
    members: Iterable[Member],
    *,
    wave: int,
    wave_at: float,
    now: float,
) -> Verdict:
    """Return what a rollout does next."""
    every = list(members)
    if state is RolloutState.REVERTING:
        return _reverting(every, wave_at + plan.wave_s, now)
    here = [each for each in every if each.wave <= wave and each.state is not DeviceState.LEFT]
    if (wrong := _failed(here, plan)) is not None:
        return Verdict(move=Move.FAIL, why=wrong)
    if state is RolloutState.ROLLING:
        return _rolling([each for each in here if each.wave == wave], plan, wave, wave_at, now)
    until = wave_at + plan.soak_s
    if now < until:
        return Verdict(move=Move.WAIT, why=f"wave {wave + 1} is watched", until=until)
    if unwatched := [each for each in here if each.state not in SETTLED]:
        # As one whose trial began anew; its wave's deadline goes on from the soak's end.
        if now < until + plan.wave_s:
            return Verdict(
                move=Move.WAIT, why=f"waits for {_names(unwatched)}", until=until + plan.wave_s
            )
        return Verdict(move=Move.PAUSE, why=f"{_names(unwatched)} have not settled")
    if wave + 1 < len(plan.waves) and any(each.wave > wave for each in every):
        return Verdict(move=Move.NEXT, why=f"wave {wave + 1} held for {plan.soak_s:g} s")
    return Verdict(move=Move.DONE, why="every wave holds")


def _rolling(wave: list[Member], plan: Plan, number: int, since: float, now: float) -> Verdict:
    answered = [each for each in wave if each.state in SETTLED]
    missing = [each for each in wave if each.state not in SETTLED]
    if not missing:
        return Verdict(
            move=Move.SETTLED, why=f"all {len(wave)} devices of wave {number + 1} settled"
        )
    until = since + plan.wave_s
    away = sum(not each.connected for each in missing)
    why = f"waits for {_names(missing)} of wave {number + 1}" + (f" ({away} away)" if away else "")
    if now < until:
        return Verdict(move=Move.WAIT, why=why, until=until)
    if len(answered) >= plan.gates.min_answered * len(wave):
        return Verdict(move=Move.SETTLED, why=f"{len(answered)} of {len(wave)} devices settled")
    return Verdict(
        move=Move.PAUSE,
        why=f"{len(answered)} of {len(wave)} devices of wave {number + 1} settled in "
        f"{plan.wave_s:g} s; missing: {_names(missing)}",
    )


def _failed(here: list[Member], plan: Plan) -> str | None:
    """Return which gate does not hold, or None; judged as soon as it cannot hold any more."""
    bad = [each for each in here if each.state in BAD]
    if bad and len(bad) > plan.gates.max_failed * len(here):
        reasons = Counter(each.why or each.state.value for each in bad)
        return f"{len(bad)} of {len(here)} devices failed: {reasons.most_common(1)[0][0]}"
    for each in here:
        if each.state in {DeviceState.LIVE, DeviceState.TRIAL} and each.readings:
            wrong = unwell(each.readings, plan.health)
            if wrong is not None and plan.gates.max_failed * len(here) < 1:
                return f"device {each.device}: {wrong}"
    return _slower(here, plan.gates.max_latency_ratio)


def _slower(here: list[Member], most: float) -> str | None:
    if most <= 0:
        return None
    ratios = [
        after / before
        for each in here
        if (after := (each.readings or {}).get(Reading.LATENCY_P95_S, 0.0)) > 0
        and (before := (each.before or {}).get(Reading.LATENCY_P95_S, 0.0)) > 0
    ]
    if ratios and median(ratios) > most:
        return f"p95 latency is {median(ratios):.2f} times that of the version before"
    return None


def _reverting(every: list[Member], until: float, now: float) -> Verdict:
    left = [each for each in every if each.state is DeviceState.REVERTING]
    if not left:
        return Verdict(move=Move.REVERTED, why="every device serves what it served before")
    if now < until:
        return Verdict(move=Move.WAIT, why=f"waits for {_names(left)} to go back", until=until)
    return Verdict(
        move=Move.REVERTED, why=f"{_names(left)} go back when they come: they are told then"
    )


def _names(members: list[Member]) -> str:
    names = sorted(each.device for each in members)
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return f"{len(names)} devices: {', '.join(names[:NAMED])}{more}" if names else "none"
