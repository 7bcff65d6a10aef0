"""A/B slots: one swap, one rename; a kill at any step leaves a verified release serving."""

import hashlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from skerry_edge.models.slots import Release, Slots
from skerry_protos.errors import SkerryError, TrustError
from skerry_protos.messages import Digest

STEPS = ("made", "placed", "unpacked", "described", "cleared", "staged", "noted", "swapped")
CHILD = """
import os, signal, sys
from pathlib import Path
from tests.edge.models.test_slots import opened, release
home, step, what = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
slots = opened(home)
if what == "revert":
    slots._step = lambda name: os.kill(os.getpid(), signal.SIGKILL) if name == step else None
    slots.revert("bad")
else:
    slots._step = lambda name: os.kill(os.getpid(), signal.SIGKILL) if name == step else None
    slots.stage(release(b"v2", 2), home / "v2")
    slots.promote()
    slots.confirm()
"""


def release(content: bytes, version: int) -> Release:
    digest = Digest(hashlib.sha256(content).hexdigest())
    return Release(
        model="m",
        version=version,
        target=f"stable/m/{version}/m.zip",
        digest=digest,
        size=len(content),
    )


def opened(home: Path) -> Slots:
    return Slots(home / "models" / "m", home / "trust" / "m.json")


def put(slots: Slots, home: Path, content: bytes, version: int) -> None:
    """Stage and promote a release."""
    file = home / content.decode()
    file.write_bytes(content)
    slots.stage(release(content, version), file)
    slots.promote()


@pytest.fixture
def slots(tmp_path: Path) -> Slots:
    """Return slots in which version 1 is live and good."""
    made = opened(tmp_path)
    put(made, tmp_path, b"v1", 1)
    made.confirm()
    return made


def serves(slots: Slots) -> bytes:
    assert slots.live is not None
    return slots.live.artefact.read_bytes()


def test_a_release_is_staged_tried_and_kept(slots: Slots, tmp_path: Path) -> None:
    put(slots, tmp_path, b"v2", 2)
    assert slots.on_trial
    assert serves(slots) == b"v2"
    slots.confirm()
    assert not slots.on_trial
    assert slots.kept(release(b"v1", 1).digest)
    assert serves(opened(tmp_path)) == b"v2"


def test_a_bad_release_goes_and_is_remembered(slots: Slots, tmp_path: Path) -> None:
    put(slots, tmp_path, b"v2", 2)
    back = slots.revert("it crashed")
    assert back is not None
    assert serves(slots) == b"v1"
    assert opened(tmp_path).why_bad(release(b"v2", 2).digest) == "it crashed"
    slots.pardon(release(b"v2", 2).digest)
    assert opened(tmp_path).why_bad(release(b"v2", 2).digest) is None


def test_bytes_that_are_not_the_signed_ones_do_not_reach_a_slot(
    slots: Slots, tmp_path: Path
) -> None:
    (tmp_path / "v2").write_bytes(b"v3")
    with pytest.raises(TrustError, match="signed is"):
        slots.stage(release(b"v2", 2), tmp_path / "v2")
    assert slots.idle is None
    assert serves(slots) == b"v1"


def test_the_neighbour_of_a_trial_is_kept(slots: Slots, tmp_path: Path) -> None:
    put(slots, tmp_path, b"v2", 2)
    (tmp_path / "v3").write_bytes(b"v3")
    with pytest.raises(SkerryError, match="on trial"):
        slots.stage(release(b"v3", 3), tmp_path / "v3")


def test_the_first_release_that_is_bad_leaves_nothing(tmp_path: Path) -> None:
    slots = opened(tmp_path)
    put(slots, tmp_path, b"v1", 1)
    assert slots.revert("bad") is None
    assert opened(tmp_path).live is None


def test_a_damaged_disk_falls_back_to_the_other_slot(slots: Slots, tmp_path: Path) -> None:
    put(slots, tmp_path, b"v2", 2)
    slots.confirm()
    live = slots.live
    assert live is not None
    live.artefact.chmod(0o600)
    live.artefact.unlink()
    live.artefact.write_bytes(b"vX")
    again = opened(tmp_path)
    assert "damaged" in str(again.recover())
    assert serves(again) == b"v1"


def test_what_was_bad_is_known_when_the_slots_are_wiped(slots: Slots, tmp_path: Path) -> None:
    put(slots, tmp_path, b"v2", 2)
    slots.revert("it crashed")
    subprocess.run(["rm", "-rf", str(tmp_path / "models")], check=True)
    again = opened(tmp_path)
    again.recover()
    assert again.live is None
    assert again.why_bad(release(b"v2", 2).digest) == "it crashed"


def killed(home: Path, step: str, what: str) -> None:
    root = Path(__file__).parents[3]
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(home), step, what],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()


@pytest.mark.parametrize("step", STEPS)
def test_a_kill_at_any_step_of_an_update(slots: Slots, tmp_path: Path, step: str) -> None:
    (tmp_path / "v2").write_bytes(b"v2")
    killed(tmp_path, step, "update")
    again = opened(tmp_path)
    again.recover()
    assert serves(again) == (b"v2" if step == "swapped" else b"v1")
    assert again.on_trial is (step == "swapped")
    assert not list((tmp_path / "models" / "m").glob("new-*"))
    if step != "swapped":  # and the update can be taken all the same
        again.stage(release(b"v2", 2), tmp_path / "v2")
        again.promote()
    again.confirm()
    assert serves(opened(tmp_path)) == b"v2"


@pytest.mark.parametrize("step", ["condemned", "swapped"])
def test_a_kill_at_any_step_of_the_way_back(slots: Slots, tmp_path: Path, step: str) -> None:
    put(slots, tmp_path, b"v2", 2)
    killed(tmp_path, step, "revert")
    again = opened(tmp_path)
    again.recover()
    assert serves(again) == b"v1"
    assert not again.on_trial
    assert again.why_bad(release(b"v2", 2).digest)


def test_a_torn_ledger_is_an_empty_one(slots: Slots, tmp_path: Path) -> None:
    ledger = tmp_path / "trust" / "m.json"
    assert json.loads(ledger.read_text())["good"]
    ledger.write_text('{"trial": ')
    again = opened(tmp_path)
    assert again.recover() is None
    assert serves(again) == b"v1"


def test_a_release_that_could_not_be_served_here_may_come_again(
    slots: Slots, tmp_path: Path
) -> None:
    put(slots, tmp_path, b"v2", 2)
    slots.revert("the port is taken", bad=False)
    assert serves(slots) == b"v1"
    assert slots.why_bad(release(b"v2", 2).digest) is None
    put(slots, tmp_path, b"v2", 2)
    assert serves(slots) == b"v2"
