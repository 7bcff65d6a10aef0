"""Models in a world: an operator with offline keys, and rollouts that are followed to their end."""

import json
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from skerry_cloud.models import ceremonies, signing
from skerry_cloud.models.ceremonies import Thresholds
from skerry_devices.client import at
from skerry_devices.signing import offer, online_keys
from skerry_edge.models.slots import Slots

from tests.artefacts import FEATURES, packed
from tests.faults.world import Boat, World
from tests.signed import make_keys

MODEL = "tiny"
CHANNEL = "canary"
QUICK: dict[str, Any] = {"waves": ["1", "100%"], "soak_s": 1.0, "period_s": 0.3, "trial_s": 0.5}
OVER = {"completed", "aborted", "rolled-back"}
END_S = 90.0


class Shipper:
    """Whoever holds the offline keys of a world's models."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.folder = world.home / "shipping"
        self._count = 0
        self._keys = make_keys(self.folder / "keys")
        with world.client() as client:
            known = online_keys(client.get(at("repository"))["online"])
            assert not offer(client, ceremonies.begin(self._keys, known, Thresholds()))

    def release(self, **options: Any) -> str:
        """Import and sign a version; return its name. The options are tests.artefacts'."""
        self._count += 1
        path = packed(self.folder / f"v{self._count}", seed=self._count, **options)
        with self.world.client() as client:
            digest = client.upload_file(at("uploads"), path)["digest"]
            made = client.post(at("models"), {"model": MODEL, "files": {"model.zip": digest}})
            (artefact,) = made["artefacts"]
            name = f"{CHANNEL}/{MODEL}/{made['version']}/model.zip"
            target = signing.target(
                name, digest=digest, size=artefact["size"], custom=artefact["custom"]
            )
            with client.download(at("repository", "files", CHANNEL)) as answer:
                current = answer.read()
            signed = ceremonies.sign_targets(CHANNEL, current, {name: target}, self._keys)
            assert not offer(client, signed)
        return f"{MODEL}@{made['version']}"

    def begin(self, name: str, **plan: Any) -> "Voyage":
        """Begin a rollout."""
        wish = {"model": name, "channel": CHANNEL, "plan": {**QUICK, **plan}}
        with self.world.client() as client:
            return Voyage(self.world, client.post(at("rollouts"), wish)["id"])

    def newest(self, name: str) -> "Voyage | None":
        """Return the newest rollout of a version, or None when there is none."""
        found = self.world.ask(at("rollouts"), model=MODEL)["items"]
        same = [each for each in found if f"{each['model']}@{each['version']}" == name]
        return Voyage(self.world, same[0]["id"]) if same else None


_SHIPPERS: WeakKeyDictionary[World, Shipper] = WeakKeyDictionary()


def shipper(world: World) -> Shipper:
    """Return the world's shipper, whose keys are made once."""
    if world not in _SHIPPERS:
        _SHIPPERS[world] = Shipper(world)
    return _SHIPPERS[world]


@dataclass
class Voyage:
    """One rollout."""

    world: World
    id: str

    def detail(self) -> dict[str, Any]:
        found: dict[str, Any] = self.world.ask(at("rollouts", self.id))
        return found

    def events(self, kind: str) -> list[dict[str, Any]]:
        """Return what the journal has of a kind, oldest first."""
        found = self.world.ask(at("rollouts", self.id, "events"))["items"]
        return [each for each in found if each["kind"] == kind]

    def end(self, timeout_s: float = END_S) -> dict[str, Any]:
        """Return the rollout when it is over; one that does not end is an AssertionError."""
        ends = time.monotonic() + timeout_s
        while (found := self.detail())["state"] not in OVER:
            if time.monotonic() > ends:
                told = [(one["device"], one["state"], one["why"]) for one in found["devices"]]
                raise AssertionError(
                    f"{self.id} is {found['state']}: {found['why']} {found['waiting']} {told}"
                )
            time.sleep(0.05)
        return found


def slots(boat: Boat) -> Slots:
    """Return a device's slots as they are on its disk."""
    ledger = boat.home / "trust" / "slots" / f"{MODEL}.json"
    return Slots(boat.home / "models" / MODEL, ledger)


def serving(boat: Boat) -> int:
    """Return the version that a device's slots say is live; 0: none."""
    live = slots(boat).live
    return live.release.version if live is not None else 0


def answers(boat: Boat) -> int:
    """Return the version that answers over a device's own HTTP endpoint."""
    said = json.loads((boat.home / "inference.json").read_text())
    url = f"{said['url']}/v2/models/{MODEL}/infer"
    zeros = np.zeros((1, FEATURES)).tolist()
    asked = {
        "inputs": [{"name": "x", "shape": [1, FEATURES], "datatype": "FP32", "data": zeros[0]}]
    }
    request = urllib.request.Request(
        url, json.dumps(asked).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=10) as answer:
        return int(json.loads(answer.read())["model_version"])


def brought(boat: Boat, name: str) -> int:
    """Return how often a device's log says that it let a version serve."""
    model, _, version = name.partition("@")
    path = f"{CHANNEL}/{model}/{version}/model.zip serves, on trial"
    log = boat.home.parents[1] / f"{boat.name}.log"
    return log.read_text().count(path) if log.exists() else 0


def log_of(world: World, boat: Boat) -> Path:
    """Return a device's log."""
    return world.home / f"{boat.name}.log"
