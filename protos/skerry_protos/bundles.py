"""Bundles: an app's code as one signed file, the only code a device ever runs.

A bundle is a zip that is the same, byte for byte, whenever the same files are packed: stored
uncompressed, sorted, without times. `manifest.json` names the app and the SHA-256 of every file;
`manifest.sig` is the coordinator's signature over the manifest. `unpack` checks everything before
it writes anything.
"""

import hashlib
import io
import json
import stat
import unicodedata
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from skerry_protos.errors import TrustError

MANIFEST = "manifest.json"
SIGNATURE = "manifest.sig"
FORMAT = 1
SIZE_LIMIT = 64 * 1024**2
FILES_LIMIT = 4000
PATH_LIMIT = 240
DEPTH_LIMIT = 16
SIGNATURE_SIZE = 64  # Ed25519
KINDS = frozenset({"native", "flower"})
_MANIFEST_LIMIT = 2 * 1024**2
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest a zip can say

Sign = Callable[[bytes], bytes]
"""Return the signature of a manifest's bytes."""
Verify = Callable[[bytes, bytes], None]
"""Raise TrustError (or any error) unless the first argument is a signature of the second."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What a bundle says of itself; `client` and `server` are "module:attribute"."""

    kind: str
    name: str
    version: str
    client: str
    server: str
    files: Mapping[str, str]  # path -> SHA-256, hexadecimal

    def to_bytes(self) -> bytes:
        """Return the manifest as it is signed."""
        made = {
            "format": FORMAT,
            "kind": self.kind,
            "name": self.name,
            "version": self.version,
            "client": self.client,
            "server": self.server,
            "files": dict(sorted(self.files.items())),
        }
        return json.dumps(made, sort_keys=True, indent=1).encode()

    @classmethod
    def parse(cls, data: bytes) -> "Manifest":
        """Return the manifest in `data`, or raise TrustError."""
        try:
            made = json.loads(data)
        except ValueError as error:
            raise TrustError(f"the bundle's {MANIFEST} is not JSON: {error}") from error
        if not isinstance(made, dict) or made.get("format") != FORMAT:
            raise TrustError(f"the bundle's {MANIFEST} is not of format {FORMAT}")
        files = made.get("files")
        if not isinstance(files, dict) or not all(isinstance(v, str) for v in files.values()):
            raise TrustError(f"the bundle's {MANIFEST} names no files")
        if made.get("kind") not in KINDS:
            raise TrustError(f"the bundle's kind is {made.get('kind')!r}; expected {sorted(KINDS)}")
        return cls(
            kind=made["kind"],
            name=_text(made, "name"),
            version=_text(made, "version"),
            client=_text(made, "client"),
            server=_text(made, "server"),
            files=files,
        )


def _text(made: Mapping[str, Any], key: str) -> str:
    if not isinstance(value := made.get(key), str) or len(value) > 200:
        raise TrustError(f"the bundle's {MANIFEST} has no proper {key!r}")
    return value


def pack(
    files: Mapping[str, bytes], *, kind: str, name: str, version: str, client: str, server: str
) -> bytes:
    """Return an unsigned bundle of these files."""
    for path in files:
        _check_path(path)
    manifest = Manifest(
        kind=kind,
        name=name,
        version=version,
        client=client,
        server=server,
        files={path: hashlib.sha256(data).hexdigest() for path, data in files.items()},
    )
    return _zip({MANIFEST: manifest.to_bytes(), **dict(sorted(files.items()))})


def sign(bundle: bytes, signer: Sign) -> bytes:
    """Return the bundle with our signature, after checking all of it."""
    manifest, files = _open(io.BytesIO(bundle))
    data = files[MANIFEST]
    inside = {path: files[path] for path in sorted(manifest.files)}
    return _zip({MANIFEST: data, SIGNATURE: signer(data), **inside})


def inspect(bundle: bytes | Path) -> Manifest:
    """Return the manifest of a bundle whose files match it; the signature is not looked at."""
    return _open(io.BytesIO(bundle) if isinstance(bundle, bytes) else bundle)[0]


def unpack(bundle: Path, into: Path, verify: Verify) -> Manifest:
    """Write a bundle's files below `into`, an empty folder, once all of it has been verified.

    Raise TrustError when the signature, a digest, a path or a size is wrong; nothing is written.
    """
    manifest, files = _open(bundle)
    if SIGNATURE not in files:
        raise TrustError("the bundle is not signed")
    verify(files[SIGNATURE], files[MANIFEST])
    for path in manifest.files:
        target = into.joinpath(*PurePosixPath(path).parts)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(files[path])
    return manifest


def _zip(entries: Mapping[str, bytes]) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_STORED) as archive:
        for path, data in entries.items():
            entry = zipfile.ZipInfo(path, _EPOCH)
            entry.external_attr = (stat.S_IFREG | 0o644) << 16
            entry.create_system = 3
            archive.writestr(entry, data)
    return made.getvalue()


def _open(source: io.BytesIO | Path) -> tuple[Manifest, dict[str, bytes]]:
    """Return the manifest and every entry of a bundle, all checked, or raise TrustError."""
    try:
        with zipfile.ZipFile(source) as archive:
            _check_entries(archive.infolist())
            files = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    except TrustError:
        raise
    except Exception as error:  # zipfile raises a dozen kinds for a malformed archive
        raise TrustError(f"the bundle is not a readable zip: {error}") from error
    if len(files.get(MANIFEST, b"")) > _MANIFEST_LIMIT or MANIFEST not in files:
        raise TrustError(f"the bundle has no proper {MANIFEST}")
    if SIGNATURE in files and len(files[SIGNATURE]) > 4 * SIGNATURE_SIZE:
        raise TrustError(f"the bundle's {SIGNATURE} is too long")
    manifest = Manifest.parse(files[MANIFEST])
    named = set(manifest.files)
    if named != (inside := set(files) - {MANIFEST, SIGNATURE}):
        odd = sorted(named ^ inside)[0]
        raise TrustError(f"the bundle and its {MANIFEST} differ on the file {odd[:80]!r}")
    for path, digest in manifest.files.items():
        if hashlib.sha256(files[path]).hexdigest() != digest:
            raise TrustError(f"the bundle's {path!r} differs from its digest")
    return manifest, files


def _check_entries(entries: list[zipfile.ZipInfo]) -> None:
    if len(entries) > FILES_LIMIT + 2:
        raise TrustError(f"the bundle has {len(entries)} files; expected at most {FILES_LIMIT}")
    if (size := sum(entry.file_size for entry in entries)) > SIZE_LIMIT:
        raise TrustError(f"the bundle unpacks to {size} bytes; expected at most {SIZE_LIMIT}")
    seen: set[str] = set()
    for entry in entries:
        _check_path(entry.filename, reserved=False)
        if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size:
            raise TrustError(f"the bundle's {entry.filename!r} is compressed")
        if entry.flag_bits & 0x1:
            raise TrustError(f"the bundle's {entry.filename!r} is encrypted")
        if stat.S_IFMT(entry.external_attr >> 16) not in {0, stat.S_IFREG}:
            raise TrustError(f"the bundle's {entry.filename!r} is not a plain file")
        # One name on a file system that folds case or normalises.
        if (folded := unicodedata.normalize("NFC", entry.filename).casefold()) in seen:
            raise TrustError(f"the bundle has {entry.filename!r} twice")
        seen.add(folded)
    for path in seen:
        if any(str(parent) in seen for parent in PurePosixPath(path).parents):
            raise TrustError(f"the bundle's {path!r} lies below another of its files")


def _check_path(path: str, *, reserved: bool = True) -> None:
    """Raise TrustError unless `path` is relative, plain and stays below where it is unpacked."""
    parts = path.split("/")
    if (
        not path
        or len(path) > PATH_LIMIT
        or len(parts) > DEPTH_LIMIT
        or any(part in {"", ".", ".."} or part != part.strip() for part in parts)
        or any(character in '\\:*?"<>|' or ord(character) < 32 for character in path)
    ):
        raise TrustError(f"the bundle's path {path[:80]!r} is not allowed")
    if reserved and path in {MANIFEST, SIGNATURE}:
        raise TrustError(f"an app's file may not be named {path!r}")
