"""Make the seed corpora again: python tests/fuzz/seeds.py (the files are in the repository)."""

from pathlib import Path

import numpy as np
from skerry_protos import bundles
from skerry_protos.records import Records, to_bytes
from skerry_protos.tensors import DType, Tensor, npy_bytes

CORPUS = Path(__file__).parent / "corpus"


def records() -> dict[str, bytes]:
    """Return one file for each kind of thing that records hold."""
    plain = {code: Tensor.of(np.ones((2, 3), dtype=code)) for code in ("<f4", "<i8", "|b1", "<c8")}
    bits = Tensor.of_bits(DType.BFLOAT16, np.full(5, 0x3F80, dtype=np.uint16))
    npy = npy_bytes(plain["<f4"])
    return {
        "empty": to_bytes(Records()),
        "arrays": to_bytes(Records(arrays={"arrays": plain})),
        "bits": to_bytes(Records(arrays={"arrays": {"b": bits}})),
        "scalars": to_bytes(
            Records(arrays={"a": {"s": Tensor.of(np.array(1.5)), "e": Tensor.of(np.empty(0))}})
        ),
        "opaque": to_bytes(
            Records(arrays={"a": {"n": Tensor.opaque(npy, "numpy.ndarray", "float32", (2, 3))}})
        ),
        "values": to_bytes(
            Records(
                metrics={"metrics": {"i": -1, "f": 0.5, "is": [1, 2], "fs": [0.5], "none": []}},
                configs={"config": {"t": "é", "b": b"\x00", "y": True, "ts": ["a"], "bs": [b"x"]}},
            )
        ),
    }


def bundle() -> dict[str, bytes]:
    """Return a bundle, unsigned and signed."""
    made = bundles.pack(
        {"skerry.toml": b"[app]\n", "pkg/app.py": b"x = 1\n"},
        kind="native",
        name="seed",
        version="1",
        client="app:train",
        server="app:model",
    )
    return {"unsigned": made, "signed": bundles.sign(made, lambda _: bytes(64))}


if __name__ == "__main__":
    for folder, files in (("records", records()), ("bundles", bundle())):
        (CORPUS / folder).mkdir(parents=True, exist_ok=True)
        for name, data in files.items():
            (CORPUS / folder / name).write_bytes(data)
