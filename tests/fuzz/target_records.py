"""atheris target: whatever bytes come as records, decoding answers or raises PeerError.

Run it for longer by hand: python tests/fuzz/target_records.py -max_total_time=600 CORPUS_FOLDER
"""

import sys

import atheris

with atheris.instrument_imports(include=["skerry_protos"]):
    from skerry_protos.errors import PeerError
    from skerry_protos.records import RecordLimits, decode, to_bytes
    from skerry_protos.tensors import from_npy

LIMITS = RecordLimits(nbytes=1 << 20, header=1 << 16, groups=64, tensors=256, values=256)


def one_input(data: bytes) -> None:
    """Decode; look at every element; what was decoded comes back the same."""
    try:
        records = decode(data, LIMITS)
        for group in records.arrays.values():
            for tensor in group.values():
                if tensor.stype:
                    from_npy(tensor.data)
                else:
                    tensor.finite()
                    tensor.numpy()
    except PeerError:
        return
    again = to_bytes(records)
    assert to_bytes(decode(again)) == again


if __name__ == "__main__":
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()
