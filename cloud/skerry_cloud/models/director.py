"""The director: a TUF repository for each device that says what it is to serve.

Its keys are online, so whoever steals the coordinator can choose among what the offline keys have
signed, and nothing else: a device takes an artefact only when both repositories name the same
bytes.
"""

import json
import time
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from securesystemslib.signer import CryptoSigner
from skerry_protos.artefacts import DEVICE, SIGNED_AT, VARIANT_OF, WITHDRAWN
from skerry_protos.messages import DeviceId
from tuf.api.metadata import Metadata, MetaFile, Snapshot, TargetFile, Targets, Timestamp

from skerry_cloud.models.online import WORD_LIFE
from skerry_cloud.store.models import Assignment


def word(
    device: DeviceId,
    number: int,
    assigned: Iterable[Assignment],
    signer: CryptoSigner,
    *,
    roots: Mapping[int, bytes],
    variants: Mapping[str, Mapping[str, tuple[str, int]]] | None = None,
) -> dict[str, bytes]:
    """Return the director's metadata for one device, all of version `number`.

    `variants` are, by assigned path, other artefacts of the same version that the device may serve
    in its place: their paths, with digest and size.
    """
    every = list(assigned)
    others = {
        path: TargetFile(size, {"sha256": digest}, path, {"custom": {VARIANT_OF: each.target}})
        for each in every
        for path, (digest, size) in (variants or {}).get(each.target, {}).items()
    }
    withdrawn = {each.model: each.rollout for each in every if not each.target}
    expires = (datetime.now(UTC) + WORD_LIFE).replace(microsecond=0)
    targets = Targets(
        version=number,
        expires=expires,
        targets=others
        | {
            each.target: TargetFile(
                each.size,
                {"sha256": each.digest},
                each.target,
                # canonical JSON has no fractions: the wish is a text
                {"custom": {"wish": json.dumps(dict(each.wish)), "rollout": each.rollout}},
            )
            for each in every
            if each.target
        },
        unrecognized_fields={DEVICE: device, WITHDRAWN: withdrawn},
    )
    snapshot = Snapshot(version=number, expires=expires, meta={"targets.json": MetaFile(number)})
    timestamp = Timestamp(
        version=number,
        expires=expires,
        snapshot_meta=MetaFile(number),
        unrecognized_fields={SIGNED_AT: round(time.time())},
    )
    signed: dict[str, Metadata[Any]] = {
        f"{number}.targets.json": Metadata(targets),
        f"{number}.snapshot.json": Metadata(snapshot),
        "timestamp.json": Metadata(timestamp),
    }
    for metadata in signed.values():
        metadata.sign(signer)
    return {name: metadata.to_bytes() for name, metadata in signed.items()} | {
        f"{version}.root.json": data for version, data in roots.items()
    }
