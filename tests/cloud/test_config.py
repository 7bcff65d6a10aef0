"""The coordinator's settings: file, then command line, and what is refused."""

from pathlib import Path

import pytest
from skerry_cloud.__main__ import FLAGS, main
from skerry_cloud.config import CoordinatorConfig, CoordinatorTable
from skerry_protos.errors import ConfigError

DOCS = Path(__file__).parents[2] / "docs" / "operators.md"


def test_the_command_line_wins_over_the_file_and_the_file_over_the_defaults(tmp_path: Path) -> None:
    (tmp_path / "coordinator.toml").write_text('http_port = 1\ngrpc_port = 2\nlinks = ["grpc"]\n')
    config = CoordinatorConfig.read(tmp_path, {"http_port": 3})
    assert (config.http_port, config.grpc_port, config.mqtt_port) == (3, 2, 8883)
    assert config.links == ("grpc",)
    assert config.database_url == f"sqlite:///{tmp_path}/skerry.db"


def test_an_unknown_key_is_named_with_its_file_and_the_nearest_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "coordinator.toml").write_text("htp_port = 1\n")
    assert main(["--home", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert f"{tmp_path}/coordinator.toml" in said
    assert "'htp_port'" in said
    assert "'http_port'" in said


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("http_port = 70000", "0 to 65535"),
        ("http_port = 'x'", "must be int"),
        ("log_level = 'loud'", "debug, info"),
        ("links = ['carrier-pigeon']", "grpc"),
        ("heartbeat_s = 0", "1 to 3600"),
        ("certificate_days = 0", "above 0"),
        ("insecure = true\nhost = '0.0.0.0'", "loopback only"),
        ("x = [", "not valid TOML"),
    ],
)
def test_a_value_that_cannot_be_is_refused_in_one_line(
    tmp_path: Path, text: str, said: str
) -> None:
    (tmp_path / "coordinator.toml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        CoordinatorConfig.read(tmp_path)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_listeners_are_told_by_the_public_name_and_foreign_brokers_by_their_own(
    tmp_path: Path,
) -> None:
    config = CoordinatorConfig(home=tmp_path, host="0.0.0.0", public_host="fleet.example.com")
    assert config.public("grpcs://0.0.0.0:8471") == "grpcs://fleet.example.com:8471"
    assert config.public("mqtts://localhost:8883") == "mqtts://fleet.example.com:8883"
    assert config.public("mqtts://broker.example.com:8883") == "mqtts://broker.example.com:8883"
    six = CoordinatorConfig(home=tmp_path, host="::1")
    assert six.public("grpcs://[::1]:8471") == "grpcs://[::1]:8471"


def test_every_setting_and_flag_is_in_the_docs() -> None:
    text = DOCS.read_text()
    for name in CoordinatorTable.__slots__:
        assert f"`{name}`" in text, name
    for flag in FLAGS:
        assert f"`--{flag}`" in text, flag
