"""The MQTT broker between devices and coordinator: `open_broker` starts one, or names one.

`auto` takes a mosquitto on PATH (mosquitto.py, a child process), else the embedded amqtt
(embedded.py, in this process); a URL names a broker that somebody else runs (external.py). Both
brokers of ours enforce skerry_protos.topics.allowed by the certificate's name.
"""

import ipaddress
import shutil
import socket
import ssl
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from skerry_protos.errors import ConfigError
from skerry_protos.messages import DeviceId

from skerry_cloud.identity import ServerCredentials

MAX_PACKET = 2_000_000
"""Largest MQTT packet that brokers of ours take, bytes (the default of mosquitto 2.1)."""
KINDS = ("auto", "embedded", "mosquitto")


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerConfig:
    """Which broker, where, and with what identity."""

    state: Path  # folder for generated configuration and logs; made when absent
    choice: str = "auto"  # one of KINDS, or mqtts://host:port
    host: str = "127.0.0.1"  # address to listen on
    port: int = 8883  # 0: pick a free one
    keys: ServerCredentials | None = None  # None: plaintext, for loopback and `--insecure` only
    max_packet: int = MAX_PACKET
    denied: frozenset[DeviceId] = frozenset()  # revoked: no rights from the start


class Broker(Protocol):
    """A broker that is up; `url` is what devices on this machine use, `address` what we use."""

    @property
    def kind(self) -> str: ...
    @property
    def url(self) -> str: ...
    @property
    def address(self) -> tuple[str, int]: ...
    @property
    def keys(self) -> ServerCredentials | None: ...

    async def expel(self, device: DeviceId) -> None:
        """Take all topic rights from a device, and cut its connection.

        For as long as this broker runs: the next one is told by `BrokerConfig.denied`.

        A broker that somebody else runs is not ours to command: there this does nothing, and the
        device's frames are only ignored.
        """
        ...


def open_broker(config: BrokerConfig) -> AbstractAsyncContextManager[Broker]:
    """Return the broker that `config.choice` names; it runs while the context is open."""
    if "://" in config.choice:
        from skerry_cloud.brokers.external import ExternalBroker

        return ExternalBroker(config)
    if config.choice not in KINDS:
        raise ConfigError(
            f"no broker {config.choice!r}; expected {', '.join(KINDS)} or mqtts://host:port"
        )
    if config.keys is None and not is_loopback(config.host):
        raise ConfigError(
            f"--insecure listens on loopback only, and {config.host} is not",
            hint="use 127.0.0.1, or leave --insecure out",
        )
    program = shutil.which("mosquitto") or shutil.which(
        "mosquitto", path="/usr/sbin:/usr/local/sbin"
    )
    if config.choice == "mosquitto" and program is None:
        raise ConfigError(
            "there is no mosquitto on PATH", hint="apt install mosquitto, or use --broker embedded"
        )
    if program is not None and config.choice in ("auto", "mosquitto"):
        from skerry_cloud.brokers.mosquitto import Mosquitto

        return Mosquitto(config, program)
    from skerry_cloud.brokers.embedded import EmbeddedBroker

    return EmbeddedBroker(config)


def server_context(keys: ServerCredentials) -> ssl.SSLContext:
    """Return a context that demands a client certificate from our CA."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(keys.ca))
    context.verify_mode = ssl.CERT_REQUIRED
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(str(keys.certificate), str(keys.key))
    return context


def client_context(keys: ServerCredentials) -> ssl.SSLContext:
    """Return a context that demands our CA and presents the coordinator's certificate."""
    context = ssl.create_default_context(cafile=str(keys.ca))
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(str(keys.certificate), str(keys.key))
    return context


def is_loopback(host: str) -> bool:
    """Return whether `host` is this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def reachable(host: str) -> str:
    """Return the name by which this machine reaches a listener bound to `host`."""
    try:
        return "localhost" if ipaddress.ip_address(host).is_unspecified else host
    except ValueError:
        return host


def broker_url(config: BrokerConfig, port: int) -> str:
    """Return the URL of a listener of ours."""
    name = reachable(config.host)
    scheme = "mqtts" if config.keys else "mqtt"
    return f"{scheme}://[{name}]:{port}" if ":" in name else f"{scheme}://{name}:{port}"


def listen(config: BrokerConfig) -> socket.socket:
    """Return a bound socket, not yet listening, or raise ConfigError: port in use, no address."""
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((config.host, config.port))
    except OSError as error:
        listener.close()
        raise ConfigError(
            f"the MQTT broker cannot listen on {config.host}:{config.port}: {error.strerror}",
            hint="stop what uses the port, or choose another with --mqtt-port",
        ) from error
    return listener
