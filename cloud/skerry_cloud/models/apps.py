"""Apps of runs in the models' repository: each bundle's manifest is a target of the role `apps`.

The manifest names every file of the app with its digest, and is the same before and after the
coordinator has signed the bundle: whoever packs an app can sign it, and a device that has unpacked
one can look it up. The role is the coordinator's own (it then signs every app it is given) until
`skerry keys rotate apps` puts offline keys in its place.
"""

import time
from collections.abc import Mapping
from typing import Any, Protocol

from skerry_protos.artefacts import APP_FOLDER
from skerry_protos.bundles import Manifest
from skerry_protos.errors import TrustError
from skerry_protos.messages import BlobRef, digest_of
from tuf.api.metadata import TargetFile

KEPT = 200
"""Most apps that the coordinator signs for; the oldest are forgotten, so that sets stay small."""


class AppsRepository(Protocol):
    """What is needed of models/repository.py."""

    @property
    def initialised(self) -> bool: ...

    async def sign_app(self, path: str, target: TargetFile) -> bool: ...

    async def as_blob(self) -> BlobRef: ...

    def latest(self) -> BlobRef | None: ...


class SignedApps:
    """Has apps signed, and says where a device finds what was."""

    def __init__(self, repository: AppsRepository) -> None:
        self._repository = repository

    async def add(self, manifest: Manifest) -> None:
        """Sign an app that came, where that is the coordinator's to do."""
        if self._repository.initialised:
            target = app_target(manifest)
            await self._repository.sign_app(target.path, target)

    async def prepare(self) -> None:
        """Have the newest metadata at hand for `metadata`."""
        if self._repository.initialised:
            await self._repository.as_blob()

    def metadata(self) -> BlobRef | None:
        """Return the repository's newest metadata for a task; None where there are no keys."""
        return self._repository.latest()


def app_target(manifest: Manifest) -> TargetFile:
    """Return an app as metadata names it."""
    data = manifest.to_bytes()
    digest = digest_of(data)
    custom = {
        "name": manifest.name[:200],
        "version": manifest.version[:200],
        "kind": manifest.kind,
        "at": int(time.time()),
    }
    return TargetFile(len(data), {"sha256": digest}, APP_FOLDER + digest, {"custom": custom})


def require_app(path: str, named: TargetFile) -> None:
    """Raise TrustError unless a target is an app's."""
    digest = named.hashes.get("sha256", "")
    if path != APP_FOLDER + digest or len(digest) != 64:
        raise TrustError(f"{path[:100]!r} does not name an app: apps/<SHA-256 of its manifest>")


def newest(targets: Mapping[str, TargetFile], most: int = KEPT) -> dict[str, TargetFile]:
    """Return the apps that were signed last."""

    def at(path: str) -> int:
        custom: Any = targets[path].custom
        value = custom.get("at") if isinstance(custom, Mapping) else None
        return value if isinstance(value, int) else 0

    return {path: targets[path] for path in sorted(targets, key=at, reverse=True)[:most]}
