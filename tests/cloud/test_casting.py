"""Which chunks are published once for all, and which are sent to one device alone."""

from skerry_cloud.fleets.casting import FRESH_S, GATHER_S, IDLE_S, Answer, Cast
from skerry_protos.messages import BlobRef, DeviceId, Digest

A, B, C = DeviceId("a"), DeviceId("b"), DeviceId("c")
CHUNK = 65536


def cast_to(*devices: DeviceId) -> Cast:
    cast = Cast(BlobRef(digest=Digest("ab" * 32), size=10 * CHUNK))
    cast.add(devices, 100.0)
    return cast


def ask(
    cast: Cast, device: DeviceId, *chunks: int, now: float, repair: bool = False, size: int = CHUNK
) -> Answer:
    return cast.ask(device, size, [chunk * CHUNK for chunk in chunks], repair=repair, now=now)


def test_a_chunk_is_published_for_the_first_that_asks_and_for_no_other() -> None:
    cast = cast_to(A, B)
    assert ask(cast, A, 0, 1, now=100.0) == Answer([0, CHUNK], [])
    assert ask(cast, B, 0, 1, 2, now=100.01) == Answer([2 * CHUNK], [])
    assert ask(cast, A, 2, now=100.02) == Answer([], [])


def test_publishing_waits_for_all_to_listen_but_not_long() -> None:
    cast = cast_to(A, B, C)
    ask(cast, A, 0, now=100.0)
    assert cast.begin_s == 100.0 + GATHER_S
    ask(cast, B, 0, now=100.05)
    assert cast.begin_s == 100.0 + GATHER_S
    ask(cast, C, 0, now=100.06)
    assert cast.begin_s == 100.06


def test_a_repair_goes_to_the_one_that_asks() -> None:
    cast = cast_to(A, B)
    ask(cast, A, 0, now=100.0)
    ask(cast, B, 0, now=100.0)
    assert ask(cast, B, 0, now=101.0, repair=True) == Answer([], [0])


def test_a_device_that_was_not_named_is_served_alone() -> None:
    cast = cast_to(A, B)
    assert ask(cast, C, 0, now=100.0) == Answer([], [0])


def test_one_late_device_is_served_alone_what_went_by_before_it_listened() -> None:
    cast = cast_to(A, B, C)
    ask(cast, A, 0, now=100.0)
    ask(cast, B, 0, now=100.0)
    late = ask(cast, C, 0, 1, now=100.0 + GATHER_S + 1)
    assert late == Answer([CHUNK], [0])


def test_several_late_devices_have_it_published_again_once() -> None:
    cast = cast_to(A, B, C)
    ask(cast, A, 0, now=100.0)
    assert ask(cast, B, 0, now=101.0) == Answer([0], [])
    assert ask(cast, C, 0, now=101.0) == Answer([], [])
    assert ask(cast, B, 0, now=101.1) == Answer([], [])


def test_what_was_published_long_ago_is_sent_alone() -> None:
    cast = cast_to(A, B)
    ask(cast, A, 0, now=100.0)
    ask(cast, B, 1, now=100.0)
    assert ask(cast, B, 0, now=100.0 + GATHER_S + FRESH_S + 1) == Answer([], [0])


def test_a_device_with_smaller_packets_is_served_alone() -> None:
    cast = cast_to(A, B)
    ask(cast, A, 0, now=100.0)
    assert ask(cast, B, 0, now=100.0, size=CHUNK // 2) == Answer([], [0])


def test_a_device_that_lost_its_connection_is_not_waited_for_and_may_come_back() -> None:
    cast = cast_to(A, B)
    cast.leave(B)
    ask(cast, A, 0, now=100.0)
    assert cast.begin_s == 100.0
    assert ask(cast, B, 0, 1, now=101.0) == Answer([CHUNK], [0])
    assert ask(cast, A, 1, now=101.0) == Answer([], [])


def test_a_cast_that_nobody_asks_for_becomes_idle() -> None:
    cast = cast_to(A, B)
    ask(cast, A, 0, now=100.0)
    assert not cast.idle(100.0 + IDLE_S)
    assert cast.idle(101.0 + IDLE_S)
