"""A coordinator's shore for tests: authority, registry and HTTPS API on loopback, no fleets."""

import asyncio
import contextlib
import json
import socket
import ssl
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Collection, Iterable
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

from skerry_cloud.api.app import make_app
from skerry_cloud.api.enrol import LinkView
from skerry_cloud.api.runs import BUNDLE_LIMIT
from skerry_cloud.api.runs import router as runs_router
from skerry_cloud.api.serving import serving
from skerry_cloud.identity import Authority
from skerry_cloud.registry import Registry
from skerry_cloud.runs import Runs
from skerry_cloud.store import Store, operators
from skerry_cloud.store.operators import Role
from skerry_protos.blobs import LocalBlobs
from skerry_protos.errors import SkerryError
from skerry_protos.messages import BlobRef, DeviceId, Parcel
from skerry_protos.seams import Stream


class Answer(dict[str, Any]):
    """A JSON answer and its status."""

    status: int = 0

    @property
    def code(self) -> str:
        """The error's code, or nothing."""
        return str(self.get("error", {}).get("code", ""))


@dataclass
class Harbour:
    """A fleet that keeps what it was asked to do: the registry's other side."""

    delivered: list[tuple[DeviceId, Parcel]] = field(default_factory=list)
    dismissed: list[tuple[DeviceId, str]] = field(default_factory=list)
    arrived: asyncio.Event = field(default_factory=asyncio.Event)

    def devices(self) -> frozenset[DeviceId]:
        return frozenset()

    async def deliver(self, device: DeviceId, parcel: Parcel) -> None:
        self.delivered.append((device, parcel))
        self.arrived.set()

    async def dismiss(self, device: DeviceId, code: str, message: str) -> None:
        self.dismissed.append((device, code))

    async def fetch(self, device: DeviceId, ref: BlobRef, *, deadline_s: float) -> Path:
        raise NotImplementedError

    def cast(self, ref: BlobRef, devices: Iterable[DeviceId]) -> None:
        raise NotImplementedError

    async def open_stream(
        self, device: DeviceId, kind: str, *, deadline_s: float, run: str = "", trace: str = ""
    ) -> Stream:
        raise NotImplementedError


@dataclass
class Labour:
    """Work that keeps what it was handed."""

    replies: list[tuple[DeviceId, Parcel]] = field(default_factory=list)
    shown: list[tuple[DeviceId, Parcel]] = field(default_factory=list)
    came: list[DeviceId] = field(default_factory=list)
    withdrawn: list[tuple[DeviceId, str]] = field(default_factory=list)
    wrongs: list[tuple[DeviceId, str]] = field(default_factory=list)

    async def reply(self, device: DeviceId, parcel: Parcel) -> None:
        self.replies.append((device, parcel))

    async def progress(self, device: DeviceId, parcel: Parcel) -> None:
        self.shown.append((device, parcel))

    def refused(self, device: DeviceId, run: str, error: SkerryError) -> None:
        self.wrongs.append((device, run))

    async def present(self, device: DeviceId) -> None:
        self.came.append(device)

    async def holds(self, device: DeviceId, tasks: Collection[str]) -> None:
        pass

    async def stream(self, device: DeviceId, stream: Stream) -> None:
        raise NotImplementedError

    async def withdraw(self, device: DeviceId, why: str) -> None:
        self.withdrawn.append((device, why))


@dataclass
class Mainland:
    """What a test may hold of a running shore."""

    url: str
    store: Store
    authority: Authority
    registry: Registry
    harbour: Harbour
    labour: Labour
    tokens: dict[Role, str]
    app: Any

    async def call(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        role: Role | None = Role.ADMIN,
        token: str = "",
        headers: dict[str, str] | None = None,
    ) -> Answer:
        """Call the API over TLS and return its JSON; an answer of another kind is left out."""
        token = token or (self.tokens[role] if role else "")
        sent = dict(headers or {})
        if token:
            sent["Authorization"] = f"Bearer {token}"
        return await asyncio.to_thread(self._call, method, path, body, sent)

    def _call(self, method: str, path: str, body: object, headers: dict[str, str]) -> Answer:
        content = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        if content is not None:
            headers.setdefault("Content-Type", "application/json")
        request = urllib.request.Request(
            self.url + path, data=content, method=method, headers=headers
        )
        context = ssl.create_default_context(cafile=str(self.authority.certificate_file))
        try:
            with urllib.request.urlopen(request, timeout=20, context=context) as got:
                status, text, kind = got.status, got.read(), got.headers.get_content_type()
        except urllib.error.HTTPError as error:
            with error:
                status, text, kind = error.code, error.read(), error.headers.get_content_type()
        answer = Answer(json.loads(text) if text and kind == "application/json" else {})
        answer.status = status
        return answer

    async def invite(self, **asked: object) -> str:
        """Return a join token."""
        made = await self.call("POST", "/v1/invites", asked)
        assert made.status == 200, made
        return str(made["token"])


@contextlib.asynccontextmanager
async def mainland(
    home: Path, *, database: str = "", device_life: timedelta = timedelta(days=7)
) -> AsyncIterator[Mainland]:
    """Run the shore while the block runs."""
    authority = Authority.open(home, device_life=device_life)
    store = Store.open(database or f"sqlite:///{home}/skerry.db")
    tokens = {role: operators.new_token() for role in Role}

    def keep(connection: Any) -> None:
        for role, token in tokens.items():
            operators.keep(connection, name=role.value, role=role, token=token)

    bound = socket.create_server(("127.0.0.1", 0))
    url = f"https://127.0.0.1:{bound.getsockname()[1]}"
    harbour, labour = Harbour(), Labour()
    async with store, Registry(store=store, authority=authority) as registry:
        await store.write(keep)
        registry.attach(fleet=harbour, work=labour)
        runs = Runs(
            store=store,
            blobs=LocalBlobs(home / "blobs", durable=False),
            fleet=harbour,
            roster=registry,
            sign=authority.sign_bundle,
            folder=home / "runs",
        )
        app = make_app(
            store=store,
            authority=authority,
            registry=registry,
            url=url,
            links=[LinkView(kind="grpc", url="grpcs://127.0.0.1:8471")],
            routers=[runs_router(runs)],
            large_bodies={"/v1/apps": BUNDLE_LIMIT},
        )
        context = authority.server(["127.0.0.1"]).context()
        async with serving(app, [bound], context):
            yield Mainland(
                url=url,
                store=store,
                authority=authority,
                registry=registry,
                harbour=harbour,
                labour=labour,
                tokens=tokens,
                app=app,
            )
