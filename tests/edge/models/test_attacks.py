"""What an attacker may try between the offline keys and a device: all of it is refused.

Each test says what the attacker holds. The numbers are of RELIABILITY's list of ten, then clocks,
wiped disks and the director.
"""

import hashlib
import time
from pathlib import Path
from typing import Any

import pytest
from skerry_cloud.models import ceremonies, signing
from skerry_cloud.models.online import FRESH_S
from skerry_edge.models.verify import BUILD_UNIX_S, floor
from skerry_protos.artefacts import SIGNED_AT
from tuf.api.metadata import Metadata, Root, Timestamp

from tests.edge.models.repositories import LIFE_S, Repo, View, new_key, resign

PATH = "stable/digits/1/model.zip"
NEXT = "stable/digits/2/model.zip"
CANARY = "canary/digits/1/model.zip"
DAY = 86_400.0


@pytest.fixture
def repo() -> Repo:
    made = Repo.new()
    made.sign("stable", PATH, content=b"v1")
    return made


@pytest.fixture
def view(tmp_path: Path, repo: Repo) -> View:
    """Return a device that has taken the honest version 1."""
    made = View(tmp_path / "trust")
    verdict = made.ask(repo.files(), repo.assign("d1", PATH, content=b"v1"))
    assert not verdict.refused
    assert [each.path for each in verdict.assigned] == [PATH]
    return made


def test_an_honest_update_is_taken(repo: Repo, view: View) -> None:
    repo.sign("stable", NEXT, content=b"v2")
    verdict = view.ask(repo.files(), repo.assign("d1", NEXT, content=b"v2"))
    assert (verdict.refused, verdict.assigned[0].path) == ("", NEXT)
    assert verdict.assigned[0].wish == {"trial_s": 0.5, "rollout": "rollout-1"}


def test_1_an_old_timestamp_is_not_taken_again(repo: Repo, view: View) -> None:
    old = repo.files()
    repo.sign("stable", NEXT, content=b"v2")
    assert not view.ask(repo.files(), repo.assign("d1", NEXT, content=b"v2")).refused
    verdict = view.ask(old, repo.assign("d1", PATH, content=b"v1"))
    assert "older or mixed" in verdict.refused


def test_2_stolen_online_keys_cannot_roll_a_channel_back(repo: Repo, view: View) -> None:
    before = repo.newest["stable"]
    repo.sign("stable", NEXT, content=b"v2")
    repo.drop("stable", PATH)
    assert not view.ask(repo.files(), repo.assign("d1", NEXT, content=b"v2")).refused
    repo.newest["stable"] = before
    repo.publish()
    verdict = view.ask(repo.files(), repo.assign("d1", PATH, content=b"v1"))
    assert verdict.refused
    assert not verdict.assigned


def test_3_a_frozen_repository_is_refused_when_it_expires(repo: Repo, view: View) -> None:
    files, said = repo.files(), repo.assign("d1", PATH, content=b"v1")
    verdict = view.ask(files, said, now=time.time() + 2 * DAY)
    assert "expired" in verdict.refused


def test_4_one_bit_of_metadata_is_enough(repo: Repo, view: View) -> None:
    repo.sign("stable", NEXT, content=b"v2")
    files = repo.files()
    name = next(name for name in files if name.endswith(".stable.json"))
    at = files[name].index(b'"length": ' if b'"length": ' in files[name] else b'"length":')
    spoiled = bytearray(files[name])
    spoiled[at + len(b'"length":') + 1] ^= 1
    verdict = view.ask({**files, name: bytes(spoiled)}, repo.assign("d1", NEXT, content=b"v2"))
    assert verdict.refused


def test_5_endless_metadata_is_cut_off(repo: Repo, view: View) -> None:
    files = repo.files()
    repo.publish()
    endless = {**repo.files(), "timestamp.json": files["timestamp.json"] + b" " * 2**20}
    verdict = view.ask(endless, repo.assign("d1", PATH, content=b"v1"))
    assert "exceeding the maximum" in verdict.refused


@pytest.mark.parametrize("offline", [0, 1])
def test_6_stolen_online_keys_cannot_sign_a_model(repo: Repo, view: View, offline: int) -> None:
    """With none, or one of the two needed, of the offline targets keys too."""
    thief = new_key("stable")
    stolen = [each for each in repo.held if each.role == "targets"][:offline]

    def delegate(targets: Any) -> None:
        targets.version += 1
        targets.add_key(thief.signer.public_key, "stable")

    signer = stolen[0].signer if stolen else repo.online["snapshot"]
    repo.newest["targets"] = resign(repo.newest["targets"], signer, delegate)
    repo.sign("stable", NEXT, content=b"evil", keys=[thief])
    verdict = view.ask(repo.files(), repo.assign("d1", NEXT, content=b"evil"))
    assert "signed by too few" in verdict.refused


def test_6b_a_stolen_director_can_only_choose_among_signed_models(repo: Repo, view: View) -> None:
    verdict = view.ask(repo.files(), repo.assign("d1", NEXT, content=b"evil"))
    assert "no channel's key has signed" in verdict.refused
    verdict = view.ask(repo.files(), repo.assign("d1", PATH, content=b"evil"))
    assert "different bytes" in verdict.refused


def test_7_the_canary_key_cannot_sign_stable(repo: Repo, view: View) -> None:
    add = {NEXT: signing.target(NEXT, digest="0" * 64, size=4, custom={})}
    canary = [each for each in repo.held if each.role == "canary"]
    repo.take(ceremonies.sign_targets("canary", repo.newest["canary"], add, canary))
    verdict = view.ask(repo.files(), repo.assign("d1", NEXT, content=b"evil"))
    assert "no channel's key has signed" in verdict.refused


def test_8_a_snapshot_that_mixes_versions_is_refused(repo: Repo, view: View) -> None:
    repo.sign("stable", NEXT, content=b"v2")
    files = repo.files()
    old = {name: data for name, data in files.items() if "stable" not in name}
    repo.sign("stable", "stable/digits/3/model.zip", content=b"v3")
    mixed = {**repo.files()}
    mixed[next(n for n in mixed if n.endswith(".stable.json"))] = files[
        next(n for n in files if n.endswith(".stable.json"))
    ]
    verdict = view.ask(mixed, repo.assign("d1", NEXT, content=b"v2"))
    assert verdict.refused
    assert old  # the honest rest was there


def test_9_a_revoked_root_key_counts_no_more(repo: Repo, view: View) -> None:
    old = [each for each in repo.held if each.role == "root"]
    fresh = [new_key("root") for _ in range(3)]
    made = ceremonies.rotate(
        "root",
        root=repo.newest["root"],
        director_root=repo.newest["director-root"],
        targets=repo.newest["targets"],
        channels={},
        held=repo.held,
        fresh=fresh,
    )
    repo.take(made)
    assert not view.ask(repo.files(), repo.assign("d1", PATH, content=b"v1")).refused

    def seize(root: Any) -> None:
        root.version += 1

    metadata: Metadata[Root] = Metadata.from_bytes(repo.newest["root"])
    seize(metadata.signed)
    metadata.signatures.clear()
    for each in [old[0], old[1], fresh[0]]:  # one of the two that are needed now
        metadata.sign(each.signer, append=True)
    repo.roots[metadata.signed.version] = metadata.to_bytes()
    verdict = view.ask(repo.files(), repo.assign("d1", PATH, content=b"v1"))
    assert "signed by too few" in verdict.refused


def test_10_another_repository_is_not_ours(repo: Repo, view: View, tmp_path: Path) -> None:
    other = Repo.new()
    other.sign("stable", PATH, content=b"evil")
    assert view.ask(other.files(), other.assign("d1", PATH, content=b"evil")).refused
    assert view.ask(repo.files(), other.assign("d1", PATH, content=b"v1")).refused
    fresh = View(tmp_path / "fresh")
    mark = hashlib.sha256(repo.roots[1]).hexdigest()
    said = other.assign("d1", PATH, content=b"evil")
    verdict = fresh.ask(other.files(), said, root_sha256=mark)
    assert "is told to trust" in verdict.refused
    assert not list(fresh.trust.glob("*-root.json"))
    said = repo.assign("d1", PATH, content=b"v1")
    assert not fresh.ask(repo.files(), said, root_sha256=mark).refused


# Clocks.


def test_a_clock_set_back_twenty_years_does_not_bring_expired_metadata_back(
    repo: Repo, view: View
) -> None:
    repo.publish(life=2.0)
    said, then = repo.assign("d1", PATH, content=b"v1"), time.time()
    long_ago = then - 20 * 365 * DAY
    assert floor(view.trust) > BUILD_UNIX_S
    # What a device saw over mutual TLS since then is enough to know that it is later.
    late = view.ask(repo.files(), said, now=long_ago, server_now=then + 3600)
    assert "expired" in late.refused
    # And what it verified once counts when it knows nothing else: the floor outlives reboots.
    repo.publish()
    assert not view.ask(repo.files(), repo.assign("d1", PATH, content=b"v1")).refused
    repo.publish(life=-3600.0)
    assert "expired" in view.ask(repo.files(), repo.assign("d1", PATH), now=long_ago).refused


@pytest.mark.parametrize(
    ("ahead", "what"), [(2 * DAY, "expired"), (400 * DAY, "expired"), (800 * DAY, "root")]
)
def test_a_clock_ahead_fails_closed_and_says_so(
    repo: Repo, view: View, ahead: float, what: str
) -> None:
    now = time.time()
    said = repo.assign("d1", PATH, content=b"v1")
    verdict = view.ask(repo.files(), said, now=now + ahead, server_now=now)
    assert what in verdict.refused
    assert "set this device's clock" in verdict.refused
    assert not view.ask(
        repo.files(), said, now=now, server_now=now
    ).refused  # set right, it goes on


@pytest.mark.parametrize("hours", [-12, 12])
def test_a_clock_half_a_day_off_takes_what_the_coordinator_hands_out(
    repo: Repo, view: View, hours: float
) -> None:
    """The oldest that it hands out was signed FRESH_S ago; without its time, too."""
    repo.publish(life=LIFE_S - FRESH_S)
    said = repo.assign("d1", PATH, content=b"v1")
    assert not view.ask(repo.files(), said, now=time.time() + hours * 3600).refused


def test_a_stolen_timestamp_key_cannot_put_the_floor_out_of_reach(repo: Repo, view: View) -> None:
    def doomsday(timestamp: Any) -> None:
        timestamp.version += 1
        timestamp.unrecognized_fields[SIGNED_AT] = 32_503_680_000  # the year 3000

    repo.newest["timestamp"] = resign(
        repo.newest["timestamp"], repo.online["timestamp"], doomsday, Timestamp
    )
    assert not view.ask(repo.files(), repo.assign("d1", PATH, content=b"v1")).refused
    root: Metadata[Root] = Metadata.from_bytes(repo.newest["root"])
    assert floor(view.trust) <= root.signed.expires.timestamp()


# The director, and the device's own disk.


def test_another_devices_word_is_not_ours(repo: Repo, view: View) -> None:
    verdict = view.ask(repo.files(), repo.assign("d2", PATH, content=b"v1"))
    assert "is for device 'd2'" in verdict.refused


def test_an_older_word_of_the_director_is_refused(repo: Repo, view: View) -> None:
    old = repo.assign("d1", PATH, content=b"v1")
    assert not view.ask(repo.files(), repo.assign("d1", content=b"v1")).refused
    assert "older or mixed" in view.ask(repo.files(), old).refused


def test_a_retired_model_cannot_be_assigned(repo: Repo, view: View) -> None:
    repo.drop("stable", PATH)
    verdict = view.ask(repo.files(), repo.assign("d1", PATH, content=b"v1"))
    assert "no channel's key has signed" in verdict.refused


def test_a_torn_trust_file_does_not_let_an_old_version_in(repo: Repo, view: View) -> None:
    """Every file of the trust is fsynced; one that is torn all the same fails closed or heals."""
    old = repo.files()
    repo.sign("stable", NEXT, content=b"v2")
    assert not view.ask(repo.files(), repo.assign("d1", NEXT, content=b"v2")).refused
    (view.trust / "models" / "snapshot.json").write_bytes(b"")
    assert "older or mixed" in view.ask(old, repo.assign("d1", PATH, content=b"v1")).refused
    assert not view.ask(repo.files(), repo.assign("d1", NEXT, content=b"v2")).refused


def test_a_rotation_of_the_online_keys_shuts_a_thief_out(repo: Repo, view: View) -> None:
    stolen = dict(repo.online)
    repo.online = {role: new_key(role).signer for role in repo.online}
    made = ceremonies.rotate(
        "online",
        root=repo.newest["root"],
        director_root=repo.newest["director-root"],
        targets=repo.newest["targets"],
        channels={},
        held=repo.held,
        fresh=[],
        online=repo.public(),
    )
    repo.take(made)
    assert not view.ask(repo.files(), repo.assign("d1", PATH, content=b"v1")).refused
    repo.online = stolen
    repo.publish()
    assert (
        "signed by too few"
        in view.ask(repo.files(), repo.assign("d1", PATH, content=b"v1")).refused
    )
