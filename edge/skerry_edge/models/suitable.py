"""Whether a signed release is for this device: its agent's version and its profile."""

from skerry_protos.versions import installed_version

from skerry_edge.models.slots import Release


def unsuitable(release: Release, profile: str) -> str | None:
    """Return why a release is not for this device, or None."""
    wanted = release.custom.get("profiles", ())
    if isinstance(wanted, list) and wanted and profile not in wanted:
        return f"it is for {', '.join(map(str, wanted))}, and this device is a {profile}"
    least = release.custom.get("min_agent", "")
    here = installed_version("skerry-edge")
    if isinstance(least, str) and least and _numbers(here) < _numbers(least):
        return f"it needs agent {least} or newer, and this one is {here}"
    return None


def _numbers(version: str) -> tuple[int, ...]:
    found = []
    for part in version.split("."):
        digits = "".join(character for character in part if character.isdigit())
        found.append(int(digits or 0))
    return tuple(found)
