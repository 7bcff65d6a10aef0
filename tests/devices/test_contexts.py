"""Contexts: kept readable by the owner only, and mistakes in the file named."""

import stat
from pathlib import Path

from tests.devices.conftest import Skerry

URL = "https://127.0.0.1:8470"


def test_contexts_are_added_chosen_and_forgotten(skerry: Skerry) -> None:
    assert skerry("config", "set-context", "a", "--url", URL).status == 0
    assert skerry("config", "set-context", "b", "--url", URL, "--no-use").status == 0
    assert skerry("config", "current-context").out == "a\n"
    assert skerry("config", "use-context", "b").status == 0
    names = {
        item["name"]: item["current"]
        for item in skerry("config", "get-contexts", "-o", "json").json
    }
    assert names == {"a": False, "b": True}
    assert skerry("--context", "a", "config", "current-context").out == "a\n"
    assert skerry("config", "delete-context", "b").status == 0
    assert skerry("config", "current-context").status == 2


def test_tokens_are_kept_from_others_and_not_shown(skerry: Skerry, config: Path) -> None:
    skerry("config", "set-context", "a", "--url", URL, "--token", "sko1.secret")
    assert stat.S_IMODE(config.stat().st_mode) == 0o600
    assert "sko1.secret" in config.read_text()
    for form in ("table", "json", "jsonl"):
        assert "secret" not in skerry("config", "get-contexts", "-o", form).out


def test_an_unknown_key_is_named_with_file_and_nearest(skerry: Skerry, config: Path) -> None:
    config.parent.mkdir()
    config.write_text('current = "a"\n[contexts.a]\nurll = "https://x"\n')
    said = skerry("devices", "list")
    assert said.status == 2
    assert str(config) in said.err
    assert "contexts.a.urll" in said.err
    assert "did you mean 'url'?" in said.err


def test_a_broken_file_is_named(skerry: Skerry, config: Path) -> None:
    config.parent.mkdir()
    config.write_text("current = [")
    said = skerry("config", "get-contexts")
    assert said.status == 2
    assert str(config) in said.err


def test_an_unknown_context_lists_those_there_are(skerry: Skerry) -> None:
    skerry("config", "set-context", "north", "--url", URL)
    said = skerry("config", "use-context", "south")
    assert said.status == 2
    assert "north" in said.err


def test_an_unencrypted_address_elsewhere_is_refused(skerry: Skerry) -> None:
    skerry("config", "set-context", "a", "--url", "http://192.0.2.1:8470")
    said = skerry("devices", "list")
    assert said.status == 2
    assert "not encrypted" in said.err


def test_a_ca_file_that_is_not_there_is_named(skerry: Skerry, tmp_path: Path) -> None:
    said = skerry("config", "set-context", "a", "--url", URL, "--ca", tmp_path / "no.pem")
    assert said.status == 2
    assert "no.pem" in said.err
