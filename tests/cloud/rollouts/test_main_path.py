"""A model reaches a small fleet: imported, signed, rolled out in waves, verified, in every slot."""

import asyncio
from pathlib import Path

import pytest
from skerry_cloud.rollouts.lifecycle import OPEN, RolloutState
from skerry_cloud.store import models as kept_models
from skerry_cloud.store import rollouts as kept
from skerry_cloud.store.rollouts import Rollout
from skerry_edge.models.slots import Slots

from tests.fleet import SmallFleet, small_fleet
from tests.signed import add_version, begin_repository

DEVICES = ["d1", "d2", "d3", "d4"]
QUICK = {"waves": ["25%", "100%"], "soak_s": 0.2, "period_s": 0.2, "trial_s": 0.2}


async def ended(fleet: SmallFleet, rollout: Rollout, within_s: float = 15.0) -> Rollout:
    """Wait until a rollout has ended and return it."""
    async with asyncio.timeout(within_s):
        while (found := await fleet.rollouts.get(rollout.id)).state in OPEN:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    return found


async def story(fleet: SmallFleet, rollout: Rollout) -> str:
    """Return a rollout's journal, for a failed test."""
    events = await fleet.store.read(lambda c: kept.journal(c, rollout.id))
    return "\n".join(f"{e['kind']} {e['wave']} {e['device']} {e['data']}" for e in events)


def slots_of(fleet: SmallFleet, device: str, model: str = "digits") -> Slots:
    """Return a device's slots as they are on its disk."""
    home = fleet.home / "devices" / device
    return Slots(home / "models" / model, home / "trust" / "slots" / f"{model}.json")


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
