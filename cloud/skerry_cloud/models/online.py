"""The coordinator's own keys: snapshot, timestamp, the director's, and the one for apps.

They say what is newest and who gets what, never what may run: a stolen one cannot sign a model.
"""

from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Self

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519
from securesystemslib.signer import CryptoSigner, Key
from skerry_protos.errors import ConfigError

from skerry_cloud.certificates import private_pem
from skerry_cloud.files import write_private

ROLES = ("snapshot", "timestamp", "director", "apps")
WORD_LIFE = timedelta(hours=24)
"""How long a timestamp and the director's word hold: so long an update can be held back unnoticed,
and no clock that is further ahead lets anything in."""
FRESH_S = 6 * 3600.0
"""They are signed anew when they are so old. What a device is handed holds for 18 h more at least:
a clock that is half a day ahead, as one set to the wrong time zone, takes updates all the same."""


class OnlineKeys:
    """The keys in `<home>/models`, made when there are none."""

    def __init__(self, folder: Path, signers: Mapping[str, CryptoSigner]) -> None:
        self._folder, self._signers = folder, dict(signers)

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Return the keys in a folder; raise ConfigError for one that cannot be read."""
        return cls(folder, {role: _load(folder / f"{role}.key") for role in ROLES})

    def signer(self, role: str) -> CryptoSigner:
        """Return what signs for a role."""
        return self._signers[role]

    def public(self) -> dict[str, Key]:
        """Return the public keys, as an offline root names them."""
        return {role: signer.public_key for role, signer in self._signers.items()}

    def knows(self, role: str, keyid: str) -> bool:
        """Return whether a key id is of a role's key here, or of its next one."""
        upcoming = self._next(role)
        return self._signers[role].public_key.keyid == keyid or (
            upcoming.exists() and _load(upcoming).public_key.keyid == keyid
        )

    def prepare(self) -> dict[str, Key]:
        """Make the next keys (once); return the public ones. They count when `adopt` is told so."""
        return {role: _load(self._next(role)).public_key for role in ROLES}

    def adopt(self, named: Mapping[str, str]) -> None:
        """Use the next key of each role whose key id is the one that offline metadata names now.

        Raise ConfigError when metadata names a key that is neither this nor the next one.
        """
        for role, keyid in named.items():
            if self._signers[role].public_key.keyid == keyid:
                continue
            upcoming = _load(self._next(role)) if self._next(role).exists() else None
            if upcoming is None or upcoming.public_key.keyid != keyid:
                raise ConfigError(
                    f"the metadata names another {role} key than this coordinator has",
                    hint="fetch its keys again: skerry keys rotate online",
                )
            self._next(role).replace(self._folder / f"{role}.key")
            self._signers[role] = upcoming

    def _next(self, role: str) -> Path:
        return self._folder / f"{role}.next.key"


def _load(path: Path) -> CryptoSigner:
    if not path.exists():
        write_private(path, private_pem(ed25519.Ed25519PrivateKey.generate()))
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), None)
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(
            f"cannot read {path}: {error}", hint="put it back from a backup"
        ) from error
    if not isinstance(key, ed25519.Ed25519PrivateKey):
        raise ConfigError(f"{path} is not an Ed25519 key")
    return CryptoSigner(key)
