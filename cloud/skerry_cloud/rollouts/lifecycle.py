"""The lives of a rollout and of a device in it, as tables; a test walks them whole."""

from enum import StrEnum


class RolloutState(StrEnum):
    """What a rollout is doing."""

    QUEUED = "queued"  # behind another rollout that has some of its devices
    ROLLING = "rolling"  # a wave's devices take the version
    SOAKING = "soaking"  # they have it, and are watched before the next wave
    PAUSED = "paused"  # a person or a gate stopped it; nobody new takes the version
    REVERTING = "reverting"  # its devices go back to what they had
    COMPLETED = "completed"
    ABORTED = "aborted"  # a person ended it; devices keep what they have
    ROLLED_BACK = "rolled-back"


class RolloutEvent(StrEnum):
    """What may happen to a rollout."""

    TURN = "turn"  # the rollout before it has ended
    SETTLED = "settled"  # the wave's devices have answered
    SOAKED = "soaked"  # the soak time is over, the gates hold, and there is another wave
    DONE = "done"  # the same, and it was the last wave
    PAUSE = "pause"
    RESUME = "resume"
    ABORT = "abort"
    UNDO = "undo"  # a person, or a gate that failed
    REVERTED = "reverted"  # all who could go back have


class DeviceState(StrEnum):
    """How far a device is in a rollout."""

    WAITING = "waiting"  # its wave has not begun
    ASKED = "asked"  # assigned, and not settled
    TRIAL = "trial"  # it serves the version, and watches it
    LIVE = "live"
    REFUSED = "refused"
    FAILED = "failed"  # the self-test, or the trial: the last good one serves
    REVERTING = "reverting"
    REVERTED = "reverted"
    LEFT = "left"  # it was never asked, and will not be


_R, _E = RolloutState, RolloutEvent

NEXT: dict[tuple[RolloutState, RolloutEvent], RolloutState] = {
    (_R.QUEUED, _E.TURN): _R.ROLLING,
    (_R.QUEUED, _E.ABORT): _R.ABORTED,
    (_R.ROLLING, _E.SETTLED): _R.SOAKING,
    (_R.ROLLING, _E.PAUSE): _R.PAUSED,
    (_R.ROLLING, _E.ABORT): _R.ABORTED,
    (_R.ROLLING, _E.UNDO): _R.REVERTING,
    (_R.SOAKING, _E.SOAKED): _R.ROLLING,
    (_R.SOAKING, _E.DONE): _R.COMPLETED,
    (_R.SOAKING, _E.PAUSE): _R.PAUSED,
    (_R.SOAKING, _E.ABORT): _R.ABORTED,
    (_R.SOAKING, _E.UNDO): _R.REVERTING,
    (_R.PAUSED, _E.RESUME): _R.ROLLING,
    (_R.PAUSED, _E.ABORT): _R.ABORTED,
    (_R.PAUSED, _E.UNDO): _R.REVERTING,
    (_R.REVERTING, _E.REVERTED): _R.ROLLED_BACK,
    (_R.REVERTING, _E.ABORT): _R.ABORTED,
    (_R.COMPLETED, _E.UNDO): _R.REVERTING,
    (_R.ABORTED, _E.UNDO): _R.REVERTING,
}

OPEN = frozenset({_R.QUEUED, _R.ROLLING, _R.SOAKING, _R.PAUSED, _R.REVERTING})
"""States in which a rollout has a claim on its devices."""

_D = DeviceState

DEVICE_NEXT: dict[tuple[DeviceState, DeviceState], bool] = {
    (a, b): True
    for a, every in {
        _D.WAITING: (_D.ASKED, _D.LEFT),
        _D.ASKED: (_D.TRIAL, _D.LIVE, _D.REFUSED, _D.FAILED, _D.REVERTING, _D.LEFT),
        _D.TRIAL: (_D.LIVE, _D.FAILED, _D.REVERTING),
        _D.LIVE: (_D.FAILED, _D.TRIAL, _D.REVERTING),
        # A refusal may pass: a clock that was set, a retry.
        _D.REFUSED: (_D.ASKED, _D.TRIAL, _D.LIVE, _D.FAILED, _D.REVERTING, _D.LEFT),
        _D.FAILED: (_D.ASKED, _D.REVERTING, _D.LEFT),
        _D.REVERTING: (_D.REVERTED,),
        _D.LEFT: (_D.ASKED,),
    }.items()
    for b in every
}
"""Which state of a device may follow which."""

SETTLED = frozenset({_D.LIVE, _D.REFUSED, _D.FAILED, _D.LEFT})
BAD = frozenset({_D.REFUSED, _D.FAILED})


def advance(state: RolloutState, event: RolloutEvent) -> RolloutState:
    """Return the state after `event`; an event out of place changes nothing."""
    return NEXT.get((state, event), state)


def follows(before: DeviceState, after: DeviceState) -> bool:
    """Return whether a device may go from one state to another."""
    return (before, after) in DEVICE_NEXT
