"""The coordinator's settings: `coordinator.toml` in its home, then what the command line says.

Every key is described in docs/operators.md.
"""

import ipaddress
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

from skerry_protos.errors import ConfigError
from skerry_protos.settings import load_tables, read_table

LOG_LEVELS = ("debug", "info", "warning", "error")


@dataclass(frozen=True, slots=True, kw_only=True)
class CoordinatorTable:
    """The keys of the file, all of them optional."""

    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 or :: for all."""
    public_host: str = ""
    """Name or address that devices and operators reach us by; empty: `host`, or this machine's."""
    http_port: int = 8470
    """Operator API and enrolment, HTTPS; 0 picks a free one, here and below."""
    grpc_port: int = 8471
    mqtt_port: int = 8883
    links: tuple[str, ...] = ("grpc", "mqtt")
    """Which transports devices may use."""
    broker: str = "auto"
    """auto (a mosquitto on PATH, else the embedded one), embedded, mosquitto, or mqtts://host:port."""
    database: str = ""
    """sqlite:////path/to/file.db or postgresql://user:password@host/name; empty: in the home."""
    objects: str = ""
    """Where blobs are kept beside the local disk: s3://bucket/prefix, gs://, az://, file:///path."""
    insecure: bool = False
    """Let devices connect without TLS; loopback only."""
    heartbeat_s: float = 15.0
    """How often devices are to be heard from."""
    certificate_days: float = 7.0
    """How long a device's certificate lives."""
    log_level: str = "info"

    def __post_init__(self) -> None:
        for name in ("http_port", "grpc_port", "mqtt_port"):
            if not 0 <= getattr(self, name) <= 65535:
                raise ValueError(f"{name} must be 0 to 65535, not {getattr(self, name)}")
        if self.log_level not in LOG_LEVELS:
            raise ValueError(
                f"log_level must be one of {', '.join(LOG_LEVELS)}, not {self.log_level!r}"
            )
        if not 1 <= self.heartbeat_s <= 3600:
            raise ValueError("heartbeat_s must be 1 to 3600")
        if not 0 < self.certificate_days <= 365:
            raise ValueError("certificate_days must be above 0, at most 365")
        if not self.links or set(self.links) - {"grpc", "mqtt"}:
            raise ValueError("links must be some of 'grpc' and 'mqtt'")


@dataclass(frozen=True, slots=True, kw_only=True)
class CoordinatorConfig(CoordinatorTable):
    """Everything an operator may set, and where the coordinator lives."""

    home: Path

    @classmethod
    def read(cls, home: Path, given: Mapping[str, Any] | None = None) -> Self:
        """Return the settings of `home`'s file, with those `given` in their place."""
        file = home / "coordinator.toml"
        tables = load_tables(file) if file.exists() else {}
        table = read_table(CoordinatorTable, tables, source=str(file))
        try:
            values = {name: getattr(table, name) for name in CoordinatorTable.__slots__}
            config = cls(home=home, **values)
            config = replace(config, **(given or {}))
        except ValueError as error:
            raise ConfigError(str(error)) from error
        if config.insecure and not config.loopback:
            raise ConfigError(
                f"--insecure listens on loopback only, and {config.host} is not",
                hint="use 127.0.0.1, or leave --insecure out",
            )
        return config

    @property
    def database_url(self) -> str:
        """Where state is kept."""
        return self.database or f"sqlite:///{self.home.absolute()}/skerry.db"

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach us."""
        return self.host == "localhost" or _address(self.host, "is_loopback")

    @property
    def reached_by(self) -> str:
        """The name or address that others reach us by."""
        if self.public_host:
            return self.public_host
        return socket.getfqdn() if _address(self.host, "is_unspecified") else self.host

    @property
    def names(self) -> list[str]:
        """What the coordinator's certificate shall say beside this machine's own names."""
        return [self.reached_by, self.host]

    def public(self, url: str) -> str:
        """Return a listener's URL as devices elsewhere reach it."""
        parts = urlsplit(url)
        ours = parts.hostname in {self.host, "localhost"} or _address(
            parts.hostname or "", "is_unspecified"
        )
        if not ours:
            return url  # somebody else's broker
        return f"{parts.scheme}://{url_host(self.reached_by)}:{parts.port}"


def default_home() -> Path:
    """Return where the coordinator lives unless told otherwise."""
    named = os.environ.get("SKERRY_COORDINATOR_HOME")
    return Path(named) if named else Path.home() / ".skerry" / "coordinator"


def url_host(host: str) -> str:
    """Return a host as URLs write it."""
    return f"[{host}]" if ":" in host else host


def _address(host: str, claim: str) -> bool:
    try:
        return bool(getattr(ipaddress.ip_address(host), claim))
    except ValueError:
        return False
