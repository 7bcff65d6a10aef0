"""The HTTP endpoint, an ASGI application: Open Inference Protocol v2, health, metrics.

GET  /v2, /v2/health/live, /v2/health/ready
GET  /v2/models/NAME[/versions/V], …/ready
POST /v2/models/NAME[/versions/V]/infer
GET  /metrics                                   Prometheus
"""

import asyncio
import hmac
import logging
import re
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any

import orjson
from skerry_protos.errors import DeadlineError, SkerryError
from skerry_protos.versions import installed_version

from skerry_edge.inference.batching import BusyError
from skerry_edge.inference.desk import Desk, NoModelError, SparingError
from skerry_edge.inference.runtimes import InputError, ModelError

log = logging.getLogger(__name__)

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

JSON, BINARY, TEXT = b"application/json", b"application/octet-stream", b"text/plain; version=0.0.4"
HEADER_LENGTH = b"inference-header-content-length"
TRACEPARENT, TRACEPARENT_LIMIT = b"traceparent", 200
BODY_S = 60.0
"""How long a request's body may take to come."""


class TooLargeError(SkerryError):
    """A request is larger than the device takes."""


class TooSlowError(SkerryError):
    """A request's body does not come."""


STATUS: tuple[tuple[type[SkerryError], int], ...] = (
    (TooLargeError, 413),
    (TooSlowError, 408),
    (InputError, 400),
    (NoModelError, 404),
    (ModelError, 500),
    (BusyError, 503),
    (SparingError, 503),
    (DeadlineError, 504),
)
MORE: dict[int, list[tuple[bytes, bytes]]] = {
    408: [(b"connection", b"close")],
    503: [(b"retry-after", b"1")],
}
"""What goes with a refusal."""
_MODEL = re.compile(r"/v2/models/([^/]{1,128})(?:/versions/([^/]{1,64}))?(?:/(infer|ready))?")


class Endpoint:
    """The application; one per process."""

    def __init__(self, desk: Desk, *, token: str, request_bytes: int) -> None:
        self._desk, self._token, self._limit = desk, token.encode(), request_bytes

    async def __call__(self, scope: Mapping[str, Any], receive: Receive, send: Send) -> None:
        """Serve one connection's request."""
        if scope["type"] == "lifespan":
            await _live(receive, send)
            return
        if scope["type"] != "http":
            return
        try:
            status, kind, body, headers = await self._respond(scope, receive)
        except SkerryError as error:
            status = next((code for cls, code in STATUS if isinstance(error, cls)), 500)
            kind, body, headers = JSON, _error(error), MORE.get(status, [])
        except Exception:
            log.exception("a request failed")
            status, kind, headers = 500, JSON, []
            body = orjson.dumps({"error": "the device failed at this request; its log says why"})
        size = str(len(body)).encode()
        await send(
            {
                "type": "http.response.start",
                "status": status,
                "headers": [(b"content-type", kind), (b"content-length", size), *headers],
            }
        )
        await send({"type": "http.response.body", "body": body})

    async def _respond(
        self, scope: Mapping[str, Any], receive: Receive
    ) -> tuple[int, bytes, bytes, list[tuple[bytes, bytes]]]:
        path, method = scope["path"], scope["method"]
        headers = dict(scope["headers"])
        if self._token and not path.startswith("/v2/health/"):
            said = headers.get(b"authorization", b"")
            if not hmac.compare_digest(said, b"Bearer " + self._token):
                return 401, JSON, b'{"error":"a token is needed: Authorization: Bearer"}', []
        found = _MODEL.fullmatch(path)
        if found is not None and found[3] == "infer":
            if method != "POST":
                return 405, JSON, b'{"error":"use POST"}', [(b"allow", b"POST")]
            return await self._infer(found[1], found[2], headers, receive)
        if method not in ("GET", "HEAD"):
            return 405, JSON, b'{"error":"use GET"}', [(b"allow", b"GET")]
        if found is not None:
            return self._model(found[1], found[2], ready=found[3] == "ready")
        match path:
            case "/v2":
                about = {
                    "name": "skerry-agent",
                    "version": installed_version("skerry-edge"),
                    "extensions": ["binary_tensor_data"],
                }
                return 200, JSON, orjson.dumps(about), []
            case "/v2/health/live":
                return 200, JSON, b'{"live":true}', []
            case "/v2/health/ready":
                ready = self._desk.ready
                return 200 if ready else 503, JSON, orjson.dumps({"ready": ready}), []
            case "/metrics":
                return 200, TEXT, self._desk.metrics(), []
        return 404, JSON, orjson.dumps({"error": f"there is nothing at {path[:200]}"}), []

    def _model(
        self, name: str, version: str | None, *, ready: bool
    ) -> tuple[int, bytes, bytes, list[tuple[bytes, bytes]]]:
        served = self._desk.find(name, version)
        said: dict[str, Any] = {"name": served.name, "ready": True} if ready else served.metadata()
        return 200, JSON, orjson.dumps(said), []

    async def _infer(
        self, name: str, version: str | None, headers: Mapping[bytes, bytes], receive: Receive
    ) -> tuple[int, bytes, bytes, list[tuple[bytes, bytes]]]:
        body = await self._body(headers, receive)
        length = headers.get(HEADER_LENGTH)
        if length is not None and not length.isdigit():
            raise InputError("Inference-Header-Content-Length must be a number")
        json_bytes = None if length is None else int(length)
        traceparent = headers.get(TRACEPARENT, b"")[:TRACEPARENT_LIMIT].decode("latin-1")
        made, head = await self._desk.infer(
            name, version, body, json_bytes, traceparent=traceparent
        )
        if head is None:
            return 200, JSON, made, []
        return 200, BINARY, made, [(HEADER_LENGTH, str(head).encode())]

    async def _body(self, headers: Mapping[bytes, bytes], receive: Receive) -> bytes:
        """Return the request's body; raise TooLargeError as soon as it is known to be.

        Raise TooSlowError when it does not come.
        """
        said = headers.get(b"content-length", b"0")
        if said.isdigit() and int(said) > self._limit:
            raise TooLargeError(f"the request has {int(said)} bytes; at most {self._limit} go")
        try:
            async with asyncio.timeout(BODY_S):
                return await self._whole(receive)
        except TimeoutError:
            raise TooSlowError(f"the request's body took more than {BODY_S:g} s to come") from None

    async def _whole(self, receive: Receive) -> bytes:
        parts: list[bytes] = []
        size = 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise InputError("the request broke off")
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > self._limit:
                raise TooLargeError(f"the request has more than {self._limit} bytes")
            if not message.get("more_body"):
                return parts[0] if len(parts) == 1 else b"".join(parts)


def _error(error: SkerryError) -> bytes:
    return orjson.dumps({"error": str(error), "code": error.code})


async def _live(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return
