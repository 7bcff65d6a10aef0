"""What only gRPC has: its certificates, its port, its keepalive."""

import asyncio
import os
import shutil
import socket
import ssl
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import grpc
import grpc.aio
import pytest
from skerry_cloud.fleets.grpc import GrpcFleet
from skerry_cloud.fleets.joined import JoinedFleet
from skerry_cloud.fleets.memory import MemoryFleet
from skerry_cloud.identity import Authority
from skerry_edge.links import Credentials, LinkConfig, open_link
from skerry_edge.links.grpc import GrpcLink
from skerry_protos.errors import ConfigError, LinkError
from skerry_protos.messages import DeviceId
from skerry_protos.session.memory import Faults

from tests.certificates import Trust
from tests.conformance.harness import (
    WAIT_S,
    Afloat,
    Ashore,
    Harness,
    WatchedBlobs,
    open_harness,
    parcel,
    until,
)
from tests.conformance.shores import GrpcShore


@pytest.fixture
async def harness(tmp_path: Path) -> AsyncIterator[Harness]:
    async with open_harness("grpc", tmp_path) as harness:
        yield harness


def config(folder: Path, url: str, device: str, credentials: Credentials | None) -> LinkConfig:
    return LinkConfig(
        kind="grpc",
        url=url,
        device=DeviceId(device),
        agent_version="1",
        credentials=credentials,
        blobs=WatchedBlobs(folder / device),
        receiver=Afloat(),
    )


async def refused(link_config: LinkConfig) -> str:
    """Return why a link does not come up."""
    states: list[str] = []
    link_config = replace(link_config, on_state=lambda why, _wait: states.append(str(why)))
    async with GrpcLink(link_config) as link:
        await until(lambda: bool(states), "an attempt has failed")
        assert not link.connected
    return states[0]


async def test_a_device_of_another_authority_does_not_get_in(
    harness: Harness, tmp_path: Path
) -> None:
    assert isinstance(harness.shore, GrpcShore)
    other = Trust(tmp_path / "other").device("alpha")
    ours = harness.shore.trust.device("alpha")
    port = harness.shore.fleet.port
    impostor = Credentials(ca=ours.ca, certificate=other.certificate, key=other.key)
    stranger = Credentials(ca=other.ca, certificate=ours.certificate, key=ours.key)
    for credentials in (impostor, stranger):
        why = await refused(config(tmp_path, f"grpcs://127.0.0.1:{port}", "alpha", credentials))
        assert "unavailable" in why
    assert harness.fleet.devices() == frozenset()
    assert harness.gate.events == []


async def test_a_client_without_a_certificate_does_not_get_in(harness: Harness) -> None:
    assert isinstance(harness.shore, GrpcShore)
    ca = harness.shore.trust.server.ca.read_bytes()
    target = f"127.0.0.1:{harness.shore.fleet.port}"
    async with grpc.aio.secure_channel(target, grpc.ssl_channel_credentials(ca)) as channel:
        with pytest.raises((TimeoutError, asyncio.CancelledError)):
            await asyncio.wait_for(channel.channel_ready(), 1.0)


def _certificate(shore: GrpcShore) -> bytes | None:
    """Return the certificate that the fleet shows to a new connection."""
    context = shore.trust.device("old").context()
    context.set_alpn_protocols(["h2"])
    address = ("127.0.0.1", shore.fleet.port)
    with (
        socket.create_connection(address, timeout=10) as plain,
        context.wrap_socket(plain, server_hostname="127.0.0.1") as secure,
    ):
        return secure.getpeercert(binary_form=True)


async def test_a_renewed_server_certificate_serves_new_connections_and_keeps_the_old(
    tmp_path: Path,
) -> None:
    async with open_harness("grpc", tmp_path) as harness:
        assert isinstance(harness.shore, GrpcShore)
        trust = harness.shore.trust
        old = await harness.device("old")
        before = trust.server.certificate.read_bytes()
        trust.server.certificate.unlink()
        Authority.open(tmp_path / "trust").server(["localhost", "127.0.0.1"])
        assert trust.server.certificate.read_bytes() != before
        os.utime(trust.server.certificate, (time.time() + 5, time.time() + 5))
        shown = await asyncio.to_thread(_certificate, harness.shore)
        assert shown == ssl.PEM_cert_to_DER_cert(trust.server.certificate.read_text())
        new = await harness.device("new")
        await old.link.deliver(parcel())
        await new.link.deliver(parcel())
        assert old.states == [None]


async def test_a_renewed_device_certificate_is_used_at_the_next_connection(
    harness: Harness, tmp_path: Path
) -> None:
    assert isinstance(harness.shore, GrpcShore)
    device = await harness.device()
    files = harness.shore.trust.device("alpha")
    other = Trust(tmp_path / "other").device("alpha")
    kept = files.certificate.read_bytes(), files.key.read_bytes()
    shutil.copy(other.certificate, files.certificate)
    shutil.copy(other.key, files.key)
    harness.cut_soon(device)
    await until(lambda: len([state for state in device.states if state]) >= 2, "it is refused")
    assert not device.link.connected
    files.certificate.write_bytes(kept[0])
    files.key.write_bytes(kept[1])
    await harness.connected(device)


async def test_a_port_in_use_says_so(harness: Harness, tmp_path: Path) -> None:
    assert isinstance(harness.shore, GrpcShore)
    fleet = GrpcFleet(
        gate=Ashore(),
        blobs=WatchedBlobs(tmp_path / "x"),
        port=harness.shore.fleet.port,
        keys=harness.shore.trust.server,
    )
    with pytest.raises(ConfigError, match="the port is in use"):
        await fleet.__aenter__()


def test_without_tls_only_loopback_is_served_and_dialled(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="only loopback"):
        GrpcFleet(gate=Ashore(), blobs=WatchedBlobs(tmp_path / "x"), host="0.0.0.0", keys=None)
    with pytest.raises(ConfigError, match="not loopback"):
        GrpcLink(config(tmp_path, "grpc://example.org:8471", "alpha", None))
    with pytest.raises(ConfigError, match="join first"):
        GrpcLink(config(tmp_path, "grpcs://127.0.0.1:8471", "alpha", None))
    with pytest.raises(ConfigError, match="grpcs://host:port"):
        GrpcLink(config(tmp_path, "http://127.0.0.1:8471", "alpha", None))


async def test_links_are_found_by_name(tmp_path: Path) -> None:
    assert isinstance(open_link(config(tmp_path, "grpc://127.0.0.1:1", "alpha", None)), GrpcLink)
    wrong = replace(config(tmp_path, "x://", "alpha", None), kind="pigeon")
    with pytest.raises(ConfigError, match="no link 'pigeon'"):
        open_link(wrong)


async def test_a_device_is_met_when_the_coordinator_comes_back(tmp_path: Path) -> None:
    gate, blobs = Ashore(), WatchedBlobs(tmp_path / "cloud")
    async with GrpcFleet(gate=gate, blobs=blobs, keys=None) as fleet:
        port = fleet.port
        link = GrpcLink(config(tmp_path, fleet.url, "alpha", None))
        await link.__aenter__()
        await until(lambda: link.connected, "connected")
    try:
        await until(lambda: not link.connected, "the coordinator is gone")
        delivery = asyncio.ensure_future(link.deliver(parcel("reply")))
        async with GrpcFleet(gate=gate, blobs=blobs, keys=None, port=port):
            await asyncio.wait_for(delivery, WAIT_S)
        assert len(gate.parcels) == 1
    finally:
        await link.__aexit__(None, None, None)


async def test_joined_fleets_reach_a_device_where_it_is(tmp_path: Path) -> None:
    gate, blobs = Ashore(), WatchedBlobs(tmp_path / "cloud")
    async with (
        GrpcFleet(gate=gate, blobs=blobs, keys=None) as by_grpc,
        MemoryFleet("joined", gate, blobs, faults=lambda _wire: Faults()) as by_memory,
        open_link(config(tmp_path, by_grpc.url, "alpha", None)),
        open_link(replace(config(tmp_path, "memory://joined", "beta", None), kind="memory")),
    ):
        fleet = JoinedFleet([by_grpc, by_memory])
        alpha, beta = DeviceId("alpha"), DeviceId("beta")
        await until(lambda: fleet.devices() == {alpha, beta}, "both are there")
        for device in (alpha, beta):
            await fleet.deliver(device, parcel())
            stream = await fleet.open_stream(device, "echo", deadline_s=10)
            async with stream:
                await stream.send(b"hello")
                assert await asyncio.wait_for(stream.receive(), WAIT_S) == b"hello"
        fleet.cast(blobs.put(b"model"), [alpha, beta])
        with pytest.raises(LinkError, match="not connected"):
            await fleet.deliver(DeviceId("gamma"), parcel())
        await fleet.dismiss(beta, "revoked", "gone")
        assert fleet.devices() == {alpha}
