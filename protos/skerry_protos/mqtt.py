"""One connection to an MQTT broker, the same for a device and the coordinator.

aiomqtt connects, subscribes and keeps alive; packets go past its queues in both directions: out
through a bounded buffer, in by a callback. All packets are QoS 0: delivery is the session's work,
a broker's acknowledgement promises one hop only (RELIABILITY.md 0.1), and at QoS 1 messages
overtake each other and cost twice the CPU.

The only module here that needs aiomqtt; the `mqtt` extra of skerry-edge and skerry-cloud bring it.
"""

import asyncio
import contextlib
import logging
import socket
import ssl
import threading
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

import aiomqtt
from aiomqtt.exceptions import MqttConnectError
from paho.mqtt.enums import MQTTErrorCode
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from skerry_protos.errors import ConfigError, LinkError

log = logging.getLogger(__name__)

T = TypeVar("T")

CONNECT_S = 10.0
KEEPALIVE_S = 30
BUFFER: Final = 256 * 1024
"""Bytes written and not on the socket yet, beyond which `push` waits."""
BUFFERED: Final = 64
"""The same in packets, for small ones."""
CHUNK: Final = 256 * 1024
"""Largest chunk of a blob, where the broker says that it takes such packets. Beside 64 KiB, a round
of 8 devices and 4 MB takes a quarter less processor time."""
CAREFUL_CHUNK: Final = 64 * 1024
"""The same where the broker says nothing; a service's limit of 128 kB is common."""
FRAME: Final = 512
"""Room for what is not data of a frame."""
PACKET: Final = CHUNK + 4 * FRAME
"""Largest packet we make, where the broker takes it: pieces of a stream share one."""
ENVELOPE: Final = 160
"""Bytes that MQTT adds to a packet at most: header, topic and properties."""
VERSIONS: Final = (aiomqtt.ProtocolVersion.V5, aiomqtt.ProtocolVersion.V311)
UNSUPPORTED_VERSION: Final = frozenset({1, 132})
"""CONNACK codes for "not this MQTT version", of a 3.1.1 broker and of MQTT 5."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """A broker and who we are to it; without TLS the broker believes the name."""

    host: str
    port: int
    name: str
    tls: ssl.SSLContext | None

    def __str__(self) -> str:
        return f"{'mqtts' if self.tls else 'mqtt'}://{self.host}:{self.port}"


_old_brokers: set[tuple[str, int]] = set()
"""Brokers of MQTT 3.1.1, so that not every connection of this process begins with a refusal."""


def parse_url(url: str) -> tuple[bool, str, int]:
    """Return (TLS, host, port) of an mqtts:// or mqtt:// URL, or raise ConfigError."""
    parts = urlsplit(url)
    try:
        port = parts.port
    except ValueError as error:
        raise ConfigError(f"{url}: {error}") from error
    if parts.scheme not in ("mqtts", "mqtt") or not parts.hostname or parts.path not in ("", "/"):
        raise ConfigError(f"{url!r} is not a broker's URL; expected mqtts://host:port")
    secure = parts.scheme == "mqtts"
    return secure, parts.hostname, port or (8883 if secure else 1883)


class _Socket(ssl.SSLSocket):
    """paho leaves the socket open when the handshake fails, and waits a keep-alive for it."""

    def do_handshake(self, block: bool = False) -> None:
        self.settimeout(CONNECT_S)
        try:
            super().do_handshake(block)
        except BaseException:
            self.close()
            raise


class BrokerConnection(aiomqtt.Client):
    """Publishes and receives until it is lost or closed; never used again after that."""

    def __init__(
        self,
        address: Address,
        *,
        on_message: Callable[[str, bytes], None],
        on_lost: Callable[[str], None],
        will: aiomqtt.Will,
        version: aiomqtt.ProtocolVersion,
    ) -> None:
        """Prepare a connection; `connect` opens it."""
        if address.tls is not None:
            address.tls.sslsocket_class = _Socket
        super().__init__(
            address.host,
            address.port,
            identifier=address.name,
            username=None if address.tls else address.name,
            protocol=version,
            will=will,
            timeout=CONNECT_S,
            keepalive=KEEPALIVE_S,
            tls_context=address.tls,
            # Without it, Nagle's algorithm and delayed acknowledgements cost 40 ms a message.
            socket_options=[(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)],
        )
        self._client.connect_timeout = CONNECT_S / 2
        self._address = address
        self._deliver = on_message
        self._on_lost = on_lost
        self._announced: int | None = None
        self._newest = version is aiomqtt.ProtocolVersion.V5
        self._retains = True
        self._thread = threading.get_ident()
        self._writes_itself = False
        self._room = asyncio.Event()
        self._turns = asyncio.Lock()
        self._dropped = False
        self._denied = False
        self.pushed = 0
        self.lost = asyncio.Event()
        self.why = ""

    @property
    def secure(self) -> bool:
        """Whether this is TLS."""
        return self._address.tls is not None

    @property
    def keeps(self) -> bool:
        """Whether the broker keeps messages, and forgets them by itself after a time (MQTT 5)."""
        return self._newest and self._retains

    @property
    def chunk(self) -> int:
        """The largest chunk of a blob."""
        return min(CAREFUL_CHUNK if self._announced is None else CHUNK, self.max_packet - FRAME)

    @property
    def max_packet(self) -> int:
        """The largest packet to make: ours, or less where the broker says so (MQTT 5).

        A 3.1.1 broker says nothing and closes the connection; the session then makes less of them.
        """
        return PACKET if self._announced is None else min(PACKET, self._announced - ENVELOPE)

    async def open(self) -> None:
        """Connect, or raise LinkError."""
        opening = asyncio.ensure_future(self.__aenter__())
        try:
            await asyncio.shield(opening)
        except asyncio.CancelledError:
            # paho connects in a thread, which cannot be stopped: wait, then close what it opened.
            await asyncio.wait({opening}, timeout=2 * CONNECT_S)
            self._drop()
            raise
        except MqttConnectError:
            self._drop()
            raise
        except (aiomqtt.MqttError, OSError) as error:
            self._drop()
            raise LinkError(f"{self._address}: {error}") from error
        self._client.on_publish = None
        self._disconnected.add_done_callback(self._ended)

    async def close(self) -> None:
        """Say goodbye if that is possible, and close; the broker publishes no will then."""
        if not self.lost.is_set():
            self.timeout = 2.0
            with contextlib.suppress(aiomqtt.MqttError, OSError):
                await self.__aexit__(None, None, None)
        self._end("the connection was closed")
        self._drop()

    async def push(self, topic: str, packet: bytes, *, keep_s: int = 0) -> None:
        """Send one packet at QoS 0, waiting for room first; raise LinkError once it is lost.

        With `keep_s` the broker keeps it for who subscribes later, an empty one instead of what it
        kept; a broker of MQTT 3.1.1 keeps it until then.

        Not to be called from within `on_message`: paho cannot write there.
        """
        if self._full:
            async with self._turns:  # first come, first served
                while self._full and not self.lost.is_set():
                    self._room.clear()
                    # Only while somebody waits: paho makes four objects for each call of it.
                    self._client.on_publish = self._on_publish
                    await self._room.wait()
        self._writes_itself = True
        try:
            self.push_now(topic, packet, keep_s=keep_s)
        finally:
            self._writes_itself = False
        self._write()

    @property
    def _full(self) -> bool:
        waiting = self._client._out_packet
        if not waiting:
            return False
        left = sum(packet["to_process"] for packet in waiting)
        return len(waiting) >= BUFFERED or left >= BUFFER

    def push_now(self, topic: str, packet: bytes, *, keep_s: int = 0) -> None:
        """Send one packet at QoS 0 without waiting."""
        if self.lost.is_set():
            raise LinkError(self.why)
        lasting: Any = None
        if keep_s and self._newest:
            lasting = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
            lasting.MessageExpiryInterval = keep_s
        try:
            info = self._client.publish(topic, packet, retain=keep_s > 0, properties=lasting)
        except (ValueError, OSError) as error:
            raise LinkError(f"{self._address}: {error}") from error
        if info.rc != MQTTErrorCode.MQTT_ERR_SUCCESS:
            raise LinkError(f"{self._address}: cannot publish: {info.rc.name}")
        self.pushed += len(packet)

    async def listen(self, *topics: str) -> None:
        """Subscribe to topics at QoS 0, or raise LinkError."""
        try:
            codes = await self._answered(self.subscribe([(topic, 0) for topic in topics]))
        except (aiomqtt.MqttError, ValueError) as error:
            raise LinkError(f"{self._address}: cannot subscribe: {error}") from error
        refused = [t for t, code in zip(topics, codes, strict=True) if _number(code) >= 0x80]
        if refused:
            raise LinkError(f"{self._address} does not let us read {refused[0]}")

    async def announce(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        """Publish at QoS 1, or raise LinkError: also where the broker denies the topic (MQTT 5)."""
        self._denied = False
        self._client.on_publish = self._on_publish
        try:
            await self._answered(self.publish(topic, payload, qos=1, retain=retain))
        except aiomqtt.MqttError as error:
            raise LinkError(f"{self._address}: cannot publish {topic}: {error}") from error
        if self._denied:
            raise LinkError(f"{self._address} does not let {self._address.name} write to {topic}")

    async def _answered(self, question: Coroutine[Any, Any, T]) -> T:
        """Return the broker's answer; aiomqtt would wait for it when the connection is lost."""
        asking = asyncio.create_task(question)
        lost = asyncio.create_task(self.lost.wait())
        try:
            await asyncio.wait({asking, lost}, return_when=asyncio.FIRST_COMPLETED)
            if not asking.done():
                raise LinkError(self.why)
            return asking.result()
        finally:
            asking.cancel()
            lost.cancel()

    def listen_now(self, *topics: str) -> None:
        """Subscribe to topics at QoS 0, without waiting for the broker's word.

        To one listened to already: then the broker sends what it keeps there once more.
        """
        if topics and not self.lost.is_set():
            self._client.subscribe([(topic, 0) for topic in topics])

    def ignore(self, *topics: str) -> None:
        """Unsubscribe from topics, without waiting for the broker's word."""
        if topics and not self.lost.is_set():
            self._client.unsubscribe(list(topics))

    # --- what paho calls, in the event loop

    def _on_connect(
        self, client: Any, userdata: Any, flags: Any, reason_code: Any, properties: Any = None
    ) -> None:
        self._announced = getattr(properties, "MaximumPacketSize", None)
        self._retains = bool(getattr(properties, "RetainAvailable", 1))
        super()._on_connect(client, userdata, flags, reason_code, properties)

    def _on_disconnect(
        self, client: Any, userdata: Any, flags: Any, reason_code: Any, properties: Any = None
    ) -> None:
        if not self._connected.done():  # aiomqtt would wait for its timeout
            if not self._dropped:
                self._connected.set_exception(aiomqtt.MqttError("the broker closed the connection"))
            return
        super()._on_disconnect(client, userdata, flags, reason_code, properties)

    def _on_subscribe(
        self, client: Any, userdata: Any, mid: int, reason_codes: Any, properties: Any = None
    ) -> None:
        if mid in self._pending_subscribes:  # else of `listen_now`, which nobody waits for
            super()._on_subscribe(client, userdata, mid, reason_codes, properties)

    def _on_unsubscribe(self, *args: Any) -> None:
        """Take the answer to `ignore`, which nobody waits for."""

    def _on_message(self, client: Any, userdata: Any, message: Any) -> None:  # noqa: ARG002
        try:
            self._deliver(message.topic, message.payload)
        except Exception:  # one sender's packet must not end the connection of all
            log.exception("a packet on %r could not be taken", message._topic[:100])

    def _on_publish(
        self, client: Any, userdata: Any, mid: int, reason_code: Any, properties: Any
    ) -> None:
        self._denied |= _number(reason_code) >= 0x80
        super()._on_publish(client, userdata, mid, reason_code, properties)
        if not self._full:
            self._room.set()
            if not self._pending_publishes:
                client.on_publish = None

    def _on_socket_register_write(self, client: Any, userdata: Any, sock: Any) -> None:
        # aiomqtt has the selector tell it that the socket takes data, which costs a turn of the
        # loop and four system calls for each packet; it nearly always does.
        if threading.get_ident() != self._thread:
            super()._on_socket_register_write(client, userdata, sock)
        elif not self._writes_itself:
            self._loop.call_soon(self._write)

    def _write(self) -> None:
        try:
            self._client.loop_write()
        except Exception as error:  # noqa: BLE001 (as aiomqtt: the connection is broken)
            if not self._disconnected.done():
                self._disconnected.set_exception(error)
            return
        sock = self._client.socket()
        if sock is not None and self._client.want_write():
            super()._on_socket_register_write(self._client, None, sock)

    # --- the end

    def _ended(self, disconnected: asyncio.Future[None]) -> None:
        error = None if disconnected.cancelled() else disconnected.exception()
        self._end(str(error or "the broker closed the connection"))

    def _end(self, why: str) -> None:
        if not self.lost.is_set():
            self.why = f"{self._address}: {why}"
            self.lost.set()
            self._room.set()
            self._on_lost(self.why)

    def _drop(self) -> None:
        """Close the socket in any state; neither aiomqtt nor paho have a public way."""
        self._dropped = True
        with contextlib.suppress(OSError):
            self._client._sock_close()


async def connect(
    address: Address,
    *,
    on_message: Callable[[str, bytes], None],
    on_lost: Callable[[str], None] = lambda _why: None,
    will: aiomqtt.Will,
) -> BrokerConnection:
    """Return an open connection: MQTT 5 where the broker has it, else 3.1.1; or raise LinkError.

    `on_message` is told every message's topic and packet; it must neither wait nor raise.
    """
    place = (address.host, address.port)
    versions = VERSIONS if place not in _old_brokers else VERSIONS[::-1]
    for version in versions:
        connection = BrokerConnection(
            address, on_message=on_message, on_lost=on_lost, will=will, version=version
        )
        try:
            await connection.open()
        except MqttConnectError as error:
            if _number(error.rc) not in UNSUPPORTED_VERSION:
                raise LinkError(f"{address} refuses {address.name}: {error}") from error
            if version is aiomqtt.ProtocolVersion.V5:
                _old_brokers.add(place)
            else:
                _old_brokers.discard(place)
        else:
            return connection
    raise LinkError(f"{address} speaks neither MQTT 5 nor 3.1.1")


def _number(code: Any) -> int:
    """Return the number of a reason code, of MQTT 5 (an object) or 3.1.1 (an int)."""
    return int(getattr(code, "value", code))
