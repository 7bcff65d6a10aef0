"""The shores behind an MQTT broker: the embedded one, and mosquitto where it is on this machine."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path

from skerry_cloud.brokers import Broker, BrokerConfig, open_broker
from skerry_cloud.fleets import Gate
from skerry_cloud.fleets.mqtt import MqttFleet
from skerry_edge.links import Credentials, LinkConfig
from skerry_edge.links.crossing import Crossing
from skerry_edge.links.mqtt import MqttLink
from skerry_protos.blobs import LocalBlobs
from skerry_protos.messages import DeviceId

from tests.certificates import Trust
from tests.conformance.harness import Shore, transport
from tests.faults.proxy import FaultProxy
from tests.mqtt import mosquitto_present


class MqttShore:
    """A fleet behind a broker, over mutual TLS; each device has a proxy of its own in between."""

    def __init__(
        self, fleet: MqttFleet, broker: Broker, trust: Trust, stack: AsyncExitStack, ping_s: float
    ) -> None:
        self.fleet = fleet
        self.broker = broker
        self.trust = trust
        self.proxies: dict[DeviceId, FaultProxy] = {}
        self._stack = stack
        self._ping_s = ping_s

    async def link(self, config: LinkConfig) -> Crossing:
        assert config.credentials is not None
        files = self.trust.device(str(config.credentials.ca))
        proxy = self.proxies.get(config.device)
        if proxy is None:
            proxy = await self._stack.enter_async_context(FaultProxy(self.broker.address[1]))
            self.proxies[config.device] = proxy
        config = replace(
            config,
            url=f"mqtts://127.0.0.1:{proxy.port}",
            credentials=Credentials(ca=files.ca, certificate=files.certificate, key=files.key),
        )
        return MqttLink(config, ping_s=self._ping_s)

    def cut(self, device: DeviceId) -> None:
        self.proxies[device].cut()

    def silence(self, device: DeviceId, *, on: bool) -> None:
        self.proxies[device].blackhole = on

    def wires(self, device: DeviceId) -> int:
        return self.proxies[device].connections if device in self.proxies else 0


@asynccontextmanager
async def mqtt_shore(
    choice: str, folder: Path, gate: Gate, blobs: LocalBlobs, ping_s: float
) -> AsyncIterator[MqttShore]:
    """Run a broker and a fleet behind it."""
    trust = Trust(folder / "trust")
    config = BrokerConfig(state=folder / "broker", choice=choice, port=0, keys=trust.server)
    async with AsyncExitStack() as stack:
        broker = await stack.enter_async_context(open_broker(config))
        fleet = MqttFleet(gate=gate, blobs=blobs, broker=broker, ping_s=ping_s)
        await stack.enter_async_context(fleet)
        yield MqttShore(fleet, broker, trust, stack, ping_s)


def _mqtt(choice: str) -> None:
    @transport(f"mqtt-{choice}")
    @asynccontextmanager
    async def opened(
        folder: Path, gate: Gate, blobs: LocalBlobs, ping_s: float
    ) -> AsyncIterator[Shore]:
        async with mqtt_shore(choice, folder, gate, blobs, ping_s) as shore:
            yield shore


_mqtt("embedded")
if mosquitto_present():
    _mqtt("mosquitto")
