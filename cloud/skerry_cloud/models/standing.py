"""What stands in the models' TUF repository, and what may follow it.

Metadata that people offer is verified as a client would verify it: signed by those whom what stands
names, of the next version, not expired, within its delegation. What has too few signatures waits as
a draft until others have signed the same.
"""

from dataclasses import dataclass, field
from typing import Any

from skerry_protos.artefacts import APPS, CHANNELS, TargetPath
from skerry_protos.errors import RejectedError, TrustError
from tuf.api.metadata import Metadata, Root, Targets

from skerry_cloud.models.apps import require_app
from skerry_cloud.models.signing import read, signatures_missing
from skerry_cloud.store import models as kept
from skerry_cloud.store.models import Signed

MODELS, DIRECTOR = "models", "director"


@dataclass(slots=True)
class State:
    """The newest metadata of each role, every root, and drafts."""

    roots: dict[int, bytes] = field(default_factory=dict)
    director_roots: dict[int, bytes] = field(default_factory=dict)
    newest: dict[str, Metadata[Any]] = field(default_factory=dict)
    drafts: dict[str, Metadata[Any]] = field(default_factory=dict)

    def copy(self) -> "State":
        return State(
            dict(self.roots), dict(self.director_roots), dict(self.newest), dict(self.drafts)
        )


class NotInitialisedError(RejectedError):
    """Nobody has made keys for the models' repository yet."""

    def __init__(self) -> None:
        super().__init__("no-repository", "the models' repository has no keys yet")
        self.hint = "make them: skerry keys init"


def require_channels(state: State) -> None:
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


def take(state: State, role: str, data: bytes) -> int:
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


def _take_root(state: State, role: str, data: bytes) -> int:
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


def _require_next(state: State, role: str, metadata: Metadata[Any]) -> None:
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


def _place(state: State, role: str, metadata: Metadata[Any], missing: int) -> int:
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


def _complete(state: State, role: str, draft: Metadata[Any]) -> bool:
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


def signed_row(role: str, metadata: Metadata[Any], *, draft: bool = False, by: str = "") -> Signed:
    """Return the row that keeps one role's metadata."""
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


def load(connection: Any) -> State:
    """Return what the database holds."""
    state = State()
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
