"""A small honest cloud for tests of the device: real sessions, a real store, no coordinator.

It asks devices, keeps what they answer, and can be told to hold its acknowledgements.
"""

import asyncio
import itertools
import json
import time
from collections import Counter, defaultdict
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from skerry_cloud.fleets import Fleet
from skerry_edge.identity import Identity
from skerry_protos import bundles
from skerry_protos.blobs import LocalBlobs
from skerry_protos.errors import LinkError, RefusedError, RejectedError, SkerryError
from skerry_protos.messages import (
    INLINE_LIMIT,
    BlobRef,
    DeviceId,
    Parcel,
    ParcelId,
    ParcelKind,
    RunId,
)
from skerry_protos.records import Records, decode, read, to_bytes
from skerry_protos.seams import Stream
from skerry_protos.v1 import work_pb2

from tests.edge.conftest import until

_TASKS = itertools.count()


class Cloud:
    """Asks devices and keeps their answers; the Gate of the fleet it is given."""

    def __init__(self, folder: Path) -> None:
        self.blobs = LocalBlobs(folder / "cloud-blobs")
        self.key = Ed25519PrivateKey.generate()
        self.fleet: Fleet | None = None
        self.replies: dict[str, work_pb2.Reply] = {}
        self.contents: dict[str, Records] = {}
        self.accepted: Counter[str] = Counter()
        self.beats: list[work_pb2.Heartbeat] = []
        self.lines: dict[str, list[str]] = defaultdict(list)
        self.renewals: list[bytes] = []
        self.open_gate = asyncio.Event()
        self.open_gate.set()
        self.present_now: set[DeviceId] = set()
        self.refusal: RefusedError | None = None
        self.reject: RejectedError | None = None
        self._asking: set[asyncio.Task[None]] = set()

    # skerry_cloud.fleets.Gate

    async def admit(self, device: DeviceId, transport: str, agent_version: str) -> None:
        if self.refusal is not None:
            raise self.refusal

    async def present(self, device: DeviceId, transport: str) -> None:
        self.present_now.add(device)

    async def absent(self, device: DeviceId, transport: str, why: str) -> None:
        self.present_now.discard(device)

    def refused(self, device: DeviceId, run: str, error: SkerryError) -> None:
        raise AssertionError(f"{device} sent what the session refuses: {error}")

    async def accept(self, device: DeviceId, parcel: Parcel) -> None:
        match parcel.kind:
            case ParcelKind.REPLY:
                await self._reply(device, parcel)
            case ParcelKind.HEARTBEAT:
                self.beats.append(work_pb2.Heartbeat.FromString(parcel.body))
            case ParcelKind.LOG:
                said = work_pb2.LogLines.FromString(parcel.body)
                self.lines[said.source] += [line.text for line in said.lines]
            case ParcelKind.RENEW:
                self.renewals.append(parcel.body)

    async def serve(self, device: DeviceId, stream: Stream) -> None:
        await stream.abort("unexpected", "no streams here")

    async def _reply(self, device: DeviceId, parcel: Parcel) -> None:
        assert self.fleet is not None
        self.accepted[parcel.id] += 1
        if self.reject is not None:
            raise self.reject
        reply = work_pb2.Reply.FromString(parcel.body)
        content = parcel.blob("content")
        if content is not None:
            path = await self.fleet.fetch(device, content, deadline_s=30)
            self.contents[reply.task] = read(path)
        elif reply.content:
            self.contents[reply.task] = decode(reply.content)
        await self.open_gate.wait()
        self.replies[reply.task] = reply

    # Asking.

    def bundle(self, app: Path, *, kind: str = "native", client: str = "app:train") -> BlobRef:
        """Sign and keep the files of an app's folder."""
        files = {
            str(path.relative_to(app)): path.read_bytes()
            for path in app.rglob("*")
            if path.is_file()
        }
        made = bundles.pack(files, kind=kind, name="app", version="1", client=client, server="s:s")
        return self.blobs.put(bundles.sign(made, self.key.sign), role="bundle")

    def task(
        self,
        bundle: BlobRef,
        asks: Records,
        /,
        *,
        deadline_s: float = 60.0,
        run: str = "run-1",
        **body: object,
    ) -> Parcel:
        """Return a task parcel."""
        data = to_bytes(asks)
        blobs: tuple[BlobRef, ...] = (bundle,)
        if len(data) > INLINE_LIMIT:
            blobs = (self.blobs.put(data, role="content"), bundle)
            data = b""
        name = ParcelId(f"task-{next(_TASKS)}")
        values: dict[str, object] = {
            "message_type": "train",
            "content": data,
            "flower_run": 5,
            "node": 7,
            "app": work_pb2.AppRef(kind="native", name="app", digest=bytes.fromhex(bundle.digest)),
            "created_unix_s": time.time(),
            "message_id": name,
            "ttl_s": 3600.0,
            "run_config_json": json.dumps({"lr": 0.5}),
        }
        task = work_pb2.Task(**(values | body))  # type: ignore[arg-type]
        return Parcel(
            id=name,
            kind=ParcelKind.TASK,
            run=RunId(run),
            round=1,
            deadline_unix_s=time.time() + deadline_s,
            body=task.SerializeToString(),
            blobs=blobs,
        )

    def ask(self, device: DeviceId, parcel: Parcel) -> ParcelId:
        """Deliver a parcel until the device has it, over lost sessions too."""

        async def deliver() -> None:
            assert self.fleet is not None
            while True:
                try:
                    return await self.fleet.deliver(device, parcel)
                except LinkError:
                    await asyncio.sleep(0.05)

        asking = asyncio.create_task(deliver())
        self._asking.add(asking)
        asking.add_done_callback(self._asking.discard)
        return parcel.id

    async def answered(self, *tasks: str, within_s: float = 30.0) -> list[work_pb2.Reply]:
        """Wait for the replies to these tasks."""
        await until(lambda: all(task in self.replies for task in tasks), within_s)
        return [self.replies[task] for task in tasks]

    async def close(self) -> None:
        for each in list(self._asking):
            each.cancel()
        await asyncio.gather(*self._asking, return_exceptions=True)

    def enrol(self, home: Path, device: str, *, kind: str, url: str) -> Identity:
        """Leave the identity of an enrolled device in its home."""
        folder = home / "identity"
        folder.mkdir(parents=True)
        public = self.key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        (folder / "bundle.pem").write_bytes(public)
        (folder / "identity.json").write_text(
            json.dumps(
                {
                    "device": device,
                    "node": 7,
                    "url": "https://127.0.0.1:1",
                    "links": [{"kind": kind, "url": url}],
                    "heartbeat_s": 0.5,
                    "valid_from": time.time() - 60,
                    "valid_until": time.time() + 86400,
                }
            )
        )
        return Identity.load(home)
