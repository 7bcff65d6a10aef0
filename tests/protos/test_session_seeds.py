"""Whole sessions, everything at once, over a path that each seed makes bad in its own way.

A failing seed is printed and fails again: time is virtual, the dice are seeded.
"""

import asyncio
import os
import random
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from skerry_protos.messages import Parcel, ParcelId
from skerry_protos.seams import Stream
from skerry_protos.session import Side
from skerry_protos.session.memory import Faults

from tests.protos.sessions import paired, until_quiet
from tests.virtual import run

FOUND_FAULTS = [6, 19, 26, 179, 828, 2707, 2965, 3890, 5504, 7323]
"""Seeds that once hung or failed: lost ends, acknowledgements across a cut, parts of chunks."""
LONGEST_S = 3000.0
"""Of virtual time; the worst of them take minutes of back-off, a hang takes for ever."""


def faults_of(seed: int) -> Faults:
    """Return the path of a seed, from perfect to hardly usable."""
    dice = random.Random(seed)
    faults = Faults(
        seed=seed,
        drop=dice.choice([0, 0, 0.01, 0.05, 0.2]),
        duplicate=dice.choice([0, 0.1, 0.5]),
        reorder=dice.choice([0, 0.1, 0.5, 0.9]),
        cut=dice.choice([0, 0, 0.002, 0.01]),
        cut_after=dice.choice([0, 0, 0, 100_000, 600_000]),
        delay_s=dice.choice([0, 0.02, 0.3]),
        chunk=dice.choice([8192, 65536, 524288]),
    )
    return replace(faults, max_packet=max(70_000, faults.chunk + 1024))


async def _echoed(stream: Stream, seed: int) -> None:
    dice = random.Random(seed)
    sizes = [dice.choice([0, 1, 100, 5000, 70_000, 600_000]) for _ in range(dice.randrange(1, 8))]
    sent = [dice.randbytes(size) for size in sizes]

    async def send() -> None:
        for message in sent:
            await stream.send(message)
        await stream.finish()

    async with asyncio.TaskGroup() as group:
        group.create_task(send())
        assert [message async for message in stream] == sent


async def _story(seed: int, folder: Path) -> None:
    dice = random.Random(seed + 1)
    async with paired(folder, faults_of(seed)) as pair, asyncio.timeout(LONGEST_S):
        up = pair.blobs[Side.DEVICE].put(dice.randbytes(dice.randrange(1_500_000)))
        down = pair.blobs[Side.CLOUD].put(dice.randbytes(dice.randrange(1_500_000)))
        async with asyncio.TaskGroup() as group:
            group.create_task(pair.cloud.fetch(up, deadline_s=LONGEST_S))
            group.create_task(pair.device.fetch(down, deadline_s=LONGEST_S))
            for session in (pair.device, pair.cloud):
                for number in range(dice.randrange(6)):
                    stream = await session.open_stream("echo", deadline_s=LONGEST_S)
                    group.create_task(_echoed(stream, seed * 100 + number))
                for number in range(dice.randrange(60)):
                    group.create_task(session.deliver(Parcel(id=ParcelId(f"p{number}"), kind="t")))
        await until_quiet(pair)
    for taker in pair.takers.values():
        ids = [parcel.id for parcel in taker.parcels]
        assert len(ids) == len(set(ids))


def _survives(seed: int, folder: Path) -> None:
    made = folder / str(seed)
    made.mkdir()
    try:
        run(_story(seed, made))
    except BaseException as error:
        error.add_note(f"seed {seed}: {faults_of(seed)}")
        raise
    finally:
        shutil.rmtree(made)


@pytest.mark.parametrize("seed", FOUND_FAULTS)
def test_a_seed_that_once_failed_does_not_any_more(tmp_path: Path, seed: int) -> None:
    _survives(seed, tmp_path)


def test_every_seed_survives(tmp_path: Path) -> None:
    for seed in range(100_000, 100_100):
        _survives(seed, tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_one_of_many_seeds_survives(tmp_path: Path) -> None:
    for seed in range(200_000, 200_000 + int(os.environ.get("SKERRY_SEEDS", "1000"))):
        _survives(seed, tmp_path)
