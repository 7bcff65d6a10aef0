"""Blobs in an object store (S3, GCS, Azure, a mounted folder); the local disk is the near copy.

A blob is in the object store before it has its name here, so that what was acknowledged outlives
this machine's disk. One that is not here is fetched when asked for, and checked by its digest.
"""

import contextlib
import hashlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from skerry_protos.blobs import LocalBlobs
from skerry_protos.errors import ConfigError, SkerryError, TrustError
from skerry_protos.messages import Digest

log = logging.getLogger(__name__)

PART = 8 * 1024**2
"""Bytes moved at a time."""


class ObjectStoreError(SkerryError):
    """The object store failed; what was not acknowledged was not kept."""

    code = "objects"


class ObjectBlobs(LocalBlobs):
    """LocalBlobs whose every named blob is in the object store at `url` too."""

    def __init__(self, root: Path, url: str, *, durable: bool = True) -> None:
        super().__init__(root, durable=durable)
        self.url = url
        try:
            import obstore
            from obstore.store import from_url
        except ImportError as error:
            raise ConfigError(
                "--objects needs its library", hint="pip install 'skerry-cloud[objects]'"
            ) from error
        self._obstore = obstore
        try:
            if url.startswith("file://"):
                Path(url.removeprefix("file://")).mkdir(parents=True, exist_ok=True)
            self._far: Any = from_url(url)
            obstore.list_with_delimiter(self._far, prefix="00")
        except (Exception, OSError) as error:
            raise ConfigError(
                f"cannot keep blobs in {url}: {_one_line(error)}",
                hint="check the address and the credentials in the environment",
            ) from error

    def path(self, digest: Digest) -> Path | None:
        """Return the file that holds the blob, fetched if need be, or None; may take a while."""
        return super().path(digest) or self._fetch(digest)

    def remove(self, digest: Digest) -> bool:
        """Remove a blob here and there; return whether it was here."""
        with self._explained(f"remove blob {digest[:12]}"), contextlib.suppress(FileNotFoundError):
            self._obstore.delete(self._far, _key(digest))
        return super().remove(digest)

    def _name(self, path: Path, file: int, digest: Digest) -> None:
        with self._explained(f"keep blob {digest[:12]}"):
            self._obstore.put(self._far, _key(digest), path, chunk_size=PART)
        super()._name(path, file, digest)

    def _fetch(self, digest: Digest) -> Path | None:
        sha = hashlib.sha256()
        with self._temporary() as (path, file):
            try:
                with self._explained(f"fetch blob {digest[:12]}"):
                    found = self._obstore.get(self._far, _key(digest))
                    for part in found.stream(min_chunk_size=PART):
                        sha.update(part)
                        _write_all(file, memoryview(part))
            except FileNotFoundError:
                return None
            if sha.hexdigest() != digest:
                raise TrustError(
                    f"blob {digest[:12]} in {self.url} is damaged: its bytes are "
                    f"{sha.hexdigest()[:12]}"
                )
            super()._name(path, file, digest)
        log.info("fetched blob %s from %s", digest[:12], self.url)
        return super().path(digest)

    @contextlib.contextmanager
    def _explained(self, doing: str) -> Iterator[None]:
        """Turn the object store's errors into one that says what to do; an absent blob stays."""
        try:
            yield
        except FileNotFoundError:
            raise
        except self._obstore.exceptions.BaseError as error:
            if isinstance(error, self._obstore.exceptions.NotFoundError):
                raise FileNotFoundError(str(error)) from error
            raise ObjectStoreError(
                f"{self.url}: cannot {doing}: {_one_line(error)}",
                hint="it is tried again when it is asked for again",
            ) from error


def _key(digest: Digest) -> str:
    return f"{digest[:2]}/{digest}"


def _write_all(file: int, data: memoryview) -> None:
    while data:
        data = data[os.write(file, data) :]


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
