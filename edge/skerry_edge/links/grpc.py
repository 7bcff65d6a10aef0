"""The link over gRPC: one bidirectional stream of packets, with mutual TLS."""

import asyncio
import ipaddress
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final, cast
from urllib.parse import urlsplit

import grpc
import grpc.aio
from skerry_protos.errors import ConfigError, LinkError
from skerry_protos.session import Limits

from skerry_edge.links import Credentials, LinkConfig
from skerry_edge.links.crossing import Crossing

METHOD: Final = "/skerry.v1.Fleet/Connect"
CHUNK: Final = 512 * 1024
"""Of 64 KiB to 4 MiB the best (RELIABILITY.md section 2): larger costs memory, not time."""
MAX_PACKET: Final = 4 * 1024**2 - 1024
"""Below gRPC's own limit of 4 MiB for a message, which stays."""
OPTIONS: Final = (
    # The coordinator allows a ping each 5 s; a dead path is noticed within 30 s (RELIABILITY.md 2).
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    # Devices simulated in one process must not share a connection.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_retries", 0),
)

Call = grpc.aio.StreamStreamCall[bytes, bytes]


class GrpcWire:
    """A call as a wire."""

    reliable = exact = True
    chunk = CHUNK
    max_packet = max_received = MAX_PACKET

    def __init__(self, url: str, call: Call) -> None:
        self._url = url
        self._call = call

    async def send(self, packet: bytes) -> None:
        try:
            await self._call.write(packet)
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError) as error:
            raise await self._cut(error) from error

    async def receive(self) -> bytes:
        try:
            packet = await self._call.read()
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError) as error:
            raise await self._cut(error) from error
        if isinstance(packet, bytes):
            return packet
        raise await self._cut(None)

    async def read(self, take: Callable[[bytes], None]) -> None:
        while True:
            take(await self.receive())

    async def _cut(self, error: BaseException | None) -> LinkError:
        """Return why the call ended, as one line."""
        if isinstance(error, grpc.aio.AioRpcError):
            code, details = error.code(), error.details()
        elif self._call.done():
            code, details = await self._call.code(), await self._call.details()
        else:
            return LinkError(f"{self._url}: the coordinator ended the connection")
        if code is grpc.StatusCode.OK:
            return LinkError(f"{self._url}: the coordinator ended the connection")
        text = " ".join((details or "no details").split())[:300]
        return LinkError(f"{self._url}: {code.name.lower().replace('_', ' ')}: {text}")


class GrpcLink(Crossing):
    """A Link over gRPC: grpcs://host:port, or grpc://host:port on loopback."""

    def __init__(
        self, config: LinkConfig, *, limits: Limits | None = None, ping_s: float = 10.0
    ) -> None:
        super().__init__(config, self._connect, limits=limits, ping_s=ping_s)
        url = urlsplit(config.url)
        if url.scheme not in {"grpc", "grpcs"} or not url.hostname or not url.port:
            raise ConfigError(f"{config.url}: a gRPC address is grpcs://host:port")
        self._loopback = _is_loopback(url.hostname)
        self._target = f"ipv6:[{url.hostname}]" if ":" in url.hostname else f"dns:{url.hostname}"
        self._target += f":{url.port}"
        self._credentials = config.credentials if url.scheme == "grpcs" else None
        if url.scheme == "grpcs" and config.credentials is None:
            raise ConfigError(f"{config.url} needs the device's certificate", hint="join first")
        if url.scheme == "grpc" and not self._loopback:
            raise ConfigError(
                f"{config.url} is not encrypted, and {url.hostname} is not loopback",
                hint="use grpcs://",
            )

    @asynccontextmanager
    async def _connect(self) -> AsyncIterator[GrpcWire]:
        async with self._channel() as channel:
            call = _open_call(channel)
            try:
                yield GrpcWire(self._config.url, call)
            finally:
                call.cancel()

    def _channel(self) -> grpc.aio.Channel:
        options: list[tuple[str, Any]] = list(OPTIONS)
        if self._loopback:
            options.append(("grpc.enable_http_proxy", 0))
        if self._credentials is None:
            return grpc.aio.insecure_channel(self._target, options)
        return grpc.aio.secure_channel(self._target, _secure(self._credentials), options)


def _open_call(channel: grpc.aio.Channel) -> Call:
    """Begin a call whose messages are bytes; the stubs ask for arguments that are optional."""
    multicallable: Any = channel.stream_stream
    return cast("Call", multicallable(METHOD)())


def _secure(credentials: Credentials) -> grpc.ChannelCredentials:
    """Return credentials as the files say now: a renewed certificate is used from here on."""

    def read(path: Path) -> bytes:
        try:
            return path.read_bytes()
        except OSError as error:
            raise LinkError(f"{path}: {error.strerror}") from error

    return grpc.ssl_channel_credentials(
        root_certificates=read(credentials.ca),
        private_key=read(credentials.key),
        certificate_chain=read(credentials.certificate),
    )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
