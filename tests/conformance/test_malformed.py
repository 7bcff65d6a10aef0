"""A peer that breaks the protocol is cut, told so where possible, and harms nobody else."""

import asyncio
import random

import pytest
from skerry_protos.errors import RefusalCode
from skerry_protos.session import pack
from skerry_protos.v1 import fleet_pb2 as pb

from tests.conformance.harness import WAIT_S, Device, Harness, parcel, until

DIGEST = bytes(32)


def malformed(number: int) -> dict[str, bytes]:
    """Return packets that no honest device of session `number` sends."""

    def framed(**kind: object) -> bytes:
        return pack(pb.Frame(session=number, **kind))  # type: ignore[arg-type]

    many = list(range(0, 5000 * 4096, 4096))
    return {
        "noise": random.Random(1).randbytes(300),
        "zeros": bytes(40),
        "a length that lies": b"\xff\xff\xff\xff\x00\x00\x00\x00" + bytes(20),
        "a truncated packet": framed(ack=pb.Ack(parcels=["x" * 100]))[:-5],
        "no kind": pack(pb.Frame(session=number)),
        "a Welcome": framed(welcome=pb.Welcome(session=1, nonce=2)),
        "another Hello in a session": framed(hello=pb.Hello(device="alpha", max_packet=9)),
        "a parcel without an id": framed(parcel=pb.Parcel(kind="task")),
        "a parcel with a control character": framed(parcel=pb.Parcel(id="a\nb", kind="task")),
        "a short digest": framed(blob_request=pb.BlobRequest(digest=b"x", chunk=4096)),
        "no chunk size": framed(blob_request=pb.BlobRequest(digest=DIGEST, chunk=0)),
        "an odd chunk size": framed(blob_request=pb.BlobRequest(digest=DIGEST, chunk=5000)),
        "too many offsets": framed(
            blob_request=pb.BlobRequest(digest=DIGEST, chunk=4096, offsets=many)
        ),
        "a stream that is the cloud's": framed(
            stream_open=pb.StreamOpen(stream=2, kind="x", lasts_s=5)
        ),
        "stream 0": framed(stream_open=pb.StreamOpen(stream=0, kind="x", lasts_s=5)),
        "a stream far ahead": framed(
            stream_open=pb.StreamOpen(stream=2**40 + 1, kind="x", lasts_s=5)
        ),
        "data of a stream never opened": framed(stream_data=pb.StreamData(stream=2)),
        "credit of a stream never opened": framed(
            stream_credit=pb.StreamCredit(stream=2, received=1, limit=1)
        ),
    }


HARMLESS = {
    "a reject of an unknown parcel": pb.Frame(reject=pb.Reject(parcel="nobody")),
    "an ack of an unknown parcel": pb.Frame(ack=pb.Ack(parcels=["nobody"])),
    "a chunk nobody asked for": pb.Frame(blob_chunk=pb.BlobChunk(digest=DIGEST)),
    "an absent blob nobody asked for": pb.Frame(blob_absent=pb.BlobAbsent(digest=DIGEST)),
    "a pong": pb.Frame(pong=pb.Pong(nonce=5)),
    "data of a stream that will come": pb.Frame(stream_data=pb.StreamData(stream=99)),
    "a stream with an endless deadline": pb.Frame(
        stream_open=pb.StreamOpen(stream=97, kind="x", lasts_s=float("inf"))
    ),
    "a stream without a kind": pb.Frame(stream_open=pb.StreamOpen(stream=95, lasts_s=5)),
    "a blob nobody has": pb.Frame(
        blob_request=pb.BlobRequest(digest=DIGEST, size=5, chunk=4096, offsets=[0])
    ),
    "a parcel of nonsense": pb.Frame(parcel=pb.Parcel(id="p1", kind="")),
    "a parcel from the past": pb.Frame(parcel=pb.Parcel(id="p2", kind="t", deadline_unix_s=-5)),
}


async def say(device: Device, packet: bytes) -> None:
    """Send a packet as it is."""
    wire = device.link.session._lanes.wire
    assert wire is not None
    await wire.send(packet)


async def works(harness: Harness, device: Device) -> None:
    """Check that parcels cross both ways."""
    async with asyncio.timeout(WAIT_S):
        await device.link.deliver(parcel("reply"))
        await harness.fleet.deliver(device.id, parcel())


@pytest.fixture
def reliable(harness: Harness) -> Harness:
    if harness.kind == "memory-lossy":
        pytest.skip("what is lost harms nobody")
    return harness


async def test_a_malformed_packet_costs_its_sender_the_wire_and_nobody_else(
    reliable: Harness,
) -> None:
    harness = reliable
    honest = await harness.device("honest")
    names = list(malformed(0))
    if harness.kind.startswith("mqtt"):
        names.remove("another Hello in a session")  # there it begins a session: one topic for all
    for number, name in enumerate(names):
        device = await harness.device(f"mallory-{number}")
        await say(device, malformed(device.link.session.number)[name])
        await until(lambda device=device: bool(device.refusals), f"{name}: it is told")  # type: ignore[misc]
        assert device.refusals[0].code == RefusalCode.MALFORMED, name
        assert device.refusals[0].retry_after_s > 0, name
        await device.close()
        await works(harness, honest)


async def test_what_makes_no_sense_but_does_no_harm_is_answered_or_ignored(
    reliable: Harness,
) -> None:
    harness = reliable
    device = await harness.device()
    for frame in HARMLESS.values():
        frame.session = device.link.session.number
        await say(device, pack(frame))
    await works(harness, device)
    assert not device.refusals
    assert [event for event, _ in harness.gate.events] == ["present"]


async def test_a_coordinator_that_breaks_the_protocol_is_left_and_met_again(
    reliable: Harness,
) -> None:
    harness = reliable
    device = await harness.device()
    for noise in (True, False):
        visit = harness.fleet.visit(device.id)
        assert visit is not None
        number = device.link.session.number
        packet = random.Random(2).randbytes(100) if noise else pack(pb.Frame(session=number))
        before = len(device.states)
        await visit.wire.send(packet)
        await until(lambda before=before: len(device.states) > before, "it notices")  # type: ignore[misc]
        await until(lambda: device.states[-1] is None, "it is back")
        await harness.connected(device)
        await works(harness, device)


async def test_a_flood_of_pings_that_are_not_read_is_bounded(reliable: Harness) -> None:
    harness = reliable
    device = await harness.device()
    number = device.link.session.number
    ping = pack(pb.Frame(session=number, ping=pb.Ping(nonce=1))) * 500
    for _ in range(200):
        await say(device, ping)
    session = harness.fleet.session(device.id)
    assert len(session._lanes._control) < 100
    await works(harness, device)


async def test_a_first_packet_that_is_no_hello_is_refused(reliable: Harness) -> None:
    harness = reliable
    if harness.kind.startswith("mqtt"):
        pytest.skip("an MQTT device without a session is told to say Hello (test_mqtt.py)")
    device = await harness.device(connected=False)
    await until(lambda: device.link.connected, "it connects")
    honest = await harness.device("honest")
    async with device.link._dial() as connection:
        await connection.send(random.Random(3).randbytes(50))
        answer = await asyncio.wait_for(connection.receive(), WAIT_S)
    assert b"malformed" in answer
    await works(harness, honest)
