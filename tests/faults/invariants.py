"""The invariants that hold whatever goes wrong, checked on a run that is over.

I1 every accepted update is in exactly one aggregate. I2 the model is that of a run without faults,
bit for bit. I3 nothing is trained again, unless its process died in the training. (I4 bytes, I5
memory and I6 recovery are in table.py; I7, a runnable model on every device, is for rollouts.)

Two witnesses that do not know of each other: the journal, through the API, and what the app noted
on each device. What the model must be is computed here from who was accepted.
"""

from collections import Counter
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from skerry_devices.client import at
from skerry_protos import records

from tests.apps.ledger import ledger

if TYPE_CHECKING:
    from tests.faults.trips import Clean, Trip


@dataclass
class Verdict:
    """What a run came to."""

    updates: int = 0
    retrained: int = 0
    exact: bool = True
    violations: list[str] = field(default_factory=list)


def judge(
    trip: "Trip",
    clean: "Clean | None" = None,
    *,
    state: str = "completed",
    died_training: int = 0,
    everybody: bool = True,
) -> Verdict:
    """Return the verdict on a run; `died_training` of its trainings were killed on purpose.

    `everybody`: every device answered every round, else whoever did is found in the journal.
    """
    found = trip.detail()
    verdict = Verdict()

    def broke(what: str) -> None:
        verdict.violations.append(f"{trip.id}: {what}")

    if found["state"] != state:
        broke(f"it is {found['state']} ({found['why']}), not {state}")
    events = trip.events()
    stored = [e for e in events if e["kind"] == "reply" and e["data"]["phase"] == "train"]
    screened = {e["data"]["task"] for e in events if e["kind"] == "refused"}
    accepted = [e for e in stored if e["data"]["task"] not in screened]
    verdict.updates = len(accepted)
    _once(stored, events, broke)
    if everybody and len(accepted) != trip.rounds * len(trip.world.boats):
        broke(f"I1: {len(accepted)} of {trip.rounds} x {len(trip.world.boats)} updates accepted")
    verdict.retrained = _retrained(trip, accepted, died_training, broke)
    if found["model"]:
        made = model_of(trip)
        wanted = expected([(e["round"], partition(trip, e["device"])) for e in accepted])
        if not np.allclose(made, wanted, rtol=1e-5, atol=1e-5):
            broke("I1: the model is not the mean of what was accepted")
    if clean is not None:
        verdict.exact = found["model"] == clean.model
        if not verdict.exact:
            broke(f"I2: the model is {found['model']}, without faults {clean.model}")
    return verdict


def _once(accepted: list[dict[str, Any]], events: list[dict[str, Any]], broke: Any) -> None:
    """Hold the journal against itself: each reply once, and each in the round that closed on it."""
    tasks = Counter(event["data"]["task"] for event in accepted)
    places = Counter((event["round"], event["device"]) for event in accepted)
    for name, times in [*tasks.items(), *places.items()]:
        if times > 1:
            broke(f"I1: {name} was accepted {times} times")
    closed: dict[int, dict[str, Any]] = {}
    for event in events:
        if event["kind"] == "closed" and event["data"]["phase"] == "train":
            if event["round"] in closed:
                broke(f"I1: round {event['round']} closed twice")
            closed[event["round"]] = event
    for round_, event in closed.items():
        here = [one for one in accepted if one["round"] == round_]
        if event["data"]["replied"] != len(here):
            broke(f"I1: round {round_} closed on {event['data']['replied']}, of {len(here)} kept")
        if any(one["id"] > event["id"] for one in here):
            broke(f"I1: a reply was accepted after round {round_} closed")


def _retrained(trip: "Trip", accepted: list[dict[str, Any]], died_training: int, broke: Any) -> int:
    """Return how many trainings were done again; too many are a violation."""
    ended: Counter[tuple[int, str]] = Counter()
    begun = died = 0
    for boat in trip.world.boats:
        noted = trip.noted(boat.name)
        begun += sum(note["what"] == "begin" for note in noted)
        ended.update((note["round"], boat.name) for note in noted if note["what"] == "end")
    died = begun - sum(ended.values())
    for event in accepted:
        if ended[event["round"], event["device"]] < 1:
            broke(f"{event['device']} never trained for the reply of round {event['round']}")
    again = sum(times - 1 for times in ended.values())
    if again:
        broke(f"I3: {again} trainings were done again")
    if died > died_training:
        broke(f"I3: {died} trainings did not end, {died_training} were killed")
    return again + (died if died_training else 0)


def partition(trip: "Trip", device: str) -> int:
    """Return a device's partition."""
    return next(
        int(boat.plan.node["partition-id"]) for boat in trip.world.boats if boat.name == device
    )


def model_of(trip: "Trip") -> NDArray[np.float32]:
    """Return a run's model."""
    path = trip.report / "model"
    with trip.world.client() as client, client.download(at("runs", trip.id, "model")) as answer:
        path.write_bytes(answer.read())
    made: NDArray[np.float32] = records.read(path).arrays["arrays"]["w"].numpy().copy()
    path.unlink()
    return made


def expected(accepted: list[tuple[int, int]]) -> NDArray[Any]:
    """Return the model that these (round, partition) updates make."""
    model = np.zeros(ledger.FLOATS, np.float64)
    for round_ in sorted({round_ for round_, _ in accepted}):
        who = [part for at_, part in accepted if at_ == round_]
        total = sum(ledger.weight_of(part) for part in who)
        for part in who:
            model += _update(part, round_) * (ledger.weight_of(part) / total)
    return model


@cache
def _update(part: int, round_: int) -> NDArray[Any]:
    return ledger.update_of(part, round_)
