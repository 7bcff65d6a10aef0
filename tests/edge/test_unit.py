"""The systemd unit that ships: valid, and a sandbox."""

import shutil
import subprocess
from pathlib import Path

import pytest

UNIT = Path("docker/skerry-agent.service")
needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed"
)


@needs_systemd
def test_systemd_understands_the_unit(tmp_path: Path) -> None:
    unit = tmp_path / UNIT.name
    unit.write_text(UNIT.read_text().replace("/opt/skerry/bin/skerry-agent", "/bin/true"))
    done = subprocess.run(
        ["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, UNIT.name in done.stderr) == (0, False), done.stderr


@needs_systemd
def test_the_unit_is_a_sandbox() -> None:
    """systemd's own score: 0 is sealed, 10 is bare; a unit without a sandbox has 9.6."""
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=yes", "--threshold=25", str(UNIT)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-200:]


def test_the_unit_gives_no_rights_and_no_root() -> None:
    lines = UNIT.read_text().splitlines()
    assert "User=skerry-agent" in lines
    assert "NoNewPrivileges=yes" in lines
    assert "CapabilityBoundingSet=" in lines
