"""Packets: what is built is read back, and nothing else is believed."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from skerry_protos.errors import PeerError, RejectCode, RejectedError
from skerry_protos.messages import (
    BLOB_SIZE_LIMIT,
    BODY_LIMIT,
    BlobRef,
    Digest,
    Parcel,
    ParcelId,
    RunId,
    digest_of,
)
from skerry_protos.session.frames import (
    FRAMES,
    chunk_packet,
    framed,
    pack,
    parcel_message,
    read_parcel,
    unpack,
    unpack_all,
)
from skerry_protos.v1 import fleet_pb2 as pb

visible = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=128)
refs = st.builds(
    lambda seed, size, role: BlobRef(digest=digest_of(seed), size=size, role=role),
    st.binary(max_size=4),
    st.integers(0, BLOB_SIZE_LIMIT),
    st.text(max_size=20),
)
parcels = st.builds(
    Parcel,
    id=visible.map(ParcelId),
    kind=visible,
    run=st.text(max_size=128).map(RunId),
    round=st.integers(0, 2**32 - 1),
    deadline_unix_s=st.floats(0, 1e11),
    trace=st.text(max_size=128),
    body=st.binary(max_size=1000),
    blobs=st.lists(refs, max_size=16).map(tuple),
)


@given(parcels)
def test_a_parcel_is_read_back(parcel: Parcel) -> None:
    packet = pack(pb.Frame(session=1, parcel=parcel_message(parcel)))
    assert read_parcel(unpack(packet)[0].parcel) == parcel


@given(st.lists(st.binary(max_size=200), min_size=1, max_size=20))
def test_frames_that_share_a_packet_are_read_back(datas: list[bytes]) -> None:
    parts = [
        part
        for offset, data in enumerate(datas)
        for part in framed(
            pb.Frame(session=9, stream_data=pb.StreamData(stream=1, offset=offset)), data
        )
    ]
    found = [(frame.stream_data.offset, bytes(data)) for frame, data in unpack_all(b"".join(parts))]
    assert found == list(enumerate(datas))


@given(st.binary(max_size=300))
def test_noise_is_an_error_of_the_peer_or_nothing_worse(packet: bytes) -> None:
    try:
        for frame, data in unpack_all(packet):
            assert isinstance(frame, pb.Frame)
            assert len(data) <= len(packet)
    except PeerError:
        pass


@given(st.data())
def test_a_hurt_packet_is_an_error_of_the_peer_or_nothing_worse(data: st.DataObject) -> None:
    packet = bytearray(chunk_packet(5, bytes(32), 4096, b"x" * 50))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(packet) - 1))
        packet[at] = data.draw(st.integers(0, 255))
    with contextlib.suppress(PeerError):
        list(unpack_all(bytes(packet)))


@pytest.mark.parametrize("cut", [0, 1, 7, 8, 9, 40])
def test_a_truncated_packet_is_refused(cut: int) -> None:
    packet = chunk_packet(5, bytes(32), 0, b"x" * 50)
    with pytest.raises(PeerError):
        list(unpack_all(packet[:cut]))


def test_too_many_frames_in_a_packet_are_refused() -> None:
    one = pack(pb.Frame(session=1, ping=pb.Ping()))
    assert len(list(unpack_all(one * FRAMES))) == FRAMES
    with pytest.raises(PeerError):
        list(unpack_all(one * (FRAMES + 1)))
    with pytest.raises(PeerError, match="must have one"):
        unpack(one * 2)


def _parcel(**fields: object) -> Parcel:
    return Parcel(**{"id": "p", "kind": "task", **fields})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("parcel", "why"),
    [
        (_parcel(id=""), "id and kind"),
        (_parcel(id="a b"), "id and kind"),
        (_parcel(id="a\n"), "id and kind"),
        (_parcel(id="x" * 129), "id and kind"),
        (_parcel(kind=""), "id and kind"),
        (_parcel(run="x" * 129), "run or trace"),
        (_parcel(round=-1), "out of range"),
        (_parcel(deadline_unix_s=float("nan")), "not a time"),
        (_parcel(deadline_unix_s=-1.0), "not a time"),
        (_parcel(blobs=(BlobRef(digest=digest_of(b""), size=1),) * 17), "more than 16"),
        (_parcel(blobs=(BlobRef(digest=digest_of(b""), size=-1),)), "bad size"),
    ],
)
def test_a_parcel_outside_its_limits_is_not_sent(parcel: Parcel, why: str) -> None:
    with pytest.raises(RejectedError, match=why) as caught:
        parcel_message(parcel)
    assert caught.value.code == RejectCode.MALFORMED


def test_a_parcel_that_came_outside_its_limits_is_rejected() -> None:
    good = parcel_message(_parcel())
    good.body = bytes(BODY_LIMIT + 1)
    with pytest.raises(RejectedError) as caught:
        read_parcel(good)
    assert caught.value.code == RejectCode.OVERSIZE
    bad = parcel_message(_parcel())
    bad.blobs.add(digest=b"short", size=1)
    with pytest.raises(RejectedError, match="digest") as caught:
        read_parcel(bad)
    assert caught.value.code == RejectCode.MALFORMED


def test_a_digest_is_hexadecimal() -> None:
    assert len(Digest(digest_of(b""))) == 64
