"""What is particular to MQTT: brokers that die, drop and limit, and blobs published for many."""

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from skerry_cloud.brokers import BrokerConfig, open_broker
from skerry_cloud.brokers.mosquitto import Mosquitto
from skerry_cloud.fleets.mqtt import MqttFleet
from skerry_edge.links import Credentials, LinkConfig
from skerry_edge.links.mqtt import MqttLink
from skerry_protos.blobs import LocalBlobs
from skerry_protos.errors import LinkError, RefusalCode
from skerry_protos.messages import BODY_LIMIT, BlobRef, DeviceId, Parcel
from skerry_protos.topics import up

from tests.certificates import Trust
from tests.conformance.harness import Afloat, Ashore, parcel, until
from tests.mqtt import client, listens, mosquitto_present, mosquitto_program

pytestmark = [pytest.mark.broker, pytest.mark.network]
needs_mosquitto = pytest.mark.skipif(not mosquitto_present(), reason="no mosquitto")
KINDS = ["embedded", pytest.param("mosquitto", marks=needs_mosquitto)]


class Fleetlet:
    """A fleet behind a broker and its devices, without proxies."""

    def __init__(self, config: BrokerConfig, folder: Path, trust: Trust | None) -> None:
        self.config = config
        self.folder = folder
        self.trust = trust
        self.gate = Ashore()
        self.blobs = LocalBlobs(folder / "cloud", durable=False)
        self.devices: list[Boat] = []
        self.stack = contextlib.AsyncExitStack()

    async def open(self) -> None:
        self.broker = await self.stack.enter_async_context(open_broker(self.config))
        self.fleet = await self.stack.enter_async_context(self.new_fleet())
        self.gate.accepting = self.fetch

    def new_fleet(self) -> MqttFleet:
        return MqttFleet(gate=self.gate, blobs=self.blobs, broker=self.broker)

    async def fetch(self, device: DeviceId, arrived: Parcel) -> None:
        for ref in arrived.blobs:
            await self.fleet.fetch(device, ref, deadline_s=60)

    async def add(self, count: int, older: int = 0) -> None:
        """Have this many devices connect; the first `older` do not know of kept chunks."""
        for number in range(len(self.devices), len(self.devices) + count):
            device = DeviceId(f"dev-{number}")
            files = self.trust.device(device) if self.trust else None
            blobs, receiver = LocalBlobs(self.folder / device, durable=False), Afloat()
            link = MqttLink(
                LinkConfig(
                    kind="mqtt",
                    url=self.broker.url,
                    device=device,
                    agent_version="0.1.0",
                    credentials=(
                        Credentials(ca=files.ca, certificate=files.certificate, key=files.key)
                        if files
                        else None
                    ),
                    blobs=blobs,
                    receiver=receiver,
                )
            )
            link.hears_kept = number >= older
            boat = Boat(device, link, blobs, receiver)
            receiver.accepting = boat.fetch
            self.devices.append(boat)
            await self.stack.enter_async_context(link)
        await self.all_here()

    async def all_here(self) -> None:
        await until(
            lambda: (
                len(self.fleet.devices()) == len(self.devices)
                and all(boat.link.connected for boat in self.devices)
            ),
            "all devices are connected",
        )


@dataclass
class Boat:
    """One device."""

    id: DeviceId
    link: MqttLink
    blobs: LocalBlobs
    receiver: Afloat

    async def fetch(self, arrived: Parcel) -> None:
        for ref in arrived.blobs:
            await self.link.fetch(ref, deadline_s=60)

    def holds(self, ref: BlobRef) -> bool:
        path = self.blobs.path(ref.digest)
        return path is not None and path.stat().st_size == ref.size


@contextlib.asynccontextmanager
async def fleetlet(
    choice: str, folder: Path, devices: int, *, max_packet: int = 0, older: int = 0
) -> AsyncIterator[Fleetlet]:
    trust = None if choice.startswith("mqtt://") else Trust(folder / "trust")
    config = BrokerConfig(
        state=folder / "broker", choice=choice, port=0, keys=trust.server if trust else None
    )
    if max_packet:
        config = replace(config, max_packet=max_packet)
    opened = Fleetlet(config, folder, trust)
    async with opened.stack:
        await opened.open()
        await opened.add(devices, older)
        yield opened


@needs_mosquitto
async def test_a_broker_killed_twice_in_the_middle_loses_nothing(tmp_path: Path) -> None:
    async with fleetlet("mosquitto", tmp_path, 2) as small:
        broker = small.broker
        assert isinstance(broker, Mosquitto)
        wanted = small.blobs.put(os.urandom(24_000_000))
        offered = [boat.blobs.put(os.urandom(8_000_000)) for boat in small.devices]
        tasks = [parcel("task", b"", wanted) for _ in small.devices]
        replies = [parcel("reply", b"", ref) for ref in offered]
        async with asyncio.TaskGroup() as group:
            for boat, task, reply in zip(small.devices, tasks, replies, strict=True):
                group.create_task(small.fleet.deliver(boat.id, task))
                group.create_task(boat.link.deliver(reply))
            for _ in range(2):
                before = small.fleet.pushed
                await until(lambda: small.fleet.pushed > before + 2_000_000, "some has moved")  # noqa: B023
                assert not all(boat.holds(wanted) for boat in small.devices)
                assert broker.pid is not None
                os.kill(broker.pid, signal.SIGKILL)
                await until(lambda: not small.fleet.devices(), "the fleet sees it")
                await small.all_here()
        assert all(boat.holds(wanted) for boat in small.devices)
        assert all(small.blobs.path(ref.digest) for ref in offered)
        assert [one.id for boat in small.devices for one in boat.receiver.parcels] == [
            task.id for task in tasks
        ]
        assert sorted(small.gate.ids()) == sorted(reply.id for reply in replies)


@needs_mosquitto
async def test_forty_devices_push_through_a_broker_s_default_queue_and_nothing_is_lost(
    tmp_path: Path,
) -> None:
    async with default_mosquitto(tmp_path) as url, fleetlet(url, tmp_path, 40) as small:
        offered = [boat.blobs.put(os.urandom(1_000_000)) for boat in small.devices]
        await asyncio.gather(
            *(
                boat.link.deliver(parcel("reply", b"", ref))
                for boat, ref in zip(small.devices, offered, strict=True)
            )
        )
        assert len(small.gate.parcels) == 40
        assert all(small.blobs.path(ref.digest) for ref in offered)


@contextlib.asynccontextmanager
async def default_mosquitto(folder: Path) -> AsyncIterator[str]:
    """Run a mosquitto as it comes, but for the address; yield its URL."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    conf = folder / "default.conf"
    conf.write_text(f"listener {port} 127.0.0.1\nallow_anonymous true\nlog_dest none\n")
    process = await asyncio.create_subprocess_exec(
        mosquitto_program(), "-c", str(conf), stderr=asyncio.subprocess.DEVNULL
    )
    try:
        await until(lambda: listens(port), "mosquitto listens")
        yield f"mqtt://127.0.0.1:{port}"
    finally:
        process.terminate()
        await process.wait()


@pytest.mark.parametrize("kind", KINDS)
async def test_chunks_follow_what_the_broker_takes(kind: str, tmp_path: Path) -> None:
    async with fleetlet(kind, tmp_path, 1, max_packet=20_000) as small:
        (boat,) = small.devices
        wanted, offered = small.blobs.put(os.urandom(300_000)), boat.blobs.put(os.urandom(300_000))
        async with asyncio.timeout(60):
            await small.fleet.deliver(boat.id, parcel("task", b"", wanted))
            await boat.link.deliver(parcel("reply", b"", offered))
        assert boat.holds(wanted)
        assert small.blobs.path(offered.digest)


@pytest.mark.parametrize("kind", KINDS)
async def test_a_blob_for_eight_devices_is_published_once(kind: str, tmp_path: Path) -> None:
    async with fleetlet(kind, tmp_path, 8) as small:
        wanted = small.blobs.put(os.urandom(4_000_000))
        before = small.fleet.pushed
        small.fleet.cast(wanted, [boat.id for boat in small.devices])
        await asyncio.gather(
            *(small.fleet.deliver(boat.id, parcel("task", b"", wanted)) for boat in small.devices)
        )
        assert all(boat.holds(wanted) for boat in small.devices)
        assert (small.fleet.pushed - before) / wanted.size <= 1.2


@pytest.mark.parametrize("kind", KINDS)
async def test_devices_find_a_new_coordinator_on_the_connection_they_have(
    kind: str, tmp_path: Path
) -> None:
    async with fleetlet(kind, tmp_path, 3) as small:
        connections = [boat.link._connection for boat in small.devices]
        await small.fleet.__aexit__(None, None, None)
        await until(lambda: not any(boat.link.connected for boat in small.devices), "they see it")
        small.fleet = await small.stack.enter_async_context(small.new_fleet())
        await small.all_here()
        assert [boat.link._connection for boat in small.devices] == connections
        await asyncio.gather(
            *(small.fleet.deliver(boat.id, parcel("task")) for boat in small.devices)
        )


@pytest.mark.parametrize("kind", KINDS)
async def test_a_revoked_device_loses_its_rights_at_the_broker_within_five_seconds(
    kind: str, tmp_path: Path
) -> None:
    async with fleetlet(kind, tmp_path, 2) as small:
        assert small.trust is not None
        thief, honest = small.devices
        async with asyncio.timeout(5):
            await small.fleet.dismiss(thief.id, RefusalCode.REVOKED, "revoked by ada")
            await until(lambda: not thief.link.connected, "it is cut")
        with pytest.raises(LinkError):  # a modified agent that does not take no for an answer
            async with client(small.broker, thief.id, small.trust.device(thief.id).context()) as c:
                await c.connection.announce(up(thief.id), b"still here")
        await small.fleet.deliver(honest.id, parcel("task", b"x" * BODY_LIMIT))
