"""App bundles on the device: verified before a byte is unpacked, kept by digest, bounded.

Only what the coordinator signed is ever run; which module is the client side is the signed
manifest's word, not the task's.
"""

import os
import shutil
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from skerry_protos.bundles import Manifest, unpack
from skerry_protos.errors import TrustError
from skerry_protos.messages import Digest, new_id

_MANIFEST = "manifest.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """An unpacked, verified app."""

    digest: Digest
    files: Path
    manifest: Manifest


class Bundles:
    """Unpacked bundles under one folder, of one signer."""

    def __init__(self, root: Path, key_pem: bytes, *, keep: int) -> None:
        self._root, self._key_pem, self._keep = root, key_pem, keep
        self._intact: set[Digest] = set()
        root.mkdir(parents=True, exist_ok=True)
        for left in root.glob("new-*"):
            shutil.rmtree(left, ignore_errors=True)

    def find(self, digest: Digest) -> Bundle | None:
        """Return the bundle when it is unpacked here and its files are as they were signed."""
        folder = self._root / digest
        try:
            manifest = Manifest.parse((folder / _MANIFEST).read_bytes())
        except (OSError, TrustError):
            return None
        if digest not in self._intact and not _intact(folder / "files", manifest):
            shutil.rmtree(folder, ignore_errors=True)
            return None
        self._intact.add(digest)
        os.utime(folder)
        return Bundle(digest=digest, files=folder / "files", manifest=manifest)

    def add(self, digest: Digest, file: Path) -> Bundle:
        """Verify and unpack a bundle, or raise TrustError; the oldest ones make room."""
        made = self._root / new_id("new-")
        try:
            (made / "files").mkdir(parents=True)
            manifest = unpack(file, made / "files", self._verify)
            (made / _MANIFEST).write_bytes(manifest.to_bytes())
            target = self._root / digest
            shutil.rmtree(target, ignore_errors=True)
            made.rename(target)
        finally:
            shutil.rmtree(made, ignore_errors=True)
        self._intact.add(digest)
        self._make_room()
        return Bundle(digest=digest, files=target / "files", manifest=manifest)

    def _verify(self, signature: bytes, manifest: bytes) -> None:
        # cryptography is loaded when the first bundle comes, not in an idle agent.
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
        from cryptography.hazmat.primitives.serialization import load_pem_public_key

        key = load_pem_public_key(self._key_pem)
        if not isinstance(key, Ed25519PublicKey):
            raise TrustError("the coordinator's bundle key is not an Ed25519 key")
        try:
            key.verify(signature, manifest)
        except InvalidSignature:
            raise TrustError("the bundle's signature is not the coordinator's") from None

    def _make_room(self) -> None:
        folders = [each for each in self._root.iterdir() if not each.name.startswith("new-")]
        folders.sort(key=lambda each: each.stat().st_mtime)
        for folder in folders[: max(0, len(folders) - self._keep)]:
            shutil.rmtree(folder, ignore_errors=True)
            self._intact.discard(Digest(folder.name))


def _intact(files: Path, manifest: Manifest) -> bool:
    """Return whether every file is as signed: a disk that failed, or an app that wrote there."""
    try:
        return all(
            sha256((files / path).read_bytes()).hexdigest() == digest
            for path, digest in manifest.files.items()
        )
    except OSError:
        return False
