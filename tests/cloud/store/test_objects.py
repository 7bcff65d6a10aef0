"""Blobs with an object store behind them: obstore's own stores, on this machine."""

import shutil
from pathlib import Path

import obstore
import pytest
from obstore.store import MemoryStore
from skerry_cloud.store.objects import ObjectBlobs, ObjectStoreError
from skerry_protos.blobs import STEP
from skerry_protos.errors import ConfigError, TrustError
from skerry_protos.messages import BlobRef, digest_of

CONTENT = bytes(range(256)) * 100_000  # 25.6 MB: several parts


@pytest.fixture
def far(tmp_path: Path) -> Path:
    """Return the folder that stands for an object store."""
    return tmp_path / "far"


def opened(tmp_path: Path, far: Path, name: str = "near") -> ObjectBlobs:
    """Return blobs on one machine's disk, with the object store behind."""
    return ObjectBlobs(tmp_path / name, f"file://{far}", durable=False)


def test_what_is_kept_is_in_the_object_store_and_outlives_this_disk(
    tmp_path: Path, far: Path
) -> None:
    blobs = opened(tmp_path, far)
    ref = blobs.put(CONTENT)
    assert (far / ref.digest[:2] / ref.digest).read_bytes() == CONTENT
    shutil.rmtree(tmp_path / "near")
    again = opened(tmp_path, far, "another-machine")
    path = again.path(ref.digest)
    assert path is not None
    assert path.read_bytes() == CONTENT
    assert again.path(digest_of(b"never kept")) is None
    assert not list((tmp_path / "another-machine" / "arriving").iterdir())


def test_a_blob_that_arrived_in_chunks_is_uploaded_when_it_is_whole(
    tmp_path: Path, far: Path
) -> None:
    blobs = opened(tmp_path, far)
    content = b"x" * (2 * STEP - 1)
    ref = BlobRef(digest=digest_of(content), size=len(content))
    partial = blobs.begin(ref, STEP)
    for offset in (STEP, 0):
        partial.write(offset, content[offset : offset + STEP])
    assert not (far / ref.digest[:2] / ref.digest).exists()
    blobs.commit(ref, partial)
    assert (far / ref.digest[:2] / ref.digest).read_bytes() == content


def test_a_blob_damaged_far_away_is_refused_and_not_kept(tmp_path: Path, far: Path) -> None:
    ref = opened(tmp_path, far).put(CONTENT)
    (far / ref.digest[:2] / ref.digest).write_bytes(CONTENT[:-1] + b"!")
    other = opened(tmp_path, far, "other")
    with pytest.raises(TrustError, match="is damaged"):
        other.path(ref.digest)
    assert not list(other.digests())


def test_a_removed_blob_is_gone_here_and_there(tmp_path: Path, far: Path) -> None:
    blobs = opened(tmp_path, far)
    ref = blobs.put(b"short")
    assert blobs.remove(ref.digest)
    assert blobs.path(ref.digest) is None
    assert not blobs.remove(ref.digest)


def test_nothing_is_kept_here_while_the_object_store_fails(
    tmp_path: Path, far: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blobs = opened(tmp_path, far)

    def fails(*_: object, **__: object) -> None:
        raise obstore.exceptions.GenericError("no route\nto host")

    with monkeypatch.context() as patch:
        patch.setattr(obstore, "put", fails)
        with pytest.raises(ObjectStoreError, match="no route to host"):
            blobs.put(b"content")
    assert not list(blobs.digests())
    assert blobs.path(blobs.put(b"content").digest) is not None


def test_any_store_of_the_library_serves(tmp_path: Path, far: Path) -> None:
    blobs = opened(tmp_path, far)
    blobs._far = MemoryStore()
    ref = blobs.put(CONTENT)
    super(ObjectBlobs, blobs).remove(ref.digest)
    path = blobs.path(ref.digest)
    assert path is not None
    assert path.read_bytes() == CONTENT
    assert not far.joinpath(ref.digest[:2]).exists()


@pytest.mark.parametrize("url", ["nonsense", "ftp://host/x", "http://127.0.0.1:1/bucket"])
def test_an_address_we_cannot_use_is_named_at_the_start(tmp_path: Path, url: str) -> None:
    with pytest.raises(ConfigError, match="cannot keep blobs in"):
        ObjectBlobs(tmp_path, url)
