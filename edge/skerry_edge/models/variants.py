"""Serving the candidate that suits this device best: measured here, kept in a table, swapped.

A release may have variants: artefacts of the same version for another runtime or with another
quantization, verified like the release. Once the release is past its trial each is fetched,
self-tested, and noted in `<home>/variants/<model>/table.json`; then the best one serves
(`choice.choose`). The release stays what is rolled out and gone back to: a variant that fails, or
is unwell while it serves, only loses its place. Stands between the agent and who serves.
"""

import asyncio
import contextlib
import logging
import shutil
import time
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from skerry_protos.artefacts import RUNTIMES, VARIANTS, TargetPath, unwell
from skerry_protos.errors import DeadlineError, LinkError, SkerryError, TrustError
from skerry_protos.messages import BlobRef, Digest
from skerry_protos.packing import unpack_artefact
from skerry_protos.v1 import models_pb2

from skerry_edge.models import SelfTest, Service
from skerry_edge.models.choice import ChoiceTable, Row, choose, pareto
from skerry_edge.models.files import read_json, write_json
from skerry_edge.models.slots import Release, Slot, Slots, intact
from skerry_edge.models.suitable import unsuitable
from skerry_edge.models.watch import TEST_S, Wish

log = logging.getLogger(__name__)

FOLDER, TABLE = "variants", "table.json"
LOOK_S = 2.0
"""How often it is looked whether a trial is over, or the energy has become scarce."""
AGAIN_S = 60.0
"""Before a variant that could not be fetched is tried again."""

Fetch = Callable[[BlobRef], Awaitable[Path]]


@dataclass(slots=True)
class _Model:
    """A model that is served."""

    slot: Slot
    rows: list[Row] = field(default_factory=list)
    serving: str = ""
    why: str = ""
    unwell: str = ""
    not_before: float = 0.0


class Variants:
    """Implements `skerry_edge.models.Service` around the one that serves."""

    def __init__(
        self,
        home: Path,
        service: Service,
        self_test: SelfTest,
        *,
        table: ChoiceTable,
        profile: str = "",
        capabilities: Collection[str] = (),
        energy_source: str = "estimated",
        sparing: Callable[[], bool] = lambda: False,
        journal: Callable[[str], None] = log.info,
    ) -> None:
        self._folder, self._service, self._self_test = home / FOLDER, service, self_test
        self._table, self._profile = table, profile
        self._capabilities, self._source = frozenset(capabilities), energy_source
        self._sparing, self.journal = sparing, journal
        self.on_change: Callable[[str], None] = lambda _: None
        """Told a model's name when its table has changed and the choice is made."""
        self._models: dict[str, _Model] = {}
        self._wake = asyncio.Event()

    # skerry_edge.models.Service

    async def swap(self, model: str, slot: Slot | None) -> None:
        """Serve a release; a variant takes its place once it is known to be better."""
        await self._service.swap(model, slot)
        if slot is None:
            self._models.pop(model, None)
            return
        digest = slot.release.digest
        found = self._models[model] = _Model(slot, serving=digest)
        kept = read_json(self._file(model))
        if isinstance(kept, dict) and kept.get("release") == digest:
            with contextlib.suppress(TypeError, ValueError, AttributeError, KeyError):
                found.rows = [Row.parse(each) for each in kept["rows"]]
        self._wake.set()

    def readings(self, model: str) -> Mapping[str, float] | None:
        """Return what is measured of what serves; an unwell variant is no fault of the release."""
        readings = self._service.readings(model)
        found = self._models.get(model)
        if readings is None or found is None or found.serving == found.slot.release.digest:
            return readings
        wrong = unwell(readings, Wish.of(found.slot.release).limits)
        if wrong is None:
            return readings
        found.unwell = wrong
        self._wake.set()
        return {}

    def choice(self, model: str, release: str) -> models_pb2.Choice | None:
        """Return what was chosen of the release with this digest, where there was a choice."""
        return choice_of(self._folder.parent, model, release)

    # Choosing.

    async def run(
        self,
        fetch: Fetch,
        on_trial: Callable[[str], bool],
        turn: Callable[[str], asyncio.Lock],
        forget: Callable[[Digest], object] = lambda _: None,
    ) -> None:
        """Measure and choose until cancelled.

        What was fetched is copied and then may be forgotten. `on_trial` says whether a model's
        release is yet to be found healthy; `turn` is held while what serves is changed.
        """
        while True:
            self._wake.clear()
            for model, found in list(self._models.items()):
                if on_trial(model):
                    continue
                try:
                    await self._measure(model, found, fetch, forget)
                    async with turn(model):
                        if self._models.get(model) is found and not on_trial(model):
                            await self._settle(model, found)
                except (SkerryError, OSError) as error:
                    log.warning("choosing what serves %s: %s", model, error)
                    found.not_before = time.monotonic() + AGAIN_S
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_S):
                    await self._wake.wait()

    async def _measure(
        self, model: str, found: _Model, fetch: Fetch, forget: Callable[[Digest], object]
    ) -> None:
        """Fill the table in: the release first, then each variant that is for this device."""
        release = found.slot.release
        candidates = list(self._variants(release))
        if not candidates or time.monotonic() < found.not_before:
            return
        known = {row.digest for row in found.rows}
        if release.digest not in known:
            await self._test(model, found, found.slot)
        for each in candidates:
            if each.digest in known:
                continue
            try:
                slot = await self._staged(each, fetch)
                forget(each.digest)
            except (LinkError, DeadlineError) as error:
                log.info("variant %s waits: %s", each.target, error)
                found.not_before = time.monotonic() + AGAIN_S
                return
            except TrustError as error:
                self._note(model, found, _bad(each, error.message))
                continue
            await self._test(model, found, slot)

    async def _test(self, model: str, found: _Model, slot: Slot) -> None:
        release = slot.release
        try:
            readings = await self._self_test.test(slot, timeout_s=TEST_S)
        except SkerryError as error:
            self._note(model, found, _bad(release, error.message))
            return
        row = Row.of(release.target, release.digest, readings, self._source)
        wrong = unwell(readings, Wish.of(found.slot.release).limits)
        self._note(model, found, replace(row, bad=wrong or ""))

    async def _settle(self, model: str, found: _Model) -> None:
        """Let the best candidate serve, if it does not."""
        own = found.slot.release.digest
        if found.unwell:
            why, found.unwell = found.unwell, ""
            self._blame(model, found, found.serving, why)
        while True:
            # What cannot be served falls back to the release itself, which serves already.
            digest, why = choose(found.rows, self._table, assigned=own, sparing=self._sparing())
            if digest == found.serving:
                break
            slot: Slot | None = found.slot
            if digest != own:
                slot = await asyncio.to_thread(self._slot, model, digest)
            try:
                if slot is None:
                    raise SkerryError("its files are damaged")
                await self._service.swap(model, slot)
            except SkerryError as error:
                if digest == own:
                    raise
                self._blame(model, found, digest, error.message)
                continue
            found.serving = digest
            self.journal(f"{model}: {slot.release.target} serves: {why}")
        found.why = why
        if found.rows:
            self._keep(model, found)

    def _blame(self, model: str, found: _Model, digest: str, why: str) -> None:
        """Note that a candidate may not be served."""
        row = next(row for row in found.rows if row.digest == digest)
        log.warning("%s is not served: %s", row.target, why)
        self._note(model, found, replace(row, bad=why[:500]))

    # Files.

    def _variants(self, release: Release) -> Iterator[Release]:
        """Yield the variants of a release that this device could serve."""
        said = release.wish.get(VARIANTS, ())
        for each in said if isinstance(said, list) else ():
            path = TargetPath.parse(each["path"])
            variant = Release(
                model=path.model,
                version=path.version,
                target=each["path"],
                digest=Digest(each["digest"]),
                size=int(each["size"]),
                rollout=release.rollout,
                custom=each["custom"],
                wish={key: value for key, value in release.wish.items() if key != VARIANTS},
            )
            needed = RUNTIMES.get(str(variant.custom.get("runtime", "")))
            if not needed or not needed & self._capabilities:
                continue
            if unsuitable(variant, self._profile) is None:
                yield variant

    async def _staged(self, release: Release, fetch: Fetch) -> Slot:
        """Return the slot of a variant, fetched and unpacked, its bytes the signed ones."""
        held = await asyncio.to_thread(self._slot, release.model, release.digest)
        if held is not None:
            return held
        path = await fetch(BlobRef(digest=release.digest, size=release.size, role="artefact"))
        slots = self._slots(release.model, release.digest)
        return await asyncio.to_thread(slots.stage, release, path)

    def _slots(self, model: str, digest: str) -> Slots:
        folder = self._folder / model / digest[:16]
        return Slots(folder, folder / "ledger.json", unpack=unpack_artefact)

    def _slot(self, model: str, digest: str) -> Slot | None:
        if not (self._folder / model / digest[:16]).exists():
            return None
        slot = self._slots(model, digest).idle
        whole = slot is not None and slot.release.digest == digest and intact(slot)
        return slot if whole else None

    def _file(self, model: str) -> Path:
        return self._folder / model / TABLE

    def _note(self, model: str, found: _Model, row: Row) -> None:
        """Put a row into the table, in place of the one of the same candidate."""
        found.rows = [each for each in found.rows if each.digest != row.digest] + [row]
        self._keep(model, found)

    def _keep(self, model: str, found: _Model) -> None:
        best = pareto(found.rows)
        table = {
            "release": found.slot.release.digest,
            "version": found.slot.release.version,
            "serving": found.serving,
            "why": found.why,
            "rows": [row.to_json() | {"pareto": row.digest in best} for row in found.rows],
        }
        if read_json(self._file(model)) == table:
            return
        write_json(self._file(model), table)
        if found.why:
            self.on_change(model)
        wanted = {row.digest[:16] for row in found.rows}
        for folder in self._file(model).parent.glob("*/"):
            if folder.name not in wanted:
                shutil.rmtree(folder, ignore_errors=True)


def choice_of(home: Path, model: str, release: str) -> models_pb2.Choice | None:
    """Return the kept table of a model as it is reported; None without one for this release."""
    table = read_json(home / FOLDER / model / TABLE)
    try:
        if not isinstance(table, dict) or table["release"] != release:
            return None
        rows = [Row.parse(each) for each in table["rows"]]
        best = {str(each["digest"]) for each in table["rows"] if each["pareto"]}
        serves = next((row.target for row in rows if row.digest == table["serving"]), "")
        made = models_pb2.Choice(serves=serves, why=str(table["why"])[:200])
    except (TypeError, ValueError, KeyError, AttributeError):
        return None
    for row in rows:
        said = row.to_json()
        del said["digest"]
        made.candidates.add(**{**said, "bad": row.bad[:200], "pareto": row.digest in best})
    return made


def _bad(release: Release, why: str) -> Row:
    return Row(target=release.target, digest=release.digest, bad=why[:500])


def tables(home: Path) -> dict[str, Any]:
    """Return the tables of a device by model, as they are kept."""
    files = sorted((home / FOLDER).glob(f"*/{TABLE}"))
    found = {file.parent.name: read_json(file) for file in files}
    return {model: table for model, table in found.items() if table is not None}


def shown(home: Path) -> list[str]:
    """Return the tables of a device for people, a line for each candidate."""
    lines = []
    for model, table in tables(home).items():
        with contextlib.suppress(TypeError, ValueError, KeyError, AttributeError):
            lines.append(f"{model} version {table['version']}: {table['why']}")
            lines += [
                _line(Row.parse(said), table["serving"], pareto=said["pareto"])
                for said in table["rows"]
            ]
    return lines


def _line(row: Row, serving: str, *, pareto: bool) -> str:
    name = row.target.rpartition("/")[2]
    mark = "*" if row.digest == serving else " "
    if row.bad:
        return f" {mark} {name}: {row.bad}"
    guess = " (estimated)" if row.energy_source == "estimated" else ""
    return (
        f" {mark} {name}: accuracy {row.accuracy:.4f}, p95 {row.latency_s * 1e3:.3g} ms, "
        f"{row.energy_j:.3g} J{guess}, {row.memory_bytes / 2**20:.0f} MB"
        + (", on the Pareto front" if pareto else "")
    )
