"""Blobs arrive whole and verified, and go on where a cut left them."""

import asyncio
import random
import time
from pathlib import Path

import pytest
from skerry_protos.blobs import DiskFullError
from skerry_protos.errors import DeadlineError, RejectCode, RejectedError, TrustError
from skerry_protos.messages import BlobRef, DeviceId, Parcel, digest_of

from tests.conformance.harness import WAIT_S, Harness, parcel, until

CHUNK = 64 * 1024


def noise(size: int, seed: int = 0) -> bytes:
    """Return bytes that are the same for the same size and seed."""
    return random.Random(f"{size} {seed}").randbytes(size)


@pytest.mark.parametrize("size", [0, 1, 4096, CHUNK, 4 * CHUNK, 4 * CHUNK + 1, 1_000_003])
async def test_a_blob_of_any_size_crosses_both_ways(harness: Harness, size: int) -> None:
    device = await harness.device()
    up, down = noise(size, 1), noise(size, 2)
    there = device.blobs.put(up)
    back = harness.blobs.put(down)
    one = await harness.fleet.fetch(device.id, there, deadline_s=WAIT_S)
    other = await device.link.fetch(back, deadline_s=WAIT_S)
    assert one.read_bytes() == up
    assert other.read_bytes() == down


async def test_a_large_blob_crosses_both_ways_at_once(harness: Harness) -> None:
    size = 4_000_000 if harness.kind == "memory-lossy" else 20_000_000
    device = await harness.device()
    up, down = device.blobs.put(noise(size, 1)), harness.blobs.put(noise(size, 2))
    await asyncio.gather(
        harness.fleet.fetch(device.id, up, deadline_s=60),
        device.link.fetch(down, deadline_s=60),
    )


async def test_a_parcel_brings_its_blobs(harness: Harness) -> None:
    device = await harness.device()
    content = noise(300_000)
    ref = device.blobs.put(content, role="content")
    found: list[bytes] = []

    async def store(device: DeviceId, arrived: Parcel) -> None:
        blob = arrived.blob("content")
        assert blob is not None
        path = await harness.fleet.fetch(device, blob, deadline_s=WAIT_S)
        found.append(path.read_bytes())

    harness.gate.accepting = store
    await device.link.deliver(parcel("reply", b"", ref))
    assert found == [content]


async def test_what_is_here_is_not_fetched_again(harness: Harness) -> None:
    device = await harness.device()
    ref = device.blobs.put(noise(100_000))
    await harness.fleet.fetch(device.id, ref, deadline_s=WAIT_S)
    device.blobs.remove(ref.digest)
    await harness.fleet.fetch(device.id, ref, deadline_s=WAIT_S)


async def test_two_who_want_a_blob_at_once_share_one_transfer(harness: Harness) -> None:
    device = await harness.device()
    ref = harness.blobs.put(noise(1_000_000))
    before = harness.fleet.session(device.id).sent_bytes
    one, other = await asyncio.gather(
        device.link.fetch(ref, deadline_s=WAIT_S), device.link.fetch(ref, deadline_s=WAIT_S)
    )
    assert one == other
    assert harness.fleet.session(device.id).sent_bytes - before < 1.5 * ref.size


async def test_a_blob_that_the_other_side_lacks_is_said_to_be_absent(harness: Harness) -> None:
    device = await harness.device()
    ref = BlobRef(digest=digest_of(b"nobody has this"), size=15)
    with pytest.raises(RejectedError, match="is not here") as caught:
        await harness.fleet.fetch(device.id, ref, deadline_s=WAIT_S)
    assert caught.value.code == RejectCode.BLOB
    with pytest.raises(RejectedError, match="is not here"):
        await device.link.fetch(ref, deadline_s=WAIT_S)


async def test_a_blob_of_another_size_than_announced_is_refused(harness: Harness) -> None:
    device = await harness.device()
    ref = harness.blobs.put(noise(5000))
    wrong = BlobRef(digest=ref.digest, size=6000)
    with pytest.raises(RejectedError, match="has 5000 bytes, not 6000"):
        await device.link.fetch(wrong, deadline_s=WAIT_S)


async def test_a_blob_whose_bytes_are_not_its_digest_is_refused_and_forgotten(
    harness: Harness,
) -> None:
    device = await harness.device()
    content = noise(200_000)
    ref = device.blobs.put(content)
    path = device.blobs.path(ref.digest)
    assert path is not None
    _overwrite(path, content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(TrustError, match="not what the digest says"):
        await harness.fleet.fetch(device.id, ref, deadline_s=WAIT_S)
    assert harness.blobs.path(ref.digest) is None
    _overwrite(path, content)
    await harness.fleet.fetch(device.id, ref, deadline_s=WAIT_S)


def _overwrite(path: Path, content: bytes) -> None:
    path.chmod(0o600)
    path.write_bytes(content)


async def test_a_fetch_ends_at_its_deadline(harness: Harness) -> None:
    device = await harness.device()
    ref = device.blobs.put(noise(100_000))
    harness.shore.silence(device.id, on=True)
    began = time.monotonic()
    with pytest.raises(DeadlineError, match="did not arrive within"):
        await harness.fleet.fetch(device.id, ref, deadline_s=0.3)
    assert time.monotonic() - began < 3
    harness.shore.silence(device.id, on=False)


async def test_a_blob_goes_on_after_cuts_with_little_sent_twice(harness: Harness) -> None:
    device = await harness.device()
    ref = device.blobs.put(noise(12_000_000))
    shares = [0.7, 0.4, 0.1]

    def cut(arrived: int) -> bool:
        if shares and arrived > shares[-1] * ref.size:
            shares.pop()
            harness.shore.cut(device.id)
        return True

    harness.blobs.on_chunk = cut
    path = await harness.fleet.fetch(device.id, ref, deadline_s=90)
    assert digest_of(path.read_bytes()) == ref.digest
    assert not shares
    assert harness.shore.wires(device.id) >= 4
    wasted = device.link.session.sent_bytes - ref.size
    window = 16 * device.link.session.chunk
    assert wasted < 3 * window, f"{wasted} bytes sent twice, a window is {window}"


async def test_a_device_that_starts_anew_goes_on_with_a_half_arrived_blob(
    harness: Harness,
) -> None:
    first = await harness.device()
    ref = harness.blobs.put(noise(8_000_000))
    half = asyncio.Event()

    def stop(arrived: int) -> bool:
        if arrived > ref.size // 2:
            half.set()
        return not half.is_set()

    first.blobs.on_chunk = stop
    fetch = asyncio.ensure_future(first.link.fetch(ref, deadline_s=60))
    await asyncio.wait_for(half.wait(), WAIT_S)
    fetch.cancel()
    await asyncio.wait({fetch})
    await first.close()
    second = await harness.device()
    before = harness.fleet.session(second.id).sent_bytes
    path = await second.link.fetch(ref, deadline_s=60)
    assert digest_of(path.read_bytes()) == ref.digest
    sent = harness.fleet.session(second.id).sent_bytes - before
    assert sent < 0.75 * ref.size, f"{sent} of {ref.size} bytes sent again"


async def test_what_a_power_cut_left_wrong_is_fetched_again(harness: Harness) -> None:
    first = await harness.device()
    ref = harness.blobs.put(noise(3_000_000))
    half = asyncio.Event()

    def stop(arrived: int) -> bool:
        if arrived > ref.size // 2:
            half.set()
        return not half.is_set()

    first.blobs.on_chunk = stop
    fetch = asyncio.ensure_future(first.link.fetch(ref, deadline_s=60))
    await asyncio.wait_for(half.wait(), WAIT_S)
    fetch.cancel()
    await asyncio.wait({fetch})
    await first.close()
    (part,) = (first.blobs.root / "arriving").glob("*.part")
    with part.open("r+b") as file:
        file.write(bytes(4096))
    second = await harness.device()
    path = await second.link.fetch(ref, deadline_s=60)
    assert digest_of(path.read_bytes()) == ref.digest


async def test_one_blob_for_many_devices(harness: Harness) -> None:
    devices = [await harness.device(f"device-{number}") for number in range(5)]
    ref = harness.blobs.put(noise(1_500_000))
    harness.fleet.cast(ref, [device.id for device in devices])
    paths = await asyncio.gather(*(device.link.fetch(ref, deadline_s=60) for device in devices))
    assert {digest_of(path.read_bytes()) for path in paths} == {ref.digest}


async def test_many_devices_bring_blobs_at_once(harness: Harness) -> None:
    devices = [await harness.device(f"device-{number}") for number in range(8)]
    refs = [device.blobs.put(noise(1_000_000, seed)) for seed, device in enumerate(devices)]
    await asyncio.gather(
        *(
            harness.fleet.fetch(device.id, ref, deadline_s=60)
            for device, ref in zip(devices, refs, strict=True)
        )
    )


async def test_the_same_blob_from_many_devices_crosses_about_once(harness: Harness) -> None:
    devices = [await harness.device(f"device-{number}") for number in range(4)]
    refs = [device.blobs.put(noise(2_000_000)) for device in devices]
    await asyncio.gather(
        *(
            harness.fleet.fetch(device.id, ref, deadline_s=60)
            for device, ref in zip(devices, refs, strict=True)
        )
    )
    sent = sum(device.link.session.sent_bytes for device in devices)
    assert sent < 1.5 * refs[0].size


async def test_a_device_that_stalls_leaves_the_same_blob_to_another(harness: Harness) -> None:
    stalled, good = await harness.device("stalled"), await harness.device("good")
    content = noise(500_000)
    ref = stalled.blobs.put(content)
    good.blobs.put(content)
    harness.shore.silence(stalled.id, on=True)
    first = asyncio.ensure_future(harness.fleet.fetch(stalled.id, ref, deadline_s=60))
    await asyncio.sleep(0)
    second = asyncio.ensure_future(harness.fleet.fetch(good.id, ref, deadline_s=60))
    done, _ = await asyncio.wait({first, second}, timeout=40)
    harness.shore.silence(stalled.id, on=False)
    assert done == {first, second}


async def test_a_full_disk_is_named_and_the_blob_goes_on_when_there_is_room(
    harness: Harness,
) -> None:
    device = await harness.device()
    ref = device.blobs.put(noise(2_000_000))
    full = True

    def no_room(arrived: int) -> bool:
        if full and arrived > ref.size // 2:
            raise DiskFullError(f"{harness.blobs.root}: no room to keep a blob")
        return True

    async def store(device: DeviceId, arrived: Parcel) -> None:
        await harness.fleet.fetch(device, arrived.blobs[0], deadline_s=WAIT_S)

    harness.blobs.on_chunk = no_room
    with pytest.raises(DiskFullError, match="no room"):
        await harness.fleet.fetch(device.id, ref, deadline_s=WAIT_S)
    harness.gate.accepting = store
    delivery = asyncio.ensure_future(device.link.deliver(parcel("reply", b"", ref)))
    await until(lambda: len(harness.gate.parcels) == 1, "the parcel came")
    full = False
    await asyncio.wait_for(delivery, WAIT_S)
    assert harness.blobs.path(ref.digest) is not None
