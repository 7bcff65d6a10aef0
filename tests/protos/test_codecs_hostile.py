"""Coded bytes from somebody who lies: refused with a reason, and no memory taken for it."""

import struct
import tracemalloc
from collections.abc import Callable

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from skerry_protos.codecs import NAMES, Codec, CodedError
from skerry_protos.codecs.coded import MAGIC, read
from skerry_protos.codecs.methods import Method
from skerry_protos.codecs.packing import restore, squeeze
from skerry_protos.codecs.updates import Feedback, decode_model, decode_update, encode_update
from skerry_protos.errors import PeerError
from skerry_protos.records import RecordLimits
from skerry_protos.tensors import DType, Tensor
from skerry_protos.v1 import codecs_pb2 as pb

MB = 1 << 20
HELD = {"w": Tensor.of(np.zeros((40, 50), np.float32))}
LARGER = {"w": Tensor.of(np.zeros((50, 60), np.float32))}
SMALL = RecordLimits(nbytes=MB, header=1 << 16, tensors=64)


def bytes_of(header: pb.Coded, body: bytes = b"") -> Tensor:
    head = header.SerializeToString()
    data = struct.pack("<4sI", MAGIC, len(head)) + head + body
    return Tensor.opaque(data, "skerry.coded", "", ())


def one(how: Method, *parts: bytes, zstd: bool = False, **values: object) -> Tensor:
    """Return a coded update of the one tensor w, said to be of this method and these parts."""
    header = pb.Coded(relative=True)
    spec = header.tensors.add(name="w", dtype=DType.FLOAT32, shape=[40, 50], method=how)
    spec.parts.extend([pb.CodedPart(size=len(part), zstd=zstd) for part in parts])
    for name, value in values.items():
        if name == "shape":
            del spec.shape[:]
            spec.shape.extend(value)  # type: ignore[arg-type]
        else:
            setattr(spec, name, value)
    return bytes_of(header, b"".join(parts))


def good(name: str) -> Tensor:
    dice = np.random.default_rng(0)
    new = {"w": Tensor.of(dice.standard_normal((50, 60)).astype(np.float32))}
    return encode_update(Codec(name=name), LARGER, new, Feedback(), dice)[0]


LIES: dict[str, Callable[[], Tensor]] = {
    "no header": lambda: Tensor.opaque(b"SKC", "skerry.coded", "", ()),
    "another magic": lambda: Tensor.opaque(b"SKR1\0\0\0\0", "skerry.coded", "", ()),
    "a header longer than the bytes": lambda: Tensor.opaque(
        MAGIC + b"\xff\xff\xff\x7f", "skerry.coded", "", ()
    ),
    "a header that does not parse": lambda: Tensor.opaque(
        MAGIC + b"\x04\0\0\0\xff\xff\xff\xff", "skerry.coded", "", ()
    ),
    "an unknown method": lambda: one(Method.BF16, bytes(2000), bytes(2000), method=99),
    "an unknown type": lambda: one(Method.BF16, bytes(2000), bytes(2000), dtype=77),
    "a shape of 2^31": lambda: one(Method.INT8, b"", b"", setting=16, shape=[2**31, 2**31]),
    "a shape of 2^62 beside 0": lambda: one(Method.INT8, b"", b"", setting=16, shape=[0, 2**62]),
    "thirty-three axes": lambda: one(Method.BF16, b"", b"", shape=[1] * 33),
    "too few parts": lambda: one(Method.BF16, bytes(2000)),
    "parts of the wrong size": lambda: one(Method.BF16, bytes(1999), bytes(2000)),
    "a block of 1": lambda: one(Method.INT8, bytes(4000), bytes(2000), setting=1),
    "more places than elements": lambda: one(Method.TOPK, b"\0" * 9, b"", b"", b"", setting=2001),
    "fewer places than said": lambda: one(
        Method.TOPK, b"\xff" * 4, b"\0" * 18, bytes(20), bytes(20), setting=20
    ),
    "a place beyond the end": lambda: one(
        Method.TOPK, b"\xff" * 4 + b"\0" * 1, bytes(18), bytes(20), bytes(20), setting=20
    ),
    "a rank beyond the matrix": lambda: one(Method.LOW_RANK, *[b""] * 4, setting=41),
    "a scale that is not finite": lambda: one(
        Method.INT8, b"\x80\x7f" * 160, bytes(2000), setting=16
    ),
    "an update of integers with loss": lambda: one(
        Method.BF16, bytes(2000), bytes(2000), dtype=DType.INT32
    ),
    "a zstd frame that is none": lambda: one(Method.BF16, bytes(20), bytes(20), zstd=True),
    "another shape than was sent": lambda: one(Method.BF16, bytes(20), bytes(20), shape=[5, 4]),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_lie_is_refused(lie: str) -> None:
    with pytest.raises(PeerError):
        dict(decode_update(LIES[lie](), HELD))


def test_a_bomb_is_refused_before_memory_is_taken() -> None:
    bomb = zstandard.ZstdCompressor().compress(bytes(256 * MB))
    assert len(bomb) < MB
    tracemalloc.start()
    try:
        with pytest.raises(CodedError, match="opens to"):
            restore(bomb, squeezed=True, nbytes=2000)
        with pytest.raises(PeerError):
            dict(decode_update(one(Method.BF16, bomb, bomb, zstd=True), HELD))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4 * MB


def test_a_header_that_asks_for_everything_takes_nothing() -> None:
    """A model from nowhere is bounded by the reader's limits, before any array is made."""
    header = pb.Coded()
    for place in range(50):
        spec = header.tensors.add(
            name=str(place), dtype=DType.FLOAT32, shape=[1 << 28], method=Method.INT8, setting=16
        )
        spec.parts.extend([pb.CodedPart(), pb.CodedPart()])
    tracemalloc.start()
    try:
        with pytest.raises(PeerError):
            decode_model(bytes_of(header), SMALL)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < MB


def test_frames_with_more_behind_them_or_of_unknown_size_are_refused() -> None:
    frame, squeezed = squeeze(bytes(5000))
    assert squeezed
    assert restore(frame, squeezed=True, nbytes=5000) == bytes(5000)
    with pytest.raises(CodedError):
        restore(bytes(frame) + b"more", squeezed=True, nbytes=5000)
    unsized = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(5000))
    with pytest.raises(CodedError):
        restore(unsized, squeezed=True, nbytes=5000)
    with pytest.raises(CodedError):
        restore(frame[:-3], squeezed=True, nbytes=5000)


def test_noise_is_not_compressed() -> None:
    noise = np.random.default_rng(0).bytes(3 * MB)
    data, squeezed = squeeze(noise)
    assert (squeezed, memoryview(data).nbytes) == (False, 3 * MB)


def test_a_model_is_no_update_and_an_update_no_model() -> None:
    with pytest.raises(CodedError, match="not a model"):
        decode_model(good("int8"))
    header = pb.Coded()
    with pytest.raises(CodedError, match="no update"):
        decode_update(bytes_of(header), HELD)


@settings(max_examples=150)
@given(
    name=st.sampled_from(NAMES[1:]),
    place=st.integers(0, 10**9),
    value=st.integers(0, 255),
    cut=st.integers(0, 10**9),
    cuts=st.booleans(),
)
def test_a_flipped_byte_is_refused_or_means_something_else(
    name: str, place: int, value: int, cut: int, cuts: bool
) -> None:
    data = bytearray(good(name).data)
    data[place % len(data)] = value
    if cuts:
        del data[cut % len(data) :]
    try:
        back = dict(decode_update(Tensor.opaque(bytes(data), "skerry.coded", "", ()), LARGER))
    except PeerError:
        return
    assert back["w"].shape == (50, 60)
    assert back["w"].nbytes == LARGER["w"].nbytes


@given(st.binary(max_size=400))
def test_any_bytes_are_refused_or_read(data: bytes) -> None:
    for each in (data, struct.pack("<4sI", MAGIC, len(data) // 2) + data):
        try:
            _, tensors = read(each, SMALL)
            for tensor in tensors:
                tensor.open()
        except PeerError:
            continue
