"""Which protocol versions understand each other.

The major number changes when an old peer would misread a new one. Within a major, the cloud speaks
to agents up to `OLDER_MINORS` behind it; an agent newer than its cloud is refused with what to do.
"""

from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version

from skerry_protos.errors import RefusalCode, RefusedError


@dataclass(frozen=True, slots=True, order=True)
class ProtocolVersion:
    """The version of the wire, not of a distribution."""

    major: int
    minor: int

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}"


PROTOCOL = ProtocolVersion(1, 1)
OLDER_MINORS = 1


def negotiate(cloud: ProtocolVersion, agent: ProtocolVersion) -> ProtocolVersion:
    """Return the version both will speak, or raise RefusedError saying who must upgrade."""
    if agent > cloud:
        raise RefusedError(
            RefusalCode.VERSION,
            f"the agent speaks protocol {agent}, newer than this coordinator's {cloud}: "
            "upgrade the coordinator first, or install the older agent",
        )
    if agent.major != cloud.major or agent.minor < cloud.minor - OLDER_MINORS:
        oldest = ProtocolVersion(cloud.major, max(0, cloud.minor - OLDER_MINORS))
        raise RefusedError(
            RefusalCode.VERSION,
            f"the agent speaks protocol {agent}, and this coordinator {oldest} to {cloud}: "
            "upgrade the agent",
        )
    return agent


@cache  # finding it reads the distribution's metadata, a millisecond for every heartbeat
def installed_version(distribution: str) -> str:
    """Return an installed distribution's version, or "unknown" in a bare source tree."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return "unknown"
