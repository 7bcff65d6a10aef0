"""The agent's settings: one frozen value, and a mistake in the file names its place."""

from pathlib import Path

import pytest
from skerry_edge.__main__ import COMMANDS
from skerry_edge.config import load_config, settings
from skerry_protos.errors import ConfigError


def test_without_a_file_there_are_defaults(tmp_path: Path) -> None:
    config = load_config(tmp_path)
    assert (config.agent.link, config.limits.workers, config.node) == ("auto", 1, {})


def test_the_file_has_the_last_word_over_the_profile(tmp_path: Path) -> None:
    (tmp_path / "profile.toml").write_text(
        "[limits]\nmemory_mb = 500\nniceness = 5\n[conditions]\nmax_temperature = 75\n"
    )
    (tmp_path / "agent.toml").write_text(
        '[agent]\nlink = "mqtt"\n[limits]\nmemory_mb = 700\n'
        '[node]\npartition-id = 3\n[labels]\nsite = "north"\n'
    )
    config = load_config(tmp_path)
    assert (config.limits.memory_mb, config.limits.niceness) == (700, 5)
    assert config.conditions.max_temperature == 75
    assert (config.node, config.labels) == ({"partition-id": 3}, {"site": "north"})


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[limit]", r"agent\.toml: unknown key 'limit' \(did you mean 'limits'\?\)"),
        ("[limits]\nmemroy_mb = 3", "did you mean 'memory_mb'"),
        ("[limits]\nworkers = 0", "workers must be above 0"),
        ('[agent]\nlink = "carrier-pigeon"', "link must be one of auto, grpc, mqtt"),
        ('[conditions]\nhours = ["9-5"]', 'hours must look like "22:00-06:00"'),
        ("[node]\nx = [1]", r"node\.x must be a number, text or flag"),
        ("limits = 3", r"\[limits\] must be a table"),
        ("[labels]\nx = 1", r"\[labels\] must be a table of texts"),
        ('[labels]\nx = "a b"', r"agent\.toml: \[labels\]: 'a b' cannot be the value of label 'x'"),
        (
            "[labels]\n" + "\n".join(f'l{each} = "x"' for each in range(17)),
            "a device states at most 16 labels, not 17",
        ),
    ],
)
def test_a_mistake_names_its_place(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "agent.toml").write_text(text)
    with pytest.raises(ConfigError, match=says):
        load_config(tmp_path)


def test_every_setting_and_command_is_documented() -> None:
    text = Path("docs/devices.md").read_text()
    assert not [name for name in settings() if f"`{name.partition('.')[2]}`" not in text]
    assert not [name for name in COMMANDS if f"skerry-agent {name}" not in text]
