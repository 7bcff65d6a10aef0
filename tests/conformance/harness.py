"""What every behaviour is tested with: a fleet over one transport, and devices that cross to it.

A transport registers a Shore by `@transport("name")`; conftest.py imports the modules that do. Then
every test of this folder runs over it too.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from skerry_cloud.fleets import Gate
from skerry_cloud.fleets.sessions import Sessions
from skerry_edge.links import Credentials, LinkConfig
from skerry_edge.links.crossing import Crossing
from skerry_protos.blobs import LocalBlobs, LocalPartial
from skerry_protos.errors import RefusedError, SkerryError
from skerry_protos.messages import BlobRef, DeviceId, Parcel, ParcelId, new_id
from skerry_protos.seams import Stream

WAIT_S = 20.0
"""How long a test waits for what must happen; far above what it takes."""


class Shore(Protocol):
    """A fleet on one transport, and how devices get there."""

    @property
    def fleet(self) -> Sessions:
        """Open already. Sessions, not only Fleet: tests look at who visits."""
        ...

    async def link(self, config: LinkConfig) -> Crossing:
        """Return a link for the config, whose kind, url and credentials this fills in."""
        ...

    def cut(self, device: DeviceId) -> None:
        """Cut the device's wire without a word, as a lost network does."""
        ...

    def silence(self, device: DeviceId, *, on: bool) -> None:
        """Swallow all that passes between device and cloud, connections staying open."""
        ...

    def wires(self, device: DeviceId) -> int:
        """Return how many wires the device has had."""
        ...


OpenShore = Callable[[Path, Gate, LocalBlobs, float], AbstractAsyncContextManager[Shore]]
"""(a folder of its own, the gate, the cloud's blobs, seconds between pings)"""

TRANSPORTS: dict[str, OpenShore] = {}


def transport(name: str) -> Callable[[OpenShore], OpenShore]:
    """Register a transport: all tests of this folder run over it."""

    def register(opens: OpenShore) -> OpenShore:
        TRANSPORTS[name] = opens
        return opens

    return register


async def until(claim: Callable[[], bool], what: str = "", *, wait_s: float = WAIT_S) -> None:
    """Wait until `claim` holds; fail naming it when it does not in time."""
    try:
        async with asyncio.timeout(wait_s):
            while not claim():  # noqa: ASYNC110 - a claim is about many things, not one event
                await asyncio.sleep(0.005)
    except TimeoutError:
        raise AssertionError(f"not within {wait_s:g} s: {what or claim}") from None


async def echo(stream: Stream) -> None:
    """Send back what comes."""
    async for message in stream:
        await stream.send(message)


async def take(_parcel: Parcel) -> None:
    """Accept a parcel."""


class WatchedBlobs(LocalBlobs):
    """A store that tells, at each chunk, how much of a blob has arrived."""

    def __init__(self, root: Path) -> None:
        super().__init__(root, durable=False)
        self.on_chunk: Callable[[int], bool] = lambda _arrived: True
        """Told the bytes that have arrived before; False loses the chunk that comes now."""

    def begin(self, ref: BlobRef, chunk: int) -> LocalPartial:
        partial = super().begin(ref, chunk)
        write, arrived = partial.write, [0]

        def watched(offset: int, data: bytes | memoryview) -> bool:
            if not self.on_chunk(arrived[0]):
                return False
            new = write(offset, data)
            arrived[0] += len(data) if new else 0
            return new

        partial.write = watched  # type: ignore[method-assign]
        return partial


@dataclass
class Ashore:
    """A Gate that notes everything, and does what a test tells it."""

    events: list[tuple[str, DeviceId]] = field(default_factory=list)
    parcels: list[tuple[DeviceId, Parcel]] = field(default_factory=list)
    refusals: dict[DeviceId, RefusedError] = field(default_factory=dict)
    wrongs: list[tuple[DeviceId, str, SkerryError]] = field(default_factory=list)
    accepting: Callable[[DeviceId, Parcel], Awaitable[None]] | None = None
    serving: Callable[[Stream], Awaitable[None]] = echo

    async def admit(self, device: DeviceId, transport: str, agent_version: str) -> None:
        if refusal := self.refusals.get(device):
            raise refusal

    async def present(self, device: DeviceId, transport: str) -> None:
        self.events.append(("present", device))

    async def absent(self, device: DeviceId, transport: str, why: str) -> None:
        self.events.append(("absent", device))

    def refused(self, device: DeviceId, run: str, error: SkerryError) -> None:
        self.wrongs.append((device, run, error))

    async def accept(self, device: DeviceId, parcel: Parcel) -> None:
        self.parcels.append((device, parcel))
        if self.accepting is not None:
            await self.accepting(device, parcel)

    async def serve(self, device: DeviceId, stream: Stream) -> None:
        await self.serving(stream)

    def ids(self) -> list[str]:
        """Return the ids of the parcels accepted, in order."""
        return [parcel.id for _, parcel in self.parcels]


@dataclass
class Afloat:
    """A device's Receiver that notes everything, and does what a test tells it."""

    parcels: list[Parcel] = field(default_factory=list)
    accepting: Callable[[Parcel], Awaitable[None]] = take
    serving: Callable[[Stream], Awaitable[None]] = echo

    async def accept(self, parcel: Parcel) -> None:
        self.parcels.append(parcel)
        await self.accepting(parcel)

    async def serve(self, stream: Stream) -> None:
        await self.serving(stream)


@dataclass
class Device:
    """One device of a test."""

    id: DeviceId
    link: Crossing
    receiver: Afloat
    blobs: WatchedBlobs
    states: list[str | None]
    refusals: list[RefusedError]
    close: Callable[[], Awaitable[None]]


class Harness:
    """One fleet, and the devices a test has connect to it."""

    def __init__(
        self, kind: str, folder: Path, shore: Shore, gate: Ashore, blobs: WatchedBlobs
    ) -> None:
        self.kind = kind
        self.shore = shore
        self.fleet = shore.fleet
        self.gate = gate
        self.blobs = blobs
        self._folder = folder
        self._stack = AsyncExitStack()

    async def device(
        self,
        name: str = "alpha",
        *,
        version: str = "0.1.0",
        certified: str = "",
        connected: bool = True,
    ) -> Device:
        """Have a device connect; `certified` is another name for its certificate.

        A name used before is the same device again: it has the same blobs.
        """
        receiver, states, refusals = Afloat(), list[str | None](), list[RefusedError]()
        blobs = WatchedBlobs(self._folder / name)
        link = await self.shore.link(
            LinkConfig(
                kind=self.kind,
                url="",
                device=DeviceId(name),
                agent_version=version,
                credentials=Credentials(ca=Path(certified or name), certificate=Path(), key=Path()),
                blobs=blobs,
                receiver=receiver,
                on_state=lambda why, _wait: states.append(why),
                on_refused=refusals.append,
            )
        )
        await link.__aenter__()
        open_ = [True]

        async def close() -> None:
            if open_.pop() if open_ else False:
                await link.__aexit__(None, None, None)

        self._stack.push_async_callback(close)
        device = Device(DeviceId(name), link, receiver, blobs, states, refusals, close)
        if connected:
            await self.connected(device)
        return device

    async def connected(self, device: Device) -> None:
        """Wait until both sides say that the device is connected."""
        await until(
            lambda: device.link.connected and device.id in self.fleet.devices(),
            f"{device.id} is connected ({device.states})",
        )

    async def cut(self, device: Device) -> None:
        """Cut the device's wire and wait until it is on the next one."""
        before = self.shore.wires(device.id)
        self.shore.cut(device.id)
        await until(lambda: self.shore.wires(device.id) > before, "the device dials again")
        await self.connected(device)

    def cut_soon(self, device: Device) -> None:
        """Cut the device's wire; it comes back by itself."""
        self.shore.cut(device.id)

    async def close(self) -> None:
        """Disconnect every device."""
        await self._stack.aclose()


def parcel(kind: str = "task", body: bytes = b"body", *blobs: BlobRef, **more: float) -> Parcel:
    """Return a parcel with a new id."""
    return Parcel(
        id=ParcelId(new_id("p")),
        kind=kind,
        body=body,
        blobs=blobs,
        deadline_unix_s=more.get("deadline_unix_s", 0.0),
    )


@contextlib.asynccontextmanager
async def open_harness(kind: str, folder: Path, *, ping_s: float = 10.0) -> AsyncIterator[Harness]:
    """Open a fleet of one transport, for as many devices as a test wants."""
    gate, blobs = Ashore(), WatchedBlobs(folder / "cloud")
    async with TRANSPORTS[kind](folder, gate, blobs, ping_s) as shore:
        harness = Harness(kind, folder, shore, gate, blobs)
        try:
            yield harness
        finally:
            await harness.close()
