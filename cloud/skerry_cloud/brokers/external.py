"""A broker that somebody else runs, named by its URL; docker/mosquitto shows how to set one up."""

from types import TracebackType
from typing import Self

from skerry_protos.errors import ConfigError
from skerry_protos.messages import DeviceId
from skerry_protos.mqtt import parse_url

from skerry_cloud.brokers import BrokerConfig, is_loopback
from skerry_cloud.identity import ServerCredentials


class ExternalBroker:
    """Knows where the broker is; whether it answers is seen when the fleet connects."""

    kind = "external"

    def __init__(self, config: BrokerConfig) -> None:
        secure, host, port = parse_url(config.choice)
        if not secure and not is_loopback(host):
            raise ConfigError(
                f"{config.choice} is not encrypted, and {host} is not loopback",
                hint="use mqtts://",
            )
        if secure and config.keys is None:
            raise ConfigError(f"{config.choice} needs the coordinator's certificate")
        self.url = config.choice
        self.address = (host, port)
        self.keys: ServerCredentials | None = config.keys if secure else None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        return None

    async def expel(self, device: DeviceId) -> None:
        """Do nothing: the rights there are its operator's to take (docs/mqtt.md says how)."""
