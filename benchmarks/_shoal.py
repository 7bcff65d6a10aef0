"""Thousands of devices in one process: real links and sessions over mutual TLS, one for each.

What is left out is what a device keeps for itself: no inbox, no worker, no agent around the link.
A task that comes is answered at once with its own content, a little moved. Orders come on standard
input, one JSON object a line, and each is answered by one on standard output.

    python -m benchmarks._shoal HOME COUNT URL      HOME is the coordinator's: its authority signs
    python -m benchmarks._shoal bare                an echo of grpc.aio, and nothing else
"""

import asyncio
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import grpc.aio
import numpy as np
import psutil
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from skerry_cloud.identity import Authority
from skerry_edge.conditions import Readings
from skerry_edge.heartbeat import heartbeat
from skerry_edge.identity import new_csr
from skerry_edge.links import Credentials, LinkConfig
from skerry_edge.links.grpc import GrpcLink
from skerry_edge.outbox import reply_id
from skerry_protos import records as codec
from skerry_protos import steady
from skerry_protos.blobs import LocalBlobs
from skerry_protos.messages import DeviceId, Parcel, ParcelId, ParcelKind, new_id
from skerry_protos.records import Records
from skerry_protos.seams import Stream
from skerry_protos.tensors import Tensor
from skerry_protos.v1 import work_pb2

AT_ONCE = 64
"""Devices that connect at the same time."""
CONNECT_S = 60.0
ECHO = "/bench.Bench/Echo"


class Device:
    """One device's link; it answers what comes."""

    def __init__(self, place: int, url: str, credentials: Credentials, blobs: LocalBlobs) -> None:
        self.place = place
        self._tasks: set[asyncio.Task[None]] = set()
        self._up = asyncio.Event()
        self.link = GrpcLink(
            LinkConfig(
                kind="grpc",
                url=url,
                device=DeviceId(name(place)),
                agent_version="0.1.0",
                credentials=credentials,
                blobs=blobs,
                receiver=self,
                on_state=lambda why, _wait: self._up.set() if why is None else None,
            )
        )

    async def connect(self, gate: asyncio.Semaphore) -> None:
        """Return when the session is up."""
        async with gate, asyncio.timeout(CONNECT_S):
            await self.link.__aenter__()
            await self._up.wait()

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
            print(f"{name(self.place)}: {error!r}", file=sys.stderr, flush=True)

    async def _answer(self, parcel: Parcel) -> None:
        asked = codec.decode(work_pb2.Task.FromString(parcel.body).content)
        step = np.float32(1e-3 + 1e-6 * self.place)
        arrays = {
            key: Tensor.of(tensor.numpy() + step) for key, tensor in asked.arrays["arrays"].items()
        }
        made = Records(arrays={"arrays": arrays}, metrics={"metrics": {"num-examples": 1}})
        body = work_pb2.Reply(task=parcel.id, content=codec.to_bytes(made))
        await self.link.deliver(
            Parcel(
                id=reply_id(parcel.id),
                kind=ParcelKind.REPLY,
                run=parcel.run,
                round=parcel.round,
                body=body.SerializeToString(),
            )
        )

    async def beat(self, until: float, took_s: list[float]) -> None:
        """Send heartbeats, each when the one before it is acknowledged."""
        look = Readings(load1=1.0, memory_total_bytes=2**32, memory_available_bytes=2**31)
        while (now := time.monotonic()) < until:
            said = heartbeat(look, profile="generic", state="idle", waiting_for="", tasks=[])
            await self.link.deliver(
                Parcel(
                    id=ParcelId(new_id("heartbeat-")),
                    kind=ParcelKind.HEARTBEAT,
                    deadline_unix_s=steady.unix_s() + CONNECT_S,
                    body=said.SerializeToString(),
                )
            )
            took_s.append(time.monotonic() - now)


def name(place: int) -> str:
    """Return a device's id."""
    return f"d{place:05d}"


def credentials_of(authority: Authority, place: int, folder: Path) -> Credentials:
    """Return a device's certificate, as joining would have given it."""
    key = ec.generate_private_key(ec.SECP256R1())
    device = DeviceId(name(place))
    made = Credentials(
        ca=authority.certificate_file,
        certificate=folder / f"{device}.pem",
        key=folder / f"{device}.key",
    )
    pem = authority.issue(device, new_csr(key, device), time.time()).pem
    made.certificate.write_text(pem)
    made.key.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return made


async def shoal(home: Path, count: int, url: str) -> None:
    """Connect so many devices, then do what is asked until standard input ends."""
    authority = Authority.open(home)
    with tempfile.TemporaryDirectory() as folder:
        blobs = LocalBlobs(Path(folder, "blobs"), durable=False)
        rss = psutil.Process().memory_info().rss
        devices = [
            Device(place, url, credentials_of(authority, place, Path(folder)), blobs)
            for place in range(count)
        ]
        began, gate = time.monotonic(), asyncio.Semaphore(AT_ONCE)
        async with asyncio.TaskGroup() as group:
            for device in devices:
                group.create_task(device.connect(gate))
        taken = psutil.Process().memory_info().rss - rss
        say({"connected": count, "seconds": time.monotonic() - began, "rss": taken})
        while line := await asyncio.to_thread(sys.stdin.readline):
            seconds = float(json.loads(line)["beat_s"])
            took_s: list[float] = []
            began = time.monotonic()
            async with asyncio.TaskGroup() as group:
                for device in devices:
                    group.create_task(device.beat(began + seconds, took_s))
            passed = time.monotonic() - began
            say({"rate": len(took_s) / passed, "p50_ms": 1e3 * statistics.median(took_s)})


async def bare() -> None:
    """Echo messages of grpc.aio, unencrypted, until ended."""

    async def echo(messages: Any, _context: Any) -> Any:
        async for message in messages:
            yield message

    server = grpc.aio.server()
    handler = grpc.stream_stream_rpc_method_handler(echo)
    service = grpc.method_handlers_generic_handler("bench.Bench", {"Echo": handler})
    server.add_generic_rpc_handlers((service,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    say({"port": port})
    await server.wait_for_termination()


def say(what: dict[str, object]) -> None:
    """Answer whoever started this process."""
    print(json.dumps(what), flush=True)


def main() -> None:
    """Be what the command line says."""
    if sys.argv[1] == "bare":
        asyncio.run(bare())
    else:
        home, count, url = sys.argv[1:]
        asyncio.run(shoal(Path(home), int(count), url))


if __name__ == "__main__":
    main()
