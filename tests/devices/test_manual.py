"""The pages that list commands and errors are complete."""

import pkgutil
from importlib import import_module
from pathlib import Path

import pytest
import skerry_cloud
import skerry_cloud.api.errors
import skerry_devices
import skerry_edge
import skerry_protos
from skerry_devices.manual import MARKER, commands, manual
from skerry_protos.errors import RefusalCode, RejectCode, SkerryError

from tests.devices.conftest import REPOSITORY

CLI = REPOSITORY / "docs" / "cli.md"
ERRORS = REPOSITORY / "docs" / "errors.md"


def test_the_list_of_commands_is_the_commands_own() -> None:
    written = CLI.read_text().partition(MARKER)[2]
    assert written == manual(), "run: python -m skerry_devices.manual docs/cli.md"


@pytest.mark.parametrize("command", commands())
def test_every_command_is_in_the_manual(command: str) -> None:
    assert f"\n## skerry {command}\n" in CLI.read_text()


def import_all() -> None:
    """Import every module: errors are found by having been imported."""
    for package in (skerry_protos, skerry_edge, skerry_cloud, skerry_devices):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if not module.name.endswith(("__main__", "_pb2", "_pb2_grpc")):
                import_module(module.name)


def subclasses(kind: type[SkerryError]) -> set[type[SkerryError]]:
    return {kind}.union(*(subclasses(each) for each in kind.__subclasses__()))


def test_every_code_and_exit_status_is_explained() -> None:
    import_all()
    page = ERRORS.read_text()
    kinds = {kind for kind in subclasses(SkerryError) if kind.__module__.startswith("skerry_")}
    codes = {
        code for kind in kinds if (code := getattr(kind, "code", None)) and isinstance(code, str)
    }
    codes |= {*skerry_cloud.api.errors.STATUS, *RefusalCode, *RejectCode}
    assert [code for code in sorted(codes) if f"`{code}`" not in page] == []
    statuses = {kind.exit_code for kind in kinds}
    assert [status for status in sorted(statuses) if f"| {status} |" not in page] == []


def test_every_page_that_the_readme_names_is_there() -> None:
    text = (REPOSITORY / "docs" / "quickstart.md").read_text()
    for word in ("skerry demo", "skerry up", "skerry new", "skerry devices invite"):
        assert word in text
    assert Path(CLI).exists()
