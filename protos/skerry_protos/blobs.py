"""Content-addressed blobs on this machine's disk; start at `LocalBlobs`.

A blob's name is the SHA-256 of its bytes, so a file under its name is whole and right: bytes
arrive beside it, are hashed as they come, and get the name by a rename. What has arrived of a blob
survives the process; after a power cut the hash decides. Blobs that may be fetched again at any
time need not be on the disk: they have their names in a folder that is of this boot alone.
"""

import contextlib
import errno
import hashlib
import os
import re
import shutil
import threading
import time
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Final

from skerry_protos.disk import DiskFullError, explained
from skerry_protos.errors import PeerError, SkerryError, TrustError
from skerry_protos.failpoints import failpoint
from skerry_protos.messages import BLOB_SIZE_LIMIT, BlobRef, Digest, new_id
from skerry_protos.partials import STEP, LocalPartial
from skerry_protos.seams import Partial

__all__ = ["STEP", "DiskFullError", "LocalBlobs", "LocalPartial"]

COPY: Final = 1024**2
"""Bytes read at a time when a file is hashed or copied."""
BRIEF: Final = "brief-"
"""Name, less the boot's, of the folder of blobs that a power cut takes away."""
_DIGEST = re.compile(r"[0-9a-f]{64}")

Buffer = bytes | bytearray | memoryview


class LocalBlobs:
    """Blobs in a directory: `<first two digits>/<digest>`, arriving ones in `arriving/`.

    Methods may be called from any thread; those that read or write a whole blob (put, adopt,
    commit) belong in one. With `durable` a blob is on the disk, not only in the page cache, before
    it has a name; but not one that arrives in a role of `brief`, which a power cut takes away.
    """

    def __init__(
        self,
        root: Path,
        *,
        limit: int = BLOB_SIZE_LIMIT,
        durable: bool = True,
        brief: Collection[str] = (),
    ) -> None:
        self.root = root
        self.limit = limit
        self.durable = durable
        boot = _boot() if brief else ""
        self._brief_roles = frozenset(brief if boot else ())
        self._brief = root / f"{BRIEF}{boot}"
        self._arriving = root / "arriving"
        self._lock = threading.Lock()
        self._open: dict[str, LocalPartial] = {}
        self._made: set[str] = set()
        with explained(root, "make the blob store"):
            self._arriving.mkdir(parents=True, exist_ok=True)
            for left in root.glob(f"{BRIEF}*"):
                if left != self._brief or not self._brief_roles:
                    shutil.rmtree(left)
            if self._brief_roles:
                self._brief.mkdir(exist_ok=True)

    def path(self, digest: Digest) -> Path | None:
        """Return the file that holds the blob, or None when it is not here."""
        for path in (self._named(digest), self._brief / digest):
            if path.exists():
                return path
        return None

    def _lasting(self, digest: Digest) -> bool:
        """Return whether the blob is here to stay."""
        return self._named(digest).exists()

    def put(self, content: Path | Buffer | Sequence[Buffer], *, role: str = "") -> BlobRef:
        """Keep a copy of a file, or of bytes (one buffer or several in a row)."""
        if isinstance(content, Path):
            return self._copy(content, role)
        parts = [content] if isinstance(content, (bytes, bytearray, memoryview)) else content
        sha, size = hashlib.sha256(), 0
        for part in parts:
            sha.update(part)
            size += memoryview(part).nbytes
        ref = BlobRef(digest=Digest(sha.hexdigest()), size=size, role=role)
        self._check(ref)
        if not self._lasting(ref.digest):
            with self._temporary() as (path, file):
                for part in parts:
                    _write_all(file, memoryview(part).cast("B"))
                self._name(path, file, ref.digest)
        return ref

    def adopt(self, path: Path, *, role: str = "") -> BlobRef:
        """Take a file over: it is hashed and moved here, and is gone from where it was."""
        try:
            with explained(path, "read the file"), path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                digest = Digest(hashlib.file_digest(file, "sha256").hexdigest())
                ref = BlobRef(digest=digest, size=size, role=role)
                self._check(ref)
                if not self._lasting(digest):
                    self._name(path, file.fileno(), digest)
        except SkerryError as error:
            if isinstance(error.__cause__, OSError) and error.__cause__.errno == errno.EXDEV:
                ref = self._copy(path, role)
            else:
                raise
        path.unlink(missing_ok=True)
        return ref

    def begin(self, ref: BlobRef, chunk: int) -> LocalPartial:
        """Begin or go on with an arriving blob; those who begin the same one share it."""
        self._check(ref)
        name = f"{ref.digest}-{ref.size}"
        with self._lock:
            partial = self._open.get(name)
            if partial is None or partial.named or partial.discarded:
                room = os.statvfs(self._arriving)
                if ref.size > room.f_bavail * room.f_frsize + self._arrived(name):
                    raise DiskFullError(
                        f"{self.root}: a blob of {ref.size} bytes does not fit, "
                        f"{room.f_bavail * room.f_frsize} are free",
                        hint="free some space there, or move the store; it goes on by itself",
                    )
                with explained(self._arriving / name, "begin a blob"):
                    partial = LocalPartial(self._arriving, name, ref.size, self._let_go)
                self._open[name] = partial
            partial.users += 1
            partial.chunk = max(STEP, chunk // STEP * STEP)
            return partial

    def commit(self, ref: BlobRef, partial: Partial) -> Path:
        """Verify, keep and name a complete blob; raise TrustError when the digest differs.

        One that differs is thrown away, so that the next `begin` starts with nothing.
        """
        path = self._named(ref.digest)
        brief = ref.role in self._brief_roles
        if brief:
            path = self._brief / ref.digest
        if not isinstance(partial, LocalPartial):
            raise TypeError("a store commits what it began itself")
        with partial.committing(), explained(path, "keep a blob"):
            if partial.discarded:
                raise TrustError(f"blob {ref.digest[:12]} was thrown away")
            if partial.named:
                return path
            if not partial.complete:
                raise PeerError(f"blob {ref.digest[:12]} is not complete")
            found = partial.digest()
            if found != ref.digest:
                partial.discard()
                raise TrustError(
                    f"blob {ref.digest[:12]}: the bytes that came are {found[:12]}, "
                    "not what the digest says"
                )
            if brief:
                os.fchmod(partial.file, 0o444)
                partial.path.rename(path)
            else:
                self._name(partial.path, partial.file, ref.digest)
            partial.forget()
        return path

    def remove(self, digest: Digest) -> bool:
        """Remove a blob; return whether it was here. Who has it open can read on."""
        found = False
        for path in (self._named(digest), self._brief / digest):
            with explained(path, "remove a blob"), contextlib.suppress(FileNotFoundError):
                path.unlink()
                found = True
        return found

    def digests(self) -> Iterator[Digest]:
        """Return the names of all blobs, in no order."""
        for folder in self.root.iterdir():
            if len(folder.name) == 2 or folder == self._brief:
                for path in folder.iterdir():
                    yield Digest(path.name)

    def sweep(self, *, older_s: float) -> int:
        """Remove what began to arrive and has not grown for so long; return how many files."""
        removed, before = 0, time.time() - older_s
        with self._lock:
            for path in self._arriving.iterdir():
                with contextlib.suppress(FileNotFoundError):
                    if path.stem not in self._open and path.stat().st_mtime < before:
                        path.unlink()
                        removed += 1
        return removed

    def _named(self, digest: Digest) -> Path:
        if not _DIGEST.fullmatch(digest):
            raise PeerError(f"not a digest: {digest[:80]!r}")
        return self.root / digest[:2] / digest

    def _check(self, ref: BlobRef) -> None:
        if not 0 <= ref.size <= self.limit:
            raise PeerError(
                f"blob {ref.digest[:12]} has {ref.size} bytes, {self.root} takes {self.limit}"
            )
        self._named(ref.digest)

    def _arrived(self, name: str) -> int:
        try:
            status = (self._arriving / f"{name}.part").stat()
        except FileNotFoundError:
            return 0
        return status.st_blocks * 512

    def _let_go(self, partial: LocalPartial) -> bool:
        """Count a user less; return whether it was the last."""
        with self._lock:
            partial.users -= 1
            if partial.users <= 0 and self._open.get(partial.name) is partial:
                del self._open[partial.name]
            return partial.users <= 0

    @contextlib.contextmanager
    def _temporary(self) -> Iterator[tuple[Path, int]]:
        path = self._arriving / f"{new_id('put-')}.tmp"
        with explained(self.root, "write a blob"):
            file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                yield path, file
            finally:
                os.close(file)
                path.unlink(missing_ok=True)

    def _copy(self, source: Path, role: str) -> BlobRef:
        sha, size = hashlib.sha256(), 0
        with (
            explained(source, "read the file"),
            source.open("rb", buffering=0) as reader,
            self._temporary() as (path, file),
        ):
            while block := reader.read(COPY):
                sha.update(block)
                _write_all(file, memoryview(block))
                size += len(block)
                if size > self.limit:
                    raise PeerError(f"{source} is larger than {self.limit} bytes")
            ref = BlobRef(digest=Digest(sha.hexdigest()), size=size, role=role)
            if not self._lasting(ref.digest):
                self._name(path, file, ref.digest)
        return ref

    def _name(self, path: Path, file: int, digest: Digest) -> None:
        """Give a verified file its name: on the disk first, then by rename."""
        folder = self.root / digest[:2]
        if folder.name not in self._made:
            folder.mkdir(exist_ok=True)
            if self.durable:
                _sync_folder(self.root)
            self._made.add(folder.name)
        os.fchmod(file, 0o444)
        if self.durable:
            os.fsync(file)
        failpoint("blob.written")
        path.rename(folder / digest)
        failpoint("blob.named")
        if self.durable:
            _sync_folder(folder)


def _boot() -> str:
    """Return what names this boot of the machine; nothing where the system does not say."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _write_all(file: int, data: memoryview) -> None:
    while data:
        data = data[os.write(file, data) :]


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
