"""Flower apps with codecs: the apps see nothing of them, and secure aggregation is left alone."""

from pathlib import Path
from typing import Any

import pytest

from tests.fleet import SmallFleet, small_fleet
from tests.test_flower_matrix import (
    DEVICES,
    LEGACY,
    MATRIX,
    close,
    reference,
    results,
)

__all__ = ["reference"]  # the fixture

pytestmark = [pytest.mark.network, pytest.mark.timeout(200)]


async def codecs_used(fleet: SmallFleet, run: Any) -> set[str]:
    replies = await fleet.events(run, "reply")
    return {event["data"].get("codec", "") for event in replies}


async def test_without_loss_every_strategy_comes_to_the_same(
    tmp_path: Path,
    reference: dict[str, Any],
) -> None:
    cases = ["FedAvg", "FedAdam", "Krum", "DP-client-fixed", "FedXgbBagging"]
    async with small_fleet(tmp_path, "grpc", DEVICES) as fleet:
        run = await fleet.train(
            MATRIX,
            run_config={"cases": " ".join(cases)},
            codec="lossless",
            broadcast_codec="lossless",
        )
        found = results(fleet, run)
        for name in cases[:-1]:
            expected = reference[name]
            for values in (*found[name]["train"].values(), *expected["train"].values()):
                values.pop("calls", None)
            assert found[name] == close(expected), name
        bagged = found["FedXgbBagging"]["learner"]["gradient_booster"]["model"]
        assert len(bagged["trees"]) == 10
        assert not await fleet.events(run, "failure", "late", "refused")


async def test_the_older_api_and_secure_aggregation_come_to_the_same(tmp_path: Path) -> None:
    async with small_fleet(tmp_path, "mqtt", DEVICES) as fleet:
        plain = await fleet.train(LEGACY, codec="int8", broadcast_codec="bf16")
        assert results(fleet, plain)["fit"] == [
            [pytest.approx([1.0] * 3, abs=0.02)],
            [pytest.approx([2.0] * 3, abs=0.02)],
        ]
        secure = await fleet.train(LEGACY, run_config={"secure": True}, codec="int4")
        assert results(fleet, secure)["fit"] == [
            [pytest.approx([1.0] * 3, abs=0.01)],
            [pytest.approx([2.0] * 3, abs=0.01)],
        ]
        assert await codecs_used(fleet, secure) == {""}
