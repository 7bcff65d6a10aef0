"""Artefacts as folders and as zips: read, packed and unpacked, everything checked, in blocks."""

import hashlib
import shutil
import stat
import zipfile
from pathlib import Path
from typing import Final

from skerry_protos.errors import TrustError
from skerry_protos.manifest import FILES_LIMIT, MANIFEST, MANIFEST_LIMIT, SIZE_LIMIT, Manifest

_EPOCH: Final = (1980, 1, 1, 0, 0, 0)
_BLOCK: Final = 1024**2


def read_artefact(folder: Path) -> Manifest:
    """Return the manifest of an unpacked artefact whose files match it, or raise TrustError."""
    try:
        with (folder / MANIFEST).open("rb") as file:
            manifest = Manifest.parse(file.read(MANIFEST_LIMIT + 1))
        for name, digest in manifest.files.items():
            if file_digest(folder / name) != digest:
                raise TrustError(f"the artefact's {name!r} differs from its digest")
    except OSError as error:
        raise TrustError(f"{folder} is no artefact: {error}") from error
    return manifest


def pack_artefact(folder: Path, target: Path) -> Manifest:
    """Write the artefact in a folder as one zip; the same files are the same bytes."""
    manifest = read_artefact(folder)
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        for name in (MANIFEST, *sorted(manifest.files)):
            entry = zipfile.ZipInfo(name, _EPOCH)
            entry.external_attr = (stat.S_IFREG | 0o644) << 16
            entry.create_system = 3
            entry.file_size = (folder / name).stat().st_size
            with (folder / name).open("rb") as source, archive.open(entry, "w") as file:
                shutil.copyfileobj(source, file, _BLOCK)
    return manifest


def peek_artefact(path: Path) -> Manifest:
    """Return the manifest of a zip; the other files are not looked at."""
    with _opened(path) as archive:
        return _manifest_in(archive)


def unpack_artefact(path: Path, into: Path) -> Manifest:
    """Write a zip's files below `into`, an empty folder; raise TrustError when anything is off."""
    with _opened(path) as archive:
        manifest = _manifest_in(archive)
        for name, digest in manifest.files.items():
            made = hashlib.sha256()
            try:
                with archive.open(name) as source, (into / name).open("xb") as file:
                    while block := source.read(_BLOCK):
                        made.update(block)
                        file.write(block)
            except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError) as error:
                raise TrustError(f"the artefact's {name!r} cannot be read: {error}") from error
            if made.hexdigest() != digest:
                raise TrustError(f"the artefact's {name!r} differs from its digest")
        (into / MANIFEST).write_bytes(archive.read(MANIFEST))
    return manifest


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _opened(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise TrustError(f"{path.name} is no artefact: {error}") from error


def _manifest_in(archive: zipfile.ZipFile) -> Manifest:
    entries = archive.infolist()
    if len(entries) > FILES_LIMIT + 1 or sum(each.file_size for each in entries) > SIZE_LIMIT:
        raise TrustError("the artefact has too many files, or unpacks to too much")
    for entry in entries:
        if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 0x1:
            raise TrustError(f"the artefact's {entry.filename[:80]!r} is compressed or encrypted")
    sizes = {entry.filename: entry.file_size for entry in entries}
    if len(sizes) != len(entries) or sizes.get(MANIFEST, MANIFEST_LIMIT + 1) > MANIFEST_LIMIT:
        raise TrustError(f"the artefact has no proper {MANIFEST}")
    try:
        manifest = Manifest.parse(archive.read(MANIFEST))
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError) as error:
        raise TrustError(f"the artefact's {MANIFEST} cannot be read: {error}") from error
    if odd := sorted(set(manifest.files) ^ (set(sizes) - {MANIFEST})):
        raise TrustError(f"the artefact and its {MANIFEST} differ on the file {odd[0][:80]!r}")
    return manifest
