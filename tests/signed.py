"""Artefacts, keys and a signed repository for tests, made as an operator's machine makes them."""

import asyncio
import io
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric import ed25519
from securesystemslib.signer import CryptoSigner
from skerry_cloud.models import ceremonies, signing
from skerry_cloud.models.apps import app_target
from skerry_cloud.models.ceremonies import Thresholds
from skerry_cloud.models.registry import Models, custom_of, target_path
from skerry_cloud.models.repository import Repository
from skerry_cloud.models.signing import Held
from skerry_cloud.store.models import Version
from skerry_protos import bundles
from skerry_protos.manifest import Golden, Manifest, Port
from skerry_protos.messages import digest_of
from skerry_protos.packing import pack_artefact

PASSWORD = b"correct horse"


def make_artefact(
    folder: Path, content: bytes = b"weights", *, model: str = "digits", **other: object
) -> Path:
    """Return an artefact's zip whose model file holds these bytes; no runtime can load it."""
    folder.mkdir(parents=True, exist_ok=True)
    golden = io.BytesIO()
    arrays: dict[str, Any] = {"input.x": np.zeros((2, 3), np.float32), "output.y": np.ones((2, 2))}
    np.savez(golden, **arrays)
    files = {"model.onnx": content, "golden.npz": golden.getvalue()}
    values: dict[str, object] = {
        "model": model,
        "runtime": "onnx",
        "file": "model.onnx",
        "quantization": "none",
        "recipe": "none",
        "inputs": (Port(name="x", dtype="float32", shape=(None, 3)),),
        "outputs": (Port(name="y", dtype="float32", shape=(None, 2)),),
        "golden": Golden(examples=2),
        "files": {name: digest_of(data) for name, data in files.items()},
    }
    manifest = Manifest(**(values | other))  # type: ignore[arg-type]
    for name, data in {**files, "manifest.json": manifest.to_bytes()}.items():
        (folder / name).write_bytes(data)
    packed = folder.with_suffix(".zip")
    pack_artefact(folder, packed)
    return packed


@dataclass
class Signer:
    """An operator with all offline keys."""

    keys: list[Held]
    repository: Repository

    async def sign(
        self, version: Version, channel: str, *, only: Iterable[str] | None = None
    ) -> None:
        """Sign a version's artefacts in a channel and have the coordinator take it."""
        current = self.repository.metadata(channel)
        assert current is not None
        add = {
            path: signing.target(path, digest=each.digest, size=each.size, custom=custom_of(each))
            for each in version.artefacts
            if only is None or each.file in set(only)
            if (path := str(target_path(channel, each)))
        }
        made = ceremonies.sign_targets(channel, current.to_bytes(), add, self.keys)
        assert await self.repository.accept(made, "test") == {channel: 0}

    async def take_over_apps(self) -> None:
        """Put an offline key in the place of the coordinator's for apps."""
        fresh = [Held(role="apps", path=Path("nowhere"), signer=_new_signer())]
        made = ceremonies.rotate(
            "apps",
            root=self._newest("root"),
            director_root=self._newest("director-root"),
            targets=self._newest("targets"),
            channels={"apps": self._newest("apps")},
            held=self.keys,
            fresh=fresh,
        )
        assert await self.repository.accept(made, "test") == {"targets": 0, "apps": 0}
        self.keys.extend(fresh)

    async def rotate_online(self) -> None:
        """Have the coordinator use new keys of its own."""
        targets = self.repository.metadata("targets")
        assert targets is not None
        mine = self.repository.online.public()["apps"].keyid
        made = ceremonies.rotate(
            "online",
            root=self._newest("root"),
            director_root=self._newest("director-root"),
            targets=self._newest("targets"),
            channels={},
            held=self.keys,
            fresh=[],
            online=self.repository.online.prepare(),
            apps_offline=mine not in targets.signed.delegations.roles["apps"].keyids,
        )
        assert set((await self.repository.accept(made, "test")).values()) == {0}

    async def sign_app(self, manifest: bundles.Manifest, *, drop: bool = False) -> None:
        """Sign an app with the offline key, or sign that it is none any more."""
        target = app_target(manifest)
        add = {} if drop else {target.path: target}
        gone = [target.path] if drop else []
        made = ceremonies.sign_targets("apps", self._newest("apps"), add, self.keys, drop=gone)
        assert await self.repository.accept(made, "test") == {"apps": 0}

    def _newest(self, role: str) -> bytes:
        found = self.repository.metadata(role)
        return found.to_bytes() if found is not None else b""


def _new_signer() -> CryptoSigner:
    return CryptoSigner(ed25519.Ed25519PrivateKey.generate())


def make_keys(folder: Path) -> list[Held]:
    """Make three root and targets keys, and one for each channel; encryption costs 0.1 s each."""
    counts = {"root": 3, "targets": 3, "stable": 1, "canary": 1}
    return signing.make_keys(folder, counts, PASSWORD)


async def begin_repository(folder: Path, repository: Repository) -> Signer:
    """Make keys and the first metadata, and have the coordinator take it."""
    keys = await asyncio.to_thread(make_keys, folder)
    made = ceremonies.begin(keys, repository.online.public(), Thresholds())
    assert set((await repository.accept(made, "test")).values()) == {0}
    return Signer(keys, repository)


async def add_version(
    models: Models, folder: Path, content: bytes, *, model: str = "digits", **other: object
) -> Version:
    """Import a version with one artefact of this content."""
    packed = make_artefact(folder / digest_of(content)[:12], content, model=model, **other)
    return await models.add(
        model, {"model.zip": packed}, lineage=json.loads('{"run": "run-1"}'), by="test"
    )
