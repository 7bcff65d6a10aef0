"""Updates over bad networks and from a coordinator that was taken over."""

import asyncio
import os
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import sqlalchemy as sa
from skerry_cloud.rollouts.lifecycle import RolloutState
from skerry_cloud.store import models as kept_models
from skerry_cloud.store.models import Assignment
from skerry_protos.artefacts import Phase
from skerry_protos.errors import TrustError
from skerry_protos.messages import DeviceId, digest_of

from tests.cloud.rollouts.conftest import QUICK, ended, serving, slots_of, story
from tests.faults.proxy import FaultProxy
from tests.fleet import SmallFleet, small_fleet
from tests.signed import add_version, begin_repository

CUT = 8 * 1000**2
SIZE = 50 * 1000**2


@pytest.mark.network
@pytest.mark.timeout(180)
@pytest.mark.parametrize("transport", ["grpc", "mqtt"])
async def test_a_link_cut_every_8_mb_only_delays_an_update(tmp_path: Path, transport: str) -> None:
    """50 MB over a link that lives for 8 MB: resumed, verified, and hardly a byte twice."""
    content = os.urandom(SIZE)
    async with (
        small_fleet(tmp_path, transport) as fleet,
        FaultProxy(urlsplit(fleet.url).port or 0) as proxy,
    ):
        proxy.reset_after = CUT
        fleet.url = fleet.url.replace(str(proxy.target), str(proxy.port))
        await fleet.enrol("d1")
        fleet.start("d1")
        await fleet.connected(1)
        signer = await begin_repository(tmp_path / "keys", fleet.models.repository)
        version = await add_version(fleet.models, tmp_path / "made", content)
        await signer.sign(version, "canary")
        rollout = await fleet.rollouts.begin(
            model="digits", channel="canary", plan=QUICK, by="test"
        )
        done = await ended(fleet, rollout, 150)
        assert done.state is RolloutState.COMPLETED, await story(fleet, rollout)
        live = slots_of(fleet, "d1").live
        assert live is not None
        assert digest_of(live.artefact.read_bytes()) == version.artefacts[0].digest
        assert proxy.connections >= SIZE // CUT
        assert proxy.down < 1.2 * SIZE


async def said_by(fleet: SmallFleet, phase: Phase) -> str:
    """Wait until d1 reports a phase of its second release; return why."""
    async with asyncio.timeout(20):
        while True:
            for report in await fleet.store.read(lambda c: kept_models.reports(c, device="d1")):
                if report.phase == phase:
                    return report.why
            await asyncio.sleep(0.05)


async def test_a_coordinator_that_was_taken_over_cannot_push_what_nobody_signed(
    tmp_path: Path,
) -> None:
    async with small_fleet(tmp_path, devices=["d1"]) as fleet:
        signer = await begin_repository(tmp_path / "keys", fleet.models.repository)
        good = await add_version(fleet.models, tmp_path / "made", b"good")
        await signer.sign(good, "canary")
        rollout = await fleet.rollouts.begin(
            model="digits", channel="canary", plan=QUICK, by="test"
        )
        assert (await ended(fleet, rollout)).state is RolloutState.COMPLETED
        evil = await add_version(fleet.models, tmp_path / "made", b"evil")
        assignment = Assignment(
            device=DeviceId("d1"),
            model="digits",
            target="canary/digits/2/model.zip",
            digest=evil.artefacts[0].digest,
            size=evil.artefacts[0].size,
            rollout="rollout-evil",
            wish={},
        )
        with pytest.raises(TrustError, match="is not signed"):
            await fleet.updates.assign([assignment])

        def force(connection: sa.Connection) -> None:
            kept_models.assign(connection, assignment)

        await fleet.store.write(force)  # whoever holds the machine writes its database too
        fleet.updates.tell([DeviceId("d1")])
        assert "no channel's key has signed" in await said_by(fleet, Phase.REFUSED)
        assert serving(fleet, "d1") == [1]


async def test_an_update_that_was_interrupted_by_a_power_cut_is_finished(tmp_path: Path) -> None:
    async with small_fleet(tmp_path, devices=["d1"]) as fleet:
        signer = await begin_repository(tmp_path / "keys", fleet.models.repository)
        version = await add_version(fleet.models, tmp_path / "made", b"v1" * 1000)
        await signer.sign(version, "canary")
        rollout = await fleet.rollouts.begin(
            model="digits", channel="canary", plan=QUICK, by="test"
        )
        noted = fleet.home / "devices" / "d1" / "trust" / "update.json"
        async with asyncio.timeout(20):
            while not noted.exists():  # noqa: ASYNC110
                await asyncio.sleep(0.005)
        await fleet.stop("d1")
        fleet.start("d1")
        done = await ended(fleet, rollout)
        assert done.state is RolloutState.COMPLETED, await story(fleet, rollout)
        assert serving(fleet, "d1") == [1]


async def test_wiped_slots_are_filled_again(tmp_path: Path) -> None:
    async with small_fleet(tmp_path, devices=["d1"]) as fleet:
        signer = await begin_repository(tmp_path / "keys", fleet.models.repository)
        await signer.sign(await add_version(fleet.models, tmp_path / "made", b"v1"), "canary")
        rollout = await fleet.rollouts.begin(
            model="digits", channel="canary", plan=QUICK, by="test"
        )
        assert (await ended(fleet, rollout)).state is RolloutState.COMPLETED
        await fleet.stop("d1")
        models = fleet.home / "devices" / "d1" / "models"
        await asyncio.to_thread(models.rename, tmp_path / "lost")
        fleet.start("d1")
        async with asyncio.timeout(20):
            while serving(fleet, "d1") != [1]:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
