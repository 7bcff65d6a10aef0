"""Who calls, and whether they may: bearer tokens, roles, and the guard around every request.

A route says what it takes with `needs(Role.X)`; `Guard` has put the operator into the request's
state before it runs, bounded the body, and keeps the audit log of everything that changes
something, refused or not.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping
from typing import Annotated, Any

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from skerry_cloud.api.errors import ApiError, answer
from skerry_cloud.store import Store, StoreError, audit, operators
from skerry_cloud.store.operators import Operator, Role

BODY_LIMIT = 256 * 1024
"""Largest request body of routes that do not name their own, bytes."""
PATIENCE_S = 3.0
"""How long a request waits for a full disk before it is refused."""
BODY_S = 30.0
"""How long the next part of a body may take."""
HEARD_OUT = 1024 * 1024
"""Bytes of a refused body that are read on, so that its sender hears the answer and no reset."""
READS = frozenset({"GET", "HEAD", "OPTIONS"})

_bearer = HTTPBearer(auto_error=False, description="An operator's token (`sko1.…`).")


def needs(role: Role) -> Any:
    """Return the dependency of a route that only operators with `role` may use."""

    def allow(
        request: Request,
        _shown: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)],
    ) -> Operator:
        operator: Operator | None = request.state.operator
        if operator is None:
            raise ApiError(
                401,
                "unauthorized",
                "this needs an operator's token",
                hint="send Authorization: Bearer <token>",
                headers={"WWW-Authenticate": "Bearer"},
            )
        if not operator.role.includes(role):
            raise ApiError(
                403,
                "forbidden",
                f"{operator.name!r} is a {operator.role.value}, and this takes an {role.value}",
                hint="ask an admin for a token with that role",
            )
        return operator

    return Depends(allow)


def caller(request: Request) -> Operator:
    """Return who calls; only for routes that `needs` guards."""
    operator: Operator = request.state.operator
    return operator


def note(request: Request, **detail: object) -> None:
    """Add to what the audit log says of this request; no secrets."""
    request.state.detail.update(detail)


Caller = Annotated[Operator, Depends(caller)]


class Allowance:
    """A token bucket per key: `burst` at once, then `each_s` apart; forgets the idle."""

    KEYS_LIMIT = 10_000

    def __init__(
        self, burst: int, each_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._burst, self._each_s, self._clock = burst, each_s, clock
        self._empty_at: dict[str, float] = {}

    def take(self, key: str) -> bool:
        """Take one; return whether there was one to take."""
        left = self.left(key)
        if left < 1:
            return False
        if len(self._empty_at) >= self.KEYS_LIMIT:
            now = self._clock()
            full = {k for k, at in self._empty_at.items() if now - at >= self._burst * self._each_s}
            self._empty_at = {k: at for k, at in self._empty_at.items() if k not in full}
        self._empty_at[key] = self._clock() - (left - 1) * self._each_s
        return True

    def left(self, key: str) -> float:
        """Return how many may be taken now."""
        if key not in self._empty_at:
            if len(self._empty_at) >= self.KEYS_LIMIT * 2:
                return 0.0  # a flood of addresses: refuse new ones until the idle are forgotten
            return float(self._burst)
        return min(self._burst, (self._clock() - self._empty_at[key]) / self._each_s)


class Guard:
    """The ASGI layer around the API: who calls, how large a body may be, and the audit log."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        store: Store,
        large_bodies: Mapping[str, int],
        stopping: asyncio.Event,
    ) -> None:
        self._app = app
        self._stopping = stopping
        self._store = store
        self._large_bodies = large_bodies
        self._failures = Allowance(burst=30, each_s=1.0)
        self._strangers = Allowance(burst=500, each_s=0.05)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or answer why not."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        state = scope.setdefault("state", {})
        state.update(operator=None, detail={}, why="", audited=False)
        try:
            state["operator"] = await self._operator(scope)
            bounded = self._bounded(scope, receive)
            if scope["method"] in READS:
                await self._until_stopping(scope, bounded, send)
            else:
                await self._audited(scope, bounded, send)
        except (ApiError, StoreError) as error:
            status = error.status if isinstance(error, ApiError) else 503
            status = 507 if error.code == "disk-full" else status
            headers = error.headers if isinstance(error, ApiError) else None
            if status == 413 and state["operator"] is not None:
                await _hear_out(receive)
            refusal = answer(status, error.code, error.message, error.hint, headers)
            await refusal(scope, receive, send)

    async def _operator(self, scope: Scope) -> Operator | None:
        """Return whose bearer token this is; None without one; raise ApiError for a wrong one."""
        header = dict(scope["headers"]).get(b"authorization", b"")
        scheme, _, token = header.decode("latin-1").partition(" ")
        if not header or scheme.lower() != "bearer":
            return None
        self._spare(scope)
        found = None
        if len(token) <= 200:
            found = await self._store.read(lambda c: operators.by_token(c, token.strip()))
        if found is None:
            self._failures.take(address_of(scope))
            if scope["method"] not in READS:
                await self._note_refused(scope)
            raise ApiError(
                401, "unauthorized", "the token is wrong or was revoked", hint="ask an admin"
            )
        return found

    async def _until_stopping(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a reading request, and end its wait when the coordinator stops."""
        started = False

        async def noting(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        stopping = asyncio.create_task(self._stopping.wait())
        request = asyncio.ensure_future(self._app(scope, receive, noting))
        try:
            await asyncio.wait({stopping, request}, return_when=asyncio.FIRST_COMPLETED)
            if request.done() or started:
                await request
                return
        finally:
            stopping.cancel()
            request.cancel()
        await asyncio.wait({request})
        raise ApiError(503, "stopping", "the coordinator is stopping: ask again when it is back")

    def _spare(self, scope: Scope) -> None:
        """Refuse an address that has failed too often lately, before it costs anything."""
        if self._failures.left(address_of(scope)) < 1:
            raise ApiError(
                429,
                "too-many",
                "too many refused requests from this address: wait a minute",
                headers={"Retry-After": "60"},
            )

    async def _note_refused(self, scope: Scope) -> None:
        def write(connection: Any) -> None:
            number = audit.begin(
                connection,
                operator="",
                action=scope["method"].lower(),
                target=scope["path"],
                detail={"address": address_of(scope)},
            )
            audit.finish(
                connection,
                number,
                scope["method"].lower(),
                "401 unauthorized",
                {"address": address_of(scope)},
            )

        await self._store.write(write, patience_s=PATIENCE_S)

    def _bounded(self, scope: Scope, receive: Receive) -> Receive:
        """Return `receive` that refuses a body larger than the route takes."""
        limit = self._large_bodies.get(scope["path"], BODY_LIMIT)
        length = dict(scope["headers"]).get(b"content-length", b"0")
        why = f"the request is larger than {limit} bytes"
        if not length.isdigit() or int(length[:19]) > limit:
            raise ApiError(413, "too-large", why)
        came = 0

        async def bounded() -> Message:
            nonlocal came
            try:
                async with asyncio.timeout(BODY_S):
                    message = await receive()
            except TimeoutError:
                # The one kind of error that FastAPI passes on while it reads a body.
                raise HTTPException(408, "the request's body does not come") from None
            came += len(message.get("body", b""))
            if came > limit:
                raise HTTPException(413, why)
            return message

        return bounded

    async def _audited(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Write a row before the action and finish it before the answer goes out."""
        state = scope["state"]
        operator: Operator | None = state["operator"]
        target, detail = scope["path"], {"address": address_of(scope)}
        name = operator.name if operator else ""
        if operator is None:
            self._spare(scope)
            if not self._strangers.take(detail["address"]):
                raise ApiError(
                    429,
                    "too-many",
                    "too many requests from this address: wait a little",
                    headers={"Retry-After": "5"},
                )
        number = await self._store.write(
            lambda c: audit.begin(
                c, operator=name, action=scope["method"].lower(), target=target, detail=detail
            ),
            patience_s=PATIENCE_S,
        )
        finished = False

        async def finish(status: int) -> None:
            nonlocal finished
            finished = True
            if operator is None and 400 <= status < 500:
                self._failures.take(detail["address"])
            outcome = f"{status} {state['why']}".strip()
            route = scope.get("route")
            action = getattr(route, "name", "") or scope["method"].lower()
            await self._store.write(
                lambda c: audit.finish(c, number, action, outcome, detail | state["detail"]),
                patience_s=PATIENCE_S,
            )

        async def audited(message: Message) -> None:
            if message["type"] == "http.response.start" and not finished:
                await finish(message["status"])
            await send(message)

        try:
            await self._app(scope, receive, audited)
        except Exception:
            if not finished:
                await finish(500)
            raise


async def _hear_out(receive: Receive) -> None:
    """Read on for a while: whoever still sends when the connection closes hears no answer."""
    left = HEARD_OUT
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(BODY_S):
            more = True
            while more and left > 0:
                message = await receive()
                left -= len(message.get("body", b""))
                more = message.get("more_body", False)


def address_of(scope: Scope) -> str:
    """Return the caller's network address."""
    client = scope.get("client")
    return str(client[0]) if client else ""
