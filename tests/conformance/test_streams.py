"""Streams: ordered, two-way, with back-pressure, across cuts; many at once."""

import asyncio
import random
import time

import pytest
from skerry_protos.errors import DeadlineError, LinkError, RejectCode, RejectedError
from skerry_protos.seams import Stream
from skerry_protos.session import Limits

from tests.conformance.harness import WAIT_S, Harness, echo, until


def messages(count: int, largest: int, seed: int = 0) -> list[bytes]:
    """Return messages of many sizes, empty ones among them."""
    dice = random.Random(f"{count} {largest} {seed}")
    return [
        dice.randbytes(dice.randrange(largest) if dice.random() > 0.1 else 0) for _ in range(count)
    ]


async def exchange(stream: Stream, sent: list[bytes]) -> list[bytes]:
    """Send all and finish, receive all until the other end has finished."""

    async def send() -> None:
        for message in sent:
            await stream.send(message)
        await stream.finish()

    sending = asyncio.ensure_future(send())
    received = [message async for message in stream]
    await sending
    return received


async def test_an_echo_in_order_from_both_sides(harness: Harness) -> None:
    device = await harness.device()
    sent = messages(60, 30_000)
    for stream in (
        await device.link.open_stream("echo", deadline_s=60),
        await harness.fleet.open_stream(device.id, "echo", deadline_s=60),
    ):
        async with asyncio.timeout(8):  # far below the next ping, which would wake a sleeper
            assert await exchange(stream, sent) == sent


async def test_a_stream_says_what_it_is_for(harness: Harness) -> None:
    device = await harness.device()
    seen: list[tuple[str, str]] = []

    async def serve(stream: Stream) -> None:
        seen.append((stream.kind, stream.run))

    harness.gate.serving = serve
    async with await device.link.open_stream("split", deadline_s=20, run="run-1", trace="t"):
        pass
    assert seen == [("split", "run-1")]


async def test_a_message_larger_than_every_window_crosses(harness: Harness) -> None:
    device = await harness.device()
    big = random.Random(1).randbytes(6_000_000)
    async with await device.link.open_stream("echo", deadline_s=60) as stream:
        await stream.send(big)
        assert await asyncio.wait_for(stream.receive(), 60) == big


async def test_any_kind_of_buffer_is_copied_when_sent(harness: Harness) -> None:
    device = await harness.device()
    buffer = bytearray(b"first")
    async with await device.link.open_stream("echo", deadline_s=20) as stream:
        await stream.send(buffer)
        buffer[:] = b"other"
        await stream.send(memoryview(buffer))
        assert await stream.receive() == b"first"
        assert await stream.receive() == b"other"


async def test_many_streams_at_once_do_not_mix(harness: Harness) -> None:
    device = await harness.device()

    async def one(number: int) -> None:
        sent = messages(15, 20_000, number)
        if number % 2:
            stream = await device.link.open_stream("echo", deadline_s=60)
        else:
            stream = await harness.fleet.open_stream(device.id, "echo", deadline_s=60)
        assert await exchange(stream, sent) == sent

    async with asyncio.timeout(60):
        await asyncio.gather(*(one(number) for number in range(32)))


async def test_a_direction_that_has_finished_leaves_the_other_open(harness: Harness) -> None:
    device = await harness.device()

    async def count_then_talk(stream: Stream) -> None:
        count = len([message async for message in stream])
        for number in range(count):
            await stream.send(bytes([number]))

    harness.gate.serving = count_then_talk
    stream = await device.link.open_stream("count", deadline_s=20)
    for _ in range(5):
        await stream.send(b"x")
    await stream.finish()
    with pytest.raises(RejectedError, match="has finished"):
        await stream.send(b"late")
    assert [message async for message in stream] == [bytes([number]) for number in range(5)]
    with pytest.raises(EOFError):
        await stream.receive()


async def test_a_reader_that_stalls_holds_its_sender_and_nobody_else(harness: Harness) -> None:
    device = await harness.device()
    go_on = asyncio.Event()

    async def serve(stream: Stream) -> None:
        if stream.kind == "stalled":
            await go_on.wait()
        await echo(stream)

    harness.gate.serving = serve
    stalled = await device.link.open_stream("stalled", deadline_s=90)
    accepted = 0

    async def flood() -> None:
        nonlocal accepted
        for _ in range(200):
            await stalled.send(bytes(100_000))
            accepted += 1
        await stalled.finish()

    flooding = asyncio.ensure_future(flood())
    sent = messages(20, 20_000)
    other = await device.link.open_stream("echo", deadline_s=60)
    async with asyncio.timeout(30):
        assert await exchange(other, sent) == sent
    await asyncio.sleep(0.2)
    assert accepted * 100_000 <= Limits().stream_window + 200_000
    go_on.set()
    async with asyncio.timeout(60):
        count = len([message async for message in stalled])
    assert count == 200
    await flooding


async def test_a_blob_and_a_stream_share_the_wire(harness: Harness) -> None:
    device = await harness.device()
    ref = harness.blobs.put(random.Random(2).randbytes(10_000_000))
    fetch = asyncio.ensure_future(device.link.fetch(ref, deadline_s=60))
    async with await device.link.open_stream("echo", deadline_s=60) as stream:
        longest = 0.0
        while not fetch.done():
            began = time.monotonic()
            await stream.send(b"ping")
            await asyncio.wait_for(stream.receive(), WAIT_S)
            longest = max(longest, time.monotonic() - began)
    await fetch
    assert longest < 5


async def test_a_stream_goes_on_after_cuts(harness: Harness) -> None:
    device = await harness.device()
    stream = await device.link.open_stream("echo", deadline_s=90)
    sent = messages(300, 60_000)

    async def send() -> None:
        for number, message in enumerate(sent):
            if number in {50, 120, 200}:
                harness.cut_soon(device)
                await until(lambda: not device.link.connected, "the cut is noticed")
            await stream.send(message)
        await stream.finish()

    sending = asyncio.ensure_future(send())
    async with asyncio.timeout(80):
        received = [message async for message in stream]
    await sending
    assert received == sent


async def test_a_stream_opened_while_cut_waits_for_the_wire(harness: Harness) -> None:
    device = await harness.device()
    harness.cut_soon(device)
    await until(lambda: not device.link.connected, "the cut is noticed")
    stream = await device.link.open_stream("echo", deadline_s=30)
    assert await exchange(stream, [b"one", b"two"]) == [b"one", b"two"]


async def test_an_end_that_crosses_a_cut_is_not_lost(harness: Harness) -> None:
    device = await harness.device()
    for _ in range(5):
        stream = await device.link.open_stream("echo", deadline_s=30)
        await stream.send(b"x")
        assert await asyncio.wait_for(stream.receive(), WAIT_S) == b"x"
        finishing = asyncio.ensure_future(stream.finish())
        await asyncio.sleep(0)
        await harness.cut(device)
        await asyncio.wait_for(finishing, WAIT_S)
        with pytest.raises(EOFError):
            await asyncio.wait_for(stream.receive(), WAIT_S)


async def test_an_abort_tells_the_other_side_why(harness: Harness) -> None:
    device = await harness.device()
    seen: list[BaseException] = []

    async def serve(stream: Stream) -> None:
        try:
            async for _message in stream:
                pass
        except RejectedError as error:
            seen.append(error)
            raise

    harness.gate.serving = serve
    stream = await device.link.open_stream("x", deadline_s=30)
    await stream.send(b"hello")
    await stream.abort("no-more", "the battery is empty")
    await until(lambda: bool(seen), "the other side hears")
    assert (str(seen[0]), seen[0].code) == ("the battery is empty", "no-more")  # type: ignore[attr-defined]
    with pytest.raises(RejectedError, match="battery"):
        await stream.send(b"more")


async def test_a_server_that_fails_aborts_the_stream(harness: Harness) -> None:
    device = await harness.device()

    async def serve(stream: Stream) -> None:
        await stream.receive()
        raise ValueError("a bug in the tail")

    harness.gate.serving = serve
    stream = await device.link.open_stream("x", deadline_s=30)
    await stream.send(b"hello")
    with pytest.raises(RejectedError, match="a bug in the tail"):
        await asyncio.wait_for(stream.receive(), WAIT_S)


async def test_leaving_by_an_exception_aborts_the_stream(harness: Harness) -> None:
    device = await harness.device()
    seen: list[RejectedError] = []

    async def serve(stream: Stream) -> None:
        try:
            await stream.receive()
        except RejectedError as error:
            seen.append(error)

    harness.gate.serving = serve
    with pytest.raises(KeyError):
        async with await device.link.open_stream("x", deadline_s=30):
            raise KeyError("lost")
    await until(lambda: bool(seen), "the other side hears")
    assert "KeyError" in str(seen[0])


async def test_a_stream_ends_at_its_deadline_on_both_sides(harness: Harness) -> None:
    device = await harness.device()
    seen: list[BaseException] = []

    async def serve(stream: Stream) -> None:
        try:
            await stream.receive()
        except DeadlineError as error:
            seen.append(error)

    harness.gate.serving = serve
    stream = await device.link.open_stream("slow", deadline_s=0.5)
    with pytest.raises(DeadlineError, match="deadline"):
        await asyncio.wait_for(stream.receive(), WAIT_S)
    with pytest.raises(DeadlineError):
        await stream.send(b"late")
    await until(lambda: bool(seen), "the other side's ends too")


async def test_a_message_over_the_limit_is_refused_here(harness: Harness) -> None:
    device = await harness.device()
    stream = await device.link.open_stream("echo", deadline_s=20)
    limit = Limits().message
    with pytest.raises(RejectedError, match=f"limit is {limit}") as caught:
        await stream.send(bytes(limit + 1))
    assert caught.value.code == RejectCode.OVERSIZE
    await stream.abort("done", "")


async def test_streams_are_lost_with_the_session(harness: Harness) -> None:
    device = await harness.device()
    stream = await device.link.open_stream("echo", deadline_s=30)
    await stream.send(b"x")
    await asyncio.wait_for(stream.receive(), WAIT_S)
    await harness.fleet.session(device.id).close(LinkError("forgotten"))
    harness.fleet._forget(device.id)
    harness.shore.cut(device.id)
    with pytest.raises(LinkError, match="new session"):
        await asyncio.wait_for(stream.receive(), WAIT_S)
    await harness.connected(device)
    async with await device.link.open_stream("echo", deadline_s=30) as fresh:
        await fresh.send(b"y")
        assert await asyncio.wait_for(fresh.receive(), WAIT_S) == b"y"
