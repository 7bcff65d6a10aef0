"""An app's folder becomes a bundle: what is in it, and what is refused."""

import io
import zipfile
from pathlib import Path

import pytest
from skerry_devices.apps import read_app, read_value
from skerry_protos import bundles
from skerry_protos.errors import ConfigError

from tests.devices.conftest import REPOSITORY


def names_in(bundle: bytes) -> set[str]:
    with zipfile.ZipFile(io.BytesIO(bundle)) as archive:
        return set(archive.namelist())


def test_a_native_app_is_packed_the_same_each_time(app: Path) -> None:
    first, second = read_app(app), read_app(app)
    assert first.bundle == second.bundle
    assert (first.kind, first.name) == ("native", "tiny")
    manifest = bundles.inspect(first.bundle)
    assert manifest.client == "tiny:train"


def test_caches_hidden_files_and_ignored_ones_stay_at_home(app: Path) -> None:
    (app / "__pycache__").mkdir()
    (app / "__pycache__" / "tiny.pyc").write_bytes(b"x")
    (app / ".env").write_text("SECRET=1")
    (app / ".git").mkdir()
    (app / ".git" / "config").write_text("x")
    (app / "data").mkdir()
    (app / "data" / "big.bin").write_bytes(b"x")
    (app / ".gitignore").write_text("data/\n*.log\n")
    (app / "a.log").write_text("x")
    assert names_in(read_app(app).bundle) == {"manifest.json", "skerry.toml", "tiny.py"}


def test_a_link_is_refused(app: Path) -> None:
    (app / "passwd").symlink_to("/etc/passwd")
    with pytest.raises(ConfigError, match="passwd is a link"):
        read_app(app)


def test_too_much_is_refused_with_the_largest_file(app: Path) -> None:
    with (app / "weights.bin").open("wb") as file:
        file.truncate(bundles.SIZE_LIMIT)
    with pytest.raises(ConfigError, match=r"weights\.bin"):
        read_app(app)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('[app]\nmodul = "x"\n', "did you mean 'module'"),
        ('[app]\nmodule = "absent"\n', "absent.py"),
        ("[app\n", "not valid TOML"),
        ("[runs]\n", "unknown key 'runs'"),
    ],
)
def test_a_mistake_in_skerry_toml_is_named(app: Path, text: str, expected: str) -> None:
    (app / "skerry.toml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_app(app)
    assert expected in str(caught.value)
    assert "skerry.toml" in str(caught.value)


def test_a_flower_app_names_its_components() -> None:
    found = read_app(REPOSITORY / "examples" / "fashion")
    manifest = bundles.inspect(found.bundle)
    assert (found.kind, found.name) == ("flower", "fashion")
    assert manifest.server == "fashion.server_app:app"
    assert manifest.client == "fashion.client_app:app"


def test_a_flower_app_without_components_is_refused(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text('[tool.flwr.app]\npublisher = "x"\n')
    with pytest.raises(ConfigError, match=r"components\.serverapp"):
        read_app(tmp_path)


@pytest.mark.parametrize(
    ("text", "value"),
    [("1", 1), ("0.5", 0.5), ("true", True), ("fedavg", "fedavg"), ('"1"', "1"), ("[1]", "[1]")],
)
def test_settings_on_the_command_line_have_types(text: str, value: object) -> None:
    found = read_value(text)
    assert found == value
    assert type(found) is type(value)
