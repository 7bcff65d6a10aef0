"""The brokers we run: who may connect, what they may do, and what happens when things go wrong."""

import asyncio
import contextlib
import getpass
import os
import signal
import socket
import ssl
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path

import pytest
from skerry_cloud.brokers import Broker, BrokerConfig, client_context, open_broker
from skerry_cloud.brokers.mosquitto import Mosquitto, rights
from skerry_protos.errors import ConfigError, LinkError
from skerry_protos.messages import DeviceId, Digest
from skerry_protos.topics import COORDINATOR, STATUS, cast, down, up

from tests.certificates import Trust
from tests.mqtt import Client, client, listens, mosquitto_present, mosquitto_program

pytestmark = [pytest.mark.broker, pytest.mark.network]

A, B = DeviceId("dev-a"), DeviceId("dev-b")
ROOT = Path(__file__).parents[2]
DIGEST = Digest("ab" * 32)


needs_mosquitto = pytest.mark.skipif(not mosquitto_present(), reason="no mosquitto")
KINDS = ["embedded", pytest.param("mosquitto", marks=needs_mosquitto)]


@pytest.fixture(scope="module")
def trust(tmp_path_factory: pytest.TempPathFactory) -> Trust:
    return Trust(tmp_path_factory.mktemp("trust"))


@pytest.fixture(params=KINDS)
def config(request: pytest.FixtureRequest, trust: Trust, tmp_path: Path) -> BrokerConfig:
    return BrokerConfig(state=tmp_path / "broker", choice=request.param, port=0, keys=trust.server)


@pytest.fixture
async def broker(config: BrokerConfig) -> AsyncIterator[Broker]:
    async with open_broker(config) as opened:
        yield opened


async def eventually(what: str, holds: Callable[[], bool], within_s: float = 10) -> None:
    """Wait until `holds`, or fail saying what never came."""
    try:
        async with asyncio.timeout(within_s):
            while not holds():  # noqa: ASYNC110
                await asyncio.sleep(0.02)
    except TimeoutError:
        pytest.fail(f"never came: {what}")


async def test_a_device_speaks_up_and_hears_down(broker: Broker, trust: Trust) -> None:
    async with (
        client(broker, COORDINATOR, client_context(trust.server)) as cloud,
        client(broker, A, trust.device(A).context()) as device,
    ):
        await cloud.connection.listen("skerry/v1/up/+")
        await device.connection.listen(down(A), cast(DIGEST))
        await device.connection.push(up(A), b"hello")
        assert await cloud.receive() == (up(A), b"hello")
        await cloud.connection.push(down(A), b"welcome")
        assert await device.receive() == (down(A), b"welcome")
        await cloud.connection.push(cast(DIGEST), b"x" * 70_000)
        assert await device.receive() == (cast(DIGEST), b"x" * 70_000)


async def test_a_device_cannot_write_or_read_what_is_not_its_own(
    broker: Broker, trust: Trust
) -> None:
    async with (
        client(broker, COORDINATOR, client_context(trust.server)) as cloud,
        client(broker, A, trust.device(A).context()) as device,
        client(broker, B, trust.device(B).context()) as thief,
    ):
        await cloud.connection.listen("skerry/v1/#")
        await device.connection.listen(down(A), cast(DIGEST))
        if broker.kind == "mosquitto":  # MQTT 5 says so
            with pytest.raises(LinkError, match=f"does not let {B} write to {up(A)}"):
                await thief.connection.announce(up(A), b"forged")
        for foreign in (down(A), up(A), "skerry/v1/#", "#", "skerry/v1/down/+", up("+")):
            with contextlib.suppress(LinkError):  # mosquitto grants and never delivers
                await thief.connection.listen(foreign)
        for topic in (up(A), down(A), down(B), cast(DIGEST), STATUS, "elsewhere", "$SYS/x"):
            with contextlib.suppress(LinkError):  # amqtt closes the connection for $SYS
                await thief.connection.push(topic, b"forged")
        await device.connection.push(up(A), b"secret up")
        await cloud.connection.push(down(A), b"secret down")
        assert await cloud.receive() == (up(A), b"secret up")
        assert await cloud.receive() == (down(A), b"secret down")
        assert await device.receive() == (down(A), b"secret down")
        assert thief.inbox.empty()
        assert cloud.inbox.empty()


async def test_a_client_is_called_as_its_certificate_whatever_it_says(
    broker: Broker, trust: Trust
) -> None:
    async with (
        client(broker, COORDINATOR, client_context(trust.server)) as cloud,
        client(broker, A, trust.device(A).context()) as device,
        client(broker, A, trust.device(B).context(), will=up(B)) as liar,  # B says that it is A
    ):
        await cloud.connection.listen("skerry/v1/up/+")
        await liar.connection.push(up(A), b"forged")
        await liar.connection.push(up(B), b"as itself")
        await device.connection.push(up(A), b"still here")
        assert {await cloud.receive(), await cloud.receive()} == {
            (up(B), b"as itself"),
            (up(A), b"still here"),
        }
        assert cloud.inbox.empty()


async def test_no_certificate_or_one_of_another_authority_is_refused(
    broker: Broker, trust: Trust, tmp_path: Path
) -> None:
    bare = ssl.create_default_context(cafile=str(trust.server.ca))
    rogue = Trust(tmp_path / "rogue").device(A)
    other = ssl.create_default_context(cafile=str(trust.server.ca))
    other.load_cert_chain(str(rogue.certificate), str(rogue.key))
    for tls in (bare, other):
        with pytest.raises(LinkError):
            async with client(broker, A, tls):
                pass
    with pytest.raises(LinkError):
        async with client(broker, A, None):
            pass
    async with client(broker, A, trust.device(A).context()) as device:
        await device.connection.listen(down(A))


async def test_a_broker_of_another_authority_is_refused(
    broker: Broker, trust: Trust, tmp_path: Path
) -> None:
    rogue = Trust(tmp_path / "rogue").device(A)
    with pytest.raises(LinkError, match="certificate"):
        async with client(broker, A, rogue.context()):
            pass


async def test_a_newcomer_with_the_same_certificate_takes_over(
    broker: Broker, trust: Trust
) -> None:
    async with (
        client(broker, A, trust.device(A).context()) as old,
        client(broker, A, trust.device(A).context()) as new,
    ):
        await asyncio.wait_for(old.connection.lost.wait(), 5)
        await new.connection.listen(down(A))
        assert not new.connection.lost.is_set()


async def test_a_lost_device_is_announced_by_its_will_and_one_that_leaves_is_not(
    broker: Broker, trust: Trust
) -> None:
    async with client(broker, COORDINATOR, client_context(trust.server)) as cloud:
        await cloud.connection.listen("skerry/v1/up/+")
        async with client(broker, A, trust.device(A).context()) as device:
            sock = device.connection._client.socket()
            assert isinstance(sock, socket.socket)
            sock.shutdown(socket.SHUT_RDWR)
            assert await cloud.receive() == (up(A), b"")
        async with client(broker, A, trust.device(A).context()) as device:
            await device.connection.push(up(A), b"about to leave")
        assert await cloud.receive() == (up(A), b"about to leave")
        async with client(broker, B, trust.device(B).context()) as device:
            await device.connection.push(up(B), b"later")
        assert await cloud.receive() == (up(B), b"later")


async def test_nobody_can_have_a_will_on_another_s_topic(broker: Broker, trust: Trust) -> None:
    async with client(broker, COORDINATOR, client_context(trust.server)) as cloud:
        await cloud.connection.listen("skerry/v1/up/+")
        with contextlib.suppress(LinkError):  # amqtt refuses it, mosquitto never publishes it
            async with client(broker, B, trust.device(B).context(), will=up(A)) as thief:
                sock = thief.connection._client.socket()
                assert isinstance(sock, socket.socket)
                sock.shutdown(socket.SHUT_RDWR)
                await asyncio.wait_for(thief.connection.lost.wait(), 5)
        async with client(broker, A, trust.device(A).context()) as device:
            await device.connection.push(up(A), b"after")
        assert await cloud.receive() == (up(A), b"after")


async def test_the_status_is_retained_for_who_comes_later_and_can_be_cleared(
    broker: Broker, trust: Trust
) -> None:
    async with client(broker, COORDINATOR, client_context(trust.server)) as cloud:
        await cloud.connection.announce(STATUS, b"17", retain=True)
        async with client(broker, A, trust.device(A).context()) as device:
            await device.connection.listen(STATUS)
            assert await device.receive() == (STATUS, b"17")
            await cloud.connection.announce(STATUS, b"", retain=True)
            assert await device.receive() == (STATUS, b"")
        async with client(broker, A, trust.device(A).context()) as device:
            await device.connection.listen(STATUS, down(A))
            await cloud.connection.push(down(A), b"first")
            assert await device.receive() == (down(A), b"first")


async def test_an_expelled_device_is_cut_and_nobody_else(broker: Broker, trust: Trust) -> None:
    async with (
        client(broker, COORDINATOR, client_context(trust.server)) as cloud,
        client(broker, A, trust.device(A).context()) as device,
        client(broker, B, trust.device(B).context()) as bystander,
    ):
        await device.connection.listen(down(A))
        await broker.expel(A)
        await asyncio.wait_for(device.connection.lost.wait(), 5)
        await cloud.connection.listen("skerry/v1/up/+")
        await expect_silence(broker, trust, cloud)
        await bystander.connection.push(up(B), b"untouched")
        assert await cloud.receive() == (up(B), b"untouched")


async def test_a_device_revoked_before_the_start_has_no_rights(
    config: BrokerConfig, trust: Trust
) -> None:
    async with (
        open_broker(replace(config, denied=frozenset({A}))) as broker,
        client(broker, COORDINATOR, client_context(trust.server)) as cloud,
    ):
        await cloud.connection.listen("skerry/v1/up/+")
        await expect_silence(broker, trust, cloud)


async def expect_silence(broker: Broker, trust: Trust, cloud: Client) -> None:
    """Connect as the expelled device again, and see that nothing passes in either direction."""
    with contextlib.suppress(LinkError):  # amqtt refuses the connection, mosquitto every topic
        async with client(broker, A, trust.device(A).context()) as again:
            await again.connection.listen(down(A), cast(DIGEST))
            await again.connection.push(up(A), b"still trying")
            await cloud.connection.push(down(A), b"for nobody")
            await cloud.connection.push(cast(DIGEST), b"for others")
            await asyncio.wait_for(again.connection.subscribe(STATUS), 5)  # all that has passed
            assert again.inbox.empty()
    assert cloud.inbox.empty()


async def test_a_packet_beyond_the_limit_cuts_its_sender_and_nobody_else(
    config: BrokerConfig, trust: Trust
) -> None:
    async with (
        open_broker(replace(config, max_packet=32 * 1024)) as broker,
        client(broker, COORDINATOR, client_context(trust.server)) as cloud,
        client(broker, A, trust.device(A).context()) as device,
        client(broker, B, trust.device(B).context()) as bystander,
    ):
        await cloud.connection.listen("skerry/v1/up/+")
        if broker.kind == "mosquitto":  # MQTT 5 announces the limit
            assert 31 * 1024 < device.connection.max_packet < 32 * 1024
        await device.connection.push(up(A), b"x" * 40_000)
        await asyncio.wait_for(device.connection.lost.wait(), 5)
        await bystander.connection.push(up(B), b"x" * 30_000)
        topic, packet = await cloud.receive()
        if topic == up(A):  # the will
            topic, packet = await cloud.receive()
        assert (topic, len(packet)) == (up(B), 30_000)


async def test_a_port_in_use_is_one_clear_line(config: BrokerConfig) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"cannot listen on 127.0.0.1:{port}: Address"):
            async with open_broker(replace(config, port=port)):
                pass


@needs_mosquitto
async def test_mosquitto_is_started_again_when_it_dies(trust: Trust, tmp_path: Path) -> None:
    config = BrokerConfig(state=tmp_path, choice="auto", port=0, keys=trust.server)
    async with open_broker(config) as broker:
        assert isinstance(broker, Mosquitto)
        first = broker.pid
        assert first is not None
        os.kill(first, signal.SIGKILL)
        await eventually("another mosquitto", lambda: broker.pid not in (None, first))
        async with asyncio.timeout(10):
            while True:
                with contextlib.suppress(LinkError):
                    async with client(broker, A, trust.device(A).context()) as device:
                        await device.connection.listen(down(A))
                        break
                await asyncio.sleep(0.05)
        second = broker.pid
    assert second is not None
    with pytest.raises(ProcessLookupError):
        os.kill(second, 0)


@needs_mosquitto
async def test_a_mosquitto_that_cannot_start_says_why(trust: Trust, tmp_path: Path) -> None:
    broken = replace(trust.server, certificate=tmp_path / "absent.pem")
    config = BrokerConfig(state=tmp_path, choice="mosquitto", port=0, keys=broken)
    with pytest.raises(ConfigError, match="Unable to load server certificate"):
        async with open_broker(config):
            pass


@needs_mosquitto
async def test_mosquitto_dies_with_the_coordinator(trust: Trust, tmp_path: Path) -> None:
    script = f"""
import asyncio, pathlib, sys
from skerry_cloud.brokers import BrokerConfig, open_broker
async def main():
    state = pathlib.Path({str(tmp_path / "state")!r})
    config = BrokerConfig(state=state, choice="mosquitto", port=0)
    async with open_broker(config) as broker:
        print(broker.pid, flush=True)
        await asyncio.sleep(60)
asyncio.run(main())
"""
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", script, stdout=asyncio.subprocess.PIPE
    )
    assert parent.stdout is not None
    child = int(await asyncio.wait_for(parent.stdout.readline(), 20))
    parent.kill()
    await parent.wait()
    await eventually("the end of mosquitto", lambda: not _runs(child))


def _runs(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


async def test_plaintext_is_for_loopback_only(tmp_path: Path) -> None:
    for choice in ("embedded", "auto"):
        config = BrokerConfig(state=tmp_path, choice=choice, host="0.0.0.0", port=0)
        with pytest.raises(ConfigError, match="loopback only"):
            async with open_broker(config):
                pass
    with pytest.raises(ConfigError, match="not encrypted"):
        async with open_broker(BrokerConfig(state=tmp_path, choice="mqtt://broker.example")):
            pass


@pytest.mark.parametrize("kind", KINDS)
async def test_plaintext_clients_have_the_same_rights_by_the_name_they_give(
    kind: str, tmp_path: Path
) -> None:
    config = BrokerConfig(state=tmp_path, choice=kind, port=0)
    async with (
        open_broker(config) as broker,
        client(broker, COORDINATOR, None) as cloud,
        client(broker, A, None) as device,
    ):
        assert broker.url.startswith("mqtt://127.0.0.1:")
        await cloud.connection.listen("skerry/v1/up/+")
        await device.connection.push(up(B), b"forged")
        await device.connection.push(up(A), b"mine")
        assert await cloud.receive() == (up(A), b"mine")


async def test_a_broker_s_name_or_url_that_makes_no_sense_is_refused(
    tmp_path: Path, trust: Trust
) -> None:
    for choice in ("rabbit", "http://broker:1", "mqtts://", "mqtts://broker:port"):
        with pytest.raises(ConfigError):
            async with open_broker(BrokerConfig(state=tmp_path, choice=choice, keys=trust.server)):
                pass
    async with open_broker(
        BrokerConfig(state=tmp_path, choice="mqtts://broker.example", keys=trust.server)
    ) as external:
        assert (external.kind, external.address) == ("external", ("broker.example", 8883))


@needs_mosquitto
async def test_the_production_configuration_in_docker_carries_a_fleet_s_rights(
    trust: Trust, tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    text = (ROOT / "docker/mosquitto/mosquitto.conf").read_text()
    for there, here in (
        ("/mosquitto/config/acl", str(ROOT / "docker/mosquitto/acl")),
        ("/mosquitto/tls/ca.pem", str(trust.server.ca)),
        ("/mosquitto/tls/server.pem", str(trust.server.certificate)),
        ("/mosquitto/tls/server.key", str(trust.server.key)),
        ("listener 8883\n", f"user {getpass.getuser()}\nlistener {port} 127.0.0.1\n"),
    ):
        assert there in text
        text = text.replace(there, here)
    (tmp_path / "mosquitto.conf").write_text(text)
    process = await asyncio.create_subprocess_exec(
        mosquitto_program(),
        "-c",
        str(tmp_path / "mosquitto.conf"),
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        config = BrokerConfig(state=tmp_path, choice=f"mqtts://127.0.0.1:{port}", keys=trust.server)
        async with open_broker(config) as broker:
            await eventually("mosquitto", lambda: listens(port))
            await test_a_device_speaks_up_and_hears_down(broker, trust)
            await test_a_client_is_called_as_its_certificate_whatever_it_says(broker, trust)
            await test_nobody_can_have_a_will_on_another_s_topic(broker, trust)
            async with client(broker, B, trust.device(B).context()) as thief:
                for topic in (up(A), down(A), down(B), cast(DIGEST), STATUS, "elsewhere"):
                    with pytest.raises(LinkError, match="does not let"):
                        await thief.connection.announce(topic, b"forged")
    finally:
        process.terminate()
        await process.wait()


def test_the_production_rights_are_the_generated_ones() -> None:
    shipped = (ROOT / "docker/mosquitto/acl").read_text().splitlines()
    assert [line for line in shipped if line and not line.startswith("#")] == [
        line for line in rights(set()).splitlines() if line
    ]


async def test_many_clients_connect_and_subscribe_at_once(broker: Broker, trust: Trust) -> None:
    names = [f"dev-{number}" for number in range(40)]
    async with client(broker, COORDINATOR, client_context(trust.server)) as cloud:
        await cloud.connection.announce(STATUS, b"17", retain=True)
        await cloud.connection.listen("skerry/v1/up/+")

        async def visit(name: str) -> None:
            async with client(broker, name, trust.device(name).context()) as device:
                await device.connection.announce(up(name), b"hello")
                await device.connection.listen(down(name), STATUS)
                assert await device.receive() == (STATUS, b"17")

        await asyncio.gather(*map(visit, names))
        assert {await cloud.receive() for _ in names} == {(up(name), b"hello") for name in names}


async def test_garbage_and_silence_do_not_harm_the_others(broker: Broker, trust: Trust) -> None:
    tls = trust.device(B).context()
    host, port = broker.address
    async with (
        client(broker, COORDINATOR, client_context(trust.server)) as cloud,
        client(broker, A, trust.device(A).context()) as device,
    ):
        await cloud.connection.listen("skerry/v1/up/+")
        for garbage in (
            b"\x00",
            b"\xff" * 64,
            b"\x10\xff\xff\xff\x7f",
            b"GET / HTTP/1.1\r\n\r\n",
            b"",
        ):
            for context in (tls, None):
                with contextlib.suppress(OSError):
                    _, writer = await asyncio.open_connection(host, port, ssl=context)
                    writer.write(garbage)
                    await writer.drain()
                    writer.transport.abort()
        for number in range(50):
            await device.connection.push(up(A), b"%d" % number)
        assert [(await cloud.receive())[1] for _ in range(50)] == [b"%d" % n for n in range(50)]
