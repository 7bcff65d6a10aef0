"""The link over an MQTT broker: for a device that can reach no more than the broker's port.

The connection to the broker outlives sessions: when the coordinator goes or comes, which its
retained status says, the device waits or says Hello again on the same connection.
"""

import asyncio
import contextlib
import ipaddress
from collections.abc import AsyncIterator, Callable
from types import TracebackType

import aiomqtt
from skerry_protos.errors import ConfigError, LinkError, PeerError, RefusedError, SkerryError
from skerry_protos.messages import BlobRef, Digest
from skerry_protos.mqtt import Address, BrokerConnection, connect, parse_url
from skerry_protos.session import unpack
from skerry_protos.session.handshake import HELLO_S
from skerry_protos.topics import KEPT_SIZE, STATUS, cast, down, kept, up

from skerry_edge.links import LinkConfig
from skerry_edge.links.crossing import Crossing

COORDINATOR_S = HELLO_S - 3.0
"""How long an attempt waits for a coordinator that is not connected to the broker."""


class MqttWire:
    """One session's use of the connection; ends with either."""

    reliable = False

    def __init__(self, connection: BrokerConnection, topic: str) -> None:
        self._connection = connection
        self._topic = topic
        self._inbox: asyncio.Queue[bytes | SkerryError] = asyncio.Queue()
        self._take: Callable[[bytes], None] | None = None
        self._over: SkerryError | None = None
        self.max_packet = self.max_received = connection.max_packet
        self.chunk = connection.chunk
        self.exact = connection.secure

    async def send(self, packet: bytes) -> None:
        if self._over is not None:
            raise LinkError(str(self._over))
        await self._connection.push(self._topic, packet)

    async def receive(self) -> bytes:
        packet = await self._inbox.get()
        if isinstance(packet, SkerryError):
            raise packet
        return packet

    async def read(self, take: Callable[[bytes], None]) -> None:
        """Hand over every packet in the call that it arrives in: no queue, no task switch."""
        while not self._inbox.empty():
            take(await self.receive())
        self._take = take
        await self.receive()

    def put(self, packet: bytes) -> None:
        """Take a packet that arrived."""
        if self._take is None:
            self._inbox.put_nowait(packet)
        elif self._over is None:
            try:
                self._take(packet)
            except SkerryError as error:
                self._end(error)

    def end(self, why: str) -> None:
        """Let `send` and `receive` raise from now on."""
        self._end(LinkError(why))

    def _end(self, error: SkerryError) -> None:
        if self._over is None:
            self._over = error
            self._inbox.put_nowait(error)


class MqttLink(Crossing):
    """A Link by way of an MQTT broker."""

    def __init__(self, config: LinkConfig, *, ping_s: float = 10.0) -> None:
        super().__init__(
            config,
            self._dial_broker,
            ping_s=ping_s,
            on_want=self._want,
            on_unwant=self._unwant,
            on_ask=self._ask,
        )
        secure, self._host, self._port = parse_url(config.url)
        if secure and config.credentials is None:
            raise ConfigError(f"{config.url} needs the device's certificate", hint="join first")
        if not secure and not _is_loopback(self._host):
            raise ConfigError(
                f"{config.url} is not encrypted, and {self._host} is not loopback",
                hint="use mqtts://",
            )
        self._up, self._down = up(config.device), down(config.device)
        self._credentials = config.credentials if secure else None
        self._connection: BrokerConnection | None = None
        self._epoch = b""
        self._came = asyncio.Event()  # set while the coordinator is connected to the broker
        self._wire: MqttWire | None = None
        self._wanted: dict[Digest, set[str]] = {}  # and the chunks' topics that we listen to

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await super().__aexit__(kind, error, traceback)
        await self._hang_up()

    @contextlib.asynccontextmanager
    async def _dial_broker(self) -> AsyncIterator[MqttWire]:
        connection = await self._connected()
        try:
            async with asyncio.timeout(COORDINATOR_S):
                await self._came.wait()
        except TimeoutError:
            raise LinkError(
                f"{self._config.url}: the broker answers, but no coordinator is connected to it"
            ) from None
        epoch = self._epoch
        wire = MqttWire(connection, self._up)
        self._wire = wire
        refused = False
        try:
            yield wire
        except RefusedError:
            refused = True
            raise
        finally:
            self._wire = None
            wire.end("the connection was closed")
            # Silence may be the connection's fault; a coordinator that went or refused is not.
            if not refused and self._came.is_set() and self._epoch == epoch:
                await self._hang_up()

    async def _connected(self) -> BrokerConnection:
        """Return the connection to the broker, made anew if there is none, or raise LinkError."""
        if self._connection is not None and not self._connection.lost.is_set():
            return self._connection
        await self._hang_up()
        self._came.clear()
        device = self._config.device
        tls = await asyncio.to_thread(self._credentials.context) if self._credentials else None
        connection = await connect(
            Address(host=self._host, port=self._port, name=device, tls=tls),
            on_message=self._hear,
            on_lost=self._lost,
            will=aiomqtt.Will(self._up, b""),
        )
        try:
            # Whatever connection we had before is gone; and may we write to our topic at all?
            await connection.announce(self._up, b"")
            await connection.listen(self._down, STATUS)
            listened: set[Digest] = set()
            for topics in self._wanted.values():
                topics.clear()
            while fresh := self._wanted.keys() - listened:
                listened |= fresh
                await connection.listen(*(cast(digest) for digest in fresh))
        except BaseException:
            await connection.close()
            raise
        self._connection = connection
        return connection

    async def _hang_up(self) -> None:
        """Close the connection, and say so first: a last will is for those who cannot."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(LinkError):
                connection.push_now(self._up, b"")
            await connection.close()

    def _lost(self, why: str) -> None:
        self._came.clear()
        if self._wire is not None:
            self._wire.end(why)

    def _hear(self, topic: str, packet: bytes) -> None:
        if topic == self._down:
            if self._wire is not None and packet:
                self._wire.put(packet)
        elif topic == STATUS:
            self._hear_status(packet)
        else:
            with contextlib.suppress(PeerError):  # the broadcast is not this session's fault
                self.session.receive_cast(*unpack(packet))

    def _hear_status(self, epoch: bytes) -> None:
        before, self._epoch = self._epoch, epoch
        if epoch:
            self._came.set()
        else:
            self._came.clear()
        if self._wire is not None and epoch != before:
            why = "has connected again" if epoch else "has left the broker"
            self._wire.end(f"{self._config.url}: the coordinator {why}")

    async def _want(self, digest: Digest) -> None:
        self._wanted[digest] = set()
        if self._connection is not None:
            with contextlib.suppress(LinkError):
                await self._connection.listen(cast(digest))

    def _ask(self, ref: BlobRef, offsets: list[int], again: bool) -> None:
        """Have the broker hand over what it keeps of these chunks, now or when they come.

        Each by its own name: all at once would come from the first again after every cut.
        """
        known = self._wanted.get(ref.digest)
        if known is None or self._connection is None:
            return
        if self.hears_kept and ref.size <= KEPT_SIZE:
            topics = [kept(ref.digest, offset) for offset in offsets]
            self._connection.listen_now(*(t for t in topics if again or t not in known))
            known.update(topics)

    def _unwant(self, digest: Digest) -> None:
        topics = self._wanted.pop(digest, set())
        if self._connection is not None:
            self._connection.ignore(cast(digest), *topics)


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
