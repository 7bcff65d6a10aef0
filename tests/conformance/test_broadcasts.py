"""Blobs for many devices over a broker: what the coordinator sends for them, whoever comes late."""

import asyncio
import os
from pathlib import Path

import pytest
from skerry_cloud.fleets import caster
from skerry_protos.messages import BlobRef
from skerry_protos.topics import STATUS, kept
from skerry_protos.v1 import fleet_pb2 as pb

from tests.conformance.harness import parcel, until
from tests.conformance.test_mqtt import KINDS, Boat, Fleetlet, fleetlet
from tests.mqtt import client

pytestmark = [pytest.mark.broker, pytest.mark.network, pytest.mark.parametrize("kind", KINDS)]


async def give(small: Fleetlet, ref: BlobRef, *boats: Boat) -> None:
    """Have devices fetch a blob; return when all hold it."""
    await asyncio.gather(
        *(small.fleet.deliver(boat.id, parcel("task", b"", ref)) for boat in boats)
    )
    assert all(boat.holds(ref) for boat in boats)


def cast(small: Fleetlet, ref: BlobRef) -> None:
    small.fleet.cast(ref, [boat.id for boat in small.devices])


async def test_devices_that_come_late_cost_the_coordinator_nothing(
    kind: str, tmp_path: Path
) -> None:
    async with fleetlet(kind, tmp_path, 8) as small:
        wanted = small.blobs.put(os.urandom(8_000_000))
        before = small.fleet.pushed
        cast(small, wanted)
        async with asyncio.TaskGroup() as group:
            group.create_task(give(small, wanted, *small.devices[:3]))
            await until(lambda: small.fleet.pushed > before + 2_000_000, "some has moved")
            group.create_task(give(small, wanted, *small.devices[3:6]))
        for boat in small.devices[6:]:  # when all of it has gone by
            await give(small, wanted, boat)
        assert (small.fleet.pushed - before) / wanted.size <= 1.05


async def test_what_devices_lose_of_a_broadcast_the_broker_gives_again(
    kind: str, tmp_path: Path
) -> None:
    async with fleetlet(kind, tmp_path, 12) as small:
        wanted = small.blobs.put(os.urandom(8_000_000))
        lost = [lose(boat, {n % 5, 7 + n, 29}) for n, boat in enumerate(small.devices)]
        before = small.fleet.pushed
        cast(small, wanted)
        await give(small, wanted, *small.devices)
        assert [len(chunks) for chunks in lost] == [3] * 12  # together more than the whole blob
        assert (small.fleet.pushed - before) / wanted.size <= 1.2


async def test_what_devices_lose_where_nothing_is_kept_is_published_once_more(
    kind: str, tmp_path: Path
) -> None:
    async with fleetlet(kind, tmp_path, 12) as small:
        small.fleet._caster.keeps = False
        wanted = small.blobs.put(os.urandom(8_000_000))
        lost = [lose(boat, {3, 7, 29}) for boat in small.devices]
        before = small.fleet.pushed
        cast(small, wanted)
        await give(small, wanted, *small.devices)
        assert [len(chunks) for chunks in lost] == [3] * 12
        assert (small.fleet.pushed - before) / wanted.size <= 1.2


def lose(boat: Boat, numbers: set[int]) -> set[int]:
    """Have a device lose these chunks of a blob when they come for the first time."""
    lost: set[int] = set()
    take = boat.link.session.receive_cast

    def losing(frame: pb.Frame, data: memoryview) -> None:
        chunk = frame.blob_chunk.offset // boat.link.session.chunk
        if chunk in numbers - lost:
            lost.add(chunk)
        else:
            take(frame, data)

    boat.link.session.receive_cast = losing  # type: ignore[method-assign]
    return lost


async def test_an_older_device_hears_the_broadcast_too(kind: str, tmp_path: Path) -> None:
    async with fleetlet(kind, tmp_path, 4, older=1) as small:
        visits = [small.fleet._visits[boat.id] for boat in small.devices]
        assert [visit.hears_kept for visit in visits] == [False, True, True, True]
        wanted, fresh = (small.blobs.put(os.urandom(4_000_000)) for _ in range(2))
        before = small.fleet.pushed
        cast(small, wanted)
        await give(small, wanted, *small.devices)
        assert (small.fleet.pushed - before) / wanted.size <= 1.2
        cast(small, fresh)
        for boat in reversed(small.devices):  # the older one last
            await give(small, fresh, boat)


async def test_the_broker_keeps_little_and_in_the_end_nothing(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(caster, "KEPT_ROOM", 10_000_000)
    async with fleetlet(kind, tmp_path, 2) as small:
        assert small.trust is not None
        refs = [small.blobs.put(os.urandom(size * 1_000_000)) for size in (4, 4, 4, 11)]
        for ref in refs:
            cast(small, ref)
            await give(small, ref, *small.devices)
        topics = [kept(ref.digest, 0) for ref in refs]
        tls = small.trust.device("watcher").context()
        async with client(small.broker, "watcher", tls) as watcher:
            await watcher.connection.listen(*topics, STATUS)
            found = {(await watcher.receive())[0] for _ in range(3)}
            assert found == {*topics[1:3], STATUS}  # the first had to go, the last is too large
            await small.fleet.__aexit__(None, None, None)
            gone = {await watcher.receive() for _ in range(3)}
            assert gone == {(topic, b"") for topic in found}
