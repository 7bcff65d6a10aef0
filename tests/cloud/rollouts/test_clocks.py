"""Updates and time: a device whose clock is wrong, and one that slept until its update expired."""

import asyncio
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from skerry_cloud.models import director, repository
from skerry_cloud.models import updates as telling
from skerry_cloud.rollouts.lifecycle import RolloutState
from skerry_edge.models import updates as taking
from skerry_protos.artefacts import Phase

from tests.cloud.rollouts.conftest import QUICK, ended, serving, states, story
from tests.fleet import SmallFleet, small_fleet, until
from tests.signed import Signer, add_version, begin_repository

DAY = 86_400.0


async def roll(fleet: SmallFleet, signer: Signer, folder: Path, content: bytes) -> Any:
    version = await add_version(fleet.models, folder, content)
    await signer.sign(version, "canary")
    return await fleet.rollouts.begin(
        model=f"digits@{version.version}", channel="canary", plan=QUICK, by="test"
    )


def set_clock(monkeypatch: pytest.MonkeyPatch, off_s: float) -> None:
    """Put the clock of the devices in this process wrong, where they judge updates by it."""
    shown = SimpleNamespace(time=lambda: time.time() + off_s, monotonic=time.monotonic)
    monkeypatch.setattr(taking, "time", shown)


@pytest.mark.parametrize("off_s", [2 * DAY, -20 * 365 * DAY])
async def test_a_wrong_clock_never_costs_the_model_that_serves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, off_s: float
) -> None:
    """Two days ahead: refused. Twenty years back: the floor is what counts."""
    async with small_fleet(tmp_path, devices=["d1"]) as fleet:
        signer = await begin_repository(tmp_path / "keys", fleet.models.repository)
        good = await ended(fleet, await roll(fleet, signer, tmp_path / "made", b"v1"))
        assert good.state is RolloutState.COMPLETED, await story(fleet, good)
        set_clock(monkeypatch, off_s)
        if off_s < 0:  # what has expired stays so
            hour_ago = datetime.now(UTC).replace(microsecond=0) - timedelta(hours=1)
            monkeypatch.setattr(repository, "_in", lambda _: hour_ago)
        second = await ended(fleet, await roll(fleet, signer, tmp_path / "made", b"v2"))
        assert second.state is RolloutState.ROLLED_BACK, await story(fleet, second)
        assert "expired" in second.why
        assert serving(fleet, "d1") == [1]


async def test_an_update_that_expired_while_the_device_slept_is_asked_for_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is neither refused nor held against the version."""

    async def never(question: dict[str, Any]) -> dict[str, Any]:
        del question
        await asyncio.Event().wait()
        raise AssertionError

    async with small_fleet(tmp_path) as fleet:
        signer = await begin_repository(tmp_path / "keys", fleet.models.repository)
        await fleet.enrol("d1")
        with monkeypatch.context() as short:
            life = timedelta(seconds=2)
            for module in (repository, director):
                short.setattr(module, "WORD_LIFE", life)
            for module in (repository, telling):
                short.setattr(module, "FRESH_S", 0.0)
            short.setattr("tests.fleet.in_process", never)  # it sleeps before it has looked
            fleet.start("d1")
            await fleet.connected(1)
            rollout = await roll(fleet, signer, tmp_path / "made", b"v1")
            noted = fleet.home / "devices" / "d1" / "trust" / "update.json"
            await until(noted.exists)
            await fleet.stop("d1")
            woken = time.time() + life.total_seconds()
            fleet.updates._words.clear()  # it slept for longer than the coordinator keeps words
        fleet.models.repository._signed_at = 0.0
        await until(lambda: time.time() > woken)
        fleet.start("d1")
        done = await ended(fleet, rollout)
        assert done.state is RolloutState.COMPLETED, await story(fleet, rollout)
        assert serving(fleet, "d1") == [1]
        assert await states(fleet, rollout) == {"d1": "live"}
        assert Phase.REFUSED not in await story(fleet, rollout)
