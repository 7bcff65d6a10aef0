"""A rollout to 1,000 devices: time, coordinator's processor time and bytes; a bad model's reach.

One process is the coordinator (store, TUF repository, director, rollouts, gRPC), another all the
devices. Each device has a link and a session of its own over gRPC, its own trust folder, its own
TUF client and its own slots on the disk, every file fsynced. What they share: one process, one
event loop and the import of python-tuf, which a real device runs in a child for each update; and
nothing loads the model: the self test reads from its bytes whether it is to pass.

    python -m benchmarks.rollout coordinator HOME DEVICES     (and devices HOME DEVICES URL)
"""

import asyncio
import contextlib
import hashlib
import io
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from skerry_cloud.coordinator import open_models
from skerry_cloud.fleets.grpc import GrpcFleet
from skerry_cloud.identity import Authority
from skerry_cloud.models import ceremonies, signing
from skerry_cloud.models.ceremonies import Thresholds
from skerry_cloud.models.registry import Models, custom_of, target_path
from skerry_cloud.registry import Registry
from skerry_cloud.rollouts.engine import Rollouts
from skerry_cloud.rollouts.lifecycle import OPEN
from skerry_cloud.runs.engine import Runs
from skerry_cloud.store import Store, tables
from skerry_cloud.store import rollouts as kept
from skerry_edge.links import LinkConfig
from skerry_edge.links.grpc import GrpcLink
from skerry_edge.models import Slot
from skerry_edge.models.trust import in_process
from skerry_edge.models.updates import Updates
from skerry_protos.blobs import LocalBlobs
from skerry_protos.errors import RejectCode, RejectedError, SkerryError
from skerry_protos.manifest import Golden, Manifest, Port
from skerry_protos.messages import DeviceId, Parcel, ParcelKind
from skerry_protos.packing import pack_artefact
from skerry_protos.seams import Stream

from benchmarks._measure import (
    QUICK,
    cpu_seconds,
    finish,
    peak_rss_mb,
    stopped_after,
    wait_until,
)

DEVICES = 100 if QUICK else 1000
MODEL_BYTES = 100_000
WAVES = ["1%", "10%", "100%"]
PERIOD_S, TRIAL_S = 1.0, 1.0
RUN_S = 540.0
GOOD, BROKEN, UNWELL = b"good", b"fails its self test", b"is unwell in service"


# The coordinator.


async def coordinator(home: Path, devices: int) -> None:
    """Serve until stdin ends; each line names a model to roll out: its first bytes."""
    authority, blobs = Authority.open(home), LocalBlobs(home / "blobs")
    async with contextlib.AsyncExitStack() as stack:
        store = await stack.enter_async_context(Store.open(f"sqlite:///{home}/skerry.db"))
        await store.write(lambda c: [c.execute(row) for row in _enrolments(devices)])
        registry = await stack.enter_async_context(Registry(store=store, authority=authority))
        fleet = GrpcFleet(gate=registry, blobs=blobs, host="127.0.0.1", port=0, keys=None)
        runs = Runs(
            store=store,
            blobs=blobs,
            fleet=fleet,
            roster=registry,
            sign=authority.sign_bundle,
            folder=home / "runs",
        )
        models, updates, rollouts = await open_models(
            home, stack, store=store, blobs=blobs, fleet=fleet, registry=registry
        )
        registry.attach(fleet=fleet, work=runs, serving=updates)
        await stack.enter_async_context(runs)
        await stack.enter_async_context(fleet)
        keys = signing.make_keys(
            home / "keys", {"root": 2, "targets": 2, "stable": 1, "canary": 1}, b"benchmark"
        )
        first = ceremonies.begin(keys, models.repository.online.public(), Thresholds())
        await models.repository.accept(first, "benchmark")
        say({"url": fleet.url})
        while line := await asyncio.to_thread(sys.stdin.readline):
            asked = json.loads(line)
            if asked["do"] == "connected":
                say({"connected": len(registry.connected())})
            else:
                say(await _roll(home, models, rollouts, keys, asked["first"].encode()))


def _enrolments(devices: int) -> list[Any]:
    now = time.time()
    return [
        tables.devices.insert().values(id=f"d{place}", node=100 + place, enrolled_at=now)
        for place in range(devices)
    ]


async def _roll(
    home: Path, models: Models, rollouts: Rollouts, keys: Any, first: bytes
) -> dict[str, Any]:
    """Import, sign and roll out a model that begins with these bytes; return what came of it."""
    path = await asyncio.to_thread(_artefact, home / f"made-{time.monotonic_ns()}", first)
    version = await models.add("bench", {"model.zip": path}, lineage={}, by="benchmark")
    (one,) = version.artefacts
    name = str(target_path("canary", one))
    current = models.repository.metadata("canary")
    assert current is not None
    add = {name: signing.target(name, digest=one.digest, size=one.size, custom=custom_of(one))}
    made = ceremonies.sign_targets("canary", current.to_bytes(), add, keys)
    await models.repository.accept(made, "benchmark")
    plan = {"waves": WAVES, "soak_s": 0, "period_s": PERIOD_S, "trial_s": TRIAL_S}
    began = time.monotonic()
    rollout = await rollouts.begin(
        model=f"bench@{version.version}", channel="canary", plan=plan, by="benchmark"
    )
    while (found := await rollouts.get(rollout.id)).state in OPEN:  # noqa: ASYNC110
        await asyncio.sleep(0.05)
    seconds = time.monotonic() - began
    events: list[dict[str, Any]] = []
    last = 0
    while page := await rollouts.store.read(lambda c, at=last: kept.journal(c, rollout.id, at)):  # type: ignore[misc]
        events, last = events + page, page[-1]["id"]
    asked = {e["device"] for e in events if e["data"].get("to") == "asked"}
    served = {e["device"] for e in events if e["data"].get("to") in {"trial", "live"}}
    return {
        "state": found.state.value,
        "why": found.why,
        "seconds": round(seconds, 2),
        "asked": len(asked),
        "served": len(served),
    }


def _artefact(folder: Path, first: bytes) -> Path:
    folder.mkdir()
    golden = io.BytesIO()
    arrays: dict[str, Any] = {"input.x": np.zeros((1, 2), np.float32), "output.y": np.ones((1, 2))}
    np.savez(golden, **arrays)
    noise = np.random.default_rng(len(first)).bytes(MODEL_BYTES)
    files = {"model.onnx": first.ljust(32) + noise, "golden.npz": golden.getvalue()}
    port = {"dtype": "float32", "shape": (None, 2)}
    manifest = Manifest(
        model="bench",
        runtime="onnx",
        file="model.onnx",
        quantization="none",
        recipe="none",
        inputs=(Port(name="x", **port),),  # type: ignore[arg-type]
        outputs=(Port(name="y", **port),),  # type: ignore[arg-type]
        golden=Golden(examples=1),
        files={name: hashlib.sha256(data).hexdigest() for name, data in files.items()},
    )
    for name, data in {**files, "manifest.json": manifest.to_bytes()}.items():
        (folder / name).write_bytes(data)
    packed = folder.with_suffix(".zip")
    pack_artefact(folder, packed)
    return packed


# The devices.


class Bytes:
    """Self test and service that read from a model's bytes how it behaves."""

    def __init__(self) -> None:
        self._serves: bytes | None = None

    async def test(self, slot: Slot, *, timeout_s: float) -> Mapping[str, float]:  # noqa: ARG002
        if _begins(slot).startswith(BROKEN):
            raise SkerryError("the model gives other answers than where it was made")
        return {"agreement": 1.0}

    async def swap(self, model: str, slot: Slot | None) -> None:  # noqa: ARG002
        self._serves = _begins(slot) if slot else None

    def readings(self, model: str) -> Mapping[str, float] | None:  # noqa: ARG002
        if self._serves is None:
            return None
        return {"error_rate": 0.5 if self._serves.startswith(UNWELL) else 0.0}


def _begins(slot: Slot) -> bytes:
    with (slot.content / "model.onnx").open("rb") as file:
        return file.read(32)


class Device:
    """One device: a link of its own, and what an agent has for models."""

    def __init__(self, home: Path, place: int, url: str) -> None:
        name = DeviceId(f"d{place}")
        blobs, behaviour = LocalBlobs(home / name / "blobs"), Bytes()
        self.link = GrpcLink(
            LinkConfig(
                kind="grpc",
                url=url,
                device=name,
                agent_version="0.1.0",
                blobs=blobs,
                receiver=self,
            )
        )
        self.updates = Updates(
            home / name,
            name,
            route=self.link,  # type: ignore[arg-type]  # deliver and fetch are all it needs
            blobs=blobs,
            self_test=behaviour,
            service=behaviour,
            verify=in_process,
        )

    async def accept(self, parcel: Parcel) -> None:
        if parcel.kind != ParcelKind.UPDATE:
            raise RejectedError(RejectCode.UNEXPECTED, "this device takes updates only")
        await self.updates.accept(parcel)

    async def serve(self, stream: Stream) -> None:
        await stream.abort("unexpected", "a benchmark's device serves no streams")

    async def run(self) -> None:
        async with self.link:
            await self.updates.run()


async def devices(home: Path, count: int, url: str) -> None:
    """Be so many devices until killed."""
    async with asyncio.TaskGroup() as group:
        for place in range(count):
            group.create_task(Device(home, place, url).run())
            if place % 20 == 19:
                await asyncio.sleep(0.05)


# The measurement.


def ask(process: psutil.Popen, **said: object) -> dict[str, Any]:
    """Ask the coordinator's process and return its answer."""
    process.stdin.write(json.dumps(said) + "\n")
    process.stdin.flush()
    return dict(json.loads(process.stdout.readline()))


def say(said: dict[str, Any]) -> None:
    print(json.dumps(said), flush=True)


def bytes_sent(url: str) -> int:
    """Return what the kernel sent on the coordinator's open connections to devices."""
    port = url.rpartition(":")[2]
    words = ["ss", "-tinHO", f"sport = :{port}"]
    said = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    return sum(int(found) for found in re.findall(r"bytes_sent:(\d+)", said))


def measure() -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        (home / "cloud").mkdir()
        words = [sys.executable, "-m", "benchmarks.rollout"]
        cloud = psutil.Popen(
            [*words, "coordinator", str(home / "cloud"), str(DEVICES)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        with stopped_after(cloud):
            url = json.loads(cloud.stdout.readline())["url"]
            fleet = psutil.Popen([*words, "devices", str(home / "devices"), str(DEVICES), url])
            with stopped_after(fleet):
                wait_until(
                    lambda: ask(cloud, do="connected")["connected"] == DEVICES, "devices", 180.0
                )
                rows = {}
                for name, first in (("good", GOOD), ("broken", BROKEN), ("unwell", UNWELL)):
                    cpu, sent = cpu_seconds([cloud.pid]), bytes_sent(url)
                    row = ask(cloud, do="roll", first=first.decode())
                    row["coordinator_cpu_s"] = round(cpu_seconds([cloud.pid]) - cpu, 2)
                    row["sent_mb"] = round((bytes_sent(url) - sent) / 1e6, 2)
                    rows[name] = row
                    print(name, row, flush=True)
                memory = round(peak_rss_mb(cloud.pid), 1)
    good, broken, unwell = rows["good"], rows["broken"], rows["unwell"]
    per_device = good["sent_mb"] * 1e6 / DEVICES
    return {
        "devices": DEVICES,
        "model_bytes": MODEL_BYTES,
        "waves": WAVES,
        "seconds_to_complete": good["seconds"],
        "coordinator_cpu_s": good["coordinator_cpu_s"],
        "coordinator_cpu_ms_per_device": round(1e3 * good["coordinator_cpu_s"] / DEVICES, 2),
        "coordinator_peak_rss_mb": memory,
        "bytes_per_device": round(per_device),
        "bytes_floor_per_device": MODEL_BYTES,  # the model itself
        "bytes_vs_floor": round(per_device / MODEL_BYTES, 2),
        "completed": good["state"] == "completed",
        "broken_asked": broken["asked"],
        "broken_served": broken["served"],
        "broken_gone_s": broken["seconds"],
        "unwell_asked": unwell["asked"],
        "unwell_served": unwell["served"],
        "unwell_gone_s": unwell["seconds"],
        "canary_devices": max(1, DEVICES // 100),
        "health_period_s": PERIOD_S,
        "rows": rows,
    }


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["coordinator", home, count]:
            asyncio.run(coordinator(Path(home), int(count)))
        case ["devices", home, count, url]:
            asyncio.run(devices(Path(home), int(count), url))
        case _:
            finish(measure())
