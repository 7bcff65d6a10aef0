"""A models' repository and director in memory, for a test to mutate, and a device's view of it."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ed25519
from securesystemslib.signer import CryptoSigner
from skerry_cloud.models import ceremonies, signing
from skerry_cloud.models.ceremonies import Thresholds
from skerry_cloud.models.director import word
from skerry_cloud.models.online import WORD_LIFE
from skerry_cloud.models.signing import Held
from skerry_cloud.store.models import Assignment
from skerry_edge.models.verify import Question, Verdict, verify
from skerry_protos.artefacts import SIGNED_AT, TargetPath
from skerry_protos.messages import DeviceId, Digest, digest_of
from tuf.api.metadata import Metadata, MetaFile, Root, Snapshot, Targets, Timestamp

Change = Callable[[Any], None]
LIFE_S = WORD_LIFE.total_seconds()
ONLINE = ("snapshot", "timestamp", "director", "apps")


def new_key(role: str) -> Held:
    """Return a key that is on no disk."""
    signer = CryptoSigner(ed25519.Ed25519PrivateKey.generate())
    return Held(role=role, path=Path("nowhere"), signer=signer)


@dataclass
class Repo:
    """Everything a publisher has: offline keys, online keys, metadata of every role."""

    held: list[Held] = field(default_factory=list)
    online: dict[str, CryptoSigner] = field(default_factory=dict)
    roots: dict[int, bytes] = field(default_factory=dict)
    director_roots: dict[int, bytes] = field(default_factory=dict)
    newest: dict[str, bytes] = field(default_factory=dict)
    number: int = 0
    version: int = 0  # of snapshot and timestamp

    @classmethod
    def new(cls) -> "Repo":
        """Return an empty repository, 2 of 3 for root and targets."""
        counts = {"root": 3, "targets": 3, "stable": 1, "canary": 1}
        made = cls([new_key(role) for role, n in counts.items() for _ in range(n)])
        made.online = {role: new_key(role).signer for role in ONLINE}
        made.take(ceremonies.begin(made.held, made.public(), Thresholds()))
        return made

    def public(self) -> dict[str, Any]:
        return {role: signer.public_key for role, signer in self.online.items()}

    def take(self, offered: Mapping[str, bytes]) -> None:
        """Publish metadata as it is, and sign what is newest."""
        for role, data in offered.items():
            if role == "root":
                self.roots[Metadata[Root].from_bytes(data).signed.version] = data
            elif role == "director-root":
                self.director_roots[Metadata[Root].from_bytes(data).signed.version] = data
            self.newest[role] = data
        self.publish()

    def sign(self, channel: str, *paths: str, content: bytes = b"", keys: Any = None) -> None:
        """Have a channel's keys sign artefacts of this content."""
        add = {
            path: signing.target(
                path, digest=digest_of(content), size=len(content), custom={"runtime": "onnx"}
            )
            for path in paths
        }
        held = self.held if keys is None else keys
        self.take(ceremonies.sign_targets(channel, self.newest[channel], add, held))

    def drop(self, channel: str, path: str) -> None:
        """Have a channel's keys sign it without an artefact."""
        target = TargetPath.parse(path)
        self.take(
            ceremonies.sign_targets(channel, self.newest[channel], {}, self.held, drop=[target])
        )

    def publish(self, *, change: Change = lambda _: None, life: float = LIFE_S) -> None:
        """Make the next snapshot and timestamp; `change` may spoil the snapshot."""
        self.version += 1
        expires = _after(life)
        meta = {
            f"{role}.json": MetaFile(_version(self.newest[role]))
            for role in ("targets", "stable", "canary")
        }
        snapshot = Snapshot(version=self.version, expires=expires, meta=meta)
        change(snapshot)
        timestamp = Timestamp(
            version=self.version,
            expires=expires,
            snapshot_meta=MetaFile(snapshot.version),
            unrecognized_fields={SIGNED_AT: round(time.time())},
        )
        for role, signed in (("snapshot", snapshot), ("timestamp", timestamp)):
            metadata: Metadata[Any] = Metadata(signed)
            metadata.sign(self.online[role])
            self.newest[role] = metadata.to_bytes()

    def files(self) -> dict[str, bytes]:
        """Return what a device is given."""
        found = {f"{number}.root.json": data for number, data in self.roots.items()}
        for role in ("snapshot", "targets", "stable", "canary"):
            found[f"{_version(self.newest[role])}.{role}.json"] = self.newest[role]
        return found | {"timestamp.json": self.newest["timestamp"]}

    def assign(
        self, device: str, *paths: str, content: bytes = b"", number: int = 0
    ) -> dict[str, bytes]:
        """Return the director's word to a device."""
        self.number = number or self.number + 1
        assigned = [
            Assignment(
                device=DeviceId(device),
                model=TargetPath.parse(path).model,
                target=path,
                digest=Digest(digest_of(content)),
                size=len(content),
                rollout="rollout-1",
                wish={"trial_s": 0.5},
            )
            for path in paths
        ]
        signer = self.online["director"]
        return word(DeviceId(device), self.number, assigned, signer, roots=self.director_roots)


@dataclass
class View:
    """A device: its trust, and what it makes of updates."""

    trust: Path
    device: str = "d1"

    def ask(
        self,
        images: Mapping[str, bytes],
        director: Mapping[str, bytes],
        *,
        now: float = 0.0,
        server_now: float = 0.0,
        root_sha256: str = "",
    ) -> Verdict:
        """Return the verdict on an update, at a time."""
        return verify(
            Question(
                trust=str(self.trust),
                device=self.device,
                now=now or time.time(),
                server_now=server_now,
                root_sha256=root_sha256,
                images=images,
                director=director,
            )
        )


def resign(data: bytes, signer: CryptoSigner, change: Change, kind: type[Any] = Targets) -> bytes:
    """Return metadata changed and signed by this key alone."""
    metadata: Metadata[Any] = Metadata.from_bytes(data)
    assert isinstance(metadata.signed, kind)
    change(metadata.signed)
    metadata.sign(signer)
    return metadata.to_bytes()


def _version(data: bytes) -> int:
    metadata: Metadata[Any] = Metadata.from_bytes(data)
    return int(metadata.signed.version)


def _after(seconds: float) -> datetime:
    return (datetime.now(UTC) + timedelta(seconds=seconds)).replace(microsecond=0)
