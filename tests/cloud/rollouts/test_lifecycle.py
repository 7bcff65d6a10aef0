"""The lives of a rollout and of its devices, walked whole."""

from itertools import product

from skerry_cloud.rollouts.lifecycle import (
    BAD,
    DEVICE_NEXT,
    NEXT,
    OPEN,
    SETTLED,
    DeviceState,
    RolloutEvent,
    RolloutState,
    advance,
    follows,
)


def test_every_pair_leads_where_the_table_says_or_nowhere() -> None:
    for state, event in product(RolloutState, RolloutEvent):
        assert advance(state, event) is NEXT.get((state, event), state)


def test_every_state_is_reached_and_every_open_one_can_end() -> None:
    def reachable(start: RolloutState) -> set[RolloutState]:
        reached, fresh = {start}, {start}
        while fresh:
            fresh = {after for (state, _), after in NEXT.items() if state in fresh} - reached
            reached |= fresh
        return reached

    assert reachable(RolloutState.QUEUED) == set(RolloutState)
    ended = set(RolloutState) - OPEN
    for state in OPEN:
        assert reachable(state) & ended
        assert advance(state, RolloutEvent.ABORT) is RolloutState.ABORTED


def test_only_a_wave_that_was_watched_is_followed_by_the_next() -> None:
    before = {
        (state, event) for (state, event), after in NEXT.items() if after is RolloutState.COMPLETED
    }
    assert before == {(RolloutState.SOAKING, RolloutEvent.DONE)}


def test_devices_go_where_the_table_says() -> None:
    for before, after in product(DeviceState, DeviceState):
        assert follows(before, after) is ((before, after) in DEVICE_NEXT)
    assert not follows(DeviceState.WAITING, DeviceState.LIVE)
    assert not [after for (before, after) in DEVICE_NEXT if before is DeviceState.REVERTED]
    assert BAD < SETTLED
