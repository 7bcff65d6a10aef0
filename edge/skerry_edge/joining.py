"""Joining: trade a token for an identity, and leave the settings the device begins with."""

import re
import socket
from pathlib import Path

from skerry_protos.messages import DeviceId

from skerry_edge import enrolment
from skerry_edge.profile import GENERIC, find_profile


def join(
    token: str, home: Path, *, name: str = "", profile: str = "", link: str | None = None
) -> DeviceId:
    """Enrol this device and return its id; agent.toml and profile.toml are written if new."""
    found = find_profile(profile) if profile else None
    device = enrolment.join(
        token, home, name=name or host_name(), profile=found.name if found else GENERIC
    ).device
    if found is not None:
        (home / "profile.toml").write_text(found.text)
    settings = home / "agent.toml"
    if not settings.exists():
        lines = ["[agent]", f'name = "{device}"']
        lines += [f'profile = "{found.name}"'] if found else []
        lines += [f'link = "{link}"'] if link else []
        settings.write_text("\n".join(lines) + "\n")
    return device


def host_name() -> str:
    """Return the host's name as a device id may be."""
    return re.sub(r"[^A-Za-z0-9_-]+", "-", socket.gethostname().partition(".")[0])[:64]
