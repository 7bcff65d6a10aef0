"""Where the images come from: $SKERRY_DATA/fashion_mnist, else the source, kept in a cache.

Either way the unpacked files must have the checksums of the originals.
"""

import gzip
import hashlib
import os
import urllib.request
from pathlib import Path

import numpy as np

SOURCE = "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/"
SHA256 = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
PACKED_LIMIT = 64 * 1024**2
TIMEOUT_S = 60.0


def load(part: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the images (N x 28 x 28, bytes) and labels of the part "train" or "t10k"."""
    images = unpacked(f"{part}-images-idx3-ubyte")
    labels = unpacked(f"{part}-labels-idx1-ubyte")
    return np.frombuffer(images, np.uint8, offset=16).reshape(-1, 28, 28), np.frombuffer(
        labels, np.uint8, offset=8
    )


def unpacked(name: str) -> bytes:
    """Return an original file, or raise ValueError when it is not the original."""
    data = gzip.decompress(packed(f"{name}.gz"))
    if (found := hashlib.sha256(data).hexdigest()) != SHA256[name]:
        raise ValueError(f"{name} has SHA-256 {found}; expected {SHA256[name]}")
    return data


def packed(name: str) -> bytes:
    """Return a packed file from this machine, or fetch it once."""
    if given := os.environ.get("SKERRY_DATA"):
        return (Path(given) / "fashion_mnist" / name).read_bytes()
    cached = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "skerry" / name
    if not cached.exists():
        with urllib.request.urlopen(SOURCE + name, timeout=TIMEOUT_S) as answer:
            data = answer.read(PACKED_LIMIT)
        cached.parent.mkdir(parents=True, exist_ok=True)
        fresh = cached.with_suffix(f".{os.getpid()}")
        fresh.write_bytes(data)
        fresh.replace(cached)
    return cached.read_bytes()
