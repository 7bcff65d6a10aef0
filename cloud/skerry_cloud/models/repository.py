"""The models' TUF repository on the coordinator: takes offline metadata, signs what is newest.

Everything that comes in is verified as a client would verify it before it is kept; what has too
few signatures waits as a draft. Snapshot and timestamp are made anew at each change, and before
they grow old.
"""

import asyncio
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
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
from tuf.api.metadata import Metadata, MetaFile, Root, Snapshot, TargetFile, Targets, Timestamp

from skerry_cloud.models.apps import newest as newest_apps
from skerry_cloud.models.apps import require_app
from skerry_cloud.models.online import FRESH_S, WORD_LIFE, OnlineKeys
from skerry_cloud.models.signing import new_channel, next_version, read, signatures_missing
from skerry_cloud.store import Store
from skerry_cloud.store import models as kept
from skerry_cloud.store.models import Signed

log = logging.getLogger(__name__)

MODELS, DIRECTOR = "models", "director"
SNAPSHOT_LIFE = timedelta(days=30)
LOOK_S = 600.0
SETS_KEPT = 40
"""Metadata sets that are still given to who asks: a task may name one of ten days ago."""
OFFERED = ("root", "director-root", "targets", *CHANNELS, APPS)
"""What offline metadata may be sent, in the order in which it is verified."""


@dataclass(slots=True)
class _State:
    """The newest metadata of each role, every root, and drafts."""

    roots: dict[int, bytes] = field(default_factory=dict)
    director_roots: dict[int, bytes] = field(default_factory=dict)
    newest: dict[str, Metadata[Any]] = field(default_factory=dict)
    drafts: dict[str, Metadata[Any]] = field(default_factory=dict)

    def copy(self) -> "_State":
        return _State(
            dict(self.roots), dict(self.director_roots), dict(self.newest), dict(self.drafts)
        )


class NotInitialisedError(RejectedError):
    """Nobody has made keys for the models' repository yet."""

    def __init__(self) -> None:
        super().__init__("no-repository", "the models' repository has no keys yet")
        self.hint = "make them: skerry keys init"


class Repository:
    """The repository; an async context manager that keeps it fresh."""

    def __init__(self, store: Store, blobs: LocalBlobs, online: OnlineKeys) -> None:
        self._store, self._blobs, self.online = store, blobs, online
        self._state = _State()
        self._signed_at = 0.0
        self._set: BlobRef | None = None
        self._old_sets: list[BlobRef] = []
        self._turn = asyncio.Lock()
        self._keeping: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._state = await self._store.read(_load)
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
            new = [_signed(APPS, after.newest[APPS]), *self._sign_newest(after)]

            def write(connection: Any) -> None:
                kept.keep_signed(connection, *new)
                for role in (APPS, "snapshot", "timestamp"):
                    kept.drop_old(connection, MODELS, role, keep=3)

            await self._store.write(write)
            self._state, self._set = after, None
            return True

    def _signs_apps(self, state: _State) -> bool:
        """Return whether the offline keys left the role of apps to this coordinator."""
        targets = state.newest["targets"].signed
        mine = self.online.signer(APPS).public_key.keyid
        return list(targets.delegations.roles[APPS].keyids) == [mine]

    def _sign_apps(self, state: _State, add: Mapping[str, TargetFile]) -> None:
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
                    missing = _take(after, role, offered[role])
                    lacking[role] = missing
                    source = after.drafts if missing else after.newest
                    new.append(_signed(role, source[role], draft=missing > 0, by=by))
            published = any(missing == 0 for missing in lacking.values())
            if published:
                self._use_online_keys(after)
                if self._outdated_apps(after):  # by our key before this one
                    self._sign_apps(after, {})
                    new.append(_signed(APPS, after.newest[APPS]))
            _require_channels(after)
            if published and all(role in after.newest for role in ("root", "targets", *CHANNELS)):
                new += self._sign_newest(after)
            await self._store.write(lambda c: kept.keep_signed(c, *new))
            self._state, self._set = after, None if published else self._set
            log.info("took metadata of %s from %s", ", ".join(sorted(offered)), by)
            return lacking

    def _use_online_keys(self, after: _State) -> None:
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

    def _outdated_apps(self, state: _State) -> bool:
        held = state.newest.get(APPS)
        if held is None or "targets" not in state.newest or not self._signs_apps(state):
            return False
        try:
            return signatures_missing(state.newest["targets"].signed, APPS, held) > 0
        except TrustError:
            return True

    # Keeping it fresh.

    def _sign_newest(self, state: _State) -> list[Signed]:
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
        return [_signed("snapshot", snapshot), _signed("timestamp", timestamp)]

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


def _require_channels(state: _State) -> None:
    """Raise TrustError when targets name keys that have not signed what a channel offers."""
    targets = state.newest.get("targets")
    for channel in (*CHANNELS, APPS):
        metadata = state.newest.get(channel)
        if targets is not None and metadata is not None:
            try:
                missing = signatures_missing(targets.signed, channel, metadata)
            except TrustError:
                missing = 1
            if missing:
                raise TrustError(f"{channel} has new keys: sign its metadata with them too")


def _take(state: _State, role: str, data: bytes) -> int:
    """Verify one role's metadata against what is there; return how many signatures it lacks."""
    if role in {"root", "director-root"}:
        return _take_root(state, role, data)
    metadata = read(data, Targets)
    if "root" not in state.newest:
        raise NotInitialisedError
    delegator = state.newest["root" if role == "targets" else "targets"].signed
    _require_next(state, role, metadata)
    missing = signatures_missing(delegator, role, metadata)
    if role == "targets":
        known = metadata.signed.delegations
        if metadata.signed.targets or known is None or set(known.roles or ()) != {*CHANNELS, APPS}:
            raise TrustError("targets delegate to the channels and apps, and name no files")
    else:
        allowed = delegator.delegations.roles[role]
        for path, named in metadata.signed.targets.items():
            if not allowed.is_delegated_path(path):
                raise TrustError(f"{role} may not sign for {path}")
            if role == APPS:
                require_app(path, named)
            else:
                TargetPath.parse(path)
            if "sha256" not in named.hashes:
                raise TrustError(f"{path} has no SHA-256")
    return _place(state, role, metadata, missing)


def _take_root(state: _State, role: str, data: bytes) -> int:
    metadata = read(data, Root)
    _require_next(state, role, metadata)
    missing = signatures_missing(metadata.signed, "root", metadata)
    old = state.newest.get(role)
    if old is not None:
        missing = max(missing, signatures_missing(old.signed, "root", metadata))
    if role == "director-root":  # whoever may say who signs models says who directs
        missing = max(missing, signatures_missing(state.newest["root"].signed, "root", metadata))
    for online in ("snapshot", "timestamp"):
        if len(metadata.signed.roles[online].keyids) != 1:
            raise TrustError(f"{role}: {online} has one key, the coordinator's")
    if missing == 0:
        kept_roots = state.roots if role == "root" else state.director_roots
        kept_roots[metadata.signed.version] = data
    return _place(state, role, metadata, missing)


def _require_next(state: _State, role: str, metadata: Metadata[Any]) -> None:
    held = state.newest.get(role)
    expected = held.signed.version + 1 if held else 1
    if metadata.signed.version != expected:
        raise RejectedError(
            "metadata-version",
            f"{role} version {metadata.signed.version} was sent, and {expected} comes next: "
            "somebody else has signed meanwhile",
        )
    if metadata.signed.is_expired():
        raise TrustError(f"{role} expired on {metadata.signed.expires:%Y-%m-%d}")


def _place(state: _State, role: str, metadata: Metadata[Any], missing: int) -> int:
    if missing:
        draft = state.drafts.get(role)
        if draft is not None and draft.signed_bytes == metadata.signed_bytes:
            draft.signatures.update(metadata.signatures)
            return _place(state, role, draft, 0) if _complete(state, role, draft) else missing
        state.drafts[role] = metadata
    else:
        state.newest[role] = metadata
        state.drafts.pop(role, None)
    return missing


def _complete(state: _State, role: str, draft: Metadata[Any]) -> bool:
    """Return whether a draft has enough signatures by now."""
    if role in {"root", "director-root"}:
        held = [draft.signed, *(state.newest[r].signed for r in {role, "root"} & set(state.newest))]
        done = all(signatures_missing(each, "root", draft) == 0 for each in held)
        if done:
            kept_roots = state.roots if role == "root" else state.director_roots
            kept_roots[draft.signed.version] = draft.to_bytes()
        return done
    delegator = state.newest["root" if role == "targets" else "targets"].signed
    return signatures_missing(delegator, role, draft) == 0


def _signed(role: str, metadata: Metadata[Any], *, draft: bool = False, by: str = "") -> Signed:
    repository, name = (DIRECTOR, "root") if role == "director-root" else (MODELS, role)
    return Signed(
        repository=repository,
        role=name,
        version=metadata.signed.version,
        content=metadata.to_bytes(),
        expires_at=metadata.signed.expires.timestamp(),
        draft=draft,
        by=by,
    )


def _load(connection: Any) -> _State:
    state = _State()
    for repository in (MODELS, DIRECTOR):
        for row in kept.all_signed(connection, repository):
            role = "director-root" if repository == DIRECTOR else row.role
            metadata: Metadata[Any] = Metadata.from_bytes(row.content)
            if row.draft:
                state.drafts[role] = metadata
                continue
            state.newest[role] = metadata
            if role == "root":
                state.roots[row.version] = row.content
            elif role == "director-root":
                state.director_roots[row.version] = row.content
    return state


def _in(life: timedelta) -> datetime:
    return (datetime.now(UTC) + life).replace(microsecond=0)
