"""The registry: admission, presence, revocation, and what is kept of what devices send."""

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st
from skerry_cloud import registry as registries
from skerry_cloud.identity import Authority
from skerry_cloud.registry import Registry
from skerry_cloud.selectors import parse
from skerry_cloud.store import Store, tables
from skerry_cloud.store import devices as kept
from skerry_cloud.telemetry import LINES_LIMIT, LOG_TEXT_LIMIT, heartbeat_json, log_rows
from skerry_protos.errors import RefusedError, RejectedError
from skerry_protos.labels import STATED_LIMIT
from skerry_protos.messages import DeviceId, Parcel, ParcelId, ParcelKind, RunId
from skerry_protos.v1.work_pb2 import Heartbeat, LogLine, LogLines

from tests.mainland import Harbour, Labour

PI, JET = DeviceId("pi-1"), DeviceId("jet-1")


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    """Return an authority."""
    return Authority.open(tmp_path)


@pytest.fixture
def harbour() -> Harbour:
    """Return the fleet's place."""
    return Harbour()


@pytest.fixture
def labour() -> Labour:
    """Return the runs' place."""
    return Labour()


@pytest.fixture
async def registry(
    sqlite_store: Store,
    authority: Authority,
    harbour: Harbour,
    labour: Labour,
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[Registry]:
    """Return a registry with two devices, which writes presence when the test says so."""
    monkeypatch.setattr(registries, "FLUSH_S", 3600.0)

    def enrol(connection: sa.Connection) -> None:
        for number, device in enumerate((PI, JET)):
            connection.execute(
                tables.devices.insert().values(id=device, node=number + 2, enrolled_at=1.0)
            )

    await sqlite_store.write(enrol)
    async with Registry(store=sqlite_store, authority=authority) as opened:
        opened.attach(fleet=harbour, work=labour)
        yield opened


def parcel(kind: str, body: bytes = b"", number: int = 1) -> Parcel:
    """Return a parcel of a device."""
    return Parcel(id=ParcelId(f"p{number}"), kind=kind, run=RunId("r"), body=body)


async def test_only_enrolled_devices_that_are_not_revoked_are_admitted(registry: Registry) -> None:
    await registry.admit(PI, "grpc", "0.1.0")
    with pytest.raises(RefusedError) as unknown:
        await registry.admit(DeviceId("stranger"), "grpc", "0.1.0")
    assert unknown.value.code == "unknown-device"
    await registry.revoke(PI, "lost")
    with pytest.raises(RefusedError) as revoked:
        await registry.admit(PI, "mqtt", "0.1.0")
    assert revoked.value.code == "revoked"
    assert revoked.value.retry_after_s == 0


async def test_revocation_cuts_at_once_and_outlives_a_restart(
    registry: Registry, harbour: Harbour, labour: Labour, sqlite_store: Store, authority: Authority
) -> None:
    await registry.admit(PI, "grpc", "0.1.0")
    await registry.present(PI, "grpc")
    began = time.monotonic()
    await registry.revoke(PI, "lost")
    assert time.monotonic() - began < 1
    assert harbour.dismissed == [(PI, "revoked")]
    assert labour.withdrawn == [(PI, "the device was revoked")]
    assert registry.connected() == frozenset()
    with pytest.raises(RejectedError):
        await registry.accept(PI, parcel(ParcelKind.HEARTBEAT))
    async with Registry(store=sqlite_store, authority=authority) as again:
        with pytest.raises(RefusedError):
            await again.admit(PI, "grpc", "0.1.0")
        with pytest.raises(RejectedError):
            await again.accept(PI, parcel(ParcelKind.REPLY))


async def test_a_device_revoked_while_it_is_welcomed_is_dismissed(
    registry: Registry, harbour: Harbour, labour: Labour
) -> None:
    await registry.admit(PI, "grpc", "0.1.0")
    await registry.revoke(PI, "lost")
    harbour.dismissed.clear()
    await registry.present(PI, "grpc")
    assert harbour.dismissed == [(PI, "revoked")]
    assert labour.came == []
    device = await registry.device(PI)
    assert device is not None
    assert device.state == "revoked"


async def test_presence_is_known_at_once_and_written_behind(
    registry: Registry, sqlite_store: Store, labour: Labour, monkeypatch: pytest.MonkeyPatch
) -> None:
    writes = 0
    inner = sqlite_store.write

    async def counted(*arguments: object, **named: object) -> object:
        nonlocal writes
        writes += 1
        return await inner(*arguments, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(sqlite_store, "write", counted)
    await registry.admit(PI, "grpc", "0.1.0")
    await registry.present(PI, "grpc")
    assert labour.came == [PI]
    body = Heartbeat(load1=0.5, capabilities=["cpu", "torch"], memory_total_bytes=2**33)
    for number in range(200):
        await registry.accept(PI, parcel(ParcelKind.HEARTBEAT, body.SerializeToString(), number))
    assert writes == 0
    (online,) = await registry.devices(state="online")
    assert (online.id, online.ready, online.transport) == (PI, True, "grpc")
    assert online.heartbeat["memory_total_bytes"] == 2**33
    assert online.capabilities == {"cpu", "torch"}
    await registry._flush(patience_s=0.0)
    assert writes == 1

    async def written() -> kept.Device | None:
        return await sqlite_store.read(lambda c: kept.find(c, PI))

    row = await written()
    assert row is not None
    assert (row.connected, row.heartbeat["load1"], row.agent_version) == (True, 0.5, "0.1.0")


async def test_presence_is_written_behind_by_itself(
    registry: Registry,
    sqlite_store: Store,
    authority: Authority,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(registries, "FLUSH_S", 0.05)
    async with Registry(store=sqlite_store, authority=authority) as other:
        await other.present(PI, "grpc")
        async with asyncio.timeout(20):
            while True:
                row = await sqlite_store.read(lambda c: kept.find(c, PI))
                if row is not None and row.connected:
                    break
    row = await sqlite_store.read(lambda c: kept.find(c, PI))
    assert row is not None
    assert not row.connected  # an orderly stop says so too


async def test_absence_on_one_transport_does_not_hide_presence_on_another(
    registry: Registry,
) -> None:
    await registry.present(PI, "grpc")
    await registry.present(PI, "mqtt")
    await registry.absent(PI, "grpc", "cut")
    assert registry.connected() == {PI}
    await registry.absent(PI, "mqtt", "the broker went away")
    device = await registry.device(PI)
    assert device is not None
    assert (device.state, device.last_error) == ("offline", "the broker went away")


async def test_a_restart_begins_with_nobody_connected(
    registry: Registry, sqlite_store: Store, authority: Authority
) -> None:
    await sqlite_store.write(lambda c: kept.change(c, PI, connected=True))
    async with Registry(store=sqlite_store, authority=authority) as again:
        assert again.connected() == frozenset()
        device = await again.device(PI)
        assert device is not None
        assert not device.connected


async def test_available_devices_fit_the_selector_the_capabilities_and_are_not_cordoned(
    registry: Registry,
) -> None:
    beat = Heartbeat(capabilities=["cpu", "torch"]).SerializeToString()
    for device in (PI, JET):
        await registry.present(device, "grpc")
        await registry.accept(device, parcel(ParcelKind.HEARTBEAT, beat))
    await registry.relabel(PI, {"site": "north"})

    async def ids(selector: str = "", capabilities: tuple[str, ...] = ()) -> set[str]:
        return {one.id for one in await registry.available(parse(selector), capabilities)}

    assert await ids() == {PI, JET}
    assert await ids("site=north") == {PI}
    assert await ids(capabilities=("torch", "cuda")) == set()
    await registry.cordon(PI)
    assert await ids() == {JET}
    await registry.uncordon(PI)
    await registry.drain(JET)
    assert await ids() == {PI}
    await registry.uncordon(JET)
    await registry.absent(JET, "grpc", "cut")
    assert await ids() == {PI}


async def test_what_a_device_states_is_never_an_operators_word(registry: Registry) -> None:
    await registry.relabel(PI, {"wave": "late", "device/room": "cellar"})
    said = {"wave": "canary", "room": "attic", "partition-id": "0"}
    beat = Heartbeat(labels=said).SerializeToString()
    await registry.accept(PI, parcel(ParcelKind.HEARTBEAT, beat))
    device = await registry.device(PI)
    assert device is not None
    assert device.labels == {
        "wave": "late",
        "device/wave": "canary",
        "device/room": "cellar",
        "device/partition-id": "0",
    }
    assert (device.stated, device.given["wave"]) == (said, "late")

    async def chosen(selector: str) -> list[str]:
        return [each.id for each in await registry.devices(parse(selector))]

    assert await chosen("wave=canary") == []
    assert await chosen("partition-id") == []
    assert await chosen("device/wave=canary") == [PI]
    assert await chosen("device/room=attic") == []
    await registry.accept(PI, parcel(ParcelKind.HEARTBEAT, Heartbeat().SerializeToString(), 2))
    assert await chosen("device/wave") == []


def test_labels_that_a_device_may_not_state_are_left_out_and_said() -> None:
    said = {f"k{each:05}": "v" for each in range(10_000)}
    found = heartbeat_json(Heartbeat(labels=said, load1=1.0).SerializeToString())
    assert len(found["labels"]) == STATED_LIMIT
    assert "at most 16 labels, not 10000" in found["labels_refused"]
    bad = {"": "x", "a b": "x", "a" * 57: "x", "x": "\x1b[31m", "y": "b" * 256, "good": "yes"}
    found = heartbeat_json(Heartbeat(labels=bad).SerializeToString())
    assert found["labels"] == {"good": "yes"}
    assert found["labels_refused"].isprintable()
    assert len(found["labels_refused"]) <= 300


async def test_who_waits_for_a_change_is_woken_by_it(registry: Registry) -> None:
    waiting = asyncio.create_task(registry.wait_change(30))
    done, _ = await asyncio.wait([waiting], timeout=0.05)
    assert not done
    await registry.present(PI, "grpc")
    await asyncio.wait_for(waiting, 1)
    await asyncio.wait_for(registry.wait_change(0.01), 1)


async def test_parcels_go_where_they_belong(registry: Registry, labour: Labour) -> None:
    reply, progress = parcel(ParcelKind.REPLY), parcel(ParcelKind.PROGRESS)
    await registry.accept(PI, reply)
    await registry.accept(PI, progress)
    assert (labour.replies, labour.shown) == ([(PI, reply)], [(PI, progress)])
    for kind in ("task", "certificate", "cancel", "", "nonsense"):
        with pytest.raises(RejectedError) as unexpected:
            await registry.accept(PI, parcel(kind))
        assert unexpected.value.code == "unexpected"


@pytest.mark.parametrize("kind", [ParcelKind.HEARTBEAT, ParcelKind.LOG, ParcelKind.RENEW])
async def test_a_malformed_parcel_is_rejected_for_good(
    registry: Registry, kind: ParcelKind
) -> None:
    with pytest.raises(RejectedError) as malformed:
        await registry.accept(PI, parcel(kind, b"\xff\xff\xff"))
    assert malformed.value.code in {"malformed", "csr"}


async def test_a_renewal_is_kept_and_answered_with_a_certificate_for_the_device(
    registry: Registry, harbour: Harbour, sqlite_store: Store
) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "jet-1")])
    csr = x509.CertificateSigningRequestBuilder().subject_name(name).sign(key, hashes.SHA256())
    body = csr.public_bytes(serialization.Encoding.PEM)
    await registry.accept(PI, parcel(ParcelKind.RENEW, body))
    await asyncio.wait_for(harbour.arrived.wait(), 5)
    ((device, answer),) = harbour.delivered
    assert (device, answer.kind) == (PI, "certificate")
    made = x509.load_pem_x509_certificate(answer.body)
    assert [one.value for one in made.subject] == ["pi-1"]
    serial = f"{made.serial_number:x}"
    assert await sqlite_store.read(lambda c: kept.holds_certificate(c, PI, serial))


async def test_log_lines_are_acknowledged_once_they_are_kept_and_kept_once(
    registry: Registry, sqlite_store: Store
) -> None:
    lines = [LogLine(unix_time_s=float("nan"), level="i" * 99, text="a\x00b" + "c" * 9999)]
    body = LogLines(source="s" * 99, lines=lines * 900).SerializeToString()
    for _ in range(2):
        await registry.accept(PI, parcel(ParcelKind.LOG, body))
    rows = await sqlite_store.read(lambda c: kept.log_lines(c, PI, after=0, limit=9999))
    assert len(rows) == LINES_LIMIT
    assert rows[0]["text"].startswith("a bc")
    assert len(rows[0]["text"]) == LOG_TEXT_LIMIT
    assert abs(rows[0]["at"] - time.time()) < 60


@given(st.binary(max_size=300))
def test_no_body_does_more_than_be_rejected(body: bytes) -> None:
    for read in (heartbeat_json, log_rows):
        try:
            read(body)
        except RejectedError as error:
            assert error.code == "malformed"


async def test_a_device_cannot_keep_the_others_presence_from_being_written(
    registry: Registry, sqlite_store: Store
) -> None:
    """Text that a database would refuse is made printable first."""
    await registry.admit(PI, "grpc", "1.0\x00\ud800")
    await registry.present(PI, "grpc")
    await registry.present(JET, "grpc")
    await registry.absent(PI, "grpc", "cut\x00")
    await registry._flush(patience_s=0.0)
    row = await sqlite_store.read(lambda c: kept.find(c, JET))
    assert row is not None
    assert row.connected
