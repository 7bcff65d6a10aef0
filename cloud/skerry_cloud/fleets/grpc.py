"""The fleet over gRPC: devices connect by one bidirectional stream of packets, with mutual TLS."""

import asyncio
import ipaddress
import logging
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, cast

import grpc
import grpc.aio
from skerry_protos.errors import ConfigError, LinkError, RefusalCode, RefusedError
from skerry_protos.seams import Blobs
from skerry_protos.session import Inflow, Limits
from skerry_protos.session.handshake import HELLO_S

from skerry_cloud.fleets import Gate
from skerry_cloud.fleets.sessions import SAYING_NO_S, Sessions
from skerry_cloud.identity import ServerCredentials

log = logging.getLogger(__name__)

SERVICE: Final = "skerry.v1.Fleet"
CHUNK: Final = 512 * 1024
MAX_PACKET: Final = 4 * 1024**2 - 1024
"""Below gRPC's own limit of 4 MiB for a message, which stays."""
OPTIONS: Final = (
    ("grpc.so_reuseport", 0),  # a second coordinator on the port is an error, not a competitor
    # Devices ping each 20 s; without these two the server answers pings by "too many pings".
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.max_pings_without_data", 0),
    # A connection that never says Hello costs little and not for long.
    ("grpc.server_handshake_timeout_ms", 15_000),
    ("grpc.max_connection_idle_ms", 60_000),
    ("grpc.max_concurrent_streams", 4),
)
GRACE_S: Final = 0.5
"""How long open calls may take to end when the server stops; sessions are closed before."""

Context = grpc.aio.ServicerContext[bytes, bytes]


class GrpcWire:
    """One device's call as a wire."""

    reliable = exact = True
    chunk = CHUNK
    max_packet = max_received = MAX_PACKET

    def __init__(self, context: Context) -> None:
        self._context = context

    async def send(self, packet: bytes) -> None:
        until = asyncio.get_running_loop().time() + SAYING_NO_S
        while True:
            try:
                await self._context.write(packet)
            except grpc.aio.UsageError as error:
                raise LinkError("the device's call has ended") from error
            except grpc.aio.BaseError as error:
                raise LinkError(f"the device's call has ended: {error}") from error
            except Exception as error:
                # A write that was cancelled is still under way in grpc's core: wait for it. The
                # error's class is private to grpc (ExecuteBatchError).
                if "TOO_MANY_OPERATIONS" not in str(error):
                    raise LinkError(f"the device's call has ended: {error}") from error
                if asyncio.get_running_loop().time() > until:
                    raise LinkError("the device does not read") from error
                await asyncio.sleep(0.01)
            else:
                return

    async def receive(self) -> bytes:
        """Return the next packet; raise LinkError at the end of the call."""
        try:
            packet = await self._context.read()
        except Exception as error:
            raise LinkError(f"the device's call has ended: {error}") from error
        if isinstance(packet, bytes):
            return packet
        raise LinkError("the device ended the connection")


class GrpcFleet(Sessions):
    """A Fleet over gRPC; an async context manager that serves while it is open."""

    def __init__(
        self,
        *,
        gate: Gate,
        blobs: Blobs,
        host: str = "127.0.0.1",
        port: int = 0,
        keys: ServerCredentials | None,
        heartbeat_s: float = 15.0,
        resume_s: float = 120.0,
        ping_s: float = 10.0,
        inflow: Inflow | None = None,
        limits: Limits | None = None,
    ) -> None:
        """Serve on host and port (0: a free one); without `keys` only on loopback, unencrypted."""
        super().__init__(
            gate=gate,
            blobs=blobs,
            transport="grpc",
            inflow=inflow,
            limits=limits,
            heartbeat_s=heartbeat_s,
            resume_s=resume_s,
            ping_s=ping_s,
        )
        if keys is None and not _is_loopback(host):
            raise ConfigError(
                f"gRPC on {host} without TLS is refused: only loopback may be insecure"
            )
        self._host = host
        self._asked = port
        self._keys = keys
        self._server: grpc.aio.Server | None = None
        self._calls: set[asyncio.Task[Any]] = set()
        self.port = 0

    async def __aenter__(self) -> Self:
        server = grpc.aio.server(options=list(OPTIONS))
        handler = grpc.stream_stream_rpc_method_handler(self._serve)
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(SERVICE, {"Connect": handler}),)
        )
        address = f"[{self._host}]:{self._asked}" if ":" in self._host else self._where()
        try:
            if self._keys is None:
                self.port = server.add_insecure_port(address)
            else:
                self.port = server.add_secure_port(address, _secure(self._keys))
        except RuntimeError as error:
            raise ConfigError(
                f"gRPC cannot listen on {address}: the port is in use, or the address is not here",
                hint="choose another with --grpc-port",
            ) from error
        await server.start()
        self._server = server
        return self

    def _where(self) -> str:
        return f"{self._host}:{self._asked}"

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()
        if self._server is not None:
            await self._server.stop(GRACE_S)
            self._server = None

    @property
    def url(self) -> str:
        """Where devices connect."""
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"{'grpc' if self._keys is None else 'grpcs'}://{host}:{self.port}"

    async def _serve(self, _packets: object, context: Context) -> None:
        """Serve one device's call until it ends or is cut."""
        wire, why = GrpcWire(context), "the device's connection was lost"
        task = asyncio.current_task()
        assert task is not None

        def close() -> None:
            task.cancel()

        try:
            identity = self._identity(context)
            async with asyncio.timeout(HELLO_S):
                visit = await self.greet(
                    await wire.receive(),
                    wire,
                    identity=identity,
                    close=close,
                    max_packet=MAX_PACKET,
                )
        except (LinkError, RefusedError, TimeoutError) as error:
            log.info("%s was not admitted: %s", context.peer(), error)
            return
        try:
            while True:
                visit.receive(await wire.receive())
        except LinkError as error:
            why = str(error)
        except asyncio.CancelledError:
            # The device went, or this side cut it: either way the call is over, quietly.
            task.uncancel()
        finally:
            await self.leave(visit, why)

    def _identity(self, context: Context) -> str | None:
        """Return the name in the device's certificate; None where there is no TLS."""
        if self._keys is None:
            return None
        names = list(context.auth_context().get("x509_common_name", []))
        if len(names) != 1:
            raise RefusedError(RefusalCode.IDENTITY, "the certificate has no common name")
        return names[0].decode(errors="replace")


def _secure(keys: ServerCredentials) -> grpc.ServerCredentials:
    """Return credentials that demand a device certificate and follow the files' changes."""
    known: list[tuple[int, ...]] = [_stamp(keys)]
    unchanged = cast("grpc.ServerCertificateConfiguration", None)  # what grpc wants, untyped

    def fetch() -> grpc.ServerCertificateConfiguration:
        stamp = _stamp(keys)
        if stamp == known[0]:
            return unchanged
        try:
            fresh = _configuration(keys)
        except OSError as error:
            log.error("cannot read the renewed certificate, keeping the old: %s", error)
            return unchanged
        known[0] = stamp
        return fresh

    return grpc.dynamic_ssl_server_credentials(
        _configuration(keys), fetch, require_client_authentication=True
    )


def _configuration(keys: ServerCredentials) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration(
        [(keys.key.read_bytes(), keys.certificate.read_bytes())],
        root_certificates=keys.ca.read_bytes(),
    )


def _stamp(keys: ServerCredentials) -> tuple[int, ...]:
    def changed(path: Path) -> int:
        try:
            return path.stat().st_mtime_ns
        except OSError:
            return 0

    return (changed(keys.key), changed(keys.certificate), changed(keys.ca))


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
