"""A device measures what it may serve and lets the best serve: real files, self tests, runtime."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from skerry_edge.energy import Budget, EnergyTable
from skerry_edge.inference.selftest import Trials
from skerry_edge.inference.service import Inference
from skerry_edge.models.choice import ChoiceTable
from skerry_edge.models.slots import Release, Slot, Slots
from skerry_edge.models.variants import Variants, shown
from skerry_protos.artefacts import VARIANTS
from skerry_protos.errors import LinkError
from skerry_protos.messages import BlobRef, Digest, digest_of
from skerry_protos.packing import unpack_artefact

from tests.artefacts import packed
from tests.edge.inference.test_service import Joules, client, config

HERE = {"onnxruntime"}


class Counted(Trials):
    """The real self test, counted."""

    def __init__(self) -> None:
        super().__init__(energy=EnergyTable(idle_w=1, busy_w=5))
        self.tested: list[str] = []

    async def test(self, slot: Slot, *, timeout_s: float) -> Mapping[str, float]:
        self.tested.append(slot.release.target.rpartition("/")[2])
        return await super().test(slot, timeout_s=timeout_s)


class Device:
    """A device's folder, with a release that is live and the files of its variants."""

    def __init__(self, home: Path, **variants: dict[str, Any]) -> None:
        self.home = home
        self.files: dict[str, Path] = {}
        self.trials = Counted()
        self.spare = False
        self.away = False
        said = []
        for name, options in variants.items():
            path = packed(home / "made" / name, **options)
            digest = digest_of(path.read_bytes())
            self.files[digest] = path
            said.append(
                {
                    "path": f"stable/tiny/1/{name}.zip",
                    "digest": digest,
                    "size": path.stat().st_size,
                    "custom": {"runtime": "onnx"},
                }
            )
        path = packed(home / "made" / "assigned", depth=400, seed=1)
        content = path.read_bytes()
        release = Release(
            model="tiny",
            version=1,
            target="stable/tiny/1/assigned.zip",
            digest=Digest(digest_of(content)),
            size=len(content),
            wish={VARIANTS: said, "gates": {"max_error_rate": 0.5}},
        )
        slots = Slots(home / "models/tiny", home / "trust/tiny.json", unpack=unpack_artefact)
        slots.stage(release, path)
        self.slot = slots.promote()

    async def fetch(self, ref: BlobRef) -> Path:
        if self.away:
            raise LinkError("no network")
        return self.files[ref.digest]

    @asynccontextmanager
    async def serving(self, **table: Any) -> AsyncIterator[tuple[Variants, Inference]]:
        budget = Budget(Joules(), self.home / "energy.json")
        async with Inference(config(self.home), "dev-1", budget) as inference:
            variants = Variants(
                self.home,
                inference,
                self.trials,
                table=ChoiceTable(**table),
                capabilities=HERE,
                sparing=lambda: self.spare,
            )
            await variants.swap("tiny", self.slot)
            turns: dict[str, asyncio.Lock] = {}
            running = asyncio.create_task(
                variants.run(
                    self.fetch, lambda _: False, lambda name: turns.setdefault(name, asyncio.Lock())
                )
            )
            try:
                yield variants, inference
            finally:
                running.cancel()
                with suppress(asyncio.CancelledError):
                    await running

    def table(self) -> dict[str, Any]:
        file = self.home / "variants/tiny/table.json"
        found: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
        return found

    def served(self) -> str:
        table = self.table()
        names = {row["digest"]: row["target"].rpartition("/")[2] for row in table.get("rows", ())}
        return names.get(table.get("serving", ""), "") if table.get("why") else ""

    async def until(self, claim: Callable[[], bool], seconds: float = 30.0) -> None:
        try:
            async with asyncio.timeout(seconds):
                while not claim():  # noqa: ASYNC110 - what is waited for is in other processes
                    await asyncio.sleep(0.05)
        except TimeoutError:
            raise AssertionError(json.dumps(self.table(), indent=1)) from None


async def test_the_faster_of_two_serves_and_the_table_outlives_the_agent(tmp_path: Path) -> None:
    device = Device(tmp_path, fast={"seed": 1}, broken={"broken": "nan"})
    async with device.serving(objective="latency") as (_, inference):
        await device.until(lambda: device.served() == "fast.zip")
        async with client(inference) as http:
            assert (await http.get("/v2/models/tiny")).status_code == 200
    rows = {row["target"].rpartition("/")[2]: row for row in device.table()["rows"]}
    assert rows["fast.zip"]["latency_s"] < rows["assigned.zip"]["latency_s"]
    assert 0 < rows["fast.zip"]["energy_j"] < rows["assigned.zip"]["energy_j"]
    assert rows["fast.zip"]["accuracy"] == 1.0
    assert "not finite" in rows["broken.zip"]["bad"]
    lines = "\n".join(shown(tmp_path))
    assert "tiny version 1: least latency of 2" in lines
    assert " * fast.zip: accuracy 1.0000" in lines
    assert "(estimated)" in lines

    device.away = True
    async with device.serving(objective="latency") as (_, inference):
        await device.until(
            lambda: inference._models["tiny"].slot.release.target.endswith("fast.zip")
        )
    assert sorted(device.trials.tested) == ["assigned.zip", "broken.zip", "fast.zip"]


async def test_scarce_energy_brings_the_cheaper_one_and_plenty_the_assigned(tmp_path: Path) -> None:
    device = Device(tmp_path, cheap={"seed": 1})
    async with device.serving() as (variants, _):
        await device.until(lambda: device.served() == "assigned.zip")
        device.spare = True
        variants._wake.set()
        await device.until(lambda: device.served() == "cheap.zip")
        assert "want of energy" in device.table()["why"]
        device.spare = False
        variants._wake.set()
        await device.until(lambda: device.served() == "assigned.zip")


async def test_an_unwell_variant_gives_way_and_the_release_is_not_blamed(tmp_path: Path) -> None:
    device = Device(tmp_path, fast={"seed": 1})
    async with device.serving(objective="latency") as (variants, inference):
        await device.until(lambda: device.served() == "fast.zip")
        inference._models["tiny"].crashes = 3
        assert variants.readings("tiny") == {}
        await device.until(lambda: device.served() == "assigned.zip")
        readings = variants.readings("tiny")
        assert readings is not None
        assert readings["crashes"] == 0
    bad = [row["bad"] for row in device.table()["rows"] if row["bad"]]
    assert bad == ["crashes is 3, above 2"]


async def test_without_a_network_what_was_assigned_serves(tmp_path: Path) -> None:
    device = Device(tmp_path, fast={"seed": 1})
    device.away = True
    async with device.serving(objective="latency") as (_, inference):
        await device.until(lambda: device.trials.tested == ["assigned.zip"])
        await device.until(lambda: device.served() == "assigned.zip")
        async with client(inference) as http:
            assert (await http.get("/v2/models/tiny")).json()["versions"] == ["1"]
