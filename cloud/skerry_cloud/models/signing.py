"""Keys and offline metadata of the models' repository: what an operator's machine does.

A key is one encrypted PKCS#8 file, `<role>-<n>.pem`; whoever holds enough of a role's files can
sign for it, and each may be on another machine. The coordinator never sees one. Roles: `root` (who
is who), `targets` (which channels there are), and one for each channel.
"""

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519
from securesystemslib.signer import CryptoSigner, Key
from skerry_protos.artefacts import APPS, CHANNELS
from skerry_protos.errors import ConfigError, TrustError
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import (
    DelegatedRole,
    Delegations,
    Metadata,
    Role,
    Root,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
)

from skerry_cloud.files import write_private

OFFLINE = ("root", "targets", *CHANNELS)
"""Roles whose keys are files on operators' machines from the beginning."""
KEPT_IN_FILES = (*OFFLINE, APPS)
"""Those, and the one that is the coordinator's until `skerry keys rotate apps`."""
LIFE = {
    "root": timedelta(days=730),
    "targets": timedelta(days=730),
    **dict.fromkeys((*CHANNELS, APPS), timedelta(days=365)),
}
PASSWORD_LEAST = 8
_FILE = re.compile(rf"({'|'.join(KEPT_IN_FILES)})-([0-9]+)\.pem")

T = TypeVar("T", Root, Timestamp, Snapshot, Targets)


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """A key file that was opened."""

    role: str
    path: Path
    signer: CryptoSigner

    @property
    def keyid(self) -> str:
        """How metadata names the key."""
        return str(self.signer.public_key.keyid)


def make_keys(folder: Path, counts: Mapping[str, int], password: bytes) -> list[Held]:
    """Make key files for roles, beside those that are there; raise ConfigError."""
    if len(password) < PASSWORD_LEAST:
        raise ConfigError(f"the keys' password needs at least {PASSWORD_LEAST} characters")
    made = []
    for role, count in counts.items():
        taken = [int(found[2]) for found in _files(folder) if found[1] == role]
        first = max(taken, default=0) + 1
        for number in range(first, first + count):
            key = ed25519.Ed25519PrivateKey.generate()
            path = folder / f"{role}-{number}.pem"
            pem = key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.BestAvailableEncryption(password),
            )
            write_private(path, pem)
            made.append(Held(role=role, path=path, signer=CryptoSigner(key)))
    return made


def load_keys(folder: Path, roles: Iterable[str], password: bytes) -> list[Held]:
    """Open the key files of these roles; raise ConfigError for a wrong password."""
    wanted, held = set(roles), []
    for found in _files(folder):
        if found[1] not in wanted:
            continue
        path = folder / found[0]
        try:
            key = serialization.load_pem_private_key(path.read_bytes(), password)
        except (OSError, ValueError, TypeError) as error:
            raise ConfigError(
                f"cannot open the key {path}: {error}",
                hint="is it the password that `skerry keys init` was given?",
            ) from error
        if not isinstance(key, ed25519.Ed25519PrivateKey):
            raise ConfigError(f"{path} is not an Ed25519 key")
        held.append(Held(role=found[1], path=path, signer=CryptoSigner(key)))
    return held


def _files(folder: Path) -> list[re.Match[str]]:
    try:
        names = sorted(os.listdir(folder))  # noqa: PTH208 - names are matched, not opened
    except FileNotFoundError:
        return []
    return [found for name in names if (found := _FILE.fullmatch(name))]


# Metadata.


def new_root(
    keys: Iterable[Held],
    *,
    online: Mapping[str, Key],
    thresholds: Mapping[str, int],
    director: bool,
    version: int = 1,
) -> Root:
    """Return a root: of the models' repository, or the director's, whose other roles are online.

    `online` has the coordinator's keys for "snapshot", "timestamp" and "director".
    """
    root = Root(version=version, expires=_until(LIFE["root"]), consistent_snapshot=True)
    held = list(keys)
    top = ("root",) if director else ("root", "targets")
    for role in top:
        mine = [each for each in held if each.role == role]
        root.roles[role] = Role([], _threshold(role, thresholds, mine))
        for each in mine:
            root.add_key(each.signer.public_key, role)
    if director:
        for role in ("targets", "snapshot", "timestamp"):
            root.add_key(online["director"], role)
    else:
        root.add_key(online["snapshot"], "snapshot")
        root.add_key(online["timestamp"], "timestamp")
    return root


def new_targets(
    keys: Iterable[Held], *, thresholds: Mapping[str, int], apps: Key, version: int = 1
) -> Targets:
    """Return the top-level targets: no files of its own, one delegation for each channel."""
    held = list(keys)
    roles: dict[str, DelegatedRole] = {}
    known: dict[str, Key] = {}
    for channel in CHANNELS:
        mine = [each for each in held if each.role == channel]
        threshold = _threshold(channel, thresholds, mine)
        known |= {each.keyid: each.signer.public_key for each in mine}
        roles[channel] = DelegatedRole(
            channel, [each.keyid for each in mine], threshold, True, paths=[f"{channel}/*/*/*"]
        )
    known[apps.keyid] = apps
    roles[APPS] = DelegatedRole(APPS, [apps.keyid], 1, True, paths=[f"{APPS}/*"])
    return Targets(
        version=version,
        expires=_until(LIFE["targets"]),
        delegations=Delegations(keys=known, roles=roles),
    )


def new_channel(channel: str, *, version: int = 1) -> Targets:
    """Return a channel's targets without files."""
    return Targets(version=version, expires=_until(LIFE[channel]))


def next_version(metadata: Metadata[T], role: str) -> Metadata[T]:
    """Return a copy, unsigned, with the next version and a new life; then change it and sign."""
    copy: Metadata[T] = Metadata.from_bytes(metadata.to_bytes())
    copy.signed.version += 1
    copy.signed.expires = _until(LIFE[role])
    copy.signatures.clear()
    return copy


def target(path: str, *, digest: str, size: int, custom: Mapping[str, Any]) -> TargetFile:
    """Return an artefact as metadata names it."""
    return TargetFile(size, {"sha256": digest}, path, {"custom": dict(custom)})


def sign(metadata: Metadata[T], keys: Iterable[Held]) -> Metadata[T]:
    """Add the signatures of these keys."""
    for each in keys:
        metadata.sign(each.signer, append=True)
    return metadata


def signatures_missing(delegator: Root | Targets, role: str, metadata: Metadata[T]) -> int:
    """Return how many more signatures of `role` are needed; raise TrustError when none is valid."""
    try:
        result = delegator.get_verification_result(role, metadata.signed_bytes, metadata.signatures)
    except ValueError as error:
        raise TrustError(f"nobody may sign for {role!r}: {error}") from error
    if not result.signed:
        raise TrustError(f"{role} is signed by none of the keys that may")
    return max(0, result.missing)


def read(data: bytes, kind: type[T]) -> Metadata[T]:
    """Return metadata of a kind, or raise TrustError."""
    try:
        found: Metadata[T] = Metadata.from_bytes(data)
    except (RepositoryError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise TrustError(f"this is not TUF metadata: {error}") from error
    if not isinstance(found.signed, kind):
        raise TrustError(f"this is metadata of {found.signed.type}, not of {kind.type}")
    return found


def _threshold(role: str, thresholds: Mapping[str, int], held: list[Held]) -> int:
    wanted = thresholds.get(role, 1)
    if not 1 <= wanted <= len(held):
        raise ConfigError(f"{role} has {len(held)} keys; a threshold of {wanted} cannot be met")
    return wanted


def _until(life: timedelta) -> datetime:
    return (datetime.now(UTC) + life).replace(microsecond=0)
