"""Apps as targets of the models' repository: what devices that insist on it run, and refuse."""

from pathlib import Path

import pytest
from skerry_cloud.models.apps import app_target
from skerry_cloud.store.runs import Run
from skerry_edge.config import ModelsTable
from skerry_protos import bundles
from skerry_protos.errors import RejectedError, TrustError

from tests.fleet import SmallFleet, small_fleet
from tests.signed import begin_repository

HALVES = Path(__file__).parents[2] / "apps" / "halves"
INSIST = ModelsTable(signed_apps=True)


async def refusals(fleet: SmallFleet, run: Run) -> str:
    """Return why the device refused, in a run in which nobody worked."""
    await fleet.ended(run)
    assert not await fleet.events(run, "reply")
    why = {event["data"]["why"] for event in await fleet.events(run, "failure")}
    assert len(why) == 1, await fleet.story(run)
    return str(why.pop())


async def worked(fleet: SmallFleet, run: Run) -> Run:
    """Return a run in which the device trained and evaluated."""
    found = await fleet.ended(run)
    assert len(await fleet.events(run, "reply")) == 2, await fleet.story(run)
    return found


async def halves(fleet: SmallFleet) -> Run:
    return await fleet.begin(HALVES, rounds=1)


async def test_a_fleet_without_keys_runs_apps_as_ever(tmp_path: Path) -> None:
    async with small_fleet(tmp_path, "memory", ["d1"]) as fleet:
        await worked(fleet, await halves(fleet))


async def test_who_insists_refuses_apps_while_nobody_can_sign(tmp_path: Path) -> None:
    async with small_fleet(tmp_path, "memory", ["d1"], models_table=INSIST) as fleet:
        said = await refusals(fleet, await halves(fleet))
        assert "runs signed apps only (models.signed_apps), and the coordinator has no" in said


async def test_the_coordinator_signs_until_operators_take_that_over(tmp_path: Path) -> None:
    async with small_fleet(tmp_path, "memory", ["d1"], models_table=INSIST) as fleet:
        repository = fleet.models.repository
        signer = await begin_repository(tmp_path / "keys", repository)
        run = await worked(fleet, await halves(fleet))
        bundle = fleet.blobs.path(run.app)
        assert bundle is not None
        manifest = bundles.inspect(bundle)
        signed = repository.metadata("apps")
        assert signed is not None
        assert [each.custom["name"] for each in signed.signed.targets.values()] == [manifest.name]

        await signer.take_over_apps()  # the coordinator's word counts no more
        assert "no key of the role apps has signed" in await refusals(fleet, await halves(fleet))
        assert not await repository.sign_app(f"apps/{'0' * 64}", app_target(manifest))

        await signer.sign_app(manifest)
        await worked(fleet, await halves(fleet))

        await signer.sign_app(manifest, drop=True)  # withdrawn: also where it has run before
        assert "no key of the role apps has signed" in await refusals(fleet, await halves(fleet))


async def test_a_coordinators_own_rotation_leaves_apps_in_their_hands(tmp_path: Path) -> None:
    async with small_fleet(tmp_path, "memory", []) as fleet:
        repository = fleet.models.repository
        signer = await begin_repository(tmp_path / "keys", repository)
        await fleet.runs.add_app(_bundle())
        before = repository.metadata("apps")
        assert before is not None
        await signer.rotate_online()  # its new key signs anew what the old one had signed
        after = repository.metadata("apps")
        assert after is not None
        assert after.signed.targets.keys() == before.signed.targets.keys()
        assert after.signed.version == before.signed.version + 1
        await signer.take_over_apps()
        await signer.rotate_online()
        with pytest.raises((TrustError, RejectedError)):
            await repository.accept({"apps": after.to_bytes()}, "thief")


def _bundle() -> bytes:
    return bundles.pack(
        {"app.py": b""}, kind="native", name="a", version="1", client="app:f", server="app:g"
    )
