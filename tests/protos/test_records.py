"""Records files: what goes in comes out, and damage is a PeerError, never anything else."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from skerry_protos import records as codec
from skerry_protos.errors import PeerError
from skerry_protos.records import RecordLimits, Records, apart, decode, to_bytes, together
from skerry_protos.tensors import Tensor
from skerry_protos.v1 import records_pb2 as pb

names = st.text(max_size=12)
int64 = st.integers(-(2**63), 2**63 - 1)
floats = st.floats(allow_nan=False)
metric = int64 | floats | st.lists(int64, max_size=4) | st.lists(floats, max_size=4)
config = (
    metric
    | st.text(max_size=8)
    | st.binary(max_size=8)
    | st.booleans()
    | st.lists(st.text(max_size=4), max_size=3)
    | st.lists(st.binary(max_size=4), max_size=3)
    | st.lists(st.booleans(), max_size=3)
)
tensors = hnp.arrays(
    dtype=st.sampled_from([np.float32, np.int64, np.uint8, np.bool_, np.complex128]),
    shape=hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4),
).map(Tensor.of) | st.builds(
    Tensor.opaque,
    st.binary(max_size=100),
    st.just("app.bytes"),
    st.just("float4"),
    st.just((3, 4)),
)


@st.composite
def records(draw: st.DrawFn) -> Records:
    groups = draw(st.lists(names, unique=True, max_size=6))
    made = Records()
    for name in groups:
        kind = draw(st.sampled_from(["arrays", "metrics", "configs"]))
        values: Any = {"arrays": tensors, "metrics": metric, "configs": config}[kind]
        getattr(made, kind)[name] = draw(st.dictionaries(names, values, max_size=4))
    return made


def plain(made: Records) -> Any:
    return (
        {
            group: [
                (name, t.dtype, t.shape, bytes(t.data), t.stype, t.stype_dtype, t.stype_shape)
                for name, t in tensors.items()
            ]
            for group, tensors in made.arrays.items()
        },
        made.metrics,
        made.configs,
    )


@given(records())
def test_records_come_back_the_same(made: Records) -> None:
    assert plain(decode(to_bytes(made))) == plain(made)


@given(records())
def test_the_same_records_make_the_same_bytes(made: Records) -> None:
    assert to_bytes(decode(to_bytes(made))) == to_bytes(made)


@given(records(), st.data())
def test_damage_is_a_peer_error(made: Records, data: st.DataObject) -> None:
    whole = bytearray(to_bytes(made))
    if data.draw(st.booleans()):
        del whole[data.draw(st.integers(0, len(whole) - 1)) :]
    else:
        for at in data.draw(st.lists(st.integers(0, len(whole) - 1), min_size=1, max_size=4)):
            whole[at] ^= data.draw(st.integers(1, 255))
    try:
        back = decode(bytes(whole))
    except PeerError:
        return
    for group in back.arrays.values():
        for tensor in group.values():
            if tensor.dtype.name != "BOOL":
                tensor.numpy()


def test_a_file_is_mapped_and_aligned(tmp_path: Path) -> None:
    array = np.arange(1000, dtype=np.float64)
    made = Records(arrays={"arrays": {"a": Tensor.of(array[:3]), "b": Tensor.of(array)}})
    codec.write(made, tmp_path / "r")
    back = codec.read(tmp_path / "r").arrays["arrays"]["b"].numpy()
    assert np.array_equal(back, array)
    assert back.ctypes.data % 64 == 0
    assert not back.flags.writeable


@pytest.mark.parametrize("count", [1, 30, 1000])
def test_many_tensors_keep_their_places(count: int) -> None:
    arrays = {f"t{i}": Tensor.of(np.full(i % 7, i, dtype=np.int32)) for i in range(count)}
    back = decode(to_bytes(Records(arrays={"arrays": arrays}))).arrays["arrays"]
    assert all(np.array_equal(back[name].numpy(), t.numpy()) for name, t in arrays.items())


def file_of(header: pb.Records, data: bytes = b"") -> bytes:
    head = header.SerializeToString()
    start = -(-(8 + len(head)) // 64) * 64 if data else 8 + len(head)
    return b"SKR1" + len(head).to_bytes(4, "little") + head + bytes(start - 8 - len(head)) + data


def one(**spec: Any) -> pb.Records:
    return pb.Records(arrays=[pb.ArrayGroup(name="arrays", tensors=[pb.TensorSpec(**spec)])])


@pytest.mark.parametrize(
    ("spec", "why"),
    [
        ({"dtype": 99, "shape": [1], "nbytes": 4, "offset": 64}, "unknown type"),
        ({"dtype": 11, "shape": [2**62, 4], "nbytes": 0, "offset": 64}, "limit"),
        ({"dtype": 11, "shape": [0, 2**62], "nbytes": 0, "offset": 64}, "limit"),
        ({"dtype": 11, "shape": [1] * 33, "nbytes": 4, "offset": 64}, "axes"),
        ({"dtype": 11, "shape": [2], "nbytes": 4, "offset": 64}, "its shape 8"),
        ({"dtype": 11, "shape": [1], "nbytes": 4, "offset": 0}, "begins"),
        ({"dtype": 11, "shape": [1], "nbytes": 4, "offset": 65}, "begins"),
        ({"dtype": 11, "shape": [1], "nbytes": 4, "offset": 2**60}, "begins"),
        ({"dtype": 11, "shape": [9], "nbytes": 36, "offset": 64}, "ends"),
        ({"dtype": 11, "shape": [1], "nbytes": 4, "offset": 64, "stype": "x"}, "not bytes"),
    ],
)
def test_a_lying_tensor_is_refused(spec: dict[str, Any], why: str) -> None:
    with pytest.raises(PeerError, match=why):
        decode(file_of(one(**spec), bytes(4)))


def test_overlapping_tensors_are_refused() -> None:
    header = pb.Records()
    group = header.arrays.add(name="arrays")
    for name in "ab":
        group.tensors.add(name=name, dtype=2, shape=[4], nbytes=4, offset=64)
    with pytest.raises(PeerError, match="begins"):
        decode(file_of(header, bytes(4)))


def test_a_name_is_used_once() -> None:
    header = pb.Records(metrics=[pb.MetricGroup(name="a")], configs=[pb.ConfigGroup(name="a")])
    with pytest.raises(PeerError, match="two groups"):
        decode(file_of(header))


def test_limits_are_kept(tmp_path: Path) -> None:
    data = to_bytes(Records(arrays={"arrays": {"a": Tensor.of(np.zeros(100))}}))
    with pytest.raises(PeerError, match="at most 100"):
        decode(data, RecordLimits(nbytes=100))
    with pytest.raises(PeerError, match="header"):
        decode(data, RecordLimits(header=4))
    (tmp_path / "empty").touch()
    with pytest.raises(PeerError, match="empty"):
        codec.read(tmp_path / "empty")
    with pytest.raises(PeerError, match="at least"):
        decode(b"SKR1")
    with pytest.raises(PeerError, match="begin with"):
        decode(bytes(100))


def test_a_value_that_cannot_cross_is_named() -> None:
    with pytest.raises(ValueError, match=r"m\['k'\]"):
        to_bytes(Records(metrics={"m": {"k": 2**80}}))
    with pytest.raises(TypeError, match=r"m\['k'\]"):
        to_bytes(Records(metrics={"m": {"k": "text"}}))  # type: ignore[dict-item]
    with pytest.raises(TypeError, match=r"c\['k'\]"):
        to_bytes(Records(configs={"c": {"k": [1, "a"]}}))  # type: ignore[dict-item]


def test_records_are_taken_apart_and_put_together() -> None:
    whole = Records(
        arrays={"arrays": {"w": Tensor.of(np.arange(3.0))}},
        metrics={"metrics": {"n": 1}},
        configs={"config": {"lr": 0.5}},
    )
    tensors, rest = apart(whole)
    assert (tensors.metrics, tensors.configs, rest.arrays) == ({}, {}, {})
    assert together(tensors, rest) == whole
    other = apart(Records(arrays=whole.arrays, configs={"config": {"lr": 0.1}}))[0]
    assert to_bytes(other) == to_bytes(tensors)


@pytest.mark.parametrize(
    ("tensors", "rest"),
    [
        (Records(configs={"config": {}}), Records()),
        (Records(metrics={"metrics": {}}), Records()),
        (Records(), Records(arrays={"arrays": {}})),
        (Records(arrays={"one": {}}), Records(configs={"one": {}})),
    ],
)
def test_two_parts_that_do_not_fit_together_are_refused(tensors: Records, rest: Records) -> None:
    with pytest.raises(PeerError, match="do not fit together"):
        together(tensors, rest)
