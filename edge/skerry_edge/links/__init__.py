"""The device's side of the sea: one `Link`, and a module for each way across.

`open_link` chooses by name among the entry points of the group "skerry.links"; ours are entry
points too. A link reconnects by itself, with jittered back-off; nobody above it retries.
"""

import ssl
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from pathlib import Path
from typing import Protocol, cast

from skerry_protos import steady
from skerry_protos.errors import ConfigError, RefusedError
from skerry_protos.messages import BlobRef, DeviceId, Parcel
from skerry_protos.seams import Blobs, Receiver, Stream


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """PEM files for mutual TLS; read at each connect, so a renewed certificate is used next."""

    ca: Path
    certificate: Path
    key: Path

    def context(self) -> ssl.SSLContext:
        """Return a client context that demands our CA and presents our certificate."""
        context = ssl.create_default_context(cafile=str(self.ca))
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.load_cert_chain(str(self.certificate), str(self.key))
        return context


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkConfig:
    """Everything a link needs to know to cross."""

    kind: str  # "grpc", "mqtt", or a plug-in's name
    url: str  # grpcs://host:port, mqtts://host:port; grpc:// and mqtt:// on loopback
    device: DeviceId
    agent_version: str
    credentials: Credentials | None = None
    blobs: Blobs
    receiver: Receiver
    # Told of every change: None when connected, else the reason and seconds until the next attempt.
    on_state: Callable[[str | None, float], None] = field(default=lambda _why, _wait: None)
    # Told the cloud's clocks and wish at each Welcome: (unix_time_s, deadlines_s, heartbeat_s).
    on_welcome: Callable[[float, float, float], None] = field(default=lambda *_said: None)
    # The clock that deadlines are in.
    now: Callable[[], float] = steady.unix_s
    # Told when the cloud refuses us; a refusal without retry_after_s stops the link.
    on_refused: Callable[[RefusedError], None] = field(default=lambda _refusal: None)


class Link(Protocol):
    """One device's way to the cloud; an async context manager that runs until closed."""

    @property
    def connected(self) -> bool: ...

    async def deliver(self, parcel: Parcel) -> None:
        """Send until the cloud has stored it, across cuts; raise RejectedError or DeadlineError.

        The parcel's blobs are read from `LinkConfig.blobs` when the cloud asks for them.
        """
        ...

    async def fetch(self, ref: BlobRef, *, deadline_s: float) -> Path:
        """Return the blob's file, moved and verified.

        Raise RejectedError when the cloud lacks it, TrustError when its bytes are not the digest's,
        DeadlineError.
        """
        ...

    async def open_stream(
        self, kind: str, *, deadline_s: float, run: str = "", trace: str = ""
    ) -> Stream:
        """Open a stream to the cloud."""
        ...


LinkFactory = Callable[[LinkConfig], AbstractAsyncContextManager[Link]]


def open_link(config: LinkConfig) -> AbstractAsyncContextManager[Link]:
    """Return the link that `config.kind` names, ours or a plug-in's."""
    found = entry_points(group="skerry.links")
    if config.kind not in found.names:
        raise ConfigError(f"no link {config.kind!r}; there are {sorted(found.names)}")
    return cast("LinkFactory", found[config.kind].load())(config)
