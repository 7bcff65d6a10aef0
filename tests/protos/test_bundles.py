"""Bundles: signed, the same every time, and nothing dishonest is unpacked."""

import io
import json
import stat
import zipfile
from pathlib import Path

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st
from skerry_protos import bundles
from skerry_protos.errors import TrustError

KEY = Ed25519PrivateKey.generate()
FILES = {"pyproject.toml": b"[tool.flwr.app]", "app/client.py": b"x = 1\n", "app/__init__.py": b""}


def verify(signature: bytes, message: bytes) -> None:
    try:
        KEY.public_key().verify(signature, message)
    except InvalidSignature as error:
        raise TrustError("the bundle's signature is wrong") from error


def packed(files: dict[str, bytes] | None = None) -> bytes:
    return bundles.pack(
        FILES if files is None else files,
        kind="flower",
        name="app",
        version="1.0.0",
        client="app.client:app",
        server="app.server:app",
    )


def unpack(data: bytes, tmp_path: Path) -> bundles.Manifest:
    (tmp_path / "bundle").write_bytes(data)
    (tmp_path / "into").mkdir()
    try:
        return bundles.unpack(tmp_path / "bundle", tmp_path / "into", verify)
    except TrustError:
        assert not any((tmp_path / "into").iterdir())
        raise


def test_a_signed_bundle_is_unpacked(tmp_path: Path) -> None:
    manifest = unpack(bundles.sign(packed(), KEY.sign), tmp_path)
    assert (manifest.kind, manifest.client) == ("flower", "app.client:app")
    for path, data in FILES.items():
        assert (tmp_path / "into" / path).read_bytes() == data
    assert len(list((tmp_path / "into").rglob("*.*"))) == len(FILES)


def test_the_same_files_make_the_same_bundle() -> None:
    assert packed() == packed(dict(reversed(FILES.items())))
    assert bundles.sign(packed(), KEY.sign) == bundles.sign(packed(), KEY.sign)
    assert bundles.sign(bundles.sign(packed(), KEY.sign), KEY.sign) == bundles.sign(
        packed(), KEY.sign
    )


def test_an_unsigned_or_wrongly_signed_bundle_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TrustError, match="not signed"):
        unpack(packed(), tmp_path)
    (tmp_path / "into").rmdir()
    with pytest.raises(TrustError, match="signature"):
        unpack(bundles.sign(packed(), Ed25519PrivateKey.generate().sign), tmp_path)


def archive(entries: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", compression) as file:
        for name, data in entries.items():
            file.writestr(name, data)
    return made.getvalue()


def manifest_of(files: dict[str, bytes]) -> bytes:
    return zipfile.ZipFile(io.BytesIO(packed(files))).read(bundles.MANIFEST)


@pytest.mark.parametrize(
    "path",
    [
        "../x",
        "/x",
        "a/../../x",
        "a//x",
        "./x",
        "C:x",
        "a\\x",
        "a\n",
        " a",
        "manifest.json",
        "d/" * 20,
    ],
)
def test_paths_that_leave_or_mislead_are_refused(path: str) -> None:
    with pytest.raises(TrustError, match=r"path|named"):
        packed({path: b""})


@pytest.mark.parametrize("path", ["../x", "/x", "a/../../x"])
def test_a_forged_path_is_refused_even_when_signed(path: str, tmp_path: Path) -> None:
    manifest = json.loads(manifest_of({"x": b"1"}))
    manifest["files"] = {path: manifest["files"]["x"]}
    data = json.dumps(manifest).encode()
    with pytest.raises(TrustError, match="path"):
        unpack(
            archive({"manifest.json": data, "manifest.sig": KEY.sign(data), path: b"1"}), tmp_path
        )


def test_a_link_is_refused(tmp_path: Path) -> None:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as file:
        file.writestr(bundles.MANIFEST, manifest_of({"x": b"/etc/passwd"}))
        link = zipfile.ZipInfo("x")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        link.create_system = 3
        file.writestr(link, b"/etc/passwd")
    with pytest.raises(TrustError, match="plain file"):
        bundles.sign(made.getvalue(), KEY.sign)


def test_an_encrypted_entry_is_refused() -> None:
    data = bytearray(packed())
    at = data.rindex(b"PK\x01\x02")  # the last file's entry in the directory
    data[at + 8] |= 1
    with pytest.raises(TrustError, match="encrypted"):
        bundles.inspect(bytes(data))


def test_a_compressed_bomb_is_refused() -> None:
    files = {"x": bytes(10_000_000)}
    bomb = archive({"manifest.json": manifest_of(files), **files}, zipfile.ZIP_DEFLATED)
    assert len(bomb) < 20_000
    with pytest.raises(TrustError, match="compressed"):
        bundles.inspect(bomb)


@pytest.mark.parametrize(
    ("inside", "why"),
    [
        ({"x": b"2"}, "differs from its digest"),
        ({"x": b"1", "y": b""}, "differ on the file 'y'"),
        ({}, "differ on the file 'x'"),
        ({"x": b"1", "X": b"1"}, "twice"),
    ],
)
def test_files_that_are_not_the_manifests_are_refused(inside: dict[str, bytes], why: str) -> None:
    with pytest.raises(TrustError, match=why):
        bundles.inspect(archive({"manifest.json": manifest_of({"x": b"1"}), **inside}))


def test_a_file_below_a_file_is_refused() -> None:
    with pytest.raises(TrustError, match="below"):
        bundles.inspect(packed({"a": b"", "a/b": b""}))


def test_limits_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundles, "SIZE_LIMIT", 100)
    with pytest.raises(TrustError, match="unpacks to"):
        bundles.inspect(packed())
    monkeypatch.undo()
    monkeypatch.setattr(bundles, "FILES_LIMIT", 1)
    with pytest.raises(TrustError, match="files"):
        bundles.inspect(bundles.sign(packed(), KEY.sign))


@given(st.binary(max_size=300))
def test_noise_is_refused(data: bytes) -> None:
    with pytest.raises(TrustError):
        bundles.inspect(data)


@given(st.data())
def test_damage_is_refused_or_harmless(data: st.DataObject) -> None:
    whole = bytearray(packed())
    for at in data.draw(st.lists(st.integers(0, len(whole) - 1), min_size=1, max_size=3)):
        whole[at] ^= data.draw(st.integers(1, 255))
    try:
        manifest = bundles.inspect(bytes(whole))
    except TrustError:
        return
    assert set(manifest.files) == set(FILES)
