"""Many devices in one process, and a coordinator in another: real sessions over gRPC.

The devices have links, sessions and blobs as agents do, and answer each task with the model moved
a little, each its own way; they have no inbox and no worker, so that a hundred fit on one machine.

    python -m benchmarks._farm coordinator HOME DEVICES   prints {"port": …}; runs what stdin asks
    python -m benchmarks._farm devices HOME DEVICES PORT
"""

import asyncio
import json
import sys
import time
from pathlib import Path

import numpy as np
from skerry_cloud.__main__ import ARENAS
from skerry_cloud.coordinator import secrets_in
from skerry_cloud.fleets.grpc import GrpcFleet
from skerry_cloud.identity import Authority
from skerry_cloud.registry import Registry
from skerry_cloud.runs.engine import Runs
from skerry_cloud.runs.lifecycle import OPEN_RUNS
from skerry_cloud.store import Store, tables
from skerry_devices.apps import read_app
from skerry_edge.links import LinkConfig
from skerry_edge.links.grpc import GrpcLink
from skerry_protos import records as codec
from skerry_protos.allocator import share_arenas
from skerry_protos.blobs import LocalBlobs
from skerry_protos.messages import DeviceId, Parcel, ParcelId, ParcelKind
from skerry_protos.records import Records
from skerry_protos.seams import Stream
from skerry_protos.tensors import Tensor
from skerry_protos.v1 import work_pb2

DEADLINE_S = 500.0


async def coordinator(home: Path, devices: int) -> None:
    """Serve until stdin ends; each line asks for a run: {"app": …, "options": {…}}."""
    authority = Authority.open(home)
    blobs = LocalBlobs(home / "blobs")
    async with Store.open(f"sqlite:///{home}/skerry.db") as store:
        await store.write(lambda c: [c.execute(row) for row in _enrolments(devices)])
        async with Registry(store=store, authority=authority) as registry:
            fleet = GrpcFleet(gate=registry, blobs=blobs, host="127.0.0.1", port=0, keys=None)
            runs = Runs(
                store=store,
                blobs=blobs,
                fleet=fleet,
                roster=registry,
                sign=authority.sign_bundle,
                folder=home / "runs",
                hidden=lambda: secrets_in(home),
            )
            registry.attach(fleet=fleet, work=runs)
            async with runs, fleet:
                say({"url": fleet.url})
                while line := await asyncio.to_thread(sys.stdin.readline):
                    say(await _run(runs, json.loads(line)))


def _enrolments(devices: int) -> list[object]:
    now = time.time()
    return [
        tables.devices.insert().values(id=f"d{place}", node=100 + place, enrolled_at=now)
        for place in range(devices)
    ]


async def _run(runs: Runs, wish: dict[str, object]) -> dict[str, object]:
    digest, _ = await runs.add_app(read_app(Path(str(wish["app"]))).bundle)
    began = time.monotonic()
    run = await runs.begin(app=digest, name="", options=wish["options"], by="benchmark")
    while True:
        found = await runs.get(run.id)
        if found.state not in OPEN_RUNS and runs.under_way(run.id) is None:
            seconds = time.monotonic() - began
            return {"state": found.state, "why": found.why, "seconds": round(seconds, 2)}
        await asyncio.sleep(0.05)


class Device:
    """One device: what comes, it answers."""

    def __init__(
        self,
        place: int,
        url: str,
        blobs: LocalBlobs,
        working: asyncio.Semaphore,
        fetching: asyncio.Lock,
    ) -> None:
        self._place = place
        self._blobs = blobs
        self._working = working
        self._fetching = fetching
        self._tasks: set[asyncio.Task[None]] = set()
        self.link = GrpcLink(
            LinkConfig(
                kind="grpc",
                url=url,
                device=DeviceId(f"d{place}"),
                agent_version="0.1.0",
                blobs=blobs,
                receiver=self,
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
            print(f"device {self._place}: {error!r}", file=sys.stderr, flush=True)

    async def _answer(self, parcel: Parcel) -> None:
        asked = parcel.blob("content")
        if asked is None:
            content = codec.decode(work_pb2.Task.FromString(parcel.body).content)
        else:
            # All share one store: the first fetches for the others.
            async with self._fetching:
                content = codec.read(await self.link.fetch(asked, deadline_s=DEADLINE_S))
        async with self._working:
            parts = codec.encode(await asyncio.to_thread(self._train, content))
            ref = await asyncio.to_thread(self._blobs.put, parts, role="content")
        reply = Parcel(
            id=ParcelId(f"{parcel.id}/reply"),
            kind=ParcelKind.REPLY,
            run=parcel.run,
            round=parcel.round,
            body=work_pb2.Reply(task=parcel.id).SerializeToString(),
            blobs=(ref,),
        )
        del content, parts
        await self.link.deliver(reply)
        self._blobs.remove(ref.digest)

    def _train(self, content: Records) -> Records:
        """Return the arrays moved by this device's own step."""
        step = np.float32(1e-3 * (1 + self._place % 7) + 1e-6 * self._place)
        moved = {
            key: Tensor.of(tensor.numpy() + step)
            for key, tensor in content.arrays["arrays"].items()
        }
        metrics = {"num-examples": 1 + self._place % 3, "loss": 1.0 / (1 + self._place)}
        return Records(arrays={"arrays": moved}, metrics={"metrics": metrics})


async def devices(home: Path, count: int, url: str) -> None:
    """Keep so many devices connected until ended."""
    blobs = LocalBlobs(home / "devices", durable=False)
    working, fetching = asyncio.Semaphore(2), asyncio.Lock()
    links = [Device(place, url, blobs, working, fetching).link for place in range(count)]
    for link in links:
        await link.__aenter__()
    while not all(link.connected for link in links):  # noqa: ASYNC110 - no news of it
        await asyncio.sleep(0.05)
    say({"connected": count})
    await asyncio.Event().wait()


def say(what: dict[str, object]) -> None:
    print(json.dumps(what), flush=True)


def main() -> None:
    share_arenas(ARENAS)
    what, home, count, *rest = sys.argv[1:]
    if what == "coordinator":
        asyncio.run(coordinator(Path(home), int(count)))
    else:
        asyncio.run(devices(Path(home), int(count), rest[0]))


if __name__ == "__main__":
    main()
