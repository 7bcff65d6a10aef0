"""How the endpoint speaks HTTP: uvicorn, with the head and the body of an answer sent together.

uvicorn writes them one by one, which are two calls of the system and two packets. That is a fifth
of what a small request costs the loop, which gives the interpreter up at each and has to wait for
the model's threads to get it back (docs/benchmarks.md, serving).
"""

import asyncio
from collections.abc import Iterable
from typing import Any

import uvicorn
from skerry_protos.patience import Impatient
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from skerry_edge.inference.server import Endpoint

BACKLOG = 128
KEEP_ALIVE_S = 75


class _Joined(asyncio.Transport):
    """A transport that sends what is written in one turn of the loop by one call."""

    def __init__(self, transport: asyncio.Transport) -> None:
        super().__init__()
        self._transport, self._loop = transport, asyncio.get_running_loop()
        self._held: list[bytes] = []

    def write(self, data: Any) -> None:
        if not self._held:
            self._loop.call_soon(self._flush)
        self._held.append(data)

    def writelines(self, list_of_data: Iterable[Any]) -> None:
        for data in list_of_data:
            self.write(data)

    def _flush(self) -> None:
        if self._held:
            held, self._held = self._held, []
            self._transport.write(held[0] if len(held) == 1 else b"".join(held))

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def abort(self) -> None:
        self._held.clear()
        self._transport.abort()

    def is_closing(self) -> bool:
        return self._transport.is_closing()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._transport.get_extra_info(name, default)

    def pause_reading(self) -> None:
        self._transport.pause_reading()

    def resume_reading(self) -> None:
        self._transport.resume_reading()

    def is_reading(self) -> bool:
        return self._transport.is_reading()

    def get_write_buffer_size(self) -> int:
        return self._transport.get_write_buffer_size() + sum(map(len, self._held))

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._flush()
        self._transport.set_protocol(protocol)


class _Protocol(Impatient, HttpToolsProtocol):
    """uvicorn's HTTP/1.1 over httptools."""

    def connection_made(self, transport: Any) -> None:
        super().connection_made(_Joined(transport))


def http_server(endpoint: Endpoint, *, queue: int) -> uvicorn.Server:
    """Return the server of an endpoint; more connections than `queue` and some get 503."""
    return uvicorn.Server(
        uvicorn.Config(
            endpoint,
            http=_Protocol,
            ws="none",
            lifespan="off",
            log_level="warning",
            access_log=False,
            proxy_headers=False,
            server_header=False,
            date_header=False,
            timeout_keep_alive=KEEP_ALIVE_S,
            backlog=BACKLOG,
            limit_concurrency=queue + BACKLOG,
        )
    )
