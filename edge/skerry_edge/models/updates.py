"""Updates on the device: what the coordinator assigns, verified, tried in a slot, and served.

Start at `Updates.run`. An update is on the disk before it is acknowledged; whatever is wrong with
it (a signature, a hash, a version, a clock, a profile) is a report, and what runs goes on.
"""

import asyncio
import base64
import contextlib
import json
import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError
from skerry_protos import steady, tracing
from skerry_protos.artefacts import (
    METADATA_ROLE,
    VARIANT_OF,
    Phase,
    TargetPath,
    read_set,
    unwell,
)
from skerry_protos.blobs import LocalBlobs
from skerry_protos.disk import DiskFullError, explained
from skerry_protos.errors import (
    DeadlineError,
    PeerError,
    RejectCode,
    RejectedError,
    SkerryError,
    TrustError,
)
from skerry_protos.messages import BlobRef, DeviceId, Digest, Parcel
from skerry_protos.packing import unpack_artefact
from skerry_protos.v1 import models_pb2

from skerry_edge.models import SelfTest, Service
from skerry_edge.models.files import read_json, write_json
from skerry_edge.models.lifecycle import Event, advance
from skerry_edge.models.reports import Reports
from skerry_edge.models.slots import Release, Slot, Slots
from skerry_edge.models.suitable import unsuitable
from skerry_edge.models.trust import Verify, in_child
from skerry_edge.models.variants import Variants
from skerry_edge.models.watch import TEST_S, Watch, Wish
from skerry_edge.routes import Route

log = logging.getLogger(__name__)

FETCH_S = 3600.0
"""One attempt at a download; what has come is kept, and the next attempt goes on from there."""
AGAIN_S = 10.0
STALE_S = 3600.0
"""An update noted longer ago (or before the agent started) that has expired is asked for anew."""


class Updates:
    """What this device serves, kept as the coordinator assigns it."""

    def __init__(
        self,
        home: Path,
        device: DeviceId,
        *,
        route: Route,
        blobs: LocalBlobs,
        self_test: SelfTest,
        service: Service | None = None,
        state: Path | None = None,
        root_sha256: str = "",
        profile: str = "",
        verify: Verify = in_child,
        now: Callable[[], float] = steady.unix_s,
    ) -> None:
        """Keep slots in `<home>/models`; `state` (else `<home>/trust`) is never to be wiped."""
        self.trust = state or home / "trust"
        self.folder = home / "models"
        self._device, self._profile, self._root_sha256 = device, profile, root_sha256
        self._route, self._blobs, self._verify = route, blobs, verify
        self._self_test, self._service = self_test, service
        self.reports = Reports(self.trust / "reports", route, now)
        self._pending = self.trust / "update.json"
        self._server: tuple[float, float] | None = None
        self._accepted: float | None = None  # since boot; None: by an agent before this one
        self._wake = asyncio.Event()
        self._watches: dict[str, Watch] = {}
        self._turns: dict[str, asyncio.Lock] = {}
        self._group: asyncio.TaskGroup | None = None

    def slots(self, model: str) -> Slots:
        """Return a model's slots."""
        return self._watch(model).slots

    def models(self) -> list[str]:
        """Return the models this device has slots for."""
        return sorted(self._watches)

    def welcome(self, unix_s: float) -> None:
        """Take the coordinator's time, said over mutual TLS."""
        self._server = (time.monotonic(), unix_s)

    def server_now(self) -> float:
        """Return the coordinator's time as it is now; 0: it never said."""
        if self._server is None:
            return 0.0
        return self._server[1] + time.monotonic() - self._server[0]

    async def accept(self, parcel: Parcel) -> None:
        """Note an update on the disk; the newest replaces those before it."""
        try:
            number = models_pb2.Update.FromString(parcel.body).number
        except DecodeError as error:
            raise RejectedError(
                RejectCode.MALFORMED, f"the update cannot be read: {error}"
            ) from error
        images = parcel.blob(METADATA_ROLE)
        if images is None:
            raise RejectedError(RejectCode.MALFORMED, "the update brings no metadata")
        held = read_json(self._pending)
        if isinstance(held, dict) and int(held.get("number", 0)) > number:
            return
        with explained(self.trust, "note an update"):
            note = {
                "number": number,
                "body": base64.b64encode(parcel.body).decode(),
                "images": {"digest": images.digest, "size": images.size},
            }
            await asyncio.to_thread(write_json, self._pending, note)
        self._accepted = steady.since_boot()
        self._wake.set()

    async def run(self) -> None:
        """Serve what the slots hold, take updates and watch, until cancelled."""
        async with asyncio.TaskGroup() as group:
            for folder in sorted(self.folder.glob("*/")):
                watch = self._watch(folder.name)
                async with self._turn(folder.name):
                    await watch.begin()
            self._note_wiped()
            for watch in self._watches.values():
                group.create_task(watch.run(), name=f"watch-{watch.model}")
            self._group = group
            group.create_task(self.reports.run(), name="reports")
            group.create_task(self._work(), name="updates")
            if isinstance(self._service, Variants):
                self.reports.choice = self._service.choice
                self._service.on_change = self.reports.again
                choosing = self._service.run(
                    self._variant, self._on_trial, self._turn, self._blobs.remove
                )
                group.create_task(choosing, name="variants")

    async def _variant(self, ref: BlobRef) -> Path:
        """Return the file of a variant; it is wanted less than anything else."""
        return self._blobs.path(ref.digest) or await self._route.fetch(ref, deadline_s=FETCH_S)

    def _on_trial(self, model: str) -> bool:
        return self.slots(model).on_trial

    def _note_wiped(self) -> None:
        """Ask anew for models whose slots are gone: a disk was wiped under us."""
        for path in (self.trust / "reports").glob("*.json"):
            last = self.reports.newest(path.stem)
            watch = self._watches.get(path.stem)
            if last is None or not last["serving"] or (watch and watch.slots.live):
                continue
            release = Release(
                model=path.stem,
                version=TargetPath.parse(last["serving"]).version,
                target=last["serving"],
                digest=Digest(last["serving_digest"]),
                size=0,
                rollout=last["rollout"],
            )
            self.reports.say(Phase.VERIFYING, release, why="the device's models were wiped")

    async def _work(self) -> None:
        """Take up noted updates, one after the other."""
        while True:
            note = read_json(self._pending)
            self._wake.clear()
            if not isinstance(note, dict):
                await self._wake.wait()
                continue
            taking = asyncio.create_task(self._take(note))
            newer = asyncio.create_task(self._wake.wait())
            try:
                await asyncio.wait({taking, newer}, return_when=asyncio.FIRST_COMPLETED)
                if not taking.done() and read_json(self._pending) == note:
                    await taking  # the same update again
            finally:
                for task in (taking, newer):
                    task.cancel()
                await asyncio.wait({taking, newer})
            if taking.cancelled():
                continue
            if (error := taking.exception()) is None:
                if read_json(self._pending) == note:
                    self._pending.unlink(missing_ok=True)
                continue
            log.warning("the update waits: %s", error)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(AGAIN_S):
                    await self._wake.wait()

    async def _take(self, note: Mapping[str, Any]) -> None:
        """Bring this device to what an update says; raise what passes by waiting."""
        update = models_pb2.Update.FromString(base64.b64decode(note["body"]))
        ref = BlobRef(**note["images"])
        try:
            director = read_set(update.director)
            images = await self._metadata(ref)
        except (PeerError, TrustError, RejectedError) as error:
            self._refuse({}, error.message)
            return
        verdict = await self._verify(
            {
                "trust": str(self.trust),
                "device": self._device,
                "now": time.time(),
                "server_now": self.server_now(),
                "root_sha256": self._root_sha256,
                "images": images,
                "director": director,
            }
        )
        if verdict["expired"] and self._is_stale():
            self._ask_anew(director)
            return
        if verdict["refused"]:
            self._refuse(director, verdict["refused"])
            return
        for model, rollout in verdict["withdrawn"].items():
            async with self._turn(model):
                await self._withdraw(model, rollout)
        for each in verdict["assigned"]:
            release = _release(each)
            async with self._turn(release.model):
                await self._bring(release, self._watch(release.model))

    async def _metadata(self, ref: BlobRef) -> dict[str, bytes]:
        path = self._blobs.path(ref.digest) or await self._route.fetch(ref, deadline_s=FETCH_S)
        return read_set(await asyncio.to_thread(path.read_bytes))

    def _is_stale(self) -> bool:
        return self._accepted is None or steady.since_boot() - self._accepted > STALE_S

    def _ask_anew(self, director: Mapping[str, bytes]) -> None:
        """Have an update said again that grew too old on this disk, as while the power was off."""
        log.info("the update has expired while it waited here: asking for it anew")
        for release in _claimed(director):
            live = self.slots(release.model).live if release.model in self._watches else None
            self.reports.say(
                Phase.VERIFYING,
                release,
                why="the update had expired before the device could take it",
                serving=live.release if live else None,
            )

    def _refuse(self, director: Mapping[str, bytes], why: str) -> None:
        """Report that an update was refused; what it claims to be about is only repeated."""
        log.warning("an update was refused: %s", why)
        for release in _claimed(director):
            live = self.slots(release.model).live if release.model in self._watches else None
            self.reports.say(
                Phase.REFUSED, release, why=why, serving=live.release if live else None
            )

    async def _bring(self, release: Release, watch: Watch) -> None:
        """Serve a verified release: keep, go back to, or fetch and try it. The turn is held."""
        slots, live = watch.slots, watch.slots.live
        phase = advance(Phase.VERIFYING, Event.TRUSTED)
        if live is not None and live.release.digest == release.digest:
            await asyncio.to_thread(slots.restate, release)
            self._say(watch, Phase.TRIAL if slots.on_trial else Phase.LIVE, release)
            return
        if slots.kept(release.digest) and not slots.why_bad(release.digest):
            await asyncio.to_thread(slots.swap_back)
            await asyncio.to_thread(slots.restate, release)
            await watch.serve(slots.live)
            self._say(watch, advance(phase, Event.KEPT), release)
            return
        if Wish.of(release).retry:
            slots.pardon(release.digest)
        why = slots.why_bad(release.digest)
        why = f"it was bad on this device: {why}" if why else unsuitable(release, self._profile)
        if why is not None:
            self._say(watch, advance(phase, Event.REFUSE), release, why=why)
            return
        if slots.on_trial:
            raise SkerryError(f"model {release.model} has another release on trial")
        self._say(watch, phase, release)
        try:
            with self._span("fetch", release):
                slot = await self._fetch(release, slots)
        except (TrustError, RejectedError, PeerError) as error:
            self._say(watch, advance(phase, Event.REFUSE), release, why=error.message)
            return
        await self._try(slot, watch)

    async def _withdraw(self, model: str, rollout: str) -> None:
        """Serve nothing of a model any more. The turn is held."""
        watch = self._watch(model)
        await asyncio.to_thread(watch.slots.withdraw)
        await watch.serve(None)
        nothing = Release(
            model=model, version=0, target="", digest=Digest(""), size=0, rollout=rollout
        )
        self._say(watch, Phase.LIVE, nothing)

    async def _fetch(self, release: Release, slots: Slots) -> Slot:
        """Return the slot that holds the artefact; a cut or a full disk is waited out."""
        ref = BlobRef(digest=release.digest, size=release.size, role="artefact")
        while True:
            try:
                path = self._blobs.path(ref.digest)
                path = path or await self._route.fetch(ref, deadline_s=FETCH_S)
                slot = await asyncio.to_thread(slots.stage, release, path)
            except (DiskFullError, DeadlineError) as error:
                log.warning("release %s waits: %s", release.target, error)
                self.reports.say(
                    Phase.FETCHING,
                    release,
                    why=error.message,
                    serving=slots.live.release if slots.live else None,
                )
                await asyncio.sleep(AGAIN_S)
                continue
            self._blobs.remove(ref.digest)  # the slot has it now
            return slot

    async def _try(self, slot: Slot, watch: Watch) -> None:
        """Test a staged release, and let it serve on trial."""
        slots, release = watch.slots, slot.release
        phase = advance(Phase.FETCHING, Event.HERE)
        self._say(watch, phase, release)
        readings: Mapping[str, float] = {}
        try:
            with self._span("self-test", release):
                readings = await self._self_test.test(slot, timeout_s=TEST_S)
            wrong = unwell(readings, Wish.of(release).limits)
        except SkerryError as error:
            wrong = error.message
        if wrong is not None:
            await asyncio.to_thread(slots.condemn, release.digest, wrong)
            self._say(watch, advance(phase, Event.FAIL), release, why=wrong, readings=readings)
            return
        await asyncio.to_thread(slots.promote)
        if await watch.serve(slot):
            watch.trial_begins()
            log.info("release %s serves, on trial", release.target)
            self._say(watch, advance(phase, Event.PASSED), release, readings=readings)

    def _span(self, name: str, release: Release) -> contextlib.AbstractContextManager[object]:
        """Tell of a step of an update, in the trace of its rollout."""
        return tracing.spanning(
            name,
            trace=release.rollout,
            parent=tracing.span_id(release.rollout, self._device),
            scope="skerry.agent",
            device=self._device,
            target=release.target,
        )

    def _say(
        self,
        watch: Watch,
        phase: Phase,
        release: Release,
        *,
        why: str = "",
        readings: Mapping[str, float] | None = None,
    ) -> None:
        live = watch.slots.live
        self.reports.say(
            phase, release, why=why, readings=readings, serving=live.release if live else None
        )

    def _watch(self, model: str) -> Watch:
        found = self._watches.get(model)
        if found is None:
            slots = Slots(
                self.folder / model, self.trust / "slots" / f"{model}.json", unpack=unpack_artefact
            )
            found = self._watches[model] = Watch(
                model,
                slots,
                self_test=self._self_test,
                service=self._service,
                reports=self.reports,
                turn=self._turn(model),
            )
            if self._group is not None:  # else `run` begins to watch what the slots hold
                self._group.create_task(found.run(), name=f"watch-{model}")
        return found

    def _turn(self, model: str) -> asyncio.Lock:
        return self._turns.setdefault(model, asyncio.Lock())


def _release(each: Mapping[str, Any]) -> Release:
    path = TargetPath.parse(each["path"])
    rollout = each["wish"].get("rollout", "")
    return Release(
        model=path.model,
        version=path.version,
        target=each["path"],
        digest=Digest(each["digest"]),
        size=int(each["size"]),
        rollout=rollout[:64] if isinstance(rollout, str) else "",
        custom=each["custom"],
        wish=each["wish"],
    )


def _claimed(director: Mapping[str, bytes]) -> list[Release]:
    """Return what unverified metadata says it assigns, for a report and nothing else."""
    found = []
    for name, data in director.items():
        if not name.endswith(".targets.json"):
            continue
        with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError, TrustError):
            for path, named in json.loads(data)["signed"]["targets"].items():
                if VARIANT_OF in named.get("custom", {}):
                    continue
                wish = {"rollout": named.get("custom", {}).get("rollout", "")}
                digest = str(named["hashes"]["sha256"])
                bytes.fromhex(digest)
                found.append(
                    _release(
                        {"path": path, "digest": digest, "size": 0, "custom": {}, "wish": wish}
                    )
                )
    return found[:64]
