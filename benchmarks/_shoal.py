"""Thousands of devices in one process: real links and sessions over mutual TLS, one for each.

The devices are those of _device.py. Orders come on standard input, one JSON object a line, and each
is answered by one on standard output.

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
import psutil
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from skerry_cloud.identity import Authority
from skerry_edge.conditions import Readings
from skerry_edge.heartbeat import heartbeat
from skerry_edge.identity import new_csr
from skerry_edge.links import Credentials
from skerry_protos import steady
from skerry_protos.blobs import LocalBlobs
from skerry_protos.messages import DeviceId, Parcel, ParcelId, ParcelKind, new_id

from benchmarks._device import Device, say

AT_ONCE = 64
"""Devices that connect at the same time."""
CONNECT_S = 60.0
ECHO = "/bench.Bench/Echo"


async def connect(device: Device, gate: asyncio.Semaphore) -> None:
    """Return when the device's session is up."""
    async with gate, asyncio.timeout(CONNECT_S):
        await device.link.__aenter__()
        await device.up.wait()


async def beat(device: Device, until: float, took_s: list[float]) -> None:
    """Send heartbeats, each when the one before it is acknowledged."""
    look = Readings(load1=1.0, memory_total_bytes=2**32, memory_available_bytes=2**31)
    while (now := time.monotonic()) < until:
        said = heartbeat(look, profile="generic", state="idle", waiting_for="", tasks=[])
        await device.link.deliver(
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
        working, fetching = asyncio.Semaphore(2), asyncio.Lock()
        rss = psutil.Process().memory_info().rss
        devices = [
            Device(
                place,
                name=name(place),
                url=url,
                blobs=blobs,
                working=working,
                fetching=fetching,
                credentials=credentials_of(authority, place, Path(folder)),
            )
            for place in range(count)
        ]
        began, gate = time.monotonic(), asyncio.Semaphore(AT_ONCE)
        async with asyncio.TaskGroup() as group:
            for device in devices:
                group.create_task(connect(device, gate))
        taken = psutil.Process().memory_info().rss - rss
        say({"connected": count, "seconds": time.monotonic() - began, "rss": taken})
        while line := await asyncio.to_thread(sys.stdin.readline):
            seconds = float(json.loads(line)["beat_s"])
            took_s: list[float] = []
            began = time.monotonic()
            async with asyncio.TaskGroup() as group:
                for device in devices:
                    group.create_task(beat(device, began + seconds, took_s))
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


def main() -> None:
    """Be what the command line says."""
    if sys.argv[1] == "bare":
        asyncio.run(bare())
    else:
        home, count, url = sys.argv[1:]
        asyncio.run(shoal(Path(home), int(count), url))


if __name__ == "__main__":
    main()
