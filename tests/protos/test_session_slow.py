"""A path much slower than the first time-out has little sent twice."""

import os
import random
from pathlib import Path

import pytest
from skerry_protos.session import Side
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
