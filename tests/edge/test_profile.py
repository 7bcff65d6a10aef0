"""Device profiles: those we ship are complete, and a mistake in one is named."""

from pathlib import Path

import pytest
from skerry_edge.config import load_config
from skerry_edge.profile import find_profile, profiles, read_profile
from skerry_protos.errors import ConfigError

SHIPPED = {"pi4", "pi5", "jetson-orin", "x86-gateway", "phone", "generic"}
DEVICE = """
[device]
name = "box"
title = "A box"
arch = "x86_64"
cpu = "one"
cores = 1
clock_mhz = 1000
memory_mb = 512
"""


def test_ours_are_installed_and_named_as_their_files() -> None:
    assert set(profiles()) == SHIPPED
    for name in SHIPPED:
        found = find_profile(name)
        assert found.name == name
        assert found.hardware.memory_mb >= found.limits.get("memory_mb", 0)


def test_a_phone_works_as_phones_do(tmp_path: Path) -> None:
    (tmp_path / "profile.toml").write_text(find_profile("phone").text)
    conditions = load_config(tmp_path).conditions
    assert (conditions.charging, conditions.unmetered) == (True, True)


def test_a_profile_may_be_a_file(tmp_path: Path) -> None:
    file = tmp_path / "box.toml"
    file.write_text(DEVICE)
    assert find_profile(str(file)).hardware.title == "A box"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[devise]", r"f: unknown key 'devise' \(did you mean 'device'\?\)"),
        ("[device]\nname = 'x'", r"f: \[device\]"),
        (DEVICE + "core = 3", r"unknown key 'device\.core' \(did you mean 'cores'"),
        (DEVICE.replace('"box"', '"Box 1"'), "name must be lower-case"),
        (DEVICE.replace("512", "0"), "must be above 0"),
        (DEVICE + "[power]\nsource = 'sun'", 'source must be "mains" or "battery"'),
        (DEVICE + "[limits]\nmemory = 3", r"limits\.memory"),
        (DEVICE + "[conditions]\nhours = ['x']", "hours must look like"),
    ],
)
def test_a_mistake_names_its_place(text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        read_profile(text, "f")


def test_an_unknown_name_says_which_there_are() -> None:
    with pytest.raises(ConfigError, match=r"no profile 'pi6'; there are: generic, jetson-orin"):
        find_profile("pi6")
