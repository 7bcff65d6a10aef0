"""Whole sessions over wires as bad as the dice say: everything arrives once, in order, unhurt.

Time is virtual and the dice are seeded, so that a failing example fails again.
"""

import asyncio
import random
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from skerry_protos.messages import Parcel, ParcelId, digest_of
from skerry_protos.seams import Stream
from skerry_protos.session import Inflow, Limits, Side
from skerry_protos.session.memory import Faults

from tests.protos.sessions import paired, until_quiet
from tests.virtual import run

bad_wires = st.builds(
    Faults,
    seed=st.integers(0, 2**20),
    drop=st.sampled_from([0.0, 0.01, 0.05, 0.2]),
    duplicate=st.sampled_from([0.0, 0.1, 0.3]),
    reorder=st.sampled_from([0.0, 0.1, 0.5]),
    cut=st.sampled_from([0.0, 0.0, 0.002]),
    delay_s=st.sampled_from([0.0, 0.02, 0.1]),
    chunk=st.sampled_from([8192, 65536]),
    max_packet=st.just(70_000),
)
patient = settings(
    max_examples=100,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def noise(size: int, seed: int = 0) -> bytes:
    return random.Random(f"{size} {seed}").randbytes(size)


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pair")


def fresh(folder: Path) -> Path:
    """Return an empty folder: hypothesis runs many examples in one test."""
    made = folder / str(len(list(folder.iterdir())))
    made.mkdir()
    return made


@patient
@given(faults=bad_wires, sizes=st.lists(st.integers(0, 150_000), min_size=1, max_size=12))
def test_a_stream_keeps_its_order(folder: Path, faults: Faults, sizes: list[int]) -> None:
    sent = [noise(size, number) for number, size in enumerate(sizes)]

    async def story() -> None:
        async with paired(fresh(folder), faults) as pair:
            stream = await pair.device.open_stream("echo", deadline_s=3000)

            async def send() -> None:
                for message in sent:
                    await stream.send(message)
                await stream.finish()

            sending = asyncio.ensure_future(send())
            assert [message async for message in stream] == sent
            await sending
            await until_quiet(pair)

    run(story())


@patient
@given(faults=bad_wires, size=st.integers(0, 1_000_000))
def test_a_blob_arrives_whole(folder: Path, faults: Faults, size: int) -> None:
    data = noise(size)

    async def story() -> None:
        async with paired(fresh(folder), faults) as pair:
            ref = pair.blobs[Side.CLOUD].put(data)
            path = await pair.device.fetch(ref, deadline_s=3000)
            assert digest_of(path.read_bytes()) == ref.digest

    run(story())


@patient
@given(faults=bad_wires, count=st.integers(1, 60))
def test_parcels_are_accepted_once(folder: Path, faults: Faults, count: int) -> None:
    async def story() -> None:
        async with paired(fresh(folder), faults) as pair:
            sent = [Parcel(id=ParcelId(f"p{number}"), kind="task") for number in range(count)]
            async with asyncio.timeout(3000):
                await asyncio.gather(*(pair.cloud.deliver(parcel) for parcel in sent))
            got = [parcel.id for parcel in pair.takers[Side.DEVICE].parcels]
            assert sorted(got) == sorted(parcel.id for parcel in sent)

    run(story())


@patient
@given(faults=bad_wires)
def test_everything_at_once(folder: Path, faults: Faults) -> None:
    async def echoed(stream: Stream, seed: int) -> None:
        async with stream:
            for number in range(5):
                message = noise(20_000, seed * 10 + number)
                await stream.send(message)
                assert await stream.receive() == message

    async def story() -> None:
        async with paired(fresh(folder), faults) as pair, asyncio.timeout(5000):
            up = pair.blobs[Side.DEVICE].put(noise(300_000, 1))
            down = pair.blobs[Side.CLOUD].put(noise(300_000, 2))
            streams = [
                await session.open_stream("echo", deadline_s=3000)
                for session in (pair.device, pair.cloud)
                for _ in range(4)
            ]
            await asyncio.gather(
                pair.cloud.fetch(up, deadline_s=3000),
                pair.device.fetch(down, deadline_s=3000),
                *(echoed(stream, seed) for seed, stream in enumerate(streams)),
                *(
                    session.deliver(Parcel(id=ParcelId(f"p{number}"), kind="task"))
                    for number in range(10)
                    for session in (pair.device, pair.cloud)
                ),
            )
            await until_quiet(pair)

    run(story())


def test_bits_that_flip_are_repaired(folder: Path) -> None:
    """Only in data: a hurt frame is an error of the peer and costs the wire."""

    async def story() -> None:
        faults = Faults(seed=3, corrupt=0.05, chunk=65536)
        async with paired(fresh(folder), faults) as pair:
            pair.forgiving = True
            ref = pair.blobs[Side.CLOUD].put(noise(5_000_000))
            path = await pair.device.fetch(ref, deadline_s=3000)
            assert digest_of(path.read_bytes()) == ref.digest

    run(story())


@pytest.mark.parametrize(("drop", "most"), [(0.0, 1.0), (0.01, 1.06), (0.05, 1.15)])
def test_a_loss_costs_little_more_than_what_was_lost(
    folder: Path, drop: float, most: float
) -> None:
    async def story() -> tuple[int, int]:
        faults = Faults(seed=1, drop=drop, reorder=1e-9, delay_s=0.02, chunk=65536)
        async with paired(fresh(folder), faults) as pair:
            ref = pair.blobs[Side.CLOUD].put(noise(20_000_000))
            await pair.device.fetch(ref, deadline_s=3000)
            return pair.cloud.sent_bytes, ref.size

    sent, size = run(story())
    assert sent <= most * size + 100_000, f"{sent / size:.3f} times"


@pytest.mark.parametrize("limit", [400_000, 150_000, 32_000])
def test_a_path_that_breaks_large_transfers_does_not_stop_them(folder: Path, limit: int) -> None:
    """Each wire is cut after `limit` bytes: chunks must become small enough to get through."""

    async def story() -> tuple[int, int]:
        async with paired(fresh(folder), Faults(cut_after=limit)) as pair:
            ref = pair.blobs[Side.CLOUD].put(noise(4_000_000))
            await pair.device.fetch(ref, deadline_s=3000)
            stream = await pair.cloud.open_stream("echo", deadline_s=3000)
            sent = [noise(100_000, number) for number in range(10)]
            async with stream:
                for message in sent:
                    await stream.send(message)
                    assert await stream.receive() == message
            return pair.cloud.sent_bytes, ref.size + 1_000_000

    sent, size = run(story())
    assert sent < 4 * size


def test_many_devices_together_never_ask_for_more_than_a_broker_queues(folder: Path) -> None:
    inflow = Inflow(chunks=64, size=4 * 1024**2)
    most = 0
    take = inflow.take

    def noted(size: int) -> bool:
        nonlocal most
        took = take(size)
        most = max(most, inflow.used_chunks)
        return took

    inflow.take = noted  # type: ignore[method-assign]

    async def story() -> None:
        faults = Faults(seed=5, drop=0.01, delay_s=0.05, chunk=65536)
        async with asyncio.TaskGroup() as group:
            for number in range(20):
                group.create_task(one(number, faults))

    async def one(number: int, faults: Faults) -> None:
        async with paired(fresh(folder), faults, inflow=inflow) as pair:
            ref = pair.blobs[Side.DEVICE].put(noise(1_000_000, number))
            await pair.cloud.fetch(ref, deadline_s=3000)

    run(story())
    assert 32 <= most <= 64
    assert (inflow.used_chunks, inflow.used_size) == (0, 0)


def test_a_reader_that_stalls_bounds_what_both_sides_keep(folder: Path) -> None:
    limits = Limits(stream_window=256 * 1024, streams_window=4 * 1024**2)

    async def stall(_stream: Stream) -> None:
        await asyncio.sleep(10_000)

    async def story() -> None:
        async with paired(fresh(folder), Faults(), limits=limits) as pair:
            pair.takers[Side.CLOUD].serving = stall
            stream = await pair.device.open_stream("stalled", deadline_s=5000)
            sent = 0
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(100):
                    while True:
                        await stream.send(bytes(10_000))
                        sent += 10_000
            assert sent <= 256 * 1024 + 20_000

    run(story())
