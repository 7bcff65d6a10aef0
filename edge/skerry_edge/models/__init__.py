"""Models on the device: verified by TUF, kept in A/B slots, tried, and taken back when unwell.

Start at `updates.Updates`. `trust` verifies what the coordinator assigns (in a short-lived child:
`verify`), `slots` keeps two releases of each model and swaps them by one rename, `lifecycle` is the
life of an update as a table. What serves a model is somebody else's (skerry_edge.inference): it
reads `Slots.live` and implements the two seams below.
"""

from collections.abc import Mapping
from typing import Protocol

from skerry_edge.models.slots import Release, Slot, Slots

__all__ = ["NoSelfTest", "Release", "SelfTest", "Service", "Slot", "Slots"]


class SelfTest(Protocol):
    """Tries a release that does not serve yet, apart from what serves (in a child process)."""

    async def test(self, slot: Slot, *, timeout_s: float) -> Mapping[str, float]:
        """Load it, answer its golden set, and return readings (skerry_protos.artefacts.Reading).

        Raise SkerryError with one line when it cannot be loaded, crashes, or takes too long.
        """
        ...


class Service(Protocol):
    """Serves the live releases (one for each model)."""

    async def swap(self, model: str, slot: Slot | None) -> None:
        """Serve this release from now on without dropping a request; None: serve none.

        Raise SkerryError, and go on with the one before, when it cannot be served.
        """
        ...

    def readings(self, model: str) -> Mapping[str, float] | None:
        """Return what was measured since the last call, or None when nothing serves this model."""
        ...


class NoSelfTest:
    """Tries nothing: what the signature and the digests say has to do."""

    async def test(self, slot: Slot, *, timeout_s: float) -> Mapping[str, float]:  # noqa: ARG002
        """Return no readings."""
        return {}
