"""Where the recordings come from: $SKERRY_DATA/free_spoken_digits, else the source, once.

Either way the 3000 recordings must have the checksum of the dataset's release 1.0.10.
"""

import hashlib
import io
import os
import tarfile
import urllib.request
import wave
from pathlib import Path, PurePosixPath

import numpy as np

URL = "https://github.com/Jakobovski/free-spoken-digit-dataset/archive/refs/tags/v1.0.10.tar.gz"
SHA256 = "a2e8a660492f28d9eed6270b290d26cbc5c81d6077ce87d3c0ad5adf4d4ee696"
"""Over the recordings in order of name: name, a zero byte, SHA-256 of the file."""
PACKED_LIMIT = 128 * 1024**2
FILE_LIMIT = 1024**2
TIMEOUT_S = 60.0

Recordings = dict[tuple[str, int, int], np.ndarray]


def recordings() -> Recordings:
    """Return every recording's samples (8 kHz, -1 to 1) by (speaker, digit, take)."""
    found: dict[str, bytes] = {}
    with tarfile.open(packed()) as archive:
        for entry in archive:
            name = PurePosixPath(entry.name)
            if entry.isfile() and name.suffix == ".wav" and name.parent.name == "recordings":
                if entry.size > FILE_LIMIT or (file := archive.extractfile(entry)) is None:
                    raise ValueError(f"{name} is no recording")
                found[name.name] = file.read()
    check(found)
    made = {}
    for name, data in found.items():
        digit, speaker, take = name.removesuffix(".wav").split("_")
        made[speaker, int(digit), int(take)] = samples(data)
    return made


def check(files: dict[str, bytes]) -> None:
    """Raise ValueError unless these are the release's files."""
    every = hashlib.sha256()
    for name in sorted(files):
        every.update(name.encode() + b"\0" + hashlib.sha256(files[name]).digest())
    if every.hexdigest() != SHA256:
        raise ValueError(f"{len(files)} recordings, but not those of {URL}")


def samples(data: bytes) -> np.ndarray:
    """Return the samples of a 16 bit wav file."""
    with wave.open(io.BytesIO(data)) as file:
        frames = file.readframes(file.getnframes())
    return np.frombuffer(frames, "<i2").astype(np.float32) / 32768


def packed() -> Path:
    """Return the archive, from this machine or fetched once."""
    if given := os.environ.get("SKERRY_DATA"):
        return Path(given) / "free_spoken_digits" / "recordings.tar.xz"
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "skerry"
    cached = cache / "free-spoken-digits-1.0.10.tar.gz"
    if not cached.exists():
        with urllib.request.urlopen(URL, timeout=TIMEOUT_S) as answer:
            data = answer.read(PACKED_LIMIT)
        cache.mkdir(parents=True, exist_ok=True)
        fresh = cached.with_suffix(f".{os.getpid()}")
        fresh.write_bytes(data)
        fresh.replace(cached)
    return cached
