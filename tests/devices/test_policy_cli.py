"""Policies on the command line, against a real coordinator: kept, shown, audited, removed."""

from pathlib import Path

import pytest

from tests.devices.conftest import REPOSITORY, Skerry

pytestmark = [
    pytest.mark.network,
    pytest.mark.usefixtures("fleet"),
    pytest.mark.xdist_group("the local fleet"),
]

HALVES = REPOSITORY / "tests" / "apps" / "halves"


def test_a_policy_is_kept_shown_audited_and_removed(skerry: Skerry, tmp_path: Path) -> None:
    words = ("models", "policy", "set", "digits", HALVES, "--threshold", "0.3", "--devices", "2")
    made = skerry(*words, "--cooldown", "12h", "--option", "rounds=2", "-o", "json")
    assert made.status == 0, made.err
    assert made.json["cooldown_s"] == 43_200
    assert made.json["options"] == {"rounds": 2}
    assert made.json["now"] == "0 of 2 devices drift by 0.3 or more"

    refused = skerry("models", "policy", "set", "digits", HALVES, "--option", "round=2")
    assert refused.status == 2
    assert "rounds" in refused.err
    off = skerry(*words, "--off")
    assert "now: it is off" in off.out
    listed = skerry("models", "policy", "list")
    assert "digits" in listed.out
    assert "it is off" in listed.out
    rows = skerry("audit", "-o", "json").json
    assert "set_policy" in {row["action"] for row in rows}

    assert skerry("models", "policy", "remove", "digits").status == 0
    gone = skerry("models", "policy", "remove", "digits")
    assert gone.status == 3
    assert "has no policy" in gone.err
    assert "No policies" in skerry("models", "policy", "list").err
