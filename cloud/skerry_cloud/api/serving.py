"""HTTPS in the coordinator's own event loop, on a socket it has bound, until it is told to stop."""

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator, Iterator

import uvicorn
from fastapi import FastAPI
from skerry_protos.patience import Impatient
from uvicorn.protocols.http.h11_impl import H11Protocol

from skerry_cloud.door import Door

CONNECTIONS_LIMIT = 5000
TLS_BUFFER = 32 * 1024
"""What a TLS connection holds to read into, before it has said anything; a record has 16 KiB.

asyncio's own is 256 KiB: 1000 connections that never finish their handshake took 300 MB.
"""
STOP_S = 5


class _Protocol(Impatient, H11Protocol):
    """HTTP/1.1 for whoever connects."""


class _Server(uvicorn.Server):
    """Leaves signals to the coordinator, and says when it takes requests."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.ready = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        # As uvicorn's own, but for who takes the connections.
        await self.lifespan.startup()
        self.servers = [Door(bound, self._protocol, self.config.ssl) for bound in sockets or []]  # type: ignore[misc]
        self.started = True
        self.ready.set()

    def _protocol(self) -> asyncio.Protocol:
        return _Protocol(
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@contextlib.asynccontextmanager
async def serving(
    app: FastAPI, sockets: list[socket.socket], context: ssl.SSLContext | None
) -> AsyncIterator[None]:
    """Serve `app` on bound sockets while the block runs; then finish requests, at most STOP_S."""
    asyncio.sslproto.SSLProtocol.max_size = TLS_BUFFER  # type: ignore[attr-defined]
    config = uvicorn.Config(
        app,
        http=_Protocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,  # who calls is who connects: rates are limited by address
        limit_concurrency=CONNECTIONS_LIMIT,
        timeout_keep_alive=20,
        timeout_graceful_shutdown=STOP_S,
    )
    config.load()
    config.ssl = context
    server = _Server(config)
    task = asyncio.create_task(server.serve(sockets), name="http")
    try:
        ready = asyncio.create_task(server.ready.wait())
        await asyncio.wait({task, ready}, return_when=asyncio.FIRST_COMPLETED)
        ready.cancel()
        if task.done():
            task.result()
            raise RuntimeError("the HTTP server stopped as it started")
        yield
    finally:
        app.state.stopping.set()
        server.should_exit = True
        async with asyncio.timeout(STOP_S * 2):
            await task
