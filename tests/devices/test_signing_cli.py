"""Signing by several people, each with keys of their own: drafts, thresholds, apps."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from skerry_devices import contexts
from skerry_devices.commands.config import of_home

from tests.artefacts import packed
from tests.cloud.test_coordinator import coordinator
from tests.devices.conftest import Skerry

pytestmark = [pytest.mark.network, pytest.mark.timeout(120)]


@pytest.fixture
def alone(tmp_path: Path, config: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Make a coordinator without devices this test's context."""
    del config
    monkeypatch.setenv("SKERRY_KEYS_PASSWORD", "correct horse")
    with coordinator(tmp_path / "home") as running:
        running.ready()
        contexts.keep("alone", of_home(tmp_path / "home"), use=True)
        yield


def shared_out(keys: Path, people: dict[str, list[str]]) -> dict[str, Path]:
    """Give each person some of the key files, and the pinned root."""
    found = {}
    for name, files in people.items():
        found[name] = keys.parent / name
        found[name].mkdir()
        for file in [*files, "root.json"]:
            shutil.copy(keys / file, found[name] / file)
    return found


@pytest.mark.usefixtures("alone")
def test_a_channel_of_two_needs_both_and_a_draft_counts_for_nothing(
    skerry: Skerry, tmp_path: Path
) -> None:
    keys = tmp_path / "keys"
    impossible = skerry("keys", "init", "--keys", keys, "--count", 2, "--threshold", 3)
    assert impossible.status == 2
    assert "can never be met" in impossible.err
    made = skerry(
        *("keys", "init", "--keys", keys, "--count", 3, "--threshold", 2),
        *("--channel-keys", 2, "--channel-threshold", 2, "-o", "json"),
    )
    assert made.status == 0, made.err
    rights = {each["role"]: each for each in skerry("keys", "list", "-o", "json").json}
    assert (rights["stable"]["threshold"], len(rights["stable"]["keys"])) == (2, 2)
    people = shared_out(
        keys,
        {
            "ann": ["stable-1.pem", "targets-1.pem"],
            "ben": ["stable-2.pem", "targets-2.pem"],
            "eve": ["canary-1.pem"],
        },
    )
    assert skerry("models", "import", "tiny", packed(tmp_path / "one")).status == 0

    first = skerry("models", "sign", "tiny@1", "--channel", "stable", "--keys", people["ann"])
    assert first.status == 0, first.err
    assert "stable needs 1 more signatures" in first.out
    assert skerry("models", "show", "tiny", "-o", "json").json["labels"] == []
    unsigned = skerry("rollout", "start", "tiny@1", "--channel", "stable")
    assert "no artefact of tiny@1 is signed" in unsigned.err or "no device" in unsigned.err
    assert skerry("models", "verify", "tiny@1", "--keys", people["ann"]).status != 0
    # Once more by the same person is still one signature.
    again = skerry("keys", "sign", "stable", "--keys", people["ann"])
    assert "stable needs 1 more signatures" in again.out
    wrong = skerry("keys", "sign", "stable", "--keys", people["eve"])
    assert wrong.status == 7, wrong.out + wrong.err
    second = skerry("keys", "sign", "stable", "--keys", people["ben"])
    assert second.status == 0, second.err
    assert "counts now" in second.out
    assert skerry("models", "show", "tiny", "-o", "json").json["labels"] == ["stable"]
    assert skerry("models", "verify", "tiny@1", "--keys", people["eve"]).status == 0


@pytest.mark.usefixtures("alone")
def test_apps_are_signed_by_whoever_took_that_over(
    skerry: Skerry, tmp_path: Path, app: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SKERRY_KEYS", str(tmp_path / "keys"))
    assert skerry("keys", "init", "--count", 1, "--threshold", 1).status == 0
    early = skerry("apps", "sign", app)
    assert early.status == 2
    assert "skerry keys rotate apps" in early.err
    assert skerry("apps", "list", "-o", "json").json == []
    for _ in range(2):  # from the coordinator to a key here, and from that to another
        rotated = skerry("keys", "rotate", "apps")
        assert rotated.status == 0, rotated.err
    signed = skerry("apps", "sign", app, "-o", "json")
    assert signed.status == 0, signed.err
    (listed,) = skerry("apps", "list", "-o", "json").json
    assert (listed["name"], listed["path"]) == ("tiny", signed.json["path"])
    assert skerry("keys", "rotate", "online").status == 0
    assert [each["path"] for each in skerry("apps", "list", "-o", "json").json] == [listed["path"]]
    (app / "tiny.py").write_text("# another one\n")
    assert skerry("apps", "sign", app).status == 0
    assert len(skerry("apps", "list", "-o", "json").json) == 2
    assert skerry("apps", "withdraw", listed["digest"][:16]).status == 0
    assert skerry("apps", "withdraw", "tiny").status == 0
    assert skerry("apps", "list", "-o", "json").json == []
    gone = skerry("apps", "withdraw", "tiny")
    assert gone.status == 2
    assert "no app 'tiny' is signed" in gone.err
