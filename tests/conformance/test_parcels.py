"""Parcels arrive once, whatever happens to the wire."""

import asyncio
import time

import pytest
from skerry_protos.errors import (
    DeadlineError,
    LinkError,
    RejectCode,
    RejectedError,
    SkerryError,
    TrustError,
)
from skerry_protos.messages import BODY_LIMIT, DeviceId, Parcel, RunId

from tests.conformance.harness import WAIT_S, Harness, parcel, until


async def test_a_parcel_crosses_both_ways_with_every_field(harness: Harness) -> None:
    device = await harness.device()
    sent = Parcel(
        id=parcel().id,
        kind="task",
        run=RunId("run-1"),
        round=7,
        deadline_unix_s=time.time() + 60,
        trace="trace-1",
        body=bytes(range(256)),
        blobs=(),
    )
    await harness.fleet.deliver(device.id, sent)
    await device.link.deliver(sent)
    assert device.receiver.parcels == [sent]
    assert harness.gate.parcels == [(device.id, sent)]


async def test_delivery_ends_only_after_the_other_side_has_stored(harness: Harness) -> None:
    device = await harness.device()
    stored = asyncio.Event()

    async def store(_device: DeviceId, _parcel: Parcel) -> None:
        await stored.wait()

    harness.gate.accepting = store
    delivery = asyncio.ensure_future(device.link.deliver(parcel("reply")))
    await until(lambda: len(harness.gate.parcels) == 1, "the parcel is being accepted")
    await asyncio.sleep(0.05)
    assert not delivery.done()
    stored.set()
    await asyncio.wait_for(delivery, WAIT_S)


async def test_the_same_parcel_twice_takes_effect_once(harness: Harness) -> None:
    device = await harness.device()
    one = parcel("reply")
    await device.link.deliver(one)
    await device.link.deliver(one)
    await asyncio.gather(device.link.deliver(one), device.link.deliver(one))
    assert harness.gate.ids() == [one.id]


async def test_many_parcels_at_once_all_arrive_once(harness: Harness) -> None:
    device = await harness.device()
    down = [parcel("task", bytes([number % 256]) * 100) for number in range(150)]
    up = [parcel("reply", bytes([number % 256]) * 100) for number in range(150)]
    await asyncio.gather(
        *(harness.fleet.deliver(device.id, one) for one in down),
        *(device.link.deliver(one) for one in up),
    )
    assert sorted(one.id for one in device.receiver.parcels) == sorted(one.id for one in down)
    assert sorted(harness.gate.ids()) == sorted(one.id for one in up)


async def test_a_delivery_goes_on_after_a_cut_of_the_wire(harness: Harness) -> None:
    device = await harness.device()
    stored = asyncio.Event()

    async def store(_device: DeviceId, _parcel: Parcel) -> None:
        await stored.wait()

    harness.gate.accepting = store
    one = parcel("reply")
    delivery = asyncio.ensure_future(device.link.deliver(one))
    await until(lambda: len(harness.gate.parcels) == 1, "the parcel is being accepted")
    await harness.cut(device)
    stored.set()
    await asyncio.wait_for(delivery, WAIT_S)
    assert harness.gate.ids() == [one.id]


async def test_a_delivery_begun_while_cut_waits_for_the_wire(harness: Harness) -> None:
    device = await harness.device()
    harness.cut_soon(device)
    await until(lambda: not device.link.connected, "the device has noticed the cut")
    up, down = parcel("reply"), parcel("task")
    await asyncio.wait_for(
        asyncio.gather(device.link.deliver(up), harness.fleet.deliver(device.id, down)), WAIT_S
    )
    assert harness.gate.ids() == [up.id]
    assert [one.id for one in device.receiver.parcels] == [down.id]


async def test_what_can_not_be_stored_now_is_sent_again(harness: Harness) -> None:
    device = await harness.device()
    failures = [OSError("a bug"), SkerryError("the disk is full")]

    async def store(_device: DeviceId, _parcel: Parcel) -> None:
        if failures:
            raise failures.pop()

    harness.gate.accepting = store
    one = parcel("reply")
    await asyncio.wait_for(device.link.deliver(one), WAIT_S)
    assert harness.gate.ids() == [one.id] * 3


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (RejectedError("unexpected", "nobody asked for it"), "unexpected"),
        (TrustError("its signature is wrong"), RejectCode.BLOB),
    ],
)
async def test_a_rejection_says_why_and_is_not_tried_again(
    harness: Harness, error: SkerryError, code: str
) -> None:
    device = await harness.device()

    async def refuse(_device: DeviceId, _parcel: Parcel) -> None:
        raise error

    harness.gate.accepting = refuse
    one = parcel("reply")
    for _ in range(2):
        with pytest.raises(RejectedError, match=error.message) as caught:
            await device.link.deliver(one)
        assert caught.value.code == code
    assert harness.gate.ids() == [one.id]


async def test_a_deadline_ends_a_delivery(harness: Harness) -> None:
    device = await harness.device()

    async def never(_device: DeviceId, _parcel: Parcel) -> None:
        await asyncio.Event().wait()

    harness.gate.accepting = never
    began = time.monotonic()
    with pytest.raises(DeadlineError, match="was not stored"):
        await device.link.deliver(parcel("reply", deadline_unix_s=time.time() + 0.3))
    assert time.monotonic() - began < 3
    with pytest.raises(DeadlineError, match="past its deadline"):
        await device.link.deliver(parcel("reply", deadline_unix_s=time.time() - 1))


async def test_a_body_up_to_the_limit_crosses_and_a_larger_one_says_what_to_do(
    harness: Harness,
) -> None:
    device = await harness.device()
    await device.link.deliver(parcel("reply", bytes(BODY_LIMIT)))
    with pytest.raises(RejectedError, match=f"limit is {BODY_LIMIT}: send it as a blob") as caught:
        await device.link.deliver(parcel("reply", bytes(BODY_LIMIT + 1)))
    assert caught.value.code == RejectCode.OVERSIZE


async def test_the_cloud_can_not_reach_a_device_it_does_not_know(harness: Harness) -> None:
    with pytest.raises(LinkError, match="ghost is not connected"):
        await harness.fleet.deliver(DeviceId("ghost"), parcel())


async def test_a_device_that_does_not_answer_holds_no_other(harness: Harness) -> None:
    slow, quick = await harness.device("slow"), await harness.device("quick")

    async def never(_parcel: Parcel) -> None:
        await asyncio.Event().wait()

    slow.receiver.accepting = never
    stuck = [asyncio.ensure_future(harness.fleet.deliver(slow.id, parcel())) for _ in range(50)]
    for _ in range(10):
        await asyncio.wait_for(harness.fleet.deliver(quick.id, parcel()), WAIT_S)
    assert not any(delivery.done() for delivery in stuck)
    for delivery in stuck:
        delivery.cancel()
    await asyncio.wait(stuck)
