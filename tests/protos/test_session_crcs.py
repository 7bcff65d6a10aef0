"""Chunks carry a CRC where the way may change bits, and none where it does not."""

import os
from dataclasses import replace
from pathlib import Path

import pytest
from skerry_protos.session import Side
from skerry_protos.session.memory import Faults
from skerry_protos.v1 import fleet_pb2 as pb

from tests.protos.sessions import Pair, paired

INEXACT = Faults(corrupt=1e-9)
"""A wire that may flip bits, and does not."""


def watched(pair: Pair, *, strip: int = 0) -> list[pb.Frame]:
    """Return a list that fills with the frames the device gets; the first chunks lose their CRC."""
    frames: list[pb.Frame] = []
    receive = pair.device.receive

    def noted(frame: pb.Frame, data: memoryview) -> None:
        if frame.HasField("blob_chunk"):
            if len(frames) < strip:
                frame.blob_chunk.ClearField("crc32")
            frames.append(frame)
        receive(frame, data)

    pair.device.receive = noted  # type: ignore[method-assign]
    return frames


@pytest.mark.parametrize("exact", [True, False])
async def test_only_a_wire_that_may_flip_bits_has_crcs(tmp_path: Path, *, exact: bool) -> None:
    async with paired(tmp_path, Faults(drop=1e-9) if exact else INEXACT) as pair:
        frames = watched(pair)
        ref = pair.blobs[Side.CLOUD].put(os.urandom(300_000))
        await pair.device.fetch(ref, deadline_s=20)
    assert frames
    assert {frame.blob_chunk.HasField("crc32") for frame in frames} == {not exact}


async def test_a_chunk_that_lacks_its_crc_is_asked_for_again(tmp_path: Path) -> None:
    async with paired(tmp_path, replace(INEXACT, chunk=16 * 1024)) as pair:
        frames = watched(pair, strip=2)
        ref = pair.blobs[Side.CLOUD].put(os.urandom(100_000))
        await pair.device.fetch(ref, deadline_s=20)
    offsets = [frame.blob_chunk.offset for frame in frames]
    assert len(offsets) >= len(set(offsets)) + 2
