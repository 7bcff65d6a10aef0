"""The shores of the transports that need no broker: memory and gRPC."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path

from skerry_cloud.fleets import Gate
from skerry_cloud.fleets.grpc import GrpcFleet
from skerry_cloud.fleets.memory import MemoryFleet
from skerry_edge.links import Credentials, LinkConfig
from skerry_edge.links.crossing import Crossing
from skerry_edge.links.grpc import GrpcLink
from skerry_edge.links.memory import MemoryLink
from skerry_protos.blobs import LocalBlobs
from skerry_protos.messages import DeviceId
from skerry_protos.session.memory import Faults, MemoryEnd

from tests.certificates import Trust
from tests.conformance.harness import Shore, transport
from tests.faults.proxy import FaultProxy

LOSSY = Faults(seed=7, drop=0.03, duplicate=0.05, reorder=0.1, corrupt=0.0, chunk=64 * 1024)


class MemoryShore:
    """A fleet in this process; what is swallowed is not even sent."""

    def __init__(self, fleet: MemoryFleet, name: str, ping_s: float) -> None:
        self.fleet = fleet
        self._name = name
        self._ping_s = ping_s
        self._wires: dict[DeviceId, int] = {}
        self._ends: dict[DeviceId, MemoryEnd] = {}

    async def link(self, config: LinkConfig) -> Crossing:
        shore = self

        class Link(MemoryLink):
            def dialled(self, end: MemoryEnd) -> None:
                shore._wires[config.device] = shore.wires(config.device) + 1
                shore._ends[config.device] = end

        config = replace(config, url=f"memory://{self._name}", credentials=None)
        return Link(config, ping_s=self._ping_s)

    def cut(self, device: DeviceId) -> None:
        self._ends[device].close()

    def silence(self, device: DeviceId, *, on: bool) -> None:
        self._ends[device].silent = on

    def wires(self, device: DeviceId) -> int:
        return self._wires.get(device, 0)


def _memory(name: str, faults: Faults) -> None:
    @transport(name)
    @asynccontextmanager
    async def opened(
        folder: Path, gate: Gate, blobs: LocalBlobs, ping_s: float
    ) -> AsyncIterator[Shore]:
        at = f"{name}-{folder.name}"
        fleet = MemoryFleet(
            at, gate, blobs, faults=lambda wire: replace(faults, seed=wire), ping_s=ping_s
        )
        async with fleet:
            yield MemoryShore(fleet, at, ping_s)


_memory("memory", Faults())
_memory("memory-lossy", LOSSY)


class GrpcShore:
    """A fleet over mutual TLS; each device has a proxy of its own in between."""

    def __init__(
        self, fleet: GrpcFleet, trust: Trust, stack: AsyncExitStack, ping_s: float
    ) -> None:
        self.fleet = fleet
        self.trust = trust
        self._stack = stack
        self._ping_s = ping_s
        self.proxies: dict[DeviceId, FaultProxy] = {}

    async def link(self, config: LinkConfig) -> Crossing:
        assert config.credentials is not None
        files = self.trust.device(str(config.credentials.ca))
        proxy = self.proxies.get(config.device)
        if proxy is None:
            proxy = await self._stack.enter_async_context(FaultProxy(self.fleet.port))
            self.proxies[config.device] = proxy
        config = replace(
            config,
            url=f"grpcs://127.0.0.1:{proxy.port}",
            credentials=Credentials(ca=files.ca, certificate=files.certificate, key=files.key),
        )
        return GrpcLink(config, ping_s=self._ping_s)

    def cut(self, device: DeviceId) -> None:
        self.proxies[device].cut()

    def silence(self, device: DeviceId, *, on: bool) -> None:
        self.proxies[device].blackhole = on

    def wires(self, device: DeviceId) -> int:
        return self.proxies[device].connections if device in self.proxies else 0


@transport("grpc")
@asynccontextmanager
async def grpc_shore(
    folder: Path, gate: Gate, blobs: LocalBlobs, ping_s: float
) -> AsyncIterator[Shore]:
    trust = Trust(folder / "trust")
    async with AsyncExitStack() as stack:
        fleet = GrpcFleet(gate=gate, blobs=blobs, keys=trust.server, ping_s=ping_s)
        await stack.enter_async_context(fleet)
        yield GrpcShore(fleet, trust, stack, ping_s)
