"""Which chunks are published once for all, and which are sent to one device alone."""

import pytest
from skerry_cloud.fleets.casting import (
    FRESH_S,
    GATHER_S,
    IDLE_S,
    KEPT_S,
    LONGEST_S,
    MERGE_S,
    MERGED,
    Cast,
)
from skerry_protos.messages import BlobRef, DeviceId, Digest

A, B, C, D = (DeviceId(name) for name in "abcd")
CHUNK = 65536


def cast_to(*devices: DeviceId, keep: bool = False, deaf: tuple[DeviceId, ...] = ()) -> Cast:
    cast = Cast(BlobRef(digest=Digest("ab" * 32), size=10 * CHUNK), keep=keep)
    cast.add(devices, 100.0, deaf)
    return cast


def ask(
    cast: Cast, device: DeviceId, *chunks: int, now: float, repair: bool = False, size: int = CHUNK
) -> list[int]:
    """Ask for chunks by number; return the numbers sent alone."""
    offsets = [chunk * CHUNK for chunk in chunks]
    alone = cast.ask(device, size, offsets, repair=repair, now=now)
    return [offset // CHUNK for offset in alone]


def published(cast: Cast, now: float) -> list[int]:
    """Publish what may be now; return its numbers."""
    found = []
    while (taken := cast.take(now)) is not None:
        found.append(taken[0] // CHUNK)
    return found


def test_a_chunk_is_published_for_the_first_that_asks_and_for_no_other() -> None:
    cast = cast_to(A, B)
    assert ask(cast, A, 0, 1, now=100.0) == []
    assert ask(cast, B, 0, 1, 2, now=100.01) == []
    assert published(cast, 100.01) == [0, 1, 2]
    assert ask(cast, A, 2, now=100.02) == []
    assert published(cast, 100.02) == []


def test_publishing_waits_for_all_to_listen_but_not_long() -> None:
    cast = cast_to(A, B, C)
    ask(cast, A, 0, now=100.0)
    ask(cast, B, 0, now=100.1)
    assert published(cast, 100.1) == []
    assert cast.wait_s(100.1) == pytest.approx(GATHER_S)  # from when the last one came
    assert published(cast, 100.0 + GATHER_S) == []
    assert published(cast, 100.11 + GATHER_S) == [0]
    ask(cast, A, 1, now=101.0)  # it has begun: what is asked next waits for nobody
    assert published(cast, 101.0) == [1]


def test_publishing_begins_at_once_when_all_listen() -> None:
    cast = cast_to(A, B)
    ask(cast, A, 0, now=100.0)
    assert published(cast, 100.01) == []
    ask(cast, B, 0, now=100.02)
    assert published(cast, 100.02) == [0]


@pytest.mark.parametrize("keep", [True, False])
def test_what_many_missed_is_published_once_more_for_all_of_them(keep: bool) -> None:
    devices = [DeviceId(f"dev-{number}") for number in range(50)]
    cast = cast_to(*devices, keep=keep)
    for device in devices:
        ask(cast, device, 0, 1, 2, now=100.0)
    assert published(cast, 100.0) == [0, 1, 2]
    now = 101.0
    if keep:  # the broker has it, and may be slow
        assert ask(cast, devices[0], 0, now=now, repair=True) == []
        assert published(cast, now + 1.0) == []
        now += FRESH_S
    for number, device in enumerate(devices):
        assert ask(cast, device, number % 2, now=now + 0.001 * number, repair=True) == []
    assert published(cast, now + MERGE_S / 2) == []
    assert cast.wait_s(now + 0.05) == pytest.approx(MERGE_S - 0.05)
    assert published(cast, now + 0.01 + MERGE_S) == [0, 1]


def test_who_misses_a_chunk_again_and_again_gets_it_alone() -> None:
    cast, now = cast_to(A, B), 101.0
    ask(cast, A, 0, now=100.0)
    ask(cast, B, 0, now=100.0)
    assert published(cast, 100.0) == [0]
    for _ in range(MERGED):
        assert ask(cast, B, 0, now=now, repair=True) == []
        now += 1.0
        assert published(cast, now) == [0]
    assert ask(cast, B, 0, now=now, repair=True) == [0]
    assert published(cast, now + 1.0) == []


def test_what_the_broker_keeps_is_published_at_once_and_never_again() -> None:
    devices = [DeviceId(f"dev-{number}") for number in range(200)]
    cast, now = cast_to(*devices, keep=True), 100.0
    for device in devices:
        now += 1.0  # they come over minutes
        assert ask(cast, device, *range(10), now=now) == []
        assert published(cast, now) == (list(range(10)) if device == "dev-0" else [])


def test_what_the_broker_kept_for_long_or_lost_is_published_again() -> None:
    cast = cast_to(A, B, keep=True)
    ask(cast, A, 0, now=100.0)
    assert published(cast, 100.0) == [0]
    assert ask(cast, B, 0, now=101.0 + KEPT_S) == []
    assert published(cast, 101.0 + KEPT_S) == [0]
    cast.lose()
    assert ask(cast, B, 0, now=102.0 + KEPT_S) == []
    assert published(cast, 102.0 + KEPT_S) == [0]


def test_nothing_is_kept_while_a_device_is_there_that_would_not_hear_it() -> None:
    cast = cast_to(A, B, C, keep=True, deaf=(C,))
    ask(cast, A, 0, now=100.0)
    assert cast.take(100.0) is None  # it waits for the others
    ask(cast, B, 0, now=100.01)
    ask(cast, C, 0, now=100.02)
    assert cast.take(100.02) == (0, False)
    cast.leave(C)
    ask(cast, A, 1, now=101.0)
    assert cast.take(101.0) == (CHUNK, True)
    assert ask(cast, B, 1, now=103.0) == []
    assert ask(cast, C, 1, now=104.0) == [1]  # it comes back, and has not heard it


def test_a_blob_that_is_not_kept_any_more_is_cast_as_where_nothing_is() -> None:
    cast = cast_to(A, B, keep=True)
    ask(cast, A, 0, 1, now=100.0)
    assert published(cast, 100.0) == [0, 1]
    assert cast.release() == [0, CHUNK]
    assert ask(cast, B, 0, now=101.0) == [0]
    ask(cast, B, 2, now=101.0)
    assert cast.take(101.0) == (2 * CHUNK, False)


def test_a_device_that_was_not_named_is_served_alone() -> None:
    cast = cast_to(A, B)
    assert ask(cast, C, 0, now=100.0) == [0]


def test_one_late_device_is_served_alone_what_went_by_before_it_listened() -> None:
    cast = cast_to(A, B, C)
    ask(cast, A, 0, now=100.0)
    ask(cast, B, 0, now=100.0)
    assert published(cast, 100.0 + GATHER_S) == [0]
    assert ask(cast, C, 0, 1, now=101.0) == [0]
    assert published(cast, 101.0) == [1]


def test_several_late_devices_have_it_published_again_once() -> None:
    cast = cast_to(A, B, C, D)
    ask(cast, A, 0, now=100.0)
    assert published(cast, 100.0 + GATHER_S) == [0]
    for number, device in enumerate((B, C)):
        assert ask(cast, device, 0, now=101.0 + 0.05 * number) == []
    assert published(cast, 101.1) == []
    assert published(cast, 101.06 + GATHER_S) == [0]
    assert ask(cast, D, 0, now=102.0) == [0]


def test_two_hundred_devices_that_come_one_by_one_do_not_have_it_published_for_each() -> None:
    devices = [DeviceId(f"dev-{number}") for number in range(200)]
    cast, times, now = cast_to(*devices), 0, 100.0
    for device in devices:
        now += 0.01  # two seconds for all
        assert len(ask(cast, device, 0, now=now)) in {0, 1}
        times += len(published(cast, now))
    assert times == 1


def test_a_chunk_does_not_wait_for_ever_for_those_who_keep_coming() -> None:
    devices = [DeviceId(f"dev-{number}") for number in range(200)]
    cast, now = cast_to(*devices), 100.0
    for device in devices:
        now += 0.1
        ask(cast, device, 0, now=now)
        if published(cast, now):
            break
    assert 100.0 + LONGEST_S < now < 101.0 + LONGEST_S


def test_what_was_published_long_ago_is_sent_alone() -> None:
    cast = cast_to(A, B)
    ask(cast, A, 0, now=100.0)
    ask(cast, B, 1, now=100.0)
    assert published(cast, 100.0) == [0, 1]
    assert ask(cast, B, 0, now=100.0 + FRESH_S + 1) == [0]


def test_a_device_with_smaller_packets_is_served_alone() -> None:
    cast = cast_to(A, B)
    ask(cast, A, 0, now=100.0)
    assert ask(cast, B, 0, now=100.0, size=CHUNK // 2) == [0]


def test_a_device_that_could_not_take_what_is_broadcast_changes_nothing_for_the_others() -> None:
    cast = cast_to(A, B)
    assert cast.ask(A, 4096, [0, 4096], repair=False, now=100.0, alone=True) == [0, 4096]
    assert ask(cast, B, 0, 1, now=100.0) == []
    assert published(cast, 100.0) == [0, 1]  # in B's size, and nobody waits for A
    assert cast.ask(A, 4096, [8192], repair=True, now=100.1, alone=True) == [8192]
    assert ask(cast, A, 0, 1, now=200.0, repair=True) == []  # its path has become better
    assert published(cast, 200.0 + MERGE_S) == [0, 1]


def test_a_device_that_only_lost_patience_is_not_served_alone_what_is_on_its_way() -> None:
    cast = cast_to(A, B, keep=True)
    ask(cast, A, 0, now=100.0)
    ask(cast, B, 0, now=100.0)
    assert published(cast, 100.0) == [0]
    assert ask(cast, B, 0, now=104.0, size=CHUNK // 2) == []
    assert ask(cast, B, 0, now=101.0 + FRESH_S, size=CHUNK // 2) == [0]


def test_a_device_that_lost_its_connection_is_not_waited_for_and_may_come_back() -> None:
    cast = cast_to(A, B)
    cast.leave(B)
    ask(cast, A, 0, now=100.0)
    assert published(cast, 100.0) == [0]
    assert ask(cast, B, 0, 1, now=101.0) == [0]
    assert ask(cast, A, 1, now=101.0) == []
    assert published(cast, 101.0) == [1]


def test_a_cast_that_nobody_asks_for_becomes_idle() -> None:
    cast = cast_to(A, B)
    ask(cast, A, 0, now=100.0)
    assert not cast.idle(100.0 + IDLE_S)
    assert cast.idle(101.0 + IDLE_S)
