"""A settings file is read strictly: a mistake names the file, the key and the nearest valid one."""

from dataclasses import dataclass
from pathlib import Path

import pytest
from skerry_protos.errors import ConfigError
from skerry_protos.settings import load_tables, parse_tables, read_table


@dataclass(frozen=True)
class Table:
    name: str = ""
    seconds: float = 1.0
    workers: int = 1
    hours: tuple[str, ...] = ()
    flag: bool | None = None


def test_a_table_becomes_a_value() -> None:
    table = parse_tables('name="a"\nseconds=2\nhours=["1"]\nflag=true', "here")
    assert read_table(Table, table, source="here") == Table("a", 2.0, 1, ("1",), True)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("worker = 2", r"f: unknown key 'limits\.worker' \(did you mean 'workers'\?\)"),
        ("zzz = 2", "known: flag, hours"),
        ("workers = 2.5", r"f: limits\.workers must be int, not 2\.5"),
        ("workers = true", "must be int"),
        ('hours = "a"', "must be a list"),
        ("hours = [1]", "must be str"),
        ("flag = 1", "must be bool"),
    ],
)
def test_a_mistake_is_named(text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        read_table(Table, parse_tables(text, "f"), source="f", name="limits")


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        load_tables(tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_text("a = = 1")
    with pytest.raises(ConfigError, match=r"bad\.toml: not valid TOML"):
        load_tables(tmp_path / "bad.toml")
