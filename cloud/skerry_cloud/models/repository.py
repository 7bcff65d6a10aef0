"""The models' TUF repository on the coordinator: takes offline metadata, signs what is newest.

Everything that comes in is verified as a client would verify it before it is kept; what has too
few signatures waits as a draft. Snapshot and timestamp are made anew at each change, and before
they grow old.
"""

import asyncio
import logging
import time
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Self

from skerry_protos.artefacts import (
    APPS,
    CHANNELS,
    METADATA_ROLE,
    SIGNED_AT,
    TargetPath,
    pack_set,
)
from skerry_protos.blobs import LocalBlobs
from skerry_protos.errors import RejectedError, TrustError
from skerry_protos.messages import BlobRef
from tuf.api.metadata import Metadata, MetaFile, Root, Snapshot, TargetFile, Timestamp

from skerry_cloud.models.apps import newest as newest_apps
from skerry_cloud.models.online import FRESH_S, WORD_LIFE, OnlineKeys
from skerry_cloud.models.signing import new_channel, next_version, signatures_missing
from skerry_cloud.models.standing import (
    MODELS,
    NotInitialisedError,
    State,
    load,
    require_channels,
    signed_row,
    take,
)
from skerry_cloud.store import Store
from skerry_cloud.store import models as kept
from skerry_cloud.store.models import Signed

log = logging.getLogger(__name__)

SNAPSHOT_LIFE = timedelta(days=30)
LOOK_S = 600.0
SETS_KEPT = 40
"""Metadata sets that are still given to who asks: a task may name one of ten days ago."""
OFFERED = ("root", "director-root", "targets", *CHANNELS, APPS)
"""What offline metadata may be sent, in the order in which it is verified."""


class Repository:
    """The repository; an async context manager that keeps it fresh."""

    def __init__(self, store: Store, blobs: LocalBlobs, online: OnlineKeys) -> None:
        self._store, self._blobs, self.online = store, blobs, online
        self._state = State()
        self._signed_at = 0.0
        self._set: BlobRef | None = None
        self._old_sets: list[BlobRef] = []
        self._turn = asyncio.Lock()
        self._keeping: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._state = await self._store.read(load)
        self._keeping = asyncio.create_task(self._keep_fresh(), name="repository")
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._keeping is not None:
            self._keeping.cancel()
            await asyncio.wait({self._keeping})

    # What is there.

    @property
    def initialised(self) -> bool:
        """Whether there are offline keys, and metadata signed by them."""
        return all(role in self._state.newest for role in ("root", "targets", *CHANNELS))

    def metadata(self, role: str, *, draft: bool = False) -> Metadata[Any] | None:
        """Return the newest metadata of a role, or its draft."""
        return (self._state.drafts if draft else self._state.newest).get(role)

    @property
    def root(self) -> Root:
        """The newest root; raise NotInitialisedError."""
        found = self._state.newest.get("root")
        if found is None:
            raise NotInitialisedError
        return found.signed  # type: ignore[no-any-return]

    def target(self, path: str) -> TargetFile | None:
        """Return what the channel's signers say of an artefact, or None."""
        channel = self._state.newest.get(TargetPath.parse(path).channel)
        found: TargetFile | None = channel.signed.targets.get(path) if channel else None
        return found

    def director_roots(self) -> dict[int, bytes]:
        """Return every root of the director's repository, by version."""
        return dict(self._state.director_roots)

    def files(self) -> dict[str, bytes]:
        """Return the repository's files as a client asks for them."""
        if not self.initialised or "timestamp" not in self._state.newest:
            raise NotInitialisedError
        found = {f"{number}.root.json": data for number, data in self._state.roots.items()}
        for role, metadata in self._state.newest.items():
            if role == "timestamp":
                found["timestamp.json"] = metadata.to_bytes()
            elif role not in {"root", "director-root"}:
                found[f"{metadata.signed.version}.{role}.json"] = metadata.to_bytes()
        return found

    async def as_blob(self) -> BlobRef:
        """Return all files in one piece, as devices fetch them."""
        async with self._turn:
            await self._freshen()
            if self._set is None:
                data = pack_set(self.files())
                self._set = await asyncio.to_thread(self._blobs.put, data, role=METADATA_ROLE)
                self._old_sets.append(self._set)
                while len(self._old_sets) > SETS_KEPT:
                    old = self._old_sets.pop(0)
                    if old.digest != self._set.digest:
                        await asyncio.to_thread(self._blobs.remove, old.digest)
            return self._set

    def latest(self) -> BlobRef | None:
        """Return the set that was made last, or None: `as_blob` without waiting."""
        return self._set or (self._old_sets[-1] if self._old_sets else None)

    # What comes in.

    async def sign_app(self, path: str, target: TargetFile) -> bool:
        """Let the coordinator's own key sign an app; False where the role is in other hands."""
        async with self._turn:
            after = self._state.copy()
            if not self.initialised or not self._signs_apps(after):
                return False
            held = after.newest.get(APPS)
            if held is not None and path in held.signed.targets:
                return True
            self._sign_apps(after, {path: target})
            new = [signed_row(APPS, after.newest[APPS]), *self._sign_newest(after)]

            def write(connection: Any) -> None:
                kept.keep_signed(connection, *new)
                for role in (APPS, "snapshot", "timestamp"):
                    kept.drop_old(connection, MODELS, role, keep=3)

            await self._store.write(write)
            self._state, self._set = after, None
            return True

    def _signs_apps(self, state: State) -> bool:
        """Return whether the offline keys left the role of apps to this coordinator."""
        targets = state.newest["targets"].signed
        mine = self.online.signer(APPS).public_key.keyid
        return list(targets.delegations.roles[APPS].keyids) == [mine]

    def _sign_apps(self, state: State, add: Mapping[str, TargetFile]) -> None:
        """Make the next metadata of apps with our own key."""
        held = state.newest.get(APPS)
        made = next_version(held, APPS) if held else Metadata(new_channel(APPS))
        made.signed.targets = newest_apps({**made.signed.targets, **add})
        made.sign(self.online.signer(APPS))
        state.newest[APPS] = made

    async def accept(self, offered: Mapping[str, bytes], by: str) -> dict[str, int]:
        """Take offline metadata by role; return how many signatures each still lacks (drafts).

        All of it or nothing; raise TrustError, RejectedError or ConfigError with the reason.
        """
        unknown = set(offered) - set(OFFERED)
        if unknown or not offered:
            raise RejectedError("metadata", f"no metadata of {sorted(unknown)} is taken here")
        async with self._turn:
            after, new, lacking = self._state.copy(), [], {}
            for role in OFFERED:
                if role in offered:
                    missing = take(after, role, offered[role])
                    lacking[role] = missing
                    source = after.drafts if missing else after.newest
                    new.append(signed_row(role, source[role], draft=missing > 0, by=by))
            published = any(missing == 0 for missing in lacking.values())
            if published:
                self._use_online_keys(after)
                if self._outdated_apps(after):  # by our key before this one
                    self._sign_apps(after, {})
                    new.append(signed_row(APPS, after.newest[APPS]))
            require_channels(after)
            if published and all(role in after.newest for role in ("root", "targets", *CHANNELS)):
                new += self._sign_newest(after)
            await self._store.write(lambda c: kept.keep_signed(c, *new))
            self._state, self._set = after, None if published else self._set
            log.info("took metadata of %s from %s", ", ".join(sorted(offered)), by)
            return lacking

    def _use_online_keys(self, after: State) -> None:
        """Sign with the keys that the offline metadata names now."""
        named: dict[str, str] = {}
        root, director = after.newest.get("root"), after.newest.get("director-root")
        targets = after.newest.get("targets")
        if root is not None:
            for role in ("snapshot", "timestamp"):
                named[role] = root.signed.roles[role].keyids[0]
        if director is not None:
            named["director"] = director.signed.roles["targets"].keyids[0]
        if targets is not None:
            keyid = targets.signed.delegations.roles[APPS].keyids[0]
            if self.online.knows(APPS, keyid):  # else it is in the operators' hands
                named[APPS] = keyid
        self.online.adopt(named)

    def _outdated_apps(self, state: State) -> bool:
        held = state.newest.get(APPS)
        if held is None or "targets" not in state.newest or not self._signs_apps(state):
            return False
        try:
            return signatures_missing(state.newest["targets"].signed, APPS, held) > 0
        except TrustError:
            return True

    # Keeping it fresh.

    def _sign_newest(self, state: State) -> list[Signed]:
        """Make the next snapshot and timestamp."""
        now = time.time()
        held = state.newest.get("snapshot")
        version = held.signed.version + 1 if held else 1
        meta = {
            f"{role}.json": MetaFile(state.newest[role].signed.version)
            for role in ("targets", *CHANNELS, APPS)
            if role in state.newest
        }
        snapshot = Metadata(Snapshot(version=version, expires=_in(SNAPSHOT_LIFE), meta=meta))
        snapshot.sign(self.online.signer("snapshot"))
        held = state.newest.get("timestamp")
        timestamp = Metadata(
            Timestamp(
                version=held.signed.version + 1 if held else 1,
                expires=_in(WORD_LIFE),
                snapshot_meta=MetaFile(version),
                unrecognized_fields={SIGNED_AT: round(now)},
            )
        )
        timestamp.sign(self.online.signer("timestamp"))
        state.newest["snapshot"], state.newest["timestamp"] = snapshot, timestamp
        self._signed_at = now
        return [signed_row("snapshot", snapshot), signed_row("timestamp", timestamp)]

    async def _freshen(self) -> None:
        """Sign snapshot and timestamp anew when they have grown old; the lock is held."""
        if not self.initialised or time.time() - self._signed_at < FRESH_S:
            return
        after = self._state.copy()
        new = self._sign_newest(after)

        def write(connection: Any) -> None:
            kept.keep_signed(connection, *new)
            for role in ("snapshot", "timestamp"):
                kept.drop_old(connection, MODELS, role, keep=3)

        await self._store.write(write)
        self._state, self._set = after, None

    async def _keep_fresh(self) -> None:
        while True:
            try:
                if self.initialised:
                    await self.as_blob()
            except Exception as error:  # noqa: BLE001 - tried again; a store that is stuck says so
                log.error("the models' repository could not be signed anew: %s", error)
            await asyncio.sleep(LOOK_S)


def _in(life: timedelta) -> datetime:
    return (datetime.now(UTC) + life).replace(microsecond=0)
