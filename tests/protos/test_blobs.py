"""The local blob store: whole or not there, whatever happens in between."""

import os
import random
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from skerry_protos.blobs import STEP, DiskFullError, LocalBlobs
from skerry_protos.errors import PeerError, SkerryError, TrustError
from skerry_protos.messages import BlobRef, Digest, digest_of


@pytest.fixture
def store(tmp_path: Path) -> LocalBlobs:
    return LocalBlobs(tmp_path / "blobs", durable=False)


def noise(size: int, seed: int = 0) -> bytes:
    return random.Random(f"{size} {seed}").randbytes(size)


def ref_of(data: bytes) -> BlobRef:
    return BlobRef(digest=digest_of(data), size=len(data))


def arriving(store: LocalBlobs) -> list[str]:
    return sorted(path.name for path in (store.root / "arriving").iterdir())


def test_bytes_parts_and_files_are_kept_under_their_digest(
    store: LocalBlobs, tmp_path: Path
) -> None:
    data = noise(3_000_000)
    source = tmp_path / "source"
    source.write_bytes(data)
    one = store.put(data, role="content")
    assert (one.digest, one.size, one.role) == (digest_of(data), len(data), "content")
    path = store.path(one.digest)
    assert path is not None
    assert path.read_bytes() == data
    assert path.parent.name == one.digest[:2]
    store.remove(one.digest)
    assert store.path(one.digest) is None
    assert store.put([data[:10], memoryview(data)[10:]]) == ref_of(data)
    store.remove(one.digest)
    assert store.put(source) == ref_of(data)
    assert source.exists()
    assert list(store.digests()) == [one.digest]
    assert arriving(store) == []


def test_an_adopted_file_is_moved(store: LocalBlobs, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"weights")
    inode = source.stat().st_ino
    ref = store.adopt(source, role="content")
    path = store.path(ref.digest)
    assert path is not None
    assert path.stat().st_ino == inode
    assert not source.exists()
    source.write_bytes(b"weights")
    assert store.adopt(source).digest == ref.digest
    assert not source.exists()


def test_a_kept_blob_cannot_be_written_by_accident(store: LocalBlobs) -> None:
    path = store.path(store.put(b"fixed").digest)
    assert path is not None
    assert path.stat().st_mode & 0o777 == 0o444


def test_chunks_in_any_order_make_the_blob(store: LocalBlobs) -> None:
    data = noise(10 * STEP + 17)
    ref = ref_of(data)
    partial = store.begin(ref, STEP)
    offsets = partial.missing(100)
    assert offsets == list(range(0, len(data), STEP))
    random.Random(1).shuffle(offsets)
    for offset in offsets:
        assert partial.write(offset, data[offset : offset + STEP])
        assert not partial.write(offset, data[offset : offset + STEP])
    assert partial.complete
    assert store.commit(ref, partial).read_bytes() == data
    partial.close()
    assert arriving(store) == []


def test_an_empty_blob_is_complete_at_once(store: LocalBlobs) -> None:
    ref = ref_of(b"")
    partial = store.begin(ref, STEP)
    assert partial.complete
    assert store.commit(ref, partial).read_bytes() == b""
    partial.close()


@settings(max_examples=60, deadline=None)
@given(
    size=st.integers(1, 40 * STEP),
    moves=st.lists(
        st.tuples(st.sampled_from([1, 2, 3, 8]), st.integers(1, 6), st.booleans()), max_size=12
    ),
)
def test_a_blob_survives_restarts_and_changes_of_the_chunk(
    tmp_path_factory: pytest.TempPathFactory,
    size: int,
    moves: list[tuple[int, int, bool]],
) -> None:
    """Each move: chunk size in steps, chunks that arrive, and whether the process restarts."""
    root = tmp_path_factory.mktemp("blobs")
    store = LocalBlobs(root, durable=False)
    data = noise(size)
    ref = ref_of(data)
    partial = store.begin(ref, STEP)
    for steps, count, restart in moves:
        if restart:
            partial.close()
            store = LocalBlobs(root, durable=False)
            partial = store.begin(ref, steps * STEP)
        partial.chunk = steps * STEP
        missing = partial.missing(100)
        for offset in missing[-count:]:
            assert partial.write(offset, data[offset : offset + partial.chunk])
        assert not set(partial.missing(100)) & set(missing[-count:])
    for offset in partial.missing(1000):
        partial.write(offset, data[offset : offset + partial.chunk])
    assert store.commit(ref, partial).read_bytes() == data
    partial.close()
    assert arriving(store) == []


def test_missing_from_a_start_skips_what_is_here(store: LocalBlobs) -> None:
    data = noise(8 * STEP)
    partial = store.begin(ref_of(data), 2 * STEP)
    partial.write(2 * STEP, data[2 * STEP : 4 * STEP])
    assert partial.missing(10) == [0, 4 * STEP, 6 * STEP]
    assert partial.missing(10, 2 * STEP) == [4 * STEP, 6 * STEP]
    assert partial.missing(1, 5 * STEP) == [6 * STEP]
    partial.close()


def test_wrong_bytes_are_thrown_away(store: LocalBlobs) -> None:
    data = noise(3 * STEP)
    ref = ref_of(data)
    partial = store.begin(ref, STEP)
    for offset in partial.missing(10):
        partial.write(offset, bytes(min(STEP, len(data) - offset)))
    with pytest.raises(TrustError, match="not what the digest says"):
        store.commit(ref, partial)
    partial.close()
    assert store.path(ref.digest) is None
    assert arriving(store) == []
    fresh = store.begin(ref, STEP)
    assert not fresh.resumed
    fresh.close()


def test_what_has_been_hashed_is_not_written_again(store: LocalBlobs) -> None:
    data = noise(4 * STEP)
    ref = ref_of(data)
    partial = store.begin(ref, STEP)
    partial.write(0, data[: 2 * STEP])
    assert partial.write(0, bytes(3 * STEP))  # its third step is new, and is taken
    partial.write(3 * STEP, data[3 * STEP :])
    with pytest.raises(TrustError):
        store.commit(ref, partial)
    partial.close()


@pytest.mark.parametrize(
    ("offset", "size"),
    [(1, STEP), (0, STEP + 1), (0, 0), (4 * STEP, STEP), (3 * STEP, STEP), (0, 100 * STEP)],
)
def test_a_chunk_that_does_not_fit_is_refused(store: LocalBlobs, offset: int, size: int) -> None:
    partial = store.begin(BlobRef(digest=digest_of(b"x"), size=3 * STEP + 5), STEP)
    with pytest.raises(PeerError, match="does not fit"):
        partial.write(offset, bytes(size))
    partial.close()


def test_names_and_sizes_are_checked(store: LocalBlobs, tmp_path: Path) -> None:
    for wrong in ("../../etc/passwd", "A" * 64, "0" * 63, ""):
        with pytest.raises(PeerError, match="not a digest"):
            store.path(Digest(wrong))
    small = LocalBlobs(tmp_path / "small", limit=100, durable=False)
    with pytest.raises(PeerError, match="takes 100"):
        small.begin(BlobRef(digest=digest_of(b""), size=101), STEP)
    with pytest.raises(PeerError, match="takes 100"):
        small.put(bytes(101))
    source = tmp_path / "source"
    source.write_bytes(bytes(101))
    with pytest.raises(PeerError, match="larger than 100"):
        small.put(source)
    assert arriving(small) == []


def test_a_map_that_makes_no_sense_is_not_believed(store: LocalBlobs) -> None:
    data = noise(6 * STEP)
    ref = ref_of(data)
    for nonsense in (b"\1" * 6, b"\1" * 7, b"\2" * 6, b"", os.urandom(6)):
        partial = store.begin(ref, STEP)
        partial.write(0, data[:STEP])
        partial.close()
        (file,) = (store.root / "arriving").glob("*.map")
        file.write_bytes(nonsense)
        partial = store.begin(ref, STEP)
        assert partial.missing(10)[0] == 0
        partial.close()


def test_two_who_begin_the_same_blob_share_it(store: LocalBlobs) -> None:
    data = noise(4 * STEP)
    ref = ref_of(data)
    one, other = store.begin(ref, STEP), store.begin(ref, STEP)
    assert one is other
    one.write(0, data)
    one.close()
    assert other.complete
    store.commit(ref, other)
    other.close()


def test_a_store_with_no_room_says_where_and_what_to_do(tmp_path: Path) -> None:
    store = LocalBlobs(tmp_path, limit=2**60, durable=False)
    with pytest.raises(DiskFullError, match="does not fit") as caught:
        store.begin(BlobRef(digest=digest_of(b"x"), size=2**55), STEP)
    assert str(tmp_path) in str(caught.value)
    assert "free some space" in str(caught.value)


def _mounted(folder: Path, size: str) -> bool:
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def test_a_disk_that_fills_up_tears_nothing_and_goes_on_later(tmp_path: Path) -> None:
    folder = tmp_path / "small"
    if not _mounted(folder, "1m"):
        pytest.skip("mounting a tmpfs needs root")
    try:
        store = LocalBlobs(folder / "blobs", durable=True)
        data = noise(600_000)
        ref = ref_of(data)
        filler = folder / "filler"
        partial = store.begin(ref, 16 * STEP)
        filler.write_bytes(bytes(700_000))
        with pytest.raises(DiskFullError, match="no room"):
            for offset in partial.missing(100):
                partial.write(offset, data[offset : offset + partial.chunk])
        with pytest.raises(DiskFullError, match="no room"):
            store.put(noise(500_000, 2))
        assert list(store.digests()) == []
        filler.unlink()
        for offset in partial.missing(100):
            partial.write(offset, data[offset : offset + partial.chunk])
        assert store.commit(ref, partial).read_bytes() == data
        partial.close()
        assert arriving(store) == []
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_store_that_cannot_be_made_says_why(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(SkerryError, match="make the blob store"):
        LocalBlobs(tmp_path / "file" / "blobs")


def test_what_began_long_ago_is_swept_away(store: LocalBlobs) -> None:
    data = noise(4 * STEP)
    old, new = store.begin(ref_of(data), STEP), store.begin(ref_of(data[:-1]), STEP)
    old.write(0, data[:STEP])
    new.write(0, data[:STEP])
    old.close()
    for path in (store.root / "arriving").iterdir():
        os.utime(path, (time.time() - 1000, time.time() - 1000))
    assert store.sweep(older_s=2000) == 0
    assert store.sweep(older_s=500) == 2
    assert len(arriving(store)) == 2  # of the one that is open
    new.close()


def test_a_commit_in_a_thread_survives_an_impatient_caller(
    store: LocalBlobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = noise(20 * STEP)
    ref = ref_of(data)
    partial = store.begin(ref, STEP)
    partial.write(0, data)
    entered, leave = threading.Event(), threading.Event()
    rename = Path.rename

    def slow(self: Path, target: Path) -> Path:
        entered.set()
        leave.wait(10)
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", slow)
    thread = threading.Thread(target=store.commit, args=(ref, partial))
    thread.start()
    assert entered.wait(10)
    partial.close()
    leave.set()
    thread.join(10)
    path = store.path(ref.digest)
    assert path is not None
    assert path.read_bytes() == data
    assert partial.file == -1


def test_a_durable_blob_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = LocalBlobs(tmp_path / "blobs", durable=True)
    happened: list[str] = []
    fsync, rename = os.fsync, Path.rename

    def noted_fsync(file: int) -> None:
        happened.append("folder" if os.path.isdir(f"/proc/self/fd/{file}") else "file")  # noqa: PTH112
        fsync(file)

    def noted_rename(self: Path, target: Path) -> Path:
        happened.append("rename")
        return rename(self, target)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(Path, "rename", noted_rename)
    store.put(b"one")
    assert happened == ["folder", "file", "rename", "folder"]


KILLED = """
    import sys, time
    from pathlib import Path
    from skerry_protos.blobs import STEP, LocalBlobs
    from skerry_protos.messages import BlobRef, Digest
    import random
    store = LocalBlobs(Path(sys.argv[1]))
    size = int(sys.argv[2])
    data = random.Random(f"{size} 0").randbytes(size)
    partial = store.begin(BlobRef(digest=Digest(sys.argv[3]), size=size), 16 * STEP)
    for offset in partial.missing(100000):
        partial.write(offset, data[offset : offset + partial.chunk])
        print(offset, flush=True)
    time.sleep(60)
"""


def test_a_process_that_is_killed_has_kept_every_chunk(tmp_path: Path) -> None:
    size = 20_000_000
    data = noise(size)
    ref = ref_of(data)
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(KILLED), str(tmp_path), str(size), ref.digest],
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if int(line) > size // 2:
                process.send_signal(signal.SIGKILL)
                break
        said = int(line)
    store = LocalBlobs(tmp_path)
    partial = store.begin(ref, 16 * STEP)
    assert partial.resumed
    missing = partial.missing(100000)
    assert not missing or missing[0] > said
    for offset in missing:
        partial.write(offset, data[offset : offset + partial.chunk])
    assert store.commit(ref, partial).read_bytes() == data
    partial.close()


def arrive(store: LocalBlobs, data: bytes, role: str) -> BlobRef:
    """Have a blob arrive in one chunk."""
    ref = BlobRef(digest=digest_of(data), size=len(data), role=role)
    partial = store.begin(ref, len(data))
    partial.write(0, data)
    store.commit(ref, partial)
    partial.close()
    return ref


def test_what_can_be_fetched_again_is_not_waited_for_and_gone_after_a_boot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    fsync = os.fsync

    def noted(file: int) -> None:
        synced.append(str(Path(f"/proc/self/fd/{file}").readlink()))
        fsync(file)

    monkeypatch.setattr(os, "fsync", noted)
    monkeypatch.setattr("skerry_protos.blobs._boot", lambda: "one")
    store = LocalBlobs(tmp_path / "blobs", brief={"content"})
    model, reply, bundle = noise(9000, 1), noise(9000, 2), noise(9000, 3)
    fetched = arrive(store, model, "content")
    assert not synced
    kept = [store.put(reply, role="content"), arrive(store, bundle, "bundle")]
    assert synced
    path = store.path(fetched.digest)
    assert path is not None
    assert path.read_bytes() == model
    assert not path.stat().st_mode & 0o222
    assert set(store.digests()) == {fetched.digest, *(ref.digest for ref in kept)}

    again = LocalBlobs(tmp_path / "blobs", brief={"content"})  # the process was killed
    assert again.path(fetched.digest) == path
    monkeypatch.setattr("skerry_protos.blobs._boot", lambda: "two")  # the power was cut
    after = LocalBlobs(tmp_path / "blobs", brief={"content"})
    assert after.path(fetched.digest) is None
    assert set(after.digests()) == {ref.digest for ref in kept}
    monkeypatch.setattr("skerry_protos.blobs._boot", lambda: "")  # a system that does not say
    arrive(LocalBlobs(tmp_path / "blobs", brief={"content"}), model, "content")
    assert LocalBlobs(tmp_path / "blobs").path(fetched.digest) is not None


def test_a_blob_that_was_fetched_is_made_to_last_when_it_is_kept(tmp_path: Path) -> None:
    """An app may answer with just what it was asked with; the answer is on the disk."""
    store = LocalBlobs(tmp_path / "blobs", brief={"content"})
    data = noise(5000)
    ref = arrive(store, data, "content")
    store.put(data, role="content")
    path = store.path(ref.digest)
    assert path is not None
    assert path.parent.name == ref.digest[:2]
    assert store.remove(ref.digest)
    assert store.path(ref.digest) is None
