"""The TUF client: what the coordinator assigned, verified by two repositories that must agree.

`python -m skerry_edge.models.verify` reads a Question as JSON and answers a Verdict; the agent runs
it as a short-lived child, because python-tuf and cryptography take 16 MB and 0.5 s that an idle
agent should not carry. `verify` is the same in-process.

What python-tuf leaves open and is here: every file it keeps is fsynced (a torn one would forget a
version, and let an old one in), the time is never before a floor that outlives reboots (a clock set
back would accept expired metadata), and the device is bound to its own director metadata.
"""

import base64
import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from skerry_protos.artefacts import (
    APP_FOLDER,
    APPS,
    DEVICE,
    SIGNED_AT,
    VARIANT_OF,
    VARIANTS,
    VARIANTS_LIMIT,
    WITHDRAWN,
    TargetPath,
    model_name,
)
from skerry_protos.errors import PeerError, SkerryError, TrustError
from tuf.api import exceptions as tuf_errors
from tuf.api.metadata import Metadata, Root, TargetFile, Targets, Timestamp
from tuf.ngclient import FetcherInterface, Updater, UpdaterConfig

from skerry_edge.models.files import read_json, write_bytes, write_json

BUILD_UNIX_S = 1_793_491_200.0
"""1 November 2026: no metadata that an agent of this version may take was signed before."""
IMAGES, DIRECTOR = "models", "director"
ASSIGNED_LIMIT = 64
"""Most models a device serves."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What is to be verified; `now` is the latest of the clocks the agent has."""

    trust: str
    device: str
    now: float
    server_now: float = 0.0  # what the coordinator's clock showed over mutual TLS; 0: never
    root_sha256: str = ""  # the first root's digest, where an operator pinned it
    app: str = ""  # only this: whether an app with this manifest's digest is signed
    images: Mapping[str, bytes] = field(default_factory=dict)
    director: Mapping[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Assigned:
    """One artefact that both repositories name for this device."""

    path: str
    digest: str
    size: int
    custom: dict[str, Any]  # what its offline signer says of it
    wish: dict[str, Any]  # what the director says of it: rollout, trial, gates


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What may be installed, or why nothing may."""

    number: int = 0
    assigned: tuple[Assigned, ...] = ()
    withdrawn: dict[str, str] = field(default_factory=dict)  # model -> by which rollout
    refused: str = ""
    expired: bool = False  # refused for its age alone: a newer word may be taken
    floor: float = 0.0


def floor(trust: Path) -> float:
    """Return the earliest that now can be, seconds since 1970; it only ever grows."""
    kept = read_json(trust / "floor.json")
    value = kept.get("unix_s") if isinstance(kept, dict) else None
    return max(BUILD_UNIX_S, float(value) if isinstance(value, int | float) else 0.0)


def verify(question: Question) -> Verdict:
    """Return what this device is to serve; `refused` says in one line why not."""
    trust = Path(question.trust)
    now = max(floor(trust), question.now, question.server_now)
    try:
        images = open_client(trust / IMAGES, question.images, now, _image_root(trust, question))
        images.refresh()
        root = images._trusted_set.root
        if question.app:
            return Verdict(refused=_app_refused(images, question.app), floor=floor(trust))
        director = open_client(
            trust / DIRECTOR, question.director, now, _director_root(trust, question, root)
        )
        director.refresh()
        targets = director._trusted_set.targets
        _require_device(targets, question.device)
        assigned = _assigned(images, targets)
        signed = max(_signed_at(images), _signed_at(director), question.server_now)
        # Never past what the offline root vouches for: a stolen online key cannot stop the clock.
        kept = max(floor(trust), min(signed, root.expires.timestamp()))
        if kept > floor(trust):
            write_json(trust / "floor.json", {"unix_s": kept})
        return Verdict(
            number=targets.version, assigned=assigned, withdrawn=_withdrawn(targets), floor=kept
        )
    except (tuf_errors.RepositoryError, tuf_errors.DownloadError) as error:
        return Verdict(
            refused=_explained(error, now, question),
            expired=isinstance(error, tuf_errors.ExpiredMetadataError),
            floor=floor(trust),
        )
    except (TrustError, PeerError) as error:
        return Verdict(refused=error.message, floor=floor(trust))


def _app_refused(images: Updater, digest: str) -> str:
    """Return why an app may not run; empty: it is signed."""
    any_signed = f"{APPS}.json" in images._trusted_set.snapshot.meta
    named = images.get_targetinfo(APP_FOLDER + digest) if any_signed else None
    if named is None or named.hashes.get("sha256") != digest:
        return f"no key of the role apps has signed the app with manifest {digest[:12]}"
    return ""


class _Set(FetcherInterface):
    """The metadata files that came with the update; nothing is fetched from anywhere else."""

    def __init__(self, files: Mapping[str, bytes]) -> None:
        self._files = files

    def _fetch(self, url: str) -> Iterator[bytes]:
        name = unquote(urlsplit(url).path.rpartition("/")[2])
        if name not in self._files:
            raise tuf_errors.DownloadHTTPError(f"{name} did not come with the update", 404)
        return iter((self._files[name],))


class _DurableUpdater(Updater):
    """python-tuf's client at a given time, whose files survive a power cut."""

    def _persist_file(self, filename: str, data: bytes) -> None:
        write_bytes(Path(filename), data)


def open_client(
    folder: Path, files: Mapping[str, bytes], now: float, bootstrap: bytes
) -> _DurableUpdater:
    """Return python-tuf's client on these files, at a time, with what it knows in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    config = UpdaterConfig(
        max_root_rotations=256,
        max_delegations=8,
        root_max_length=128 * 1024,
        timestamp_max_length=16 * 1024,
        snapshot_max_length=512 * 1024,
        targets_max_length=4 * 1024**2,
    )
    client = _DurableUpdater(
        str(folder),
        "set:///",
        fetcher=_Set(files),
        config=config,
        bootstrap=bootstrap,
    )
    client._trusted_set.reference_time = datetime.fromtimestamp(now, UTC)
    return client


def _image_root(trust: Path, question: Question) -> bytes:
    """Return the root this device trusts: the pinned one, or on first use the first of the set."""
    pinned = trust / f"{IMAGES}-root.json"
    if pinned.exists():
        return pinned.read_bytes()
    data = question.images.get("1.root.json")
    if data is None:
        raise TrustError("the update has no 1.root.json, and this device has pinned no root yet")
    found = sha256(data).hexdigest()
    if question.root_sha256 and found != question.root_sha256.lower():
        raise TrustError(
            f"the repository's first root is {found[:12]}, this device is told to trust "
            f"{question.root_sha256[:12]} (models.root_sha256 in agent.toml)"
        )
    Metadata[Root].from_bytes(data).verify_delegate(Root.type, Metadata[Root].from_bytes(data))
    write_bytes(pinned, data)
    return data


def _director_root(trust: Path, question: Question, root: Root) -> bytes:
    """Return the director's root: the pinned one, or the newest, if the models' root signed it."""
    pinned = trust / f"{DIRECTOR}-root.json"
    if pinned.exists():
        return pinned.read_bytes()
    numbers = [int(name.split(".")[0]) for name in question.director if name.endswith(".root.json")]
    if not numbers:
        raise TrustError("the update has no root of the director")
    data = question.director[f"{max(numbers)}.root.json"]
    found: Metadata[Root] = Metadata.from_bytes(data)
    root.verify_delegate(Root.type, found.signed_bytes, found.signatures)
    write_bytes(pinned, data)
    return data


def _require_device(targets: Targets, device: str) -> None:
    meant = targets.unrecognized_fields.get(DEVICE)
    if meant != device:
        raise TrustError(f"the director's word is for device {str(meant)[:64]!r}, not {device!r}")
    if len(targets.targets) > ASSIGNED_LIMIT * (1 + VARIANTS_LIMIT):
        raise TrustError(f"the director assigns more than {ASSIGNED_LIMIT} models")


def _assigned(images: Updater, targets: Targets) -> tuple[Assigned, ...]:
    """Return what is assigned, each with the variants that may be served in its place."""
    variants: dict[str, list[dict[str, Any]]] = {}
    own = []
    for each in targets.targets.values():
        instead_of = _table(each.custom).get(VARIANT_OF)
        if instead_of is None:
            own.append(_agreed(images, each))
            continue
        found = _variant(images, each, str(instead_of))
        if found is not None:
            variants.setdefault(str(instead_of), []).append(asdict(found))
    for release in own:
        release.wish.pop(VARIANTS, None)  # the director has no say in it
        if release.path in variants:
            release.wish[VARIANTS] = variants[release.path][:VARIANTS_LIMIT]
    return tuple(own)


def _variant(images: Updater, wanted: TargetFile, instead_of: str) -> Assigned | None:
    """Return a variant that was signed and is of the same version, or None: it is left out.

    The assigned release needs no variant, so one that is wrong is no reason to refuse the rest.
    """
    try:
        path, other = TargetPath.parse(wanted.path), TargetPath.parse(instead_of)
        if (path.channel, path.model, path.version) != (other.channel, other.model, other.version):
            return None
        return _agreed(images, wanted)
    except TrustError:
        return None


def _agreed(images: Updater, wanted: TargetFile) -> Assigned:
    """Return an artefact that the offline signers signed and the director assigns, both alike."""
    TargetPath.parse(wanted.path)
    signed = images.get_targetinfo(wanted.path)
    if signed is None:
        raise TrustError(f"the director assigns {wanted.path}, which no channel's key has signed")
    digest = signed.hashes.get("sha256", "")
    if not digest or signed.length != wanted.length or wanted.hashes.get("sha256") != digest:
        raise TrustError(f"the director and the signers name different bytes for {wanted.path}")
    return Assigned(
        path=wanted.path,
        digest=digest,
        size=signed.length,
        custom=_table(signed.custom),
        wish=_wish(_table(wanted.custom)),
    )


def _wish(custom: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the director wishes; it is a text, since canonical JSON has no fractions."""
    try:
        wish = json.loads(custom.get("wish") or "{}")
        return {**wish, "rollout": str(custom.get("rollout", ""))[:64]}
    except (ValueError, TypeError, RecursionError) as error:
        raise TrustError(f"the director's wish cannot be read: {error}") from error


def _withdrawn(targets: Targets) -> dict[str, str]:
    found = _table(targets.unrecognized_fields.get(WITHDRAWN))
    try:
        return {model_name(model): str(rollout)[:64] for model, rollout in found.items()}
    except (SkerryError, TypeError) as error:
        raise TrustError(f"the director withdraws something unnamed: {error}") from error


def _table(value: object) -> dict[str, Any]:
    return dict(value) if isinstance(value, Mapping) else {}


def _signed_at(client: Updater) -> float:
    timestamp: Timestamp = client._trusted_set.timestamp
    value = timestamp.unrecognized_fields.get(SIGNED_AT, 0)
    return float(value) if isinstance(value, int | float) else 0.0


def _explained(error: Exception, now: float, question: Question) -> str:
    text = " ".join(str(error).split())[:300]
    day = datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%d %H:%M")
    match error:
        case tuf_errors.ExpiredMetadataError():
            late = now - max(question.server_now, 1)
            if question.server_now and late > 3600:
                return (
                    f"{text}; here it is {day} UTC, {late / 3600:.0f} h ahead of the coordinator: "
                    "set this device's clock"
                )
            return f"{text}; here it is {day} UTC"
        case tuf_errors.BadVersionNumberError() | tuf_errors.EqualVersionNumberError():
            return f"an older or mixed version of the metadata was offered: {text}"
        case tuf_errors.UnsignedMetadataError():
            return f"signed by too few of the keys that may: {text}"
        case tuf_errors.LengthOrHashMismatchError():
            return f"metadata differs from what its snapshot names: {text}"
    return text or type(error).__name__


def main() -> int:
    """Answer one question on standard input."""
    try:
        asked = json.load(sys.stdin)
        for name in ("images", "director"):
            asked[name] = {key: base64.b64decode(text) for key, text in asked[name].items()}
        verdict = verify(Question(**asked))
    except (SkerryError, OSError, ValueError, TypeError, KeyError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)  # noqa: T201
        return 1
    print(json.dumps(asdict(verdict)))  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main())
