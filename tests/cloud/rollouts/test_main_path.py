"""A model reaches a small fleet: imported, signed, rolled out in waves, verified, in every slot."""

from pathlib import Path

import pytest
from skerry_cloud.rollouts.lifecycle import RolloutState
from skerry_cloud.store import models as kept_models
from skerry_cloud.store import rollouts as kept

from tests.cloud.rollouts.conftest import QUICK, ended, slots_of, story
from tests.fleet import small_fleet
from tests.signed import add_version, begin_repository

DEVICES = ["d1", "d2", "d3", "d4"]


@pytest.mark.network
@pytest.mark.parametrize("transport", ["memory", "grpc", "mqtt"])
async def test_a_signed_model_reaches_every_device_in_waves(tmp_path: Path, transport: str) -> None:
    async with small_fleet(tmp_path, transport, DEVICES) as fleet:
        signer = await begin_repository(tmp_path / "keys", fleet.models.repository)
        version = await add_version(fleet.models, tmp_path / "made", b"v1" * 100_000)
        await signer.sign(version, "canary")

        rollout = await fleet.rollouts.begin(
            model="digits@1", channel="canary", plan=QUICK, by="test"
        )
        done = await ended(fleet, rollout)

        assert done.state is RolloutState.COMPLETED, await story(fleet, rollout)
        events = await fleet.store.read(lambda c: kept.journal(c, rollout.id))
        live = [e["wave"] for e in events if e["kind"] == "device" and e["data"]["to"] == "live"]
        assert live == [0, 1, 1, 1]
        for device in DEVICES:
            slots = slots_of(fleet, device)
            assert slots.live is not None
            assert slots.live.release.target == "canary/digits/1/model.zip"
            assert not slots.on_trial
            assert (slots.live.content / "model.onnx").read_bytes() == b"v1" * 100_000
        reports = await fleet.store.read(kept_models.reports)
        assert {report.serving_digest for report in reports} == {version.artefacts[0].digest}
