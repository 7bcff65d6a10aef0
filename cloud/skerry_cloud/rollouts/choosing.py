"""Which artefact of a version suits a device: its runtimes, its profile, then speed and size."""

import math
from collections.abc import Mapping, Sequence

from skerry_protos.artefacts import RUNTIMES

from skerry_cloud.store.devices import Device
from skerry_cloud.store.models import Artefact


def choose(artefacts: Sequence[Artefact], device: Device | None) -> Artefact | str:
    """Return the artefact for a device, or why there is none."""
    if device is None or device.revoked_at is not None:
        return "the device is not enrolled any more"
    suited = [each for each in artefacts if _suits_profile(each, device.profile)]
    if not suited:
        return f"no artefact is for profile {device.profile!r}"
    if device.capabilities:  # a device that was never heard of is told all the same
        runnable = [
            each
            for each in suited
            if not (needed := RUNTIMES.get(each.runtime)) or needed & device.capabilities
        ]
        if not runnable:
            wanted = ", ".join(sorted({each.runtime for each in suited}))
            return f"the device has no runtime for {wanted}"
        suited = runnable
    return min(suited, key=lambda each: (_latency(each, device.profile), each.size, each.file))


def _suits_profile(artefact: Artefact, profile: str) -> bool:
    wanted = artefact.manifest.get("profiles", ())
    return not wanted or profile in wanted


def _latency(artefact: Artefact, profile: str) -> float:
    """Return seconds of one example on the profile, as measured or estimated; infinity: unknown."""
    figures = artefact.manifest.get("figures", {})
    if not isinstance(figures, Mapping):
        return math.inf
    estimated = figures.get("estimated_latency_s", {})
    found = estimated.get(profile) if isinstance(estimated, Mapping) else None
    found = figures.get("latency_s") if found is None else found
    return float(found) if isinstance(found, int | float) else math.inf
