"""Who may connect, how it is told, and what a session survives."""

import asyncio
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

import pytest
from skerry_protos.errors import LinkError, RefusalCode, RefusedError
from skerry_protos.session import handshake
from skerry_protos.versions import PROTOCOL, ProtocolVersion

from tests.conformance.harness import WAIT_S, Harness, parcel, until

Opened = Callable[[float], AbstractAsyncContextManager[Harness]]


async def test_the_registry_hears_who_comes_and_goes(harness: Harness) -> None:
    device = await harness.device()
    assert harness.fleet.devices() == {device.id}
    assert harness.gate.events == [("present", device.id)]
    await device.close()
    await until(lambda: harness.gate.events[-1] == ("absent", device.id), "it is absent")
    assert harness.fleet.devices() == frozenset()
    assert len(harness.gate.events) == 2


async def test_a_device_comes_back_by_itself_and_its_session_is_the_same(
    harness: Harness,
) -> None:
    device = await harness.device()
    number = device.link.session.number
    await harness.cut(device)
    assert device.link.session.number == number
    states = device.states
    assert states[0] is None
    assert states[-1] is None
    assert any(state is not None for state in states)
    await until(lambda: len(harness.gate.events) == 3, "present, absent, present")
    assert [event for event, _ in harness.gate.events] == ["present", "absent", "present"]


async def test_a_device_survives_many_cuts(harness: Harness) -> None:
    device = await harness.device()
    for number in range(5):
        await harness.cut(device)
        one = parcel("reply", bytes([number]))
        await asyncio.wait_for(device.link.deliver(one), WAIT_S)
    assert len(harness.gate.parcels) == 5


def _speaks(monkeypatch: pytest.MonkeyPatch, protocol: ProtocolVersion) -> None:
    """Have devices say that they speak another version."""
    defaults = handshake.hello.__kwdefaults__
    assert defaults is not None
    monkeypatch.setitem(defaults, "protocol", protocol)


async def test_a_newer_agent_is_refused_with_what_to_do(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    newer = ProtocolVersion(PROTOCOL.major, PROTOCOL.minor + 1)
    _speaks(monkeypatch, newer)
    device = await harness.device(connected=False)
    await until(lambda: bool(device.refusals), "it is refused")
    refusal = device.refusals[0]
    assert refusal.code == RefusalCode.VERSION
    assert "upgrade the coordinator first" in refusal.message
    with pytest.raises(RefusedError, match="upgrade the coordinator first"):
        await device.link.deliver(parcel())


async def test_an_agent_one_minor_older_works(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    older = ProtocolVersion(PROTOCOL.major, PROTOCOL.minor - 1)
    _speaks(monkeypatch, older)
    device = await harness.device()
    await device.link.deliver(parcel())
    assert not device.refusals


async def test_a_revoked_device_is_not_admitted(harness: Harness) -> None:
    message = "device alpha was revoked"
    harness.gate.refusals = {"alpha": RefusedError(RefusalCode.REVOKED, message)}  # type: ignore[dict-item]
    device = await harness.device(connected=False)
    await until(lambda: bool(device.refusals), "it is refused")
    assert (device.refusals[0].code, device.refusals[0].message) == ("revoked", message)
    assert harness.gate.events == []


async def test_a_device_that_may_try_later_is_admitted_then(harness: Harness) -> None:
    refusal = RefusedError(RefusalCode.BUSY, "too many at once", retry_after_s=0.1)
    harness.gate.refusals = {"alpha": refusal}  # type: ignore[dict-item]
    device = await harness.device(connected=False)
    await until(lambda: bool(device.refusals), "it is refused")
    harness.gate.refusals = {}
    await harness.connected(device)


async def test_a_certificate_of_another_device_is_refused(harness: Harness) -> None:
    if harness.kind.startswith("memory"):
        pytest.skip("a wire within one process proves no identity")
    device = await harness.device("mallory", certified="alpha", connected=False)
    await until(
        lambda: bool(device.refusals) or len([s for s in device.states if s]) >= 2,
        "it is refused, or gets no answer at all",
    )
    assert harness.fleet.devices() == frozenset()
    assert not device.link.connected
    for refusal in device.refusals:
        assert refusal.code == RefusalCode.IDENTITY


async def test_a_dismissed_device_is_cut_at_once_and_told_why(harness: Harness) -> None:
    device, other = await harness.device(), await harness.device("other")
    delivery = asyncio.ensure_future(harness.fleet.deliver(device.id, parcel()))
    await delivery
    message = "device alpha was revoked by ada"
    refusal = RefusedError(RefusalCode.REVOKED, message)
    harness.gate.refusals = {device.id: refusal}
    began = time.monotonic()
    await harness.fleet.dismiss(device.id, RefusalCode.REVOKED, message)
    assert device.id not in harness.fleet.devices()
    await until(lambda: not device.link.connected, "its wire is cut", wait_s=5)
    assert time.monotonic() - began < 5
    await until(lambda: bool(device.refusals), "it is told why")
    assert device.refusals[0].message == message
    assert harness.gate.events[-1] == ("absent", device.id)
    with pytest.raises(LinkError, match="not connected"):
        await harness.fleet.deliver(device.id, parcel())
    await harness.fleet.deliver(other.id, parcel())


async def test_a_dismissal_ends_what_was_under_way(harness: Harness) -> None:
    device = await harness.device()

    async def never(_parcel: object) -> None:
        await asyncio.Event().wait()

    device.receiver.accepting = never
    delivery = asyncio.ensure_future(harness.fleet.deliver(device.id, parcel()))
    await until(lambda: len(device.receiver.parcels) == 1, "the parcel is there")
    stream = await harness.fleet.open_stream(device.id, "echo", deadline_s=30)
    await harness.fleet.dismiss(device.id, RefusalCode.REVOKED, "gone")
    with pytest.raises(LinkError, match="dismissed"):
        await asyncio.wait_for(delivery, WAIT_S)
    with pytest.raises(LinkError, match="dismissed"):
        await asyncio.wait_for(stream.receive(), WAIT_S)


async def test_a_device_that_connects_twice_is_where_it_came_last(harness: Harness) -> None:
    first = await harness.device()
    second = await harness.device(connected=False)
    await until(lambda: second.link.connected, "the second is connected")
    await until(lambda: not first.link.connected, "the first is cut")
    one = parcel()
    await harness.fleet.deliver(second.id, one)
    assert [got.id for got in second.receiver.parcels] == [one.id]
    assert first.receiver.parcels == []
    assert [event for event, _ in harness.gate.events] == ["present", "absent", "present"]


async def test_a_silent_device_is_noticed(opened: Opened) -> None:
    async with opened(0.2) as harness:
        device = await harness.device()
        harness.shore.silence(device.id, on=True)
        await until(
            lambda: device.id not in harness.fleet.devices(), "the cloud notices", wait_s=10
        )
        await until(lambda: not device.link.connected, "the device notices", wait_s=10)
        harness.shore.silence(device.id, on=False)
        harness.shore.cut(device.id)
        await harness.connected(device)


async def test_a_quiet_connection_stays(opened: Opened) -> None:
    async with opened(0.1) as harness:
        device = await harness.device()
        await asyncio.sleep(1.0)
        assert device.states == [None]
        assert harness.gate.events == [("present", device.id)]


async def test_a_coordinator_without_an_answer_from_its_registry_says_try_later(
    harness: Harness,
) -> None:
    harness.gate.refusals = None  # type: ignore[assignment]
    device = await harness.device(connected=False)
    await until(lambda: bool(device.refusals), "it is refused for now")
    assert device.refusals[0].code == RefusalCode.BUSY
    assert device.refusals[0].retry_after_s > 0


async def test_a_welcome_that_comes_twice_is_no_offence(harness: Harness) -> None:
    device = await harness.device()
    visit = harness.fleet.visit(device.id)
    assert visit is not None
    visit.welcome_again()
    await device.link.deliver(parcel())
    await harness.fleet.deliver(device.id, parcel())
    assert harness.shore.wires(device.id) == 1 or harness.kind == "mqtt-embedded"
    assert harness.fleet.visit(device.id) is visit
