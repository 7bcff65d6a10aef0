"""The operator's side of signing: where keys are, their password, and what the coordinator offers.

What is signed is first verified here, by the root this machine has pinned: a coordinator that lies
can show nothing that the offline keys did not sign before.
"""

import hashlib
import os
import shutil
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from skerry_protos.errors import ConfigError, TrustError

from skerry_devices.client import Client, at

KEYS_VARIABLE = "SKERRY_KEYS"
PASSWORD_VARIABLE = "SKERRY_KEYS_PASSWORD"  # noqa: S105 - the name of a variable
PINNED = "root.json"

Folder = Annotated[
    Path | None,
    typer.Option("--keys", help="The folder with key files ($SKERRY_KEYS or ~/.skerry/keys)."),
]
PasswordFile = Annotated[
    Path | None,
    typer.Option(
        "--password-file",
        help="A file with the keys' password; else $SKERRY_KEYS_PASSWORD, or asked.",
    ),
]


def folder_of(given: Path | None) -> Path:
    """Return where the keys are."""
    named = os.environ.get(KEYS_VARIABLE)
    return (given or (Path(named) if named else Path.home() / ".skerry" / "keys")).expanduser()


def password_of(file: Path | None, *, new: bool = False) -> bytes:
    """Return the keys' password."""
    if file is not None:
        try:
            return file.read_bytes().rstrip(b"\r\n")
        except OSError as error:
            raise ConfigError(f"cannot read the password file {file}: {error}") from error
    if said := os.environ.get(PASSWORD_VARIABLE):
        return said.encode()
    said = typer.prompt(
        "Password of the signing keys", hide_input=True, confirmation_prompt=new, err=True
    )
    return str(said).encode()


def online_keys(said: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return the coordinator's public keys by role."""
    from securesystemslib.signer import Key

    found = {}
    for role, fields in said.items():
        table = dict(fields)
        found[role] = Key.from_dict(str(table.pop("keyid")), table)
    return found


@dataclass(frozen=True, slots=True)
class Verified:
    """The repository as the coordinator offers it, verified by the pinned root."""

    files: Mapping[str, bytes]
    client: Any  # tuf.ngclient.Updater, refreshed

    def has(self, name: str) -> bool:
        """Return whether the snapshot names metadata of a delegated role."""
        return f"{name}.json" in self.client._trusted_set.snapshot.meta

    def role(self, name: str) -> bytes:
        """Return a role's newest metadata, verified."""
        from skerry_cloud.models.signing import read, signatures_missing
        from tuf.api.metadata import Targets

        trusted = self.client._trusted_set
        if name in {"root", "targets"}:
            version = (trusted.root if name == "root" else trusted.targets).version
            return self.files[f"{version}.{name}.json"]
        version = trusted.snapshot.meta[f"{name}.json"].version
        data = self.files[f"{version}.{name}.json"]
        metadata = read(data, Targets)
        if (
            signatures_missing(trusted.targets, name, metadata)
            or metadata.signed.version != version
        ):
            raise TrustError(f"the coordinator offers {name} metadata that its keys did not sign")
        return data


def verified(client: Client, folder: Path) -> Verified:
    """Return the repository, verified by the root pinned in `folder`, or seen there first."""
    from skerry_edge.models.verify import open_client
    from skerry_protos.artefacts import read_set
    from tuf.api.exceptions import DownloadError, RepositoryError

    with client.download(at("repository", "set")) as answer:
        files = read_set(answer.read())
    pinned = folder / PINNED
    first = pinned.read_bytes() if pinned.exists() else files.get("1.root.json", b"")
    try:
        known = open_client(folder / "trust", files, time.time(), first)
        known.refresh()
    except (RepositoryError, DownloadError) as error:
        raise TrustError(
            f"what the coordinator offers does not hold: {error}",
            hint=f"is {pinned} the root of this coordinator's models?",
        ) from error
    if not pinned.exists():
        pin(folder, first)
        typer.echo(f"trusting root {fingerprint(first)}, kept in {pinned}", err=True)
    return Verified(files, known)


def pin(folder: Path, root: bytes) -> None:
    """Trust this first root from now on; what another one vouched for is forgotten."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    shutil.rmtree(folder / "trust", ignore_errors=True)
    (folder / PINNED).write_bytes(root)


def fingerprint(root: bytes) -> str:
    """Return what devices are told to trust: models.root_sha256 in agent.toml."""
    return hashlib.sha256(root).hexdigest()


def offer(client: Client, made: Mapping[str, bytes]) -> list[str]:
    """Send metadata; return a line for each role that still lacks signatures."""
    lacking = client.post(at("repository"), {role: data.decode() for role, data in made.items()})
    return [
        f"{role} needs {missing} more signatures: skerry keys sign {role}, where the keys are"
        for role, missing in lacking.items()
        if missing
    ]


def set_aside(folder: Path, names: Iterable[Path]) -> None:
    """Move replaced key files out of the way."""
    old = folder / "old"
    old.mkdir(exist_ok=True, mode=0o700)
    for path in names:
        path.rename(old / f"{int(time.time())}-{path.name}")
