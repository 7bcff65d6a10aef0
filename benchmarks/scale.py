"""Fleets of 100, 1,000 and 5,000 devices on this machine, on SQLite and on PostgreSQL.

The coordinator is the one that ships, in its own process, with mutual TLS; one other process holds
all devices, each with a connection and a session of its own (_shoal.py). For each size: heartbeats
as fast as they are acknowledged, rounds of a Flower app (apps/echo) with a model of 20 KB that all
devices answer, the bytes of both ways by the kernel's count (`ss`), and the coordinator's memory.
The fitted growth is the exponent e of n^e, by least squares over the logarithms.

Beside it `bare`: an echo of grpc.aio with as many connections, unencrypted, that keeps nothing: how
often the transport alone goes to and fro on this machine, and what a connection takes.

    python -m benchmarks.scale [--counts 100,1000] [--stores sqlite,postgresql] [--add FILE]
"""

import argparse
import asyncio
import contextlib
import json
import math
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import grpc.aio
import psutil
import tomli_w
from skerry_cloud.identity import Authority
from skerry_cloud.store import Store, tables
from skerry_devices.apps import read_app
from skerry_devices.client import at
from skerry_devices.local import LocalFleet

from benchmarks._measure import QUICK, REPO, cpu_seconds, finish, peak_rss_mb, stop, wait_until
from benchmarks._shoal import ECHO, name
from tests.postgres import new_database, postgres, postgres_binaries

APP = REPO / "benchmarks" / "apps" / "echo"
COUNTS = (50, 200) if QUICK else (100, 1000, 5000)
STORES = ("sqlite", "postgresql")
MODEL_BYTES = 20_000
BEAT_S = 3.0 if QUICK else 6.0
HEARTBEAT_BYTES = 200
PATIENCE_S = 280.0
LOOK_S = 10.0
HEARTBEAT_S = 60.0
"""How often devices are to be heard from; those here speak only when the benchmark asks them to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One fleet; memory is the coordinator's, above what it held with nobody there."""

    store: str
    devices: int
    connect_s: float
    heartbeats_per_s: float
    heartbeat_p50_ms: float
    heartbeat_cpu_ms: float  # of the coordinator
    round_s: float
    round_cpu_ms_per_device: float  # of the coordinator and the run's server side
    bytes_per_device: float  # both ways, in a round
    rss_per_device: float  # connected, having sent heartbeats
    peak_rss_per_device: float  # at most, rounds included
    device_rss: float  # of each device, in the process that holds them


def measured(devices: int, store: str, url: str) -> Row:
    """Return the figures of one fleet."""
    with (
        tempfile.TemporaryDirectory() as folder,
        tempfile.TemporaryDirectory() as noted,  # a run's server side opens nothing beside a home
        LocalFleet(Path(folder)) as fleet,
    ):
        home = Path(folder, "coordinator")
        _enrol(home, devices, url)
        fleet.start()
        made = json.loads((home / "coordinator.json").read_text())
        pid = made["pid"]
        idle = psutil.Process(pid).memory_info().rss
        with _started("benchmarks._shoal", str(home), str(devices), made["grpc_url"]) as shoal:
            connected = _line(shoal)
            print(f"{devices} devices are connected ({store}): {connected}", flush=True)
            cpu = cpu_seconds([pid])
            beats = _asked(shoal, {"beat_s": BEAT_S})
            cpu = cpu_seconds([pid]) - cpu
            print(f"  heartbeats: {beats}", flush=True)
            rss = psutil.Process(pid).memory_info().rss - idle
            rounds = _rounds(fleet, pid, devices, Path(noted, "rounds.jsonl"))
        row = Row(
            store=store,
            devices=devices,
            connect_s=round(connected["seconds"], 1),
            heartbeats_per_s=round(beats["rate"], 1),
            heartbeat_p50_ms=round(beats["p50_ms"], 1),
            heartbeat_cpu_ms=round(1e3 * cpu / (beats["rate"] * BEAT_S), 3),
            **rounds,
            rss_per_device=round(rss / devices),
            peak_rss_per_device=round((peak_rss_mb(pid) * 1e6 - idle) / devices),
            device_rss=round(connected["rss"] / devices),
        )
    print(row, flush=True)
    return row


def _enrol(home: Path, devices: int, url: str) -> None:
    """Give the devices a place in the coordinator's database; joining is not measured."""
    home.mkdir(parents=True)
    Authority.open(home)
    settings = {"links": ["grpc"], "heartbeat_s": HEARTBEAT_S, "database": url}
    (home / "coordinator.toml").write_text(tomli_w.dumps(settings))
    now = time.time()
    rows = [{"id": name(n), "node": 100 + n, "enrolled_at": now} for n in range(devices)]

    async def write() -> None:
        async with Store.open(url or f"sqlite:///{home}/skerry.db") as store:
            await store.write(lambda c: c.execute(tables.devices.insert(), rows))

    asyncio.run(write())


def _rounds(fleet: LocalFleet, pid: int, devices: int, report: Path) -> dict[str, float]:
    """Run the app, and return what a round of it takes; the first warms up.

    Of thousands of devices one round has to do: what warms up then is little beside it.
    """
    count = 1 if devices > 1000 else 3
    config = {
        "devices": devices,
        "megabytes": MODEL_BYTES / 1e6,
        "rounds": count,
        "report": str(report),
    }
    options = {"min_devices": devices, "run_config": config, "round_deadline_s": PATIENCE_S}
    marks: list[tuple[float, int]] = []
    looked = time.monotonic()
    with fleet.client() as client:
        app = client.upload(at("apps"), read_app(APP).bundle)["digest"]
        if count == 1:
            marks.append((cpu_seconds([pid]), _bytes_of(pid)))
        begun = client.post(at("runs"), {"app": app, "options": options})

        def passed() -> bool:
            nonlocal looked
            fleet.children.check()
            done = report.read_text().count("\n") if report.exists() else 0
            if len(marks) < done + (count == 1):
                marks.append((cpu_seconds([pid]), _bytes_of(pid)))
            if time.monotonic() > looked + LOOK_S:  # it costs the coordinator something
                looked = time.monotonic()
                found = client.get(at("runs", begun["id"]))
                if found["state"] == "failed":
                    raise RuntimeError(found["why"])
            return done >= count

        wait_until(passed, f"{count} rounds of {devices} devices", PATIENCE_S)
        lines = [json.loads(line) for line in report.read_text().splitlines()]
        if any(line["replies"] != devices for line in lines):
            raise RuntimeError(f"a round lost a reply: {lines}")
    (first_cpu, first_bytes), (last_cpu, last_bytes) = marks[0], marks[-1]
    warm = len(marks) - 1
    return {
        "round_s": round(statistics.median(x["ended"] - x["began"] for x in lines[-warm:]), 2),
        "round_cpu_ms_per_device": round(1e3 * (last_cpu - first_cpu) / warm / devices, 2),
        "bytes_per_device": round((last_bytes - first_bytes) / warm / devices),
    }


def _bytes_of(pid: int) -> int:
    """Return the bytes of both ways on the connections that a process has now."""
    said = subprocess.run(
        ["ss", "-tinpHO", "state", "established"], capture_output=True, text=True, check=True
    ).stdout
    counts = re.compile(r"bytes_(?:sent|received):(\d+)")
    lines = [line for line in said.splitlines() if f"pid={pid}," in line]
    return sum(int(count) for line in lines for count in counts.findall(line))


# Processes.


@contextlib.contextmanager
def _started(*module: str) -> "Iterator[subprocess.Popen[str]]":
    process = subprocess.Popen(
        [sys.executable, "-m", *module],
        cwd=REPO,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        stop([psutil.Process(process.pid)] if process.poll() is None else [])
        process.wait(10)


def _asked(process: "subprocess.Popen[str]", what: dict[str, Any]) -> dict[str, Any]:
    assert process.stdin is not None
    process.stdin.write(json.dumps(what) + "\n")
    process.stdin.flush()
    return _line(process)


def _line(process: "subprocess.Popen[str]") -> dict[str, Any]:
    """Return the next line that a process says; it may take PATIENCE_S."""
    assert process.stdout is not None
    timer = threading.Timer(PATIENCE_S, process.kill)
    timer.start()
    try:
        line = process.stdout.readline()
    finally:
        timer.cancel()
    if not line:
        raise RuntimeError(f"{process.args} ended, or was silent for {PATIENCE_S:.0f} s")
    return dict(json.loads(line))


# The transport alone.


def bare(connections: int) -> dict[str, float]:
    """Return the round trips a second, and a connection's memory, of an echo of grpc.aio."""
    with _started("benchmarks._shoal", "bare") as server:
        port = _line(server)["port"]
        idle = psutil.Process(server.pid).memory_info().rss
        rate = asyncio.run(_echoes(port, connections))
        rss = psutil.Process(server.pid).memory_info().rss - idle
    return {"per_s": round(rate, 1), "rss_per_connection": round(rss / connections)}


async def _echoes(port: int, connections: int) -> float:
    options = [("grpc.use_local_subchannel_pool", 1)]
    channels = [grpc.aio.insecure_channel(f"127.0.0.1:{port}", options) for _ in range(connections)]
    calls: list[Any] = [channel.stream_stream(ECHO)() for channel in channels]
    message, count = bytes(HEARTBEAT_BYTES), 0

    async def go(call: Any, until: float) -> None:
        nonlocal count
        while time.monotonic() < until:
            await call.write(message)
            await call.read()
            count += 1

    async with asyncio.TaskGroup() as group:  # connect them all
        for call in calls:
            group.create_task(go(call, time.monotonic() + 0.5))
    count, began = 0, time.monotonic()
    async with asyncio.TaskGroup() as group:
        for call in calls:
            group.create_task(go(call, began + BEAT_S))
    passed = time.monotonic() - began
    for channel in channels:
        await channel.close()
    return count / passed


# All of it.


def growth(rows: Sequence[Row], column: str) -> float | None:
    """Return the exponent e of the n^e nearest to the figures, or None for fewer than two."""
    points = [(math.log(row.devices), math.log(max(getattr(row, column), 1e-9))) for row in rows]
    if len({x for x, _ in points}) < 2:
        return None
    slope, _ = statistics.linear_regression(*zip(*points, strict=True))
    return round(slope, 2)


def result_of(rows: Sequence[Row]) -> dict[str, Any]:
    """Return the keys of the JSON line: by store and size, and the growth by store."""
    found: dict[str, Any] = {}
    for store in dict.fromkeys(row.store for row in rows):
        own = sorted((row for row in rows if row.store == store), key=lambda row: row.devices)
        for row in own:
            suffix = f"{store}_{row.devices}"
            for key in ("heartbeats_per_s", "round_s", "bytes_per_device", "rss_per_device"):
                found[f"{key}_{suffix}"] = getattr(row, key)
        found[f"growth_time_{store}"] = growth(own, "round_s")
        # of all the memory, not of a device's share: 1 is linear
        share = growth(own, "peak_rss_per_device")
        found[f"growth_memory_{store}"] = None if share is None else round(share + 1, 2)
    return found


def table(rows: Sequence[Row]) -> str:
    """Return the rows for people."""
    lines = [
        "store       devices  heartbeats/s  p50 ms  round s  CPU-ms/dev  B/device  kB/dev (peak)"
    ]
    lines += [
        f"{r.store:<11} {r.devices:>7}  {r.heartbeats_per_s:>12.0f}  {r.heartbeat_p50_ms:>6.0f}"
        f"  {r.round_s:>7.2f}  {r.round_cpu_ms_per_device:>10.2f}  {r.bytes_per_device:>8.0f}"
        f"  {r.rss_per_device / 1e3:>6.1f} ({r.peak_rss_per_device / 1e3:.1f})"
        for r in rows
    ]
    return "\n".join(lines)


def main() -> None:
    """Measure what is asked, and print a table and the JSON line."""
    parser = argparse.ArgumentParser(prog="make bench NAME=scale")
    parser.add_argument("--counts", default=",".join(map(str, COUNTS)))
    parser.add_argument("--stores", default=",".join(STORES))
    parser.add_argument("--add", type=Path, action="append", default=[], help="an earlier output")
    asked = parser.parse_args()
    rows = [
        Row(**row)
        for file in asked.add
        for row in json.loads(file.read_text().splitlines()[-1])["rows"]
    ]
    counts = [int(count) for count in asked.counts.split(",") if count]
    with contextlib.ExitStack() as stack:
        for store in filter(None, asked.stores.split(",")):
            server = ""
            if store == "postgresql":
                programs = postgres_binaries()
                if programs is None:
                    print("PostgreSQL's server is not installed: left out", flush=True)
                    continue
                server = stack.enter_context(postgres(programs))
            for count in counts:
                url = new_database(server) if server else ""
                rows.append(measured(count, store, url))
    floor_count = min(1000, max(row.devices for row in rows))
    floor = bare(floor_count)
    print(table(rows))
    print(f"bare grpc.aio, {floor_count} connections: {floor}")
    finish(
        {
            "benchmark": "scale",
            **result_of(rows),
            "model_bytes": MODEL_BYTES,
            "floor_bytes_per_device": 2 * MODEL_BYTES,  # the model there and back
            "floor_connections": floor_count,
            "floor_echoes_per_s": floor["per_s"],
            "floor_rss_per_connection": floor["rss_per_connection"],
            "rows": [asdict(row) for row in rows],
        }
    )


if __name__ == "__main__":
    main()
