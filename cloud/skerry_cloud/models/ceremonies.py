"""What is done with offline keys: the first metadata, signing versions, rotating keys.

Each ceremony takes what the coordinator has and returns metadata by role, as the coordinator takes
it; nothing here touches the network.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from securesystemslib.signer import Key
from skerry_protos.artefacts import APPS, CHANNELS, TargetPath
from skerry_protos.errors import ConfigError, TrustError
from tuf.api.metadata import Metadata, Root, TargetFile, Targets

from skerry_cloud.models import signing
from skerry_cloud.models.signing import Held

SIGNERS = {"root": "root", "director-root": "root", "targets": "targets"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Thresholds:
    """How many signatures a role needs."""

    root: int = 2
    targets: int = 2
    stable: int = 1
    canary: int = 1

    def table(self) -> dict[str, int]:
        """Return them by role."""
        return {role: getattr(self, role) for role in signing.OFFLINE}


def begin(
    held: Iterable[Held], online: Mapping[str, Key], thresholds: Thresholds
) -> dict[str, bytes]:
    """Return the first metadata: both roots, targets, and empty channels."""
    keys, wanted = list(held), thresholds.table()
    made: dict[str, Any] = {
        "root": signing.new_root(keys, online=online, thresholds=wanted, director=False),
        "director-root": signing.new_root(keys, online=online, thresholds=wanted, director=True),
        "targets": signing.new_targets(keys, thresholds=wanted, apps=online["apps"]),
    }
    made |= {channel: signing.new_channel(channel) for channel in CHANNELS}
    return {role: _signed(Metadata(signed), role, keys) for role, signed in made.items()}


def sign_targets(
    channel: str,
    current: bytes,
    add: Mapping[str, TargetFile],
    held: Iterable[Held],
    *,
    drop: Iterable[TargetPath | str] = (),
) -> dict[str, bytes]:
    """Return a channel's next metadata, with these artefacts and without those dropped."""
    if current:
        metadata = signing.next_version(signing.read(current, Targets), channel)
    else:  # of apps nothing is signed in the beginning
        metadata = Metadata(signing.new_channel(channel))
    for path in drop:
        metadata.signed.targets.pop(str(path), None)
    metadata.signed.targets.update(add)
    return {channel: _signed(metadata, channel, list(held))}


def named_in(channel: bytes) -> list[str]:
    """Return the paths that a channel's metadata names."""
    return list(signing.read(channel, Targets).signed.targets)


def add_signature(role: str, draft: bytes, held: Iterable[Held]) -> dict[str, bytes]:
    """Return a draft with the signatures of these keys too."""
    kind: Any = Root if role in {"root", "director-root"} else Targets
    return {role: _signed(signing.read(draft, kind), role, list(held))}


def rotate(
    role: str,
    *,
    root: bytes,
    director_root: bytes,
    targets: bytes,
    channels: Mapping[str, bytes],
    held: Iterable[Held],
    fresh: Iterable[Held],
    online: Mapping[str, Key] | None = None,
    apps_offline: bool = False,
) -> dict[str, bytes]:
    """Return metadata in which `fresh` keys (or `online` ones) take the place of a role's keys.

    `held` are the old and the new keys that are at hand: a root is signed by enough of both.
    `channels` has the metadata of channels, and of apps where there is some. What the old keys of
    apps have signed counts no more; with `apps_offline` the coordinator gets no new key for them.
    """
    keys, new = list(held), list(fresh)
    image = signing.next_version(signing.read(root, Root), "root")
    director = signing.next_version(signing.read(director_root, Root), "root")
    top = signing.next_version(signing.read(targets, Targets), "targets")
    match role:
        case "online":
            if online is None:
                raise ConfigError("rotating the coordinator's keys needs its next ones")
            for name in ("snapshot", "timestamp"):
                _replace(image.signed, name, [online[name]])
            for name in ("targets", "snapshot", "timestamp"):
                _replace(director.signed, name, [online["director"]])
            changed: dict[str, Metadata[Any]] = {"root": image, "director-root": director}
            if not apps_offline:
                _replace(top.signed, APPS, [online["apps"]])
                changed["targets"] = top
        case "root":
            fresh_keys: list[Key] = [each.signer.public_key for each in new]
            _replace(image.signed, "root", fresh_keys)
            _replace(director.signed, "root", fresh_keys)
            changed = {"root": image, "director-root": director}
        case "targets":
            _replace(image.signed, "targets", [each.signer.public_key for each in new])
            changed = {"root": image, "targets": top}
        case _ if role == APPS:
            _replace(top.signed, APPS, [each.signer.public_key for each in new])
            held_apps = channels.get(APPS)
            apps = (
                signing.next_version(signing.read(held_apps, Targets), APPS)
                if held_apps
                else Metadata(signing.new_channel(APPS))
            )
            apps.signed.targets.clear()
            return {"targets": _signed(top, "targets", keys), APPS: _signed(apps, APPS, new)}
        case _ if role in CHANNELS:
            _replace(top.signed, role, [each.signer.public_key for each in new])
            channel = signing.next_version(signing.read(channels[role], Targets), role)
            return {
                "targets": _signed(top, "targets", keys),
                role: _signed(channel, role, new),  # the old keys' signature is worth nothing now
            }
        case _:
            raise ConfigError(
                f"there is no role {role!r}", hint=f"roles: {signing.OFFLINE}, online"
            )
    return {name: _signed(metadata, name, [*keys, *new]) for name, metadata in changed.items()}


def _replace(delegator: Root | Targets, role: str, keys: list[Key]) -> None:
    old = list(delegator.get_delegated_role(role).keyids)
    threshold = delegator.get_delegated_role(role).threshold
    if len(keys) < threshold:
        raise ConfigError(f"{role} needs {threshold} signatures: make at least as many new keys")
    for keyid in old:
        delegator.revoke_key(keyid, role)
    for key in keys:
        delegator.add_key(key, role)


def _signed(metadata: Metadata[Any], role: str, held: list[Held]) -> bytes:
    signer = SIGNERS.get(role, role)
    mine = [each for each in held if each.role == signer]
    if not mine:
        raise TrustError(f"no key of {signer} is at hand to sign {role}")
    return signing.sign(metadata, mine).to_bytes()
