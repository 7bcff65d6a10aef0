"""Many devices in one process, and a coordinator in another: real sessions over gRPC.

The devices are those of _device.py, a hundred or more on one machine, with one store of blobs.

    python -m benchmarks._farm coordinator HOME DEVICES   prints {"port": …}; runs what stdin asks
    python -m benchmarks._farm devices HOME DEVICES PORT
"""

import asyncio
import json
import sys
import time
from pathlib import Path

from skerry_cloud.__main__ import ARENAS
from skerry_cloud.coordinator import secrets_in
from skerry_cloud.fleets.grpc import GrpcFleet
from skerry_cloud.identity import Authority
from skerry_cloud.registry import Registry
from skerry_cloud.runs.engine import Runs
from skerry_cloud.runs.lifecycle import OPEN_RUNS
from skerry_cloud.store import Store, tables
from skerry_devices.apps import read_app
from skerry_protos.allocator import share_arenas
from skerry_protos.blobs import LocalBlobs

from benchmarks._device import Device, say


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


async def devices(home: Path, count: int, url: str) -> None:
    """Keep so many devices connected until ended."""
    blobs = LocalBlobs(home / "devices", durable=False)
    working, fetching = asyncio.Semaphore(2), asyncio.Lock()
    made = [
        Device(place, name=f"d{place}", url=url, blobs=blobs, working=working, fetching=fetching)
        for place in range(count)
    ]
    for device in made:
        await device.link.__aenter__()
    for device in made:
        await device.up.wait()
    say({"connected": count})
    await asyncio.Event().wait()


def main() -> None:
    share_arenas(ARENAS)
    what, home, count, *rest = sys.argv[1:]
    if what == "coordinator":
        asyncio.run(coordinator(Path(home), int(count)))
    else:
        asyncio.run(devices(Path(home), int(count), rest[0]))


if __name__ == "__main__":
    main()
