"""Who gets in while somebody floods the door."""

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from skerry_cloud import door
from skerry_cloud.brokers import server_context
from skerry_cloud.door import Door, source_of

from tests.certificates import Trust
from tests.conformance.harness import until

FLOOD = 200
HELLO = bytes.fromhex("16030100c8010000c40303")


class Greeting(asyncio.Protocol):
    """Says one word and hangs up."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.write(b"welcome")
        transport.close()


@contextlib.asynccontextmanager
async def opened(tls: ssl.SSLContext | None) -> AsyncIterator[tuple[Door, int]]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        made = Door(listener, Greeting, tls)
        try:
            yield made, listener.getsockname()[1]
        finally:
            made.close()
            await made.wait_closed()
            assert not made._under_way
            assert not made._each


async def heard(port: int, tls: ssl.SSLContext | None, source: str = "127.0.0.1") -> bytes:
    """Return what the door says to a newcomer."""
    async with asyncio.timeout(5):
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", port, ssl=tls, local_addr=(source, 0)
        )
        try:
            return await reader.read()
        finally:
            writer.close()


@contextlib.asynccontextmanager
async def flood(port: int, said: bytes) -> AsyncIterator[None]:
    """Hold many connections that never say more."""
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(FLOOD):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            stack.callback(writer.close)
            writer.write(said)
        yield


async def test_handshakes_that_never_end_make_room_for_those_that_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(door, "UNDER_WAY_EACH", 16)
    monkeypatch.setattr(door, "RATE", 1000.0)
    trust = Trust(tmp_path)
    tls = trust.device("alpha").context()
    async with opened(server_context(trust.server)) as (made, port), flood(port, HELLO):
        assert await heard(port, tls) == b"welcome"
        await until(lambda: not made._waiting, "all have had their turn")
        assert 0 < len(made._under_way) <= 16


async def test_a_source_does_not_wait_behind_another_s_connections(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(door, "RATE", 5.0)
    monkeypatch.setattr(door, "BURST", 5.0)
    async with opened(None) as (made, port), flood(port, b""):
        await until(lambda: made._count > FLOOD / 2, "many wait")
        assert await heard(port, None, "127.0.0.2") == b"welcome"
        assert made._count > FLOOD / 2


async def test_too_many_that_wait_are_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door, "RATE", 1.0)
    monkeypatch.setattr(door, "BURST", 1.0)
    monkeypatch.setattr(door, "WAITING_EACH", 20)
    async with opened(None) as (made, port), flood(port, b""):
        with contextlib.suppress(ConnectionError):
            assert await heard(port, None) == b""
        assert made._count <= 20


def test_an_ipv6_network_is_one_source() -> None:
    assert source_of("2001:db8::1:2:3:4") == source_of("2001:db8::ffff:2:3:9%eth0")
    assert source_of("2001:db8::1") != source_of("2001:db8:0:1::1")
    assert source_of("::ffff:10.1.2.3") == source_of("10.1.2.3") == "10.1.2.3"
