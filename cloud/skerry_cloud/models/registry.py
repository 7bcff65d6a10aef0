"""The model registry: versions, their artefacts and lineage, and what they are called.

An artefact's file is a blob; what a signer has signed is in the repository. A label names a
version: `canary` and `stable` follow the channels, others are an operator's.
"""

import asyncio
import json
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from skerry_protos.artefacts import CHANNELS, TargetPath, file_name, model_name
from skerry_protos.blobs import LocalBlobs
from skerry_protos.errors import ConfigError, RejectedError, SkerryError
from skerry_protos.manifest import Manifest
from skerry_protos.messages import BlobRef, Digest
from skerry_protos.packing import peek_artefact

from skerry_cloud.models.repository import Repository
from skerry_cloud.store import Store
from skerry_cloud.store import blobs as kept_blobs
from skerry_cloud.store import models as kept
from skerry_cloud.store.models import Artefact, Version

LINEAGE_LIMIT = 64 * 1024
ARTEFACTS_LIMIT = 64
_LABEL = re.compile(r"[a-z][a-z0-9-]{0,31}")


class NoModelError(SkerryError):
    """There is no such model or version."""

    code = "not-found"
    exit_code = 3


class Models:
    """What models there are."""

    def __init__(self, *, store: Store, blobs: LocalBlobs, repository: Repository) -> None:
        self._store, self._blobs, self.repository = store, blobs, repository

    async def add(
        self,
        name: str,
        files: Mapping[str, Path],
        *,
        lineage: Mapping[str, Any],
        by: str,
    ) -> Version:
        """Keep a new version with these artefacts, by file name; the files are taken over.

        Raise TrustError for a file that is no artefact (docs/models.md). What its manifest says is
        for choosing and for people; devices believe what was signed.
        """
        model_name(name)
        if not files:
            raise ConfigError("a version needs at least one artefact")
        if len(files) > ARTEFACTS_LIMIT:
            raise ConfigError(f"a version has at most {ARTEFACTS_LIMIT} artefacts")
        if len(json.dumps(dict(lineage))) > LINEAGE_LIMIT:
            raise ConfigError(f"a lineage has at most {LINEAGE_LIMIT} bytes")
        found = []
        for file, path in files.items():
            about = await asyncio.to_thread(peek_artefact, path)
            ref = await asyncio.to_thread(self._blobs.adopt, path, role="artefact")
            found.append((ref, _artefact(name, file_name(file), ref, about)))

        def write(connection: sa.Connection) -> Version:
            for ref, _ in found:
                kept_blobs.keep_blob(connection, ref, "model")
            return kept.add(connection, name, (each for _, each in found), lineage=lineage, by=by)

        return await self._store.write(write)

    async def find(self, name: str) -> Version:
        """Return a version by `model@version`, `model@label`, or `model` (its newest)."""
        model, _, which = name.partition("@")
        versions = await self._store.read(lambda c: kept.listed(c, model))
        if not versions:
            raise NoModelError(f"there is no model {model[:80]!r}", hint="skerry models list")
        if not which:
            return versions[0]
        for version in versions:
            if which == str(version.version) or which in version.labels:
                return version
        raise NoModelError(
            f"model {model!r} has no version or label {which[:40]!r}",
            hint=f"skerry models show {model}",
        )

    async def label(self, name: str, label: str, by: str) -> Version:
        """Let a label name this version."""
        if not _LABEL.fullmatch(label) or label in CHANNELS:
            raise ConfigError(
                f"{label[:40]!r} cannot be a label here",
                hint="use lower-case letters, digits and -; canary and stable come by signing",
            )
        version = await self.find(name)
        await self._store.write(lambda c: kept.label(c, version.model, label, version.version, by))
        return await self.find(f"{version.model}@{version.version}")

    async def retire(self, name: str, why: str) -> Version:
        """Take a version out of use: it is not rolled out any more.

        Devices refuse it once the channels are signed without it (`skerry models sign`).
        """
        version = await self.find(name)
        wanted = await self._store.read(lambda c: kept.assigned(c, model=version.model))
        uses = [
            each.device
            for each in wanted
            if TargetPath.parse(each.target).version == version.version
        ]
        if uses:
            raise RejectedError(
                "model-in-use",
                f"{version.model}@{version.version} is what {len(uses)} devices are to serve, "
                f"as {uses[0]}: roll out another version first",
            )
        await self._store.write(
            lambda c: kept.change_version(
                c, version.model, version.version, retired_at=time.time(), retired_why=why[:500]
            )
        )
        return await self.find(f"{version.model}@{version.version}")

    async def follow_channels(self, by: str) -> None:
        """Let the labels canary and stable name the newest version that each channel signed."""
        wanted: dict[tuple[str, str], int] = {}
        for channel in CHANNELS:
            metadata = self.repository.metadata(channel)
            for path in metadata.signed.targets if metadata else ():
                target = TargetPath.parse(path)
                key = (target.model, channel)
                wanted[key] = max(wanted.get(key, 0), target.version)

        def write(connection: sa.Connection) -> None:
            known = set(kept.names(connection))
            for model in known:
                for channel in CHANNELS:
                    version = wanted.get((model, channel))
                    kept.label(connection, model, channel, version, by)

        await self._store.write(write)

    def signed_in(self, version: Version, channel: str) -> list[Artefact]:
        """Return the artefacts of a version that a channel has signed, with these very bytes."""
        found = []
        for each in version.artefacts:
            path = str(target_path(channel, each))
            signed = self.repository.target(path)
            if signed is not None and signed.hashes.get("sha256") == each.digest:
                found.append(each)
        return found


def target_path(channel: str, artefact: Artefact) -> TargetPath:
    """Return an artefact's name in the repository."""
    return TargetPath(
        channel=channel, model=artefact.model, version=artefact.version, file=artefact.file
    )


def custom_of(artefact: Artefact, *, min_agent: str = "") -> dict[str, Any]:
    """Return what the signer says of an artefact, for devices to judge whether it is for them."""
    return {
        "runtime": artefact.runtime,
        "profiles": list(artefact.manifest.get("profiles", ())),
        "quantization": str(artefact.manifest.get("quantization", "")),
        "min_agent": min_agent,
    }


def _artefact(model: str, file: str, ref: BlobRef, manifest: Manifest) -> Artefact:
    return Artefact(
        model=model,
        version=0,
        file=file,
        digest=Digest(ref.digest),
        size=ref.size,
        runtime=manifest.runtime,
        profile=",".join(manifest.profiles)[:64],
        manifest=json.loads(manifest.to_bytes()),
    )


def differences(old: Sequence[Artefact], new: Sequence[Artefact]) -> list[dict[str, Any]]:
    """Return what differs between two versions' artefacts, one row for each."""
    before, after = ({each.file: each for each in side} for side in (old, new))
    rows: list[dict[str, Any]] = []
    for file in sorted(before.keys() | after.keys()):
        a, b = before.get(file), after.get(file)
        what = "added" if a is None else "removed" if b is None else "same"
        if a is not None and b is not None and a.digest != b.digest:
            what = "changed"
        rows.append(
            {
                "file": file,
                "what": what,
                "bytes": (a.size if a else None, b.size if b else None),
                "digest": (a.digest[:12] if a else None, b.digest[:12] if b else None),
            }
        )
    return rows
