"""Which apps this device runs: with `models.signed_apps`, those that the models' repository names.

A task brings the repository's metadata; what it says of an app is remembered by the metadata's
digest. An app that was found signed once is run on when newer metadata cannot be had (a network
that is cut, a coordinator that is away), and refused as soon as newer metadata does not name it.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from skerry_protos.artefacts import METADATA_ROLE, read_set
from skerry_protos.errors import DeadlineError, PeerError, RejectedError, TrustError
from skerry_protos.messages import BlobRef, DeviceId, Parcel, digest_of

from skerry_edge.bundles import Bundle
from skerry_edge.models.files import read_json, write_json
from skerry_edge.models.trust import Verify

KNOWN_LIMIT = 64
"""Apps remembered as signed; the oldest are looked up anew."""
_FILE = "apps.json"

Fetch = Callable[[BlobRef], Awaitable[Path]]


class AppPolicy:
    """Says whether an app may run here."""

    def __init__(
        self,
        *,
        required: bool,
        trust: Path,
        device: DeviceId,
        root_sha256: str,
        verify: Verify,
        server_now: Callable[[], float],
    ) -> None:
        """Keep what was found in `trust`; `server_now` is the coordinator's time, 0 if unknown."""
        self._required, self._trust, self._device = required, trust, device
        self._root_sha256, self._verify, self._server_now = root_sha256, verify, server_now
        self._asked: set[tuple[str, str]] = set()
        self._turn = asyncio.Lock()

    async def require(self, parcel: Parcel, bundle: Bundle, fetch: Fetch) -> None:
        """Raise TrustError unless a task's app may run; RejectedError or DeadlineError: not yet."""
        if not self._required:
            return
        app = digest_of(bundle.manifest.to_bytes())
        images = parcel.blob(METADATA_ROLE)
        if images is None:
            raise TrustError(
                f"this device runs signed apps only (models.signed_apps), and the coordinator has "
                f"no signed repository: {bundle.manifest.name!r} came without its metadata"
            )
        if (app, images.digest) in self._asked:
            return
        async with self._turn:
            await self._look_up(app, images, bundle.manifest.name, fetch)

    async def _look_up(self, app: str, images: BlobRef, name: str, fetch: Fetch) -> None:
        try:
            path = await fetch(images)
            files = read_set(await asyncio.to_thread(path.read_bytes))
        except (RejectedError, DeadlineError, PeerError):
            if app in self._known():
                return
            raise
        verdict = await self._verify(
            {
                "trust": str(self._trust),
                "device": self._device,
                "now": time.time(),
                "server_now": self._server_now(),
                "root_sha256": self._root_sha256,
                "app": app,
                "images": files,
                "director": {},
            }
        )
        if verdict["expired"] and app in self._known():
            return
        if verdict["refused"]:
            if not verdict["expired"]:
                await asyncio.to_thread(self._remember, app, signed=False)
            raise TrustError(
                f"this device runs signed apps only (models.signed_apps), and the app {name!r} is "
                f"not one: {verdict['refused']}"
            )
        await asyncio.to_thread(self._remember, app, signed=True)
        if len(self._asked) >= KNOWN_LIMIT:
            self._asked.clear()
        self._asked.add((app, images.digest))

    def _known(self) -> list[str]:
        kept = read_json(self._trust / _FILE)
        return [str(each) for each in kept] if isinstance(kept, list) else []

    def _remember(self, app: str, *, signed: bool) -> None:
        before = self._known()
        after = [each for each in before if each != app] + [app] * signed
        if after != before:
            write_json(self._trust / _FILE, after[-KNOWN_LIMIT:])
