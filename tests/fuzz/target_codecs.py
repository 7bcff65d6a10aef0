"""atheris target: whatever bytes come as a coded update or model, they are refused or are one.

An update that is taken looks like what it is relative to; a model stays within the reader's limit.
"""

import sys

import atheris

with atheris.instrument_imports(include=["skerry_protos"]):
    import numpy as np
    from skerry_protos.codecs import STYPE
    from skerry_protos.codecs.updates import decode_model, decode_update
    from skerry_protos.errors import PeerError
    from skerry_protos.records import RecordLimits
    from skerry_protos.tensors import Tensor

LIMITS = RecordLimits(nbytes=1 << 20, header=1 << 16, groups=64, tensors=256, values=256)
ROWS = np.arange(40, dtype=np.float32).reshape(8, 5) / 7
HELD = {
    ("w",): {"w": Tensor.of(ROWS)},
    ("w", "h", "n"): {
        "w": Tensor.of(ROWS),
        "h": Tensor.of(np.ones((4, 4), dtype=np.float16)),
        "n": Tensor.of(np.array(3, dtype=np.int64)),
    },
}


def one_input(data: bytes) -> None:
    """Decode as an update of either model, and as a model."""
    coded = Tensor.opaque(data, STYPE, "", ())
    for held in HELD.values():
        try:
            for name, tensor in decode_update(coded, held, LIMITS):
                assert tensor.dtype is held[name].dtype
                assert tensor.shape == held[name].shape
        except PeerError:
            continue
    try:
        model, _ = decode_model(coded, LIMITS)
    except PeerError:
        return
    assert sum(tensor.nbytes for tensor in model.values()) <= LIMITS.nbytes + 16 * len(model)


if __name__ == "__main__":
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()
