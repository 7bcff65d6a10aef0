"""Telling devices what to serve, and hearing what came of it.

An assignment is in the database before anybody is told. A device is told when that changes, and
again whenever it comes while its newest report does not say that it has settled.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, Self

import sqlalchemy as sa
from google.protobuf.message import DecodeError
from skerry_protos import steady
from skerry_protos.artefacts import (
    SETTLED,
    VARIANTS_LIMIT,
    Phase,
    Reading,
    TargetPath,
    pack_set,
)
from skerry_protos.errors import (
    LinkError,
    RejectCode,
    RejectedError,
    SkerryError,
    TrustError,
)
from skerry_protos.failpoints import failpoint
from skerry_protos.messages import (
    BODY_LIMIT,
    BlobRef,
    DeviceId,
    Digest,
    Parcel,
    ParcelId,
    ParcelKind,
)
from skerry_protos.v1 import models_pb2

from skerry_cloud.fleets import Fleet
from skerry_cloud.models.choices import read_choice
from skerry_cloud.models.director import word
from skerry_cloud.models.online import FRESH_S, WORD_LIFE
from skerry_cloud.models.registry import target_path
from skerry_cloud.models.repository import Repository
from skerry_cloud.store import Store, StoreError
from skerry_cloud.store import models as kept
from skerry_cloud.store import rollouts as kept_rollouts
from skerry_cloud.store.models import Artefact, Assignment, Report
from skerry_cloud.telemetry import printable

log = logging.getLogger(__name__)

TOLD_AT_ONCE = 32
"""Devices that are told at the same time."""
NOTED_S = 0.5
"""That devices were told is kept so long after, in one transaction for many."""
ACCEPT_PATIENCE_S = 10.0
WORD_ROOM = BODY_LIMIT * 3 // 4
"""A word larger than this, bytes, names no variants: as JSON in a parcel it grows by a little."""
UPDATE_LIFE_S = WORD_LIFE.total_seconds() - FRESH_S
"""Later it would be refused as expired; the device is told anew when it comes."""

Heard = Callable[[Report], None]
Came = Callable[[DeviceId], Awaitable[None]]


class Roster(Protocol):
    """Who is here (skerry_cloud.registry.Registry)."""

    def connected(self) -> frozenset[DeviceId]: ...


@dataclass(slots=True)
class _Word:
    """What was last said to a device."""

    number: int
    at: float
    said: bytes
    keyid: str


class Updates:
    """Sends updates and takes reports; an async context manager."""

    def __init__(
        self, *, store: Store, fleet: Fleet, roster: Roster, repository: Repository
    ) -> None:
        self._store, self._fleet, self._roster = store, fleet, roster
        self._repository = repository
        self._words: dict[DeviceId, _Word] = {}
        self._telling: dict[DeviceId, asyncio.Task[None]] = {}
        self._again: set[DeviceId] = set()
        self._room = asyncio.Semaphore(TOLD_AT_ONCE)
        self._asked: dict[DeviceId, float] = {}
        self._noting: asyncio.Task[None] | None = None
        self.on_report: list[Heard] = []
        self.on_present: Came = _nothing

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        every = [*self._telling.values(), *([self._noting] if self._noting else [])]
        for task in every:
            task.cancel()
        await asyncio.gather(*every, return_exceptions=True)
        with contextlib.suppress(StoreError):
            await self._keep_asked()

    # What is wanted.

    async def assign(self, new: Iterable[Assignment]) -> None:
        """Say what devices are to serve; those that are here are told at once."""
        every = list(new)
        for each in every:
            if not each.target:
                continue  # the model is withdrawn
            signed = self._repository.target(each.target)
            if signed is None or signed.hashes.get("sha256") != each.digest:
                raise TrustError(f"{each.target} is not signed: devices would refuse it")
        await self._store.write(lambda c: kept.assign(c, *every))
        self.tell({each.device for each in every})

    async def unassign(self, devices: Iterable[DeviceId], model: str) -> None:
        """Take assignments of a model back; what devices serve is left as it is."""
        every = list(devices)

        def write(connection: sa.Connection) -> None:
            for device in every:
                kept.unassign(connection, device, model)

        await self._store.write(write)

    def tell(self, devices: Iterable[DeviceId]) -> None:
        """Tell devices that are here their newest assignments."""
        here = self._roster.connected()
        wanted = [device for device in devices if device in here]
        if not wanted:
            return
        casting = asyncio.create_task(self._cast(frozenset(wanted)), name="updates-cast")
        casting.add_done_callback(_logged)
        for device in wanted:
            if device in self._telling:
                self._again.add(device)
                continue
            task = asyncio.create_task(self._tell(device), name=f"update-{device}")
            self._telling[device] = task
            task.add_done_callback(partial(self._told, device))

    async def present(self, device: DeviceId) -> None:
        """Tell a device that is here (again) what it has not settled."""
        await self.on_present(device)
        wanted = await self._store.read(lambda c: kept.assigned(c, device=device))
        if not wanted:
            return
        reports = await self._store.read(lambda c: kept.reports(c, device=device))
        settled = {
            (report.model, report.digest, report.rollout)
            for report in reports
            if report.phase in SETTLED
        }
        if any((each.model, each.digest, each.rollout) not in settled for each in wanted):
            self.tell([device])

    async def _cast(self, devices: frozenset[DeviceId]) -> None:
        """Let a transport with broadcast publish once what all of them will ask for."""
        self._fleet.cast(await self._repository.as_blob(), devices)
        wanted: dict[BlobRef, set[DeviceId]] = {}
        for each in await self._store.read(kept.assigned):
            if each.device in devices and each.target:
                ref = BlobRef(digest=each.digest, size=each.size, role="artefact")
                wanted.setdefault(ref, set()).add(each.device)
        for ref, those in wanted.items():
            if len(those) > 1:
                self._fleet.cast(ref, those)

    async def _tell(self, device: DeviceId) -> None:
        """Deliver the director's word; a device that goes away is told when it comes again."""
        async with self._room:
            self._again.discard(device)
            parcel = await self._parcel(device)
            try:
                await self._fleet.deliver(device, parcel)
            except LinkError as error:
                log.debug("device %s was not told: %s", device, error)
            except RejectedError as error:
                log.warning("device %s takes no updates: %s", device, error)
            else:
                self._note_asked(device)

    def _note_asked(self, device: DeviceId) -> None:
        """Keep that a device has taken its word, with those of the same moment."""
        self._asked.setdefault(device, time.time())
        if self._noting is None:
            self._noting = asyncio.create_task(self._keep_asked(NOTED_S), name="updates-asked")
            self._noting.add_done_callback(_logged)

    async def _keep_asked(self, after_s: float = 0.0) -> None:
        await asyncio.sleep(after_s)
        self._noting, told = None, self._asked
        self._asked = {}
        await self._store.write(lambda c: kept_rollouts.note_asked(c, told))

    def _told(self, device: DeviceId, done: asyncio.Task[None]) -> None:
        self._telling.pop(device, None)
        _logged(done)
        if device in self._again and not done.cancelled():
            self._again.discard(device)
            self.tell([device])

    async def _parcel(self, device: DeviceId) -> Parcel:
        images = await self._repository.as_blob()
        said = await self._word(device)
        body = models_pb2.Update(number=said.number, director=said.said).SerializeToString()
        if len(body) > BODY_LIMIT:
            raise SkerryError(
                f"what device {device} is to serve does not fit a parcel: {len(body)} bytes"
            )
        return Parcel(
            id=ParcelId(f"update-{device}-{said.number}-{images.digest[:12]}"),
            kind=ParcelKind.UPDATE,
            deadline_unix_s=steady.unix_s() + UPDATE_LIFE_S,
            body=body,
            blobs=(images,),
        )

    async def _word(self, device: DeviceId) -> _Word:
        """Return the director's word to a device, signed anew when it changed or has grown old."""
        signer = self._repository.online.signer("director")
        keyid = str(signer.public_key.keyid)
        held = self._words.get(device)

        def look(
            connection: sa.Connection,
        ) -> tuple[int, list[Assignment], dict[str, list[Artefact]]]:
            number = kept.number_of(connection, device)
            old = held is None or time.time() - held.at > FRESH_S or held.keyid != keyid
            if old:
                number = kept.renumber(connection, device)
            assigned = kept.assigned(connection, device=device)
            return number, assigned, _siblings(connection, assigned)

        number, assigned, siblings = await self._store.write(look)
        if held is not None and held.number == number:
            return held
        roots = self._repository.director_roots()
        variants = {target: self._variants(target, every) for target, every in siblings.items()}
        files = await asyncio.to_thread(
            word, device, number, assigned, signer, roots=roots, variants=variants
        )
        if sum(map(len, files.values())) > WORD_ROOM:  # what is assigned must reach the device
            files = await asyncio.to_thread(word, device, number, assigned, signer, roots=roots)
        made = self._words[device] = _Word(
            number=number, at=time.time(), said=pack_set(files), keyid=keyid
        )
        return made

    def _variants(self, target: str, every: Iterable[Artefact]) -> dict[str, tuple[str, int]]:
        """Return what is signed in the same channel and may be served in place of `target`."""
        channel = TargetPath.parse(target).channel
        found: dict[str, tuple[str, int]] = {}
        for each in every:
            path = str(target_path(channel, each))
            signed = self._repository.target(path)
            same = signed is not None and signed.hashes.get("sha256") == each.digest
            if path != target and same and len(found) < VARIANTS_LIMIT:
                found[path] = (each.digest, each.size)
        return found

    # What is heard.

    async def report(self, device: DeviceId, parcel: Parcel) -> None:
        """Keep a device's report when it is its newest; raise RejectedError for a bad one."""
        report = _read_report(device, parcel)
        if await self._store.write(
            lambda c: kept.keep_report(c, report), patience_s=ACCEPT_PATIENCE_S
        ):
            failpoint("report.committed")
            if report.phase == Phase.VERIFYING:  # it lost what it had, and asks to be told anew
                self._words.pop(device, None)
                self.tell([device])
            for heard in self.on_report:
                heard(report)


def _siblings(
    connection: sa.Connection, assigned: Iterable[Assignment]
) -> dict[str, list[Artefact]]:
    """Return every artefact of each assigned version, by the assigned path."""
    found = {}
    for each in assigned:
        if each.target:
            path = TargetPath.parse(each.target)
            version = kept.find(connection, path.model, path.version)
            found[each.target] = list(version.artefacts) if version is not None else []
    return found


async def _nothing(device: DeviceId) -> None:
    del device


def _read_report(device: DeviceId, parcel: Parcel) -> Report:
    try:
        said = models_pb2.UpdateReport.FromString(parcel.body)
        phase = Phase(said.phase)
        for path in (said.target, said.serving):
            if path:
                TargetPath.parse(path)
    except (DecodeError, ValueError, TrustError) as error:
        raise RejectedError(RejectCode.MALFORMED, f"the report cannot be read: {error}") from error
    if not said.model or len(said.model) > 64 or len(said.rollout) > 64 or said.sequence >= 2**62:
        raise RejectedError(RejectCode.MALFORMED, "the report names no model")
    return Report(
        device=device,
        model=printable(said.model, 64),
        sequence=said.sequence,
        rollout=printable(said.rollout, 64),
        target=said.target[:300],
        digest=Digest(said.digest.hex()[:64]),
        phase=phase,
        why=printable(said.why, 500),
        readings=_readings(said.readings),
        serving=said.serving[:300],
        serving_digest=Digest(said.serving_digest.hex()[:64]),
        at=time.time(),
        choice=read_choice(said.choice, model=said.model, target=said.target),
    )


def _readings(said: Mapping[str, float]) -> dict[str, float]:
    """Return the readings that are known; one that is no number is kept as a very bad one."""
    found: dict[str, float] = {}
    for reading in Reading:
        if reading in said:
            value = float(said[reading])
            found[reading] = value if -1e18 < value < 1e18 else 1e18
    return found


def _logged(done: "asyncio.Task[Any]") -> None:
    if not done.cancelled() and (error := done.exception()) is not None:
        log.error("an update could not be sent: %s", error or type(error).__name__, exc_info=error)
