"""A side that says nothing any more is given up after 25 s, whenever it fell silent."""

import asyncio
import random
from pathlib import Path

import pytest
from skerry_protos.v1 import fleet_pb2 as pb

from tests.protos.sessions import paired
from tests.simulator.loop import SimulatedLoop, run

GIVEN_UP_S = 25.0


@pytest.mark.parametrize("after_s", [0.5, 4.9, 5.1, 13.0, 24.9, 61.7])
def test_silence_is_noticed_in_time(tmp_path: Path, after_s: float) -> None:
    async def story(loop: SimulatedLoop) -> float:
        async with paired(tmp_path) as pair:
            heard, receive = [loop.time()], pair.cloud.receive

            def noted(frame: pb.Frame, data: memoryview) -> None:
                if silent:
                    return
                heard.append(loop.time())
                receive(frame, data)

            silent = False
            pair.cloud.receive = noted  # type: ignore[method-assign]
            await asyncio.sleep(after_s)
            assert not pair.broken
            silent = True
            async with asyncio.timeout(60):
                while not pair.broken:  # noqa: ASYNC110 - virtual time
                    await asyncio.sleep(0.01)
            return loop.time() - heard[-1]

    assert run(story, random.Random(1)) == pytest.approx(GIVEN_UP_S, abs=0.2)
