"""The fleet over an MQTT broker: one connection for all devices, one session for each.

The broker has proved who speaks on a topic. What a broker may lose, repeat or reorder is the
session's to mend; what is here is who is there, and what is published once for many.
"""

import asyncio
import contextlib
import logging
import random
import secrets
from collections.abc import Coroutine, Iterable
from types import TracebackType
from typing import Any, Self

import aiomqtt
from skerry_protos.errors import LinkError, PeerError, RefusalCode, RefusedError
from skerry_protos.messages import BlobRef, DeviceId
from skerry_protos.mqtt import Address, BrokerConnection, connect
from skerry_protos.seams import Blobs
from skerry_protos.session import Inflow, Limits, unpack_all
from skerry_protos.session.handshake import refusal
from skerry_protos.topics import COORDINATOR, STATUS, UP_ALL, down, sender

from skerry_cloud.brokers import Broker, client_context
from skerry_cloud.fleets import Gate
from skerry_cloud.fleets.caster import Caster
from skerry_cloud.fleets.sessions import Sessions, Visit

log = logging.getLogger(__name__)

START_S = 15.0
BACKOFF_S = (0.1, 5.0)
REFUSE_EVERY_S = 1.0
"""A device that goes on without a session is told so this often at most."""
LAST_WORD_S = 0.3
"""How long a refusal may take to the device before its rights are taken."""


class MqttWire:
    """One device's pair of topics on the connection, from its Hello until it is gone."""

    reliable = False

    def __init__(self, connection: BrokerConnection, topic: str) -> None:
        self._connection = connection
        self._topic = topic
        self._over = False
        self.max_packet = connection.max_packet
        self.chunk = connection.chunk
        self.exact = connection.secure

    async def send(self, packet: bytes) -> None:
        if self._over:
            raise LinkError("the device's connection was closed")
        await self._connection.push(self._topic, packet)

    def end(self) -> None:
        self._over = True


class MqttFleet(Sessions):
    """The devices that are connected to the broker; an async context manager."""

    def __init__(
        self,
        *,
        gate: Gate,
        blobs: Blobs,
        broker: Broker,
        inflow: Inflow | None = None,
        limits: Limits | None = None,
        heartbeat_s: float = 15.0,
        resume_s: float = 120.0,
        ping_s: float = 10.0,
        most: int = 10_000,
    ) -> None:
        self._caster = Caster(blobs, lambda: self._connection)
        super().__init__(
            gate=gate,
            blobs=blobs,
            transport="mqtt",
            inflow=inflow,
            limits=limits,
            heartbeat_s=heartbeat_s,
            resume_s=resume_s,
            ping_s=ping_s,
            most=most,
            on_blob_request=self._caster.ask,
        )
        self._broker = broker
        self._connection: BrokerConnection | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._publisher: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._greeting: dict[DeviceId, bytes | None] = {}
        self._refused_s: dict[DeviceId, float] = {}

    @property
    def pushed(self) -> int:
        """Bytes given to the broker on the present connection."""
        return self._connection.pushed if self._connection else 0

    async def __aenter__(self) -> Self:
        try:
            async with asyncio.timeout(START_S):
                connection = await self._connect()
        except TimeoutError:
            host, port = self._broker.address
            raise LinkError(f"the broker at {host}:{port} does not answer") from None
        self._keeper = asyncio.create_task(self._keep(connection), name="mqtt fleet")
        self._publisher = asyncio.create_task(self._caster.run(), name="mqtt casts")
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        tasks = {task for task in (self._keeper, self._publisher, *self._tasks) if task}
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        await self.close()
        if self._connection is not None:
            with contextlib.suppress(LinkError):
                await self._caster.close()
                await self._connection.announce(STATUS, b"", retain=True)
            await self._connection.close()

    # --- the connection

    async def _connect(self) -> BrokerConnection:
        """Connect, listen and say that we are here, or raise LinkError."""
        host, port = self._broker.address
        tls = client_context(self._broker.keys) if self._broker.keys else None
        connection = await connect(
            Address(host=host, port=port, name=COORDINATOR, tls=tls),
            on_message=self._take,
            will=aiomqtt.Will(STATUS, b"", retain=True),
        )
        self._connection = connection
        try:
            await connection.listen(UP_ALL)
            await connection.announce(STATUS, str(secrets.randbits(62) + 1).encode(), retain=True)
        except BaseException:
            await connection.close()
            raise
        # A broker that does not forget by itself must be one that ends with us.
        self._caster.keeps = connection.keeps or self._broker.kind == "embedded"
        return connection

    async def _keep(self, connection: BrokerConnection) -> None:
        """Connect again whenever the connection is lost."""
        wait_s = BACKOFF_S[0]
        while True:
            await connection.lost.wait()
            log.warning("%s; connecting again", connection.why)
            await connection.close()
            for visit in list(self._visits.values()):
                await self.leave(visit, "the connection to the broker was lost")
            self._caster.lose()
            while True:
                await asyncio.sleep(wait_s * random.uniform(0.5, 1.0))  # noqa: S311
                wait_s = min(wait_s * 2, BACKOFF_S[1])
                try:
                    async with asyncio.timeout(START_S):
                        connection = await self._connect()
                    break
                except LinkError as error:
                    log.warning("%s", error)
                except TimeoutError:
                    log.warning("the broker does not answer")
            wait_s = BACKOFF_S[0]

    # --- what devices say

    def _take(self, topic: str, packet: bytes) -> None:
        device = sender(topic)
        if device is None:
            return
        visit = self._visits.get(device)
        if not packet:  # its last will, or its goodbye
            if visit is not None:
                self._spawn(self.leave(visit, "the device left the broker"))
            return
        try:
            for frame, data in unpack_all(packet):
                if frame.HasField("hello"):
                    self._hello(device, packet)
                elif visit is not None:
                    visit.take(frame, data)
                else:
                    self._stranger(device, frame.session)
        except PeerError as error:
            if visit is not None:
                visit.broke(error)

    def _hello(self, device: DeviceId, packet: bytes) -> None:
        """Greet one Hello of a device at a time; of those that come meanwhile, the last."""
        if device in self._greeting:
            self._greeting[device] = packet
        else:
            self._greeting[device] = None
            self._spawn(self._greet(device, packet))

    async def _greet(self, device: DeviceId, hello: bytes) -> None:
        packet: bytes | None = hello
        try:
            while packet is not None and self._connection is not None:
                wire = MqttWire(self._connection, down(device))
                try:
                    await self.greet(
                        packet,
                        wire,
                        identity=device,
                        close=lambda wire=wire: self._ended(device, wire),  # type: ignore[misc]
                        max_packet=wire.max_packet,
                    )
                except RefusedError as refused:
                    if refused.code == RefusalCode.REVOKED:
                        await self._expel(device)
                except LinkError as error:
                    log.info("device %s: %s", device, error)
                packet, self._greeting[device] = self._greeting[device], None
        finally:
            del self._greeting[device]

    def _ended(self, device: DeviceId, wire: MqttWire) -> None:
        wire.end()
        visit = self._visits.get(device)
        if visit is not None and visit.wire is wire:
            self._spawn(self.leave(visit, visit.why))

    def _stranger(self, device: DeviceId, session: int) -> None:
        """Tell a device that goes on with a session we do not know to say Hello."""
        now = asyncio.get_running_loop().time()
        if device in self._greeting or now - self._refused_s.get(device, 0.0) < REFUSE_EVERY_S:
            return
        self._refused_s[device] = now
        error = RefusedError(
            RefusalCode.UNKNOWN_SESSION, "the coordinator knows no such session", retry_after_s=0.1
        )
        if self._connection is not None:
            with contextlib.suppress(LinkError):
                self._connection.push_now(down(device), refusal(error, session=session))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # --- Fleet

    async def leave(self, visit: Visit, why: str) -> None:
        if isinstance(visit.wire, MqttWire):
            visit.wire.end()
        self._caster.leave(visit.device)
        await super().leave(visit, why)

    async def dismiss(self, device: DeviceId, code: str, message: str) -> None:
        await super().dismiss(device, code, message)
        if code == RefusalCode.REVOKED:
            await self._expel(device)

    async def _expel(self, device: DeviceId) -> None:
        await asyncio.sleep(LAST_WORD_S)
        await self._broker.expel(device)

    def cast(self, ref: BlobRef, devices: Iterable[DeviceId]) -> None:
        """Publish the blob's chunks once for these devices when they ask; see casting.py."""
        here = {device: self._visits[device] for device in self._visits.keys() & set(devices)}
        deaf = {device for device, visit in here.items() if not visit.hears_kept}
        self._caster.expect(ref, here.keys(), deaf)
