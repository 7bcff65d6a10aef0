"""The broker that needs nothing installed: amqtt in this process, for one machine and for tests.

amqtt speaks MQTT 3.1.1 and is meant to be configured, not trusted: what it does not bound, we do.
Our own listener demands a client certificate and hands amqtt the connection by its public
`external_connected`; `_Reader` and `_Writer` bound what one client can send and what it may leave
unread; `_Broker` overrides the few steps of amqtt 0.11.4 (pinned) that are unsafe or slow: the
client's name, the topic rights, and the way of a message, which here goes straight to its readers
at QoS 0, since delivery is the session's work.
"""

import asyncio
import contextlib
import logging
import socket
import ssl
import warnings
from types import TracebackType
from typing import Any, Self

with warnings.catch_warnings():  # passlib, which amqtt imports, imports the deprecated crypt
    warnings.simplefilter("ignore", DeprecationWarning)
    from amqtt.adapters import StreamReaderAdapter, StreamWriterAdapter
    from amqtt.broker import Broker as AmqttBroker
    from amqtt.contexts import BrokerConfig as AmqttConfig
    from amqtt.contexts import ListenerConfig, ListenerType
    from amqtt.mqtt.protocol.broker_handler import BrokerProtocolHandler
    from amqtt.mqtt.publish import PublishPacket

from skerry_protos.messages import DeviceId
from skerry_protos.topics import COORDINATOR, Action, allowed

from skerry_cloud.brokers import BrokerConfig, broker_url, listen, reachable, server_context
from skerry_cloud.door import Door

log = logging.getLogger(__name__)

CONNECT_S = 10.0
CONNECTIONS = 2000
UNREAD_DEVICE = 16 * 1024 * 1024
UNREAD_COORDINATOR = 128 * 1024 * 1024
"""Bytes a client may leave unread; beyond them its messages are dropped, as at any broker."""
PENDING = 64
"""Packets read from one client and not passed on yet; beyond them it is not read."""
_REFUSED = 0x80
_WRONG_VERSION = bytes((0x20, 2, 0, 1))
"""CONNACK: unacceptable protocol version."""


class EmbeddedBroker:
    """Listens while the context is open."""

    kind = "embedded"

    def __init__(self, config: BrokerConfig) -> None:
        self._config = config
        self._denied: set[str] = set(config.denied)
        self._amqtt: _Broker | None = None
        self._door: Door | None = None
        self._listener: socket.socket | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.keys = config.keys
        self.address = (reachable(config.host), config.port)
        self.url = ""

    async def __aenter__(self) -> Self:
        # amqtt logs what a client did wrong as warnings and errors, one or more for each packet.
        logging.getLogger("amqtt").setLevel(logging.CRITICAL)
        logging.getLogger("transitions").setLevel(logging.ERROR)
        listener = self._listener = listen(self._config)
        try:
            self._amqtt = _Broker(self._denied)
            await self._amqtt.start()
            tls = server_context(self.keys) if self.keys else None
            self._door = Door(listener, self._protocol, tls, shutdown_s=1.0)
        except BaseException:
            await self._stop()
            raise
        port = int(listener.getsockname()[1])
        self.address = (self.address[0], port)
        self.url = broker_url(self._config, port)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._stop()

    async def expel(self, device: DeviceId) -> None:
        """Take the device's rights and close its connection."""
        self._denied.add(device)
        if self._amqtt:
            self._amqtt.cut(device)

    def _protocol(self) -> asyncio.StreamReaderProtocol:
        loop = asyncio.get_running_loop()
        return asyncio.StreamReaderProtocol(asyncio.StreamReader(loop=loop), self._connected, loop)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is None or self._amqtt is None or len(self._tasks) >= CONNECTIONS:
            writer.transport.abort()
            return
        self._tasks.add(task)
        identity = peer_name(writer) if self.keys else None
        try:
            if self.keys is None or (identity and identity not in self._denied):
                bounded = _Reader(reader, self._config.max_packet)
                if not await bounded.speaks_311():
                    writer.write(_WRONG_VERSION)
                    await writer.drain()
                    return
                await self._amqtt.external_connected(bounded, _Writer(writer, identity), "default")
        except Exception as error:  # noqa: BLE001 (amqtt lets anything through; one client's fault)
            log.debug("MQTT client %s: %s", identity, error)
        finally:
            self._tasks.discard(task)
            writer.transport.abort()

    async def _stop(self) -> None:
        if self._door is not None:
            self._door.close()
        if self._listener is not None:
            self._listener.close()
        for task in tuple(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(tuple(self._tasks), timeout=5.0)
        if self._amqtt is not None:
            with contextlib.suppress(Exception):
                await self._amqtt.shutdown()
            self._amqtt = None
        if self._door is not None:
            await self._door.wait_closed()


def peer_name(writer: asyncio.StreamWriter) -> str | None:
    """Return the common name in the client's verified certificate."""
    tls: ssl.SSLObject | None = writer.get_extra_info("ssl_object")
    certificate = (tls.getpeercert() if tls else None) or {}
    subject: Any = certificate.get("subject", ())
    names = [value for part in subject for key, value in part if key == "commonName"]
    return names[0] if len(names) == 1 else None


class _Reader(StreamReaderAdapter):  # type: ignore[misc]
    """Reads one client: no packet beyond the limit, no silence beyond its keep-alive."""

    def __init__(self, reader: asyncio.StreamReader, max_packet: int) -> None:
        super().__init__(reader)
        self._max_packet = max_packet
        self.silence_s: float | None = CONNECT_S
        self.waiting: asyncio.Queue[Any] | None = None
        self.drained = asyncio.Event()
        self._ahead = b""

    async def speaks_311(self) -> bool:
        """Return whether the CONNECT ahead is of MQTT 3.1.1; amqtt misreads others and hangs."""
        head = await self.read(2)
        while head[-1] & 0x80 and len(head) < 5:  # the length goes on
            head += await self.read(1)
        head += await self.read(7)  # the protocol's name, length first, and its level
        self._ahead = head
        return head.endswith(b"\x00\x04MQTT\x04")

    async def read(self, n: int = -1) -> bytes:
        if self._ahead:
            ahead, self._ahead = self._ahead[:n], self._ahead[n:]
            return ahead if len(ahead) == n else ahead + await self.read(n - len(ahead))
        if not 0 <= n <= self._max_packet:
            raise ConnectionError(f"a packet of {n} bytes, the limit is {self._max_packet}")
        while self.waiting is not None and self.waiting.qsize() >= PENDING:
            self.drained.clear()
            await self.drained.wait()
        async with asyncio.timeout(self.silence_s):
            data: bytes = await self._reader.readexactly(n)
        return data


class _Writer(StreamWriterAdapter):  # type: ignore[misc]
    """Writes to one client without ever waiting for it; `identity` is its certificate's name."""

    def __init__(self, writer: asyncio.StreamWriter, identity: str | None) -> None:
        super().__init__(writer)
        self.identity = identity
        self.is_closed = False

    @property
    def unread(self) -> int:
        return int(self._writer.transport.get_write_buffer_size())

    async def drain(self) -> None:
        if self.unread > UNREAD_COORDINATOR:
            self.cut()

    async def close(self) -> None:
        if not self.is_closed:
            self.is_closed = True
            self._writer.close()

    def cut(self) -> None:
        self.is_closed = True
        self._writer.transport.abort()


class _Broker(AmqttBroker):  # type: ignore[misc]
    """amqtt with our names, rights and routing."""

    def __init__(self, denied: set[str]) -> None:
        super().__init__(
            AmqttConfig(
                listeners={"default": ListenerConfig(type=ListenerType.EXTERNAL)}, plugins={}
            )
        )
        self._denied = denied
        self._clients: dict[str, tuple[_Reader, _Writer]] = {}

    def cut(self, client: str) -> None:
        """Close a client's connection now."""
        if client in self._clients:
            self._clients[client][1].cut()

    async def _initialize_client_session(
        self, reader: Any, writer: Any, *_: Any
    ) -> tuple[Any, Any]:
        # amqtt believes the client's own id, and with it anyone could end anyone's session: here
        # the certificate's name is both user name and client id, and a newcomer takes over.
        handler, session = await BrokerProtocolHandler.init_from_connect(
            reader, writer, self.plugins_manager
        )
        name = writer.identity or session.username or session.client_id
        if not session.clean_session or (
            session.will_topic is not None
            and not self._permits(name, Action.PUBLISH, session.will_topic)
        ):
            raise ConnectionError(f"{name} wants a kept session or a will that is not its own")
        session.username = session.client_id = name
        session.parent = 0
        # amqtt's own read timeout may cut a packet in two and then goes on reading.
        reader.waiting = session.delivered_message_queue
        reader.silence_s = session.keep_alive * 1.5 if session.keep_alive else None
        session.keep_alive = 0
        if name in self._clients:
            self._clients[name][1].cut()
        await self._delete_session(name)
        self._clients[name] = (reader, writer)
        return handler, session

    async def _handle_client_session(
        self, reader: Any, writer: Any, client_session: Any, *rest: Any
    ) -> None:
        name = client_session.client_id
        try:
            await super()._handle_client_session(reader, writer, client_session, *rest)
        finally:
            if self._clients.get(name, (None, None))[1] is writer:
                del self._clients[name]
                await self._delete_session(name)

    async def _authenticate(self, session: Any, _: Any) -> bool:
        return session.username not in self._denied

    def _permits(self, name: str, action: Action, topic: str) -> bool:
        return name not in self._denied and allowed(name, action, topic)

    async def add_subscription(self, subscription: tuple[str, int], session: Any) -> int:
        topic, _ = subscription
        if not self._permits(session.username, Action.SUBSCRIBE, topic):
            return _REFUSED
        granted: int = await super().add_subscription((topic, 0), session)
        return granted

    async def _publish_retained_messages_for_subscription(
        self, subscription: tuple[str, int], session: Any
    ) -> None:
        # amqtt calls this at each connect for the filters of everybody, and fails when one is
        # added meanwhile: never suspended here, and nothing for who has not subscribed.
        wanted, _ = subscription
        subscribers = self._subscriptions.get(wanted, ())
        client = self._clients.get(session.client_id)
        if client is None or all(other is not session for other, _ in subscribers):
            return
        limit = UNREAD_COORDINATOR if session.username == COORDINATOR else UNREAD_DEVICE
        exact = not set(wanted) & set("#+")
        for topic in (wanted,) if exact else tuple(self._retained_messages):
            kept = self._retained_messages.get(topic)
            if kept is not None and self._matches(topic, wanted):
                packet = PublishPacket.build(
                    topic, bytes(kept.data), None, False, 0, True
                ).to_bytes()
                if client[1].unread + len(packet) <= limit:
                    client[1].write(packet)

    async def _handle_unsubscription(
        self, client_session: Any, handler: Any, unsubscribe_waiter: asyncio.Future[Any]
    ) -> None:
        # amqtt keeps a filter that nobody has any more until the next client leaves; each blob
        # has filters of its own.
        await super()._handle_unsubscription(client_session, handler, unsubscribe_waiter)
        for topic in unsubscribe_waiter.result().topics:
            if not self._subscriptions.get(topic, True):
                del self._subscriptions[topic]

    async def _topic_filtering(self, session: Any, topic: str, action: Any) -> bool:  # noqa: ARG002
        return True  # decided in add_subscription and _handle_message_delivery

    async def _handle_message_delivery(
        self, client_session: Any, _: Any, wait_deliver: asyncio.Future[Any]
    ) -> bool:
        message = wait_deliver.result()
        if message is None:
            return True
        name = client_session.username
        if name in self._clients:
            self._clients[name][0].drained.set()
        if not message.topic or set(message.topic) & set("#+"):
            return False
        if self._permits(name, Action.PUBLISH, message.topic):
            self._route(message.topic, bytes(message.data))
            if message.retain:
                await self.retain_message(client_session, message.topic, message.data, 0)
        return True

    async def _broadcast_message(self, session: Any, topic: str | None, data: Any, *_: Any) -> None:
        # The way of a last will, checked when the client connected.
        if topic is not None and (session is None or session.username not in self._denied):
            self._route(topic, bytes(data or b""))

    def _route(self, topic: str, data: bytes) -> None:
        """Write a message to everyone who subscribed, and drop it for who does not read."""
        packet = b""
        for wanted, subscribers in self._subscriptions.items():
            if not self._matches(topic, wanted):
                continue
            for session, _ in subscribers:
                client = self._clients.get(session.client_id)
                if client is None or session.username in self._denied:
                    continue
                packet = (
                    packet or PublishPacket.build(topic, data, None, False, 0, False).to_bytes()
                )
                writer = client[1]
                limit = UNREAD_COORDINATOR if session.username == COORDINATOR else UNREAD_DEVICE
                if writer.unread + len(packet) <= limit:
                    writer.write(packet)
