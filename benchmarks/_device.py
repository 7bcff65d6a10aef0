"""A device of benchmarks: a real link and session; what comes, it answers with the model moved.

No inbox, no worker, no agent around the link, so that thousands fit in one process. A model that
came as a blob is answered by a blob, one that came in the task itself by one in the reply.
"""

import asyncio
import json
import sys

import numpy as np
from skerry_edge.links import Credentials, LinkConfig
from skerry_edge.links.grpc import GrpcLink
from skerry_edge.outbox import reply_id
from skerry_protos import records as codec
from skerry_protos.blobs import LocalBlobs
from skerry_protos.messages import BlobRef, DeviceId, Parcel, ParcelKind
from skerry_protos.records import Records
from skerry_protos.seams import Stream
from skerry_protos.tensors import Tensor
from skerry_protos.v1 import work_pb2

FETCH_S = 500.0


class Device:
    """One device's link; `up` is set when its session is."""

    def __init__(
        self,
        place: int,
        *,
        name: str,
        url: str,
        blobs: LocalBlobs,
        working: asyncio.Semaphore,
        fetching: asyncio.Lock,
        credentials: Credentials | None = None,
    ) -> None:
        """Begin without a connection; `working` and `fetching` are shared by a process's devices.

        Those that share `blobs` fetch by turns: the first for all.
        """
        self.place = place
        self.name = name
        self.up = asyncio.Event()
        self._blobs = blobs
        self._working = working
        self._fetching = fetching
        self._tasks: set[asyncio.Task[None]] = set()
        self.link = GrpcLink(
            LinkConfig(
                kind="grpc",
                url=url,
                device=DeviceId(name),
                agent_version="0.1.0",
                credentials=credentials,
                blobs=blobs,
                receiver=self,
                on_state=lambda why, _wait: self.up.set() if why is None else None,
            )
        )

    async def accept(self, parcel: Parcel) -> None:
        if parcel.kind == ParcelKind.TASK:
            task = asyncio.create_task(self._answer(parcel))
            self._tasks.add(task)
            task.add_done_callback(self._ended)

    async def serve(self, stream: Stream) -> None:
        await stream.abort("unexpected", "a benchmark's device serves no streams")

    def _ended(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()):
            print(f"{self.name}: {error!r}", file=sys.stderr, flush=True)

    async def _answer(self, parcel: Parcel) -> None:
        asked = parcel.blob("content")
        if asked is None:
            content = codec.decode(work_pb2.Task.FromString(parcel.body).content)
            made = codec.to_bytes(self._train(content))
            await self._reply(parcel, work_pb2.Reply(task=parcel.id, content=made))
            return
        async with self._fetching:
            content = codec.read(await self.link.fetch(asked, deadline_s=FETCH_S))
        async with self._working:
            parts = codec.encode(await asyncio.to_thread(self._train, content))
            ref = await asyncio.to_thread(self._blobs.put, parts, role="content")
        del content, parts
        await self._reply(parcel, work_pb2.Reply(task=parcel.id), ref)
        self._blobs.remove(ref.digest)

    async def _reply(self, asked: Parcel, body: work_pb2.Reply, *blobs: BlobRef) -> None:
        await self.link.deliver(
            Parcel(
                id=reply_id(asked.id),
                kind=ParcelKind.REPLY,
                run=asked.run,
                round=asked.round,
                body=body.SerializeToString(),
                blobs=blobs,
            )
        )

    def _train(self, content: Records) -> Records:
        """Return the arrays moved by this device's own step."""
        step = np.float32(1e-3 * (1 + self.place % 7) + 1e-6 * self.place)
        moved = {
            key: Tensor.of(tensor.numpy() + step)
            for key, tensor in content.arrays["arrays"].items()
        }
        metrics = {"num-examples": 1 + self.place % 3, "loss": 1.0 / (1 + self.place)}
        return Records(arrays={"arrays": moved}, metrics={"metrics": metrics})


def say(what: dict[str, object]) -> None:
    """Answer whoever started this process."""
    print(json.dumps(what), flush=True)
