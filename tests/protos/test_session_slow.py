"""Slow paths, and such that break: little is sent twice, nothing waits for ever."""

import asyncio
import os
import random
from pathlib import Path

import pytest
from skerry_protos.messages import BlobRef, Parcel, ParcelId
from skerry_protos.session import Side
from skerry_protos.session.lanes import CUTS
from skerry_protos.session.memory import Faults

from tests.protos.sessions import Pair, paired
from tests.simulator.loop import SimulatedLoop, run

SIZE = 2_000_000


def chunks_sent(pair: Pair) -> list[int]:
    """Return a list that fills with the bytes of the chunks the device gets."""
    sizes: list[int] = []
    receive = pair.device.receive

    def noted(frame, data) -> None:  # type: ignore[no-untyped-def]
        if frame.HasField("blob_chunk"):
            sizes.append(len(data))
        receive(frame, data)

    pair.device.receive = noted  # type: ignore[method-assign]
    return sizes


@pytest.mark.parametrize("delay_s", [0.05, 0.6, 2.0, 4.0])
def test_little_is_sent_twice(tmp_path: Path, delay_s: float) -> None:
    async def story(_loop: SimulatedLoop) -> tuple[int, int]:
        # Lossy by its kind, as MQTT is, though nothing is lost.
        async with paired(tmp_path, Faults(drop=1e-12, delay_s=delay_s)) as pair:
            sent = chunks_sent(pair)
            for _ in range(2):
                ref = pair.blobs[Side.CLOUD].put(os.urandom(SIZE))
                await pair.device.fetch(ref, deadline_s=3000)
                if not first:
                    first.append(sum(sent))
            return first[0], sum(sent)

    first: list[int] = []
    once, twice = run(story, random.Random(1))
    assert once <= 1.2 * SIZE
    assert twice - once <= 1.02 * SIZE  # by then it knows the path


@pytest.mark.parametrize(("bytes_per_s", "within_s"), [(32_000, 20.0), (125_000, 6.0)])
def test_a_word_does_not_wait_behind_a_whole_blob(
    tmp_path: Path, bytes_per_s: int, within_s: float
) -> None:
    async def story(loop: SimulatedLoop) -> tuple[float, int, float]:
        # Loses nothing, as gRPC: what is said meanwhile waits behind the chunks under way.
        async with paired(tmp_path, Faults(bytes_per_s=bytes_per_s)) as pair:
            sent = chunks_sent(pair)
            ref = pair.blobs[Side.CLOUD].put(os.urandom(8 * SIZE))
            began = loop.time()
            fetching = asyncio.ensure_future(pair.device.fetch(ref, deadline_s=3000))
            longest_s = 0.0
            while sum(sent) < 6 * SIZE:
                said = loop.time()
                await pair.cloud.deliver(Parcel(id=ParcelId(f"{said}"), kind="t"))
                longest_s = max(longest_s, loop.time() - said)
            await fetching
            assert pair.wires == 1
            return longest_s, sum(sent), loop.time() - began

    longest_s, sent, took_s = run(story, random.Random(1))
    assert longest_s < within_s
    assert sent == 8 * SIZE
    assert took_s < 1.02 * 8 * SIZE / bytes_per_s  # yet the wire is never without work


def test_a_wire_that_breaks_at_once_is_not_sent_what_a_broker_keeps(tmp_path: Path) -> None:
    """A broker keeps chunks of the usual size: on such a wire none of them ever arrives."""

    async def story(_loop: SimulatedLoop) -> tuple[int, int]:
        on_wires: list[int] = []

        def noted(_ref: BlobRef, _offsets: list[int], _again: bool) -> None:
            on_wires.append(pair.wires)

        faults = Faults(drop=1e-12, cut_after=32_000)
        async with paired(tmp_path, faults, on_ask=noted) as pair:
            ref = pair.blobs[Side.CLOUD].put(os.urandom(SIZE // 4))
            await pair.device.fetch(ref, deadline_s=3000)
            return max(on_wires), pair.wires

    asked, wires = run(story, random.Random(1))
    assert asked <= CUTS < wires
