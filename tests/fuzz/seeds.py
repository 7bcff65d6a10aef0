"""Make the seed corpora again: python tests/fuzz/seeds.py (the files are in the repository)."""

from pathlib import Path

import numpy as np
from skerry_protos import bundles
from skerry_protos.codecs import Codec, coded, exact, sparse
from skerry_protos.codecs.coded import Look
from skerry_protos.codecs.floats import to_bfloat16
from skerry_protos.codecs.methods import Made, Method
from skerry_protos.codecs.updates import Feedback, encode_model, encode_update
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


HELD = {
    "w": Tensor.of(np.arange(40, dtype=np.float32).reshape(8, 5) / 7),
    "h": Tensor.of(np.ones((4, 4), dtype=np.float16)),
    "n": Tensor.of(np.array(3, dtype=np.int64)),
}
"""What a coded update is relative to."""


def codecs() -> dict[str, bytes]:
    """Return an update by each method, and two models; no part is long enough for zstd."""
    look = Look.of("w", HELD["w"])
    change = np.linspace(-1, 1, 40, dtype=np.float32)
    places = np.array([1, 7, 39])
    unary, low = sparse.code_places(places, 40)
    halves = exact.split(to_bfloat16(change))
    made = {
        "float32": Made(method=Method.FLOAT32, parts=exact.split(change.view(np.uint32))),
        "topk": Made(
            method=Method.TOPK,
            setting=3,
            parts=[memoryview(unary), memoryview(low), *exact.split(to_bfloat16(change[places]))],
        ),
        "low_rank": Made(
            method=Method.LOW_RANK,
            setting=1,
            parts=[part[:size] for size in (8, 5) for part in halves],
        ),
    }
    update: dict[str, bytes | Tensor] = {
        name: coded.write([(look, one)], relative=True) for name, one in made.items()
    }
    new = {**HELD, "w": Tensor.of(HELD["w"].numpy() + change.reshape(8, 5))}
    for name in ("lossless", "bf16", "int8", "int4"):
        dice = np.random.default_rng(0)
        update[name], _ = encode_update(Codec(name=name), HELD, new, Feedback(), dice)
    for name in ("lossless", "int8"):
        update[f"model_{name}"] = encode_model(Codec(name=name), HELD)
    return {
        name: bytes(one.data) if isinstance(one, Tensor) else one for name, one in update.items()
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
    for folder, files in (("records", records()), ("bundles", bundle()), ("codecs", codecs())):
        (CORPUS / folder).mkdir(parents=True, exist_ok=True)
        for name, data in files.items():
            (CORPUS / folder / name).write_bytes(data)
