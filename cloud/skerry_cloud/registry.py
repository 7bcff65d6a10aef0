"""The registry: which devices are enrolled, connected, labelled, and allowed to be here.

It is the `Gate` of every fleet. Identity, labels and revocation are in the database; presence is in
memory and written behind in one small transaction every `FLUSH_S`, so that a thousand heartbeats
cost one commit. Replies, progress and streams are handed to `Work` (the runs).
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, Self

import sqlalchemy as sa
from skerry_protos import steady
from skerry_protos.errors import (
    RefusalCode,
    RefusedError,
    RejectCode,
    RejectedError,
    SkerryError,
)
from skerry_protos.messages import DeviceId, Parcel, ParcelId, ParcelKind, new_id
from skerry_protos.seams import Stream

from skerry_cloud.fleets import Fleet
from skerry_cloud.identity import Authority
from skerry_cloud.selectors import Selector
from skerry_cloud.store import Store, StoreError, tables
from skerry_cloud.store import devices as kept
from skerry_cloud.store.devices import Device
from skerry_cloud.telemetry import heartbeat_json, log_rows, printable

log = logging.getLogger(__name__)

HEARTBEAT_S = 15.0
FLUSH_S = 2.0
ACCEPT_PATIENCE_S = 10.0
"""How long an arriving parcel waits for a full disk before the device has to send it again."""
CERTIFICATE_DEADLINE_S = 3600.0


ServeStream = Callable[[DeviceId, Stream], Awaitable[None]]


class Work(Protocol):
    """Who gives devices work and takes their answers (skerry_cloud.runs.Runs)."""

    async def reply(self, device: DeviceId, parcel: Parcel) -> None:
        """Store a reply, idempotently; as Gate.accept."""
        ...

    async def progress(self, device: DeviceId, parcel: Parcel) -> None:
        """Show how far a device is."""
        ...

    def refused(self, device: DeviceId, run: str, error: SkerryError) -> None:
        """Note what was refused of a device; as Gate.refused."""
        ...

    async def present(self, device: DeviceId) -> None:
        """Send the device what it has not been told yet."""
        ...

    async def holds(self, device: DeviceId, tasks: Collection[str]) -> None:
        """Tell the device which of the tasks that it holds nobody waits for."""
        ...

    async def stream(self, device: DeviceId, stream: Stream) -> None:
        """Serve a stream that a device opened."""
        ...

    async def withdraw(self, device: DeviceId, why: str) -> None:
        """Take the device's open tasks away: it was drained or revoked."""
        ...


class Serving(Protocol):
    """Who tells devices which models to serve (skerry_cloud.models.updates.Updates)."""

    async def present(self, device: DeviceId) -> None:
        """Tell the device what it has not been told yet."""
        ...

    async def report(self, device: DeviceId, parcel: Parcel) -> None:
        """Store what a device says of a model, idempotently; as Gate.accept."""
        ...


@dataclass(slots=True)
class Presence:
    """What is known of a device since this coordinator started."""

    transport: str = ""
    connected: bool = False
    last_seen_at: float = 0.0
    last_error: str = ""
    agent_version: str = ""
    heartbeat: dict[str, Any] | None = field(default=None)

    def row(self) -> dict[str, Any]:
        """Return the columns that say this."""
        values: dict[str, Any] = {
            "connected": self.connected,
            "transport": self.transport,
            "last_error": self.last_error,
        }
        if self.last_seen_at:
            values["last_seen_at"] = self.last_seen_at
        if self.agent_version:
            values["agent_version"] = self.agent_version
        if self.heartbeat is not None:
            values["heartbeat"] = self.heartbeat
        return values


class Registry:
    """Who is here and who may be; an async context manager. `attach` it before fleets open."""

    def __init__(
        self, *, store: Store, authority: Authority, heartbeat_s: float = HEARTBEAT_S
    ) -> None:
        self.heartbeat_s = heartbeat_s
        self._store = store
        self._authority = authority
        self._fleet: Fleet | None = None
        self._work: Work | None = None
        self._serving: Serving | None = None
        self._streams: Mapping[str, ServeStream] = {}
        self._presence: dict[DeviceId, Presence] = {}
        self._revoked: set[DeviceId] = set()
        self._changed: set[DeviceId] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._changes = asyncio.Condition()

    def attach(
        self,
        *,
        fleet: Fleet,
        work: Work,
        serving: Serving | None = None,
        streams: Mapping[str, ServeStream] | None = None,
    ) -> None:
        """Say who carries messages to devices, who gives them work, and who models.

        `streams` are served by their kind; those of no kind here are the work's.
        """
        self._fleet, self._work, self._serving = fleet, work, serving
        self._streams = streams or {}

    async def __aenter__(self) -> Self:
        revoked = await self._store.write(_begin)
        self._revoked = {DeviceId(device) for device in revoked}
        self._spawn(self._flush_always(), "registry-flush")
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        now = time.time()
        for device, presence in self._presence.items():
            if presence.connected:
                presence.connected, presence.last_seen_at = False, now
                self._changed.add(device)
        with contextlib.suppress(StoreError):
            await self._flush(patience_s=2.0)

    # Whom a fleet admits and tells: skerry_cloud.fleets.Gate.

    async def admit(self, device: DeviceId, transport: str, agent_version: str) -> None:  # noqa: ARG002
        """Return if the device may have a session now; else raise RefusedError."""
        found = await self._store.read(lambda c: kept.find(c, device))
        if found is None:
            raise RefusedError(
                RefusalCode.UNKNOWN_DEVICE,
                f"device {device!r} is not enrolled here: join again with a new token",
            )
        if found.revoked_at is not None or device in self._revoked:
            raise _revoked(device)
        presence = self._presence.setdefault(device, Presence())
        presence.agent_version = printable(agent_version, 64)

    async def present(self, device: DeviceId, transport: str) -> None:
        """Note that the device's session is up (also after a resume)."""
        presence = self._presence.setdefault(device, Presence())
        presence.transport, presence.connected, presence.last_error = transport, True, ""
        presence.last_seen_at = time.time()
        await self._note(device)
        if device in self._revoked:  # revoked while it was being welcomed
            await self._dismiss(device)
        elif self._work is not None:
            await self._work.present(device)
            if self._serving is not None:
                await self._serving.present(device)

    async def absent(self, device: DeviceId, transport: str, why: str) -> None:
        """Note that the device's wire was cut."""
        presence = self._presence.setdefault(device, Presence())
        if presence.connected and presence.transport not in {"", transport}:
            return  # it came back by the other transport before this one noticed
        presence.connected, presence.last_error = False, printable(why, 500)
        presence.last_seen_at = time.time()
        await self._note(device)

    async def accept(self, device: DeviceId, parcel: Parcel) -> None:
        """Store a parcel's effect; RejectedError for what will never be accepted."""
        if device in self._revoked:
            raise RejectedError(RefusalCode.REVOKED, f"device {device!r} was revoked")
        presence = self._presence.setdefault(device, Presence())
        presence.last_seen_at = time.time()
        self._changed.add(device)
        match parcel.kind:
            case ParcelKind.HEARTBEAT:
                presence.heartbeat = heartbeat_json(parcel.body)
                if said := presence.heartbeat.get("agent_version"):
                    presence.agent_version = printable(str(said), 64)
                await self._note(device)
                held = presence.heartbeat.get("tasks", ())
                if held and self._work is not None:
                    await self._work.holds(device, held)
            case ParcelKind.LOG:
                lines = log_rows(parcel.body)
                await self._store.write(
                    lambda c: kept.keep_log(c, device, parcel.id, lines),
                    patience_s=ACCEPT_PATIENCE_S,
                )
                await self._wake()
            case ParcelKind.RENEW:
                await self._renew(device, parcel)
            case ParcelKind.REPLY:
                await self._working().reply(device, parcel)
            case ParcelKind.PROGRESS:
                await self._working().progress(device, parcel)
            case ParcelKind.UPDATE_REPORT if self._serving is not None:
                await self._serving.report(device, parcel)
            case _:
                raise RejectedError(
                    RejectCode.UNEXPECTED, f"a device does not send {parcel.kind[:40]!r} parcels"
                )

    def refused(self, device: DeviceId, run: str, error: SkerryError) -> None:
        """Note what a session refused of a device by itself."""
        if self._work is not None:
            self._work.refused(device, run, error)

    async def serve(self, device: DeviceId, stream: Stream) -> None:
        """Serve a stream that a device opened."""
        if device in self._revoked or self._work is None:
            await stream.abort(RejectCode.UNEXPECTED, "nobody serves streams here now")
            return
        await self._streams.get(stream.kind, self._work.stream)(device, stream)

    # What runs and operators ask.

    def revoked(self) -> frozenset[DeviceId]:
        """Return the devices that were revoked."""
        return frozenset(self._revoked)

    def connected(self) -> frozenset[DeviceId]:
        """Return the devices that have a session now."""
        return frozenset(device for device, here in self._presence.items() if here.connected)

    async def devices(
        self, selector: Selector | None = None, *, state: str | None = None
    ) -> list[Device]:
        """Return devices with what is known of them this moment, by id."""
        found = map(self._now, await self._store.read(kept.listed))
        return [
            device
            for device in found
            if (selector is None or selector.matches(device.labels))
            and (state is None or device.state == state)
        ]

    async def device(self, device: str) -> Device | None:
        """Return one device with what is known of it this moment, or None."""
        found = await self._store.read(lambda c: kept.find(c, device))
        return None if found is None else self._now(found)

    async def available(
        self, selector: Selector | None = None, capabilities: Iterable[str] = ()
    ) -> list[Device]:
        """Return the devices that may be given new work now."""
        needed = frozenset(capabilities)
        return [
            device
            for device in await self.devices(selector)
            if device.ready and needed <= device.capabilities
        ]

    async def wait_change(self, timeout_s: float) -> None:
        """Return when a device came, went, was heard of or was changed, or after the timeout."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s), self._changes:
                await self._changes.wait()

    async def relabel(self, device: DeviceId, changes: dict[str, str | None]) -> dict[str, str]:
        """Set labels, or take those away whose value is None."""
        labels = await self._store.write(lambda c: kept.relabel(c, device, changes))
        await self._wake()
        return labels

    async def cordon(self, device: DeviceId) -> None:
        """Give the device no new work; what it has goes on."""
        await self._store.write(lambda c: kept.change(c, device, cordoned=True))
        await self._wake()

    async def uncordon(self, device: DeviceId) -> None:
        """Give the device work again, also after a drain."""
        await self._store.write(lambda c: kept.change(c, device, cordoned=False, drained_at=None))
        await self._wake()
        if device in self.connected() and self._work is not None:
            await self._work.present(device)

    async def drain(self, device: DeviceId) -> None:
        """Give the device no new work and take away what it has."""
        now = time.time()
        await self._store.write(lambda c: kept.change(c, device, cordoned=True, drained_at=now))
        if self._work is not None:
            await self._work.withdraw(device, "the device was drained")
        await self._wake()

    async def revoke(self, device: DeviceId, why: str) -> None:
        """Shut the device out for good: by its id, whatever certificates it holds."""
        await self._store.write(lambda c: kept.revoke(c, device, why[:500]))
        self._revoked.add(device)
        await self._dismiss(device)
        presence = self._presence.setdefault(device, Presence())
        presence.connected, presence.last_error = False, "revoked"
        await self._note(device)
        if self._work is not None:
            await self._work.withdraw(device, "the device was revoked")

    # Behind the scenes.

    def _now(self, device: Device) -> Device:
        """Return the device with presence as it is this moment."""
        here = self._presence.get(device.id)
        return device if here is None else replace(device, **here.row())

    def _working(self) -> Work:
        if self._work is None:
            raise RuntimeError("the registry has no work attached")
        return self._work

    async def _renew(self, device: DeviceId, parcel: Parcel) -> None:
        """Issue a new certificate and send it after this parcel's acknowledgement."""
        try:
            csr = parcel.body.decode("ascii")
        except UnicodeDecodeError as error:
            raise RejectedError(RejectCode.MALFORMED, "a renewal's body is a CSR in PEM") from error
        issued = self._authority.issue(device, csr, time.time())
        await self._store.write(
            lambda c: kept.keep_certificate(c, device, issued), patience_s=ACCEPT_PATIENCE_S
        )
        answer = Parcel(
            id=ParcelId(new_id("cert-")),
            kind=ParcelKind.CERTIFICATE,
            deadline_unix_s=steady.unix_s() + CERTIFICATE_DEADLINE_S,
            body=issued.pem.encode(),
        )
        self._spawn(self._send_certificate(device, answer), f"certificate-{device}")

    async def _send_certificate(self, device: DeviceId, parcel: Parcel) -> None:
        assert self._fleet is not None
        try:
            async with asyncio.timeout(CERTIFICATE_DEADLINE_S):
                await self._fleet.deliver(device, parcel)
        except (SkerryError, TimeoutError) as error:
            log.warning("device %s did not take its new certificate: %s", device, error)

    async def _dismiss(self, device: DeviceId) -> None:
        if self._fleet is not None:
            refusal = _revoked(device)
            await self._fleet.dismiss(device, refusal.code, refusal.message)

    async def _note(self, device: DeviceId) -> None:
        self._changed.add(device)
        await self._wake()

    async def _wake(self) -> None:
        async with self._changes:
            self._changes.notify_all()

    def _spawn(self, coroutine: Any, name: str) -> None:
        task: asyncio.Task[None] = asyncio.create_task(coroutine, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _flush_always(self) -> None:
        while True:
            await asyncio.sleep(FLUSH_S)
            try:
                await self._flush(patience_s=0.0)
            except StoreError as error:
                log.debug("presence is written later: %s", error)

    async def _flush(self, *, patience_s: float) -> None:
        """Write what changed since the last time."""
        changed, self._changed = self._changed, set()
        if not changed:
            return
        rows = {device: self._presence[device].row() for device in sorted(changed)}
        try:
            await self._store.write(lambda c: kept.keep_presence(c, rows), patience_s=patience_s)
        except BaseException:
            self._changed |= changed
            raise


def _revoked(device: DeviceId) -> RefusedError:
    return RefusedError(
        RefusalCode.REVOKED, f"device {device!r} was revoked: it cannot come back under this name"
    )


def _begin(connection: sa.Connection) -> list[str]:
    """Note that nobody is connected yet; return who is revoked."""
    devices = tables.devices
    connection.execute(devices.update().where(devices.c.connected).values(connected=False))
    rows = connection.execute(sa.select(devices.c.id).where(devices.c.revoked_at.is_not(None)))
    return list(rows.scalars())
