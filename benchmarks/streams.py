"""Streams over both links beside a bare grpc.aio stream and a bare MQTT echo.

An echo server runs in a process of its own, the client in this one; all four without TLS on
loopback, so that only what Skerry adds (frames, credit, acknowledgement, resume) is compared. MQTT
goes through the same kind of broker for both. Each stream keeps `WINDOW` bytes in flight for the
throughput figure and one frame for the round-trip figure. MB are 10^6 bytes, counted one way.
The physical limit is the bare echo itself.
"""

import argparse
import asyncio
import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import aiomqtt
import grpc.aio
import psutil
from skerry_cloud.brokers import BrokerConfig, open_broker
from skerry_cloud.fleets.grpc import GrpcFleet
from skerry_cloud.fleets.mqtt import MqttFleet
from skerry_edge.links import LinkConfig, open_link
from skerry_protos.blobs import LocalBlobs
from skerry_protos.errors import SkerryError
from skerry_protos.messages import DeviceId, Parcel
from skerry_protos.seams import Stream

from benchmarks._flower import free_port, listens
from benchmarks._measure import QUICK, finish, stopped_after, wait_until

KIB = 1024
FRAMES = (64 * KIB, 1024 * KIB)
STREAMS = (1, 16)
WINDOW = 1024 * KIB
TOTAL = (64 if QUICK else 256) * KIB * KIB  # bytes each way for a throughput figure
ROUND_TRIPS = 200 if QUICK else 600
WHO = ("bare-grpc", "skerry-grpc", "bare-mqtt", "skerry-mqtt")
DEVICE = DeviceId("bench")
REPEATS = 3

Exchange = Callable[[bytes], Awaitable[None]]  # send one frame
Frames = Callable[[], Awaitable[bytes]]  # receive one
Flow = tuple[Exchange, Frames]


class EchoGate:
    """Admits the one device and echoes its streams."""

    async def admit(self, device: DeviceId, transport: str, agent_version: str) -> None:
        """Admit everybody: this is loopback."""

    async def present(self, device: DeviceId, transport: str) -> None:
        """Note nothing."""

    async def absent(self, device: DeviceId, transport: str, why: str) -> None:
        """Note nothing."""

    def refused(self, device: DeviceId, run: str, error: SkerryError) -> None:
        """Note nothing."""

    async def accept(self, device: DeviceId, parcel: Parcel) -> None:
        """Take no parcels."""

    async def serve(self, device: DeviceId, stream: Stream) -> None:  # noqa: ARG002
        """Send back each message."""
        async for message in stream:
            await stream.send(message)
        await stream.finish()


class Nobody:
    """A device that is sent nothing."""

    async def accept(self, parcel: Parcel) -> None:
        """Take no parcels."""

    async def serve(self, stream: Stream) -> None:
        """Serve no streams."""


# --- the servers, each in a process of its own


async def _serve_bare_grpc(ready: Callable[[str], None]) -> None:
    async def echo(requests: AsyncIterator[bytes], context: Any) -> None:
        async for message in requests:
            await context.write(message)

    server = grpc.aio.server()
    handler = grpc.stream_stream_rpc_method_handler(echo)
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("bench.Echo", {"Echo": handler}),)
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    ready(f"127.0.0.1:{port}")
    await server.wait_for_termination()


async def _serve_bare_mqtt(ready: Callable[[str], None], address: str) -> None:
    host, port = address.rsplit(":", 1)
    async with aiomqtt.Client(host, int(port), identifier="bench-echo") as client:
        await client.subscribe("bench/in/+")
        ready(address)
        async for message in client.messages:
            topic = f"bench/out/{message.topic.value.rsplit('/', 1)[1]}"
            await client.publish(topic, message.payload, qos=0)


async def _serve_skerry(ready: Callable[[str], None], link: str, folder: Path) -> None:
    gate, blobs = EchoGate(), LocalBlobs(folder / "cloud")
    if link == "grpc":
        async with GrpcFleet(gate=gate, blobs=blobs, keys=None) as fleet:
            ready(f"grpc://127.0.0.1:{fleet.port}")
            await asyncio.Event().wait()
    config = BrokerConfig(state=folder / "broker", port=0, keys=None)
    async with (
        open_broker(config) as broker,
        MqttFleet(gate=gate, blobs=blobs, broker=broker),
    ):
        ready(broker.url)
        await asyncio.Event().wait()


async def _serve(who: str, folder: Path, address: str) -> None:
    def ready(where: str) -> None:
        print(where, flush=True)

    if who == "bare-grpc":
        await _serve_bare_grpc(ready)
    elif who == "bare-mqtt":
        await _serve_bare_mqtt(ready, address)
    else:
        await _serve_skerry(ready, who.removeprefix("skerry-"), folder)


@asynccontextmanager
async def server(who: str, folder: Path, address: str = "") -> AsyncIterator[str]:
    """Run an echo server in a process; yield where it is."""
    command = [sys.executable, "-m", "benchmarks.streams", "--serve", who]
    process = await asyncio.create_subprocess_exec(
        *command, "--folder", str(folder), "--address", address, stdout=subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        where = (await asyncio.wait_for(process.stdout.readline(), 30)).decode().strip()
        if not where:
            raise RuntimeError(f"{who}: the server did not start")
        yield where
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        await process.wait()


@asynccontextmanager
async def bare_broker(folder: Path) -> AsyncIterator[str]:
    """Run a mosquitto that lets everybody do everything; yield its address."""
    port = free_port()
    settings = folder / "bare.conf"
    settings.write_text(
        f"listener {port} 127.0.0.1\nallow_anonymous true\nmax_queued_messages 100000\n"
    )
    program = shutil.which("mosquitto", path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin")
    if program is None:
        raise RuntimeError("the bare MQTT echo needs mosquitto: apt install mosquitto")
    process = psutil.Popen([program, "-c", str(settings)], stderr=subprocess.DEVNULL)
    with stopped_after(process):
        await asyncio.to_thread(wait_until, lambda: listens(port), "mosquitto to listen", 10)
        yield f"127.0.0.1:{port}"


# --- the clients: `count` flows, each a way to send a frame and to receive one


@asynccontextmanager
async def flows(who: str, where: str, count: int, folder: Path) -> AsyncIterator[list[Flow]]:
    """Open `count` flows to an echo server."""
    async with AsyncExitStack() as stack:
        if who == "bare-grpc":
            channel = await stack.enter_async_context(grpc.aio.insecure_channel(where))
            calls = [channel.stream_stream("/bench.Echo/Echo")() for _ in range(count)]
            yield [(call.write, call.read) for call in calls]
        elif who == "bare-mqtt":
            yield await _mqtt_flows(stack, where, count)
        else:
            config = LinkConfig(
                kind=who.removeprefix("skerry-"),
                url=where,
                device=DEVICE,
                agent_version="bench",
                blobs=LocalBlobs(folder / "edge"),
                receiver=Nobody(),
            )
            link = await stack.enter_async_context(open_link(config))
            await asyncio.to_thread(wait_until, lambda: link.connected, "the link", 30)
            streams = [await link.open_stream("echo", deadline_s=600) for _ in range(count)]
            yield [(stream.send, stream.receive) for stream in streams]
            for stream in streams:
                await stream.abort("done", "the benchmark is over")


async def _mqtt_flows(stack: AsyncExitStack, where: str, count: int) -> list[Flow]:
    host, port = where.rsplit(":", 1)
    client = await stack.enter_async_context(
        aiomqtt.Client(host, int(port), identifier="bench-client")
    )
    await client.subscribe("bench/out/+")
    queues: list[asyncio.Queue[bytes]] = [asyncio.Queue() for _ in range(count)]

    async def read() -> None:
        async for message in client.messages:
            index = int(message.topic.value.rsplit("/", 1)[1])
            queues[index].put_nowait(message.payload)

    reader = asyncio.create_task(read())
    stack.callback(reader.cancel)

    def sender(index: int) -> Exchange:
        return lambda frame: client.publish(f"bench/in/{index}", frame, qos=0)

    return [(sender(index), queues[index].get) for index in range(count)]


async def throughput(opened: list[Flow], frame: int) -> float:
    """Return MB/s one way while all flows keep their window full."""
    payload = bytes(frame)
    each = max(8, TOTAL // frame // len(opened))

    async def flow(send: Exchange, receive: Frames) -> None:
        room = asyncio.Semaphore(max(1, WINDOW // frame))

        async def push() -> None:
            for _ in range(each):
                await room.acquire()
                await send(payload)

        async def pull() -> None:
            for _ in range(each):
                got = await receive()
                if len(got) != frame:
                    raise RuntimeError(f"an echo of {len(got)} bytes for {frame}")
                room.release()

        async with asyncio.timeout(300):
            await asyncio.gather(push(), pull())

    began = time.perf_counter()
    await asyncio.gather(*(flow(*one) for one in opened))
    return each * frame * len(opened) / (time.perf_counter() - began) / 1e6


async def round_trips(opened: list[Flow], frame: int) -> list[float]:
    """Return the milliseconds of each round trip, one frame in flight on each flow."""
    payload = bytes(frame)
    times: list[float] = []

    async def flow(send: Exchange, receive: Frames) -> None:
        for _ in range(max(10, ROUND_TRIPS // len(opened))):
            began = time.perf_counter()
            await send(payload)
            await receive()
            times.append((time.perf_counter() - began) * 1e3)

    async with asyncio.timeout(300):
        await asyncio.gather(*(flow(*one) for one in opened))
    return times


async def measure(who: str, where: str, folder: Path) -> list[dict[str, Any]]:
    """Return a row for each frame size and number of streams."""
    rows = []
    for frame in FRAMES:
        for count in STREAMS:
            async with flows(who, where, count, folder) as opened:
                await round_trips(opened[:1], frame)  # warms up
                times = sorted(await round_trips(opened, frame))
                rates = [await throughput(opened, frame) for _ in range(REPEATS)]
            rows.append(
                {
                    "who": who,
                    "frame_kib": frame // KIB,
                    "streams": count,
                    "p50_ms": round(statistics.median(times), 3),
                    "p99_ms": round(times[int(len(times) * 0.99) - 1], 3),
                    "mb_s": round(statistics.median(rates), 1),
                }
            )
            print(rows[-1], flush=True)
    return rows


async def compare() -> list[dict[str, Any]]:
    """Measure all four."""
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for who in ("bare-grpc", "skerry-grpc", "skerry-mqtt"):
            async with server(who, folder / who) as where:
                rows += await measure(who, where, folder / who)
        async with bare_broker(folder) as address, server("bare-mqtt", folder, address) as where:
            rows += await measure("bare-mqtt", where, folder)
    return rows


def main() -> None:
    """Compare and print the JSON line; with --serve, be the other side."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--serve", choices=WHO)
    parser.add_argument("--folder", type=Path, default=Path())
    parser.add_argument("--address", default="")
    options = parser.parse_args()
    if options.serve:
        asyncio.run(_serve(options.serve, options.folder, options.address))
        return
    rows = asyncio.run(compare())
    result: dict[str, Any] = {"benchmark": "streams"}
    for link in ("grpc", "mqtt"):
        ours = [row for row in rows if row["who"] == f"skerry-{link}"]
        bare = [row for row in rows if row["who"] == f"bare-{link}"]
        pairs = list(zip(ours, bare, strict=True))
        result[f"{link}_mb_s_ratio_min"] = round(min(a["mb_s"] / b["mb_s"] for a, b in pairs), 3)
        result[f"{link}_p50_ratio_max"] = round(max(a["p50_ms"] / b["p50_ms"] for a, b in pairs), 3)
        result[f"{link}_ratios"] = [
            {
                "frame_kib": a["frame_kib"],
                "streams": a["streams"],
                "mb_s": round(a["mb_s"] / b["mb_s"], 3),
                "p50": round(a["p50_ms"] / b["p50_ms"], 3),
            }
            for a, b in pairs
        ]
    print(json.dumps(result, indent=1))
    finish(result | {"rows": rows})


if __name__ == "__main__":
    main()
