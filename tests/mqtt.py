"""A raw MQTT client for tests, and the mosquitto of this machine."""

import asyncio
import contextlib
import os
import shutil
import socket
import ssl
from collections.abc import AsyncIterator

import aiomqtt
from skerry_cloud.brokers import Broker
from skerry_protos.mqtt import Address, BrokerConnection, connect
from skerry_protos.topics import up


def _found() -> str | None:
    return shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin")


def mosquitto_present() -> bool:
    """Return whether the tests may use a mosquitto; SKERRY_TEST_NO_MOSQUITTO=1 hides it."""
    return os.environ.get("SKERRY_TEST_NO_MOSQUITTO") != "1" and _found() is not None


def mosquitto_program() -> str:
    """Return the path of mosquitto, which is present."""
    program = _found()
    assert program is not None
    return program


class Client:
    """A raw MQTT client that keeps what it received."""

    def __init__(self, connection: BrokerConnection, inbox: asyncio.Queue[tuple[str, bytes]]):
        self.connection = connection
        self.inbox = inbox

    async def receive(self) -> tuple[str, bytes]:
        return await asyncio.wait_for(self.inbox.get(), 5)


@contextlib.asynccontextmanager
async def client(
    broker: Broker, name: str, tls: ssl.SSLContext | None, will: str = ""
) -> AsyncIterator[Client]:
    inbox: asyncio.Queue[tuple[str, bytes]] = asyncio.Queue()
    host, port = broker.address
    connection = await connect(
        Address(host=host, port=port, name=name, tls=tls),
        on_message=lambda topic, packet: inbox.put_nowait((topic, packet)),
        will=aiomqtt.Will(will or up(name), b""),
    )
    try:
        yield Client(connection, inbox)
    finally:
        await connection.close()


def listens(port: int) -> bool:
    """Return whether something listens on a port of 127.0.0.1."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False
