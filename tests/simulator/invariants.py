"""What must hold, whatever went wrong: at every moment, and when the story is over."""

from collections import Counter
from typing import TYPE_CHECKING, Any

from skerry_cloud.runs.lifecycle import OPEN_TASKS, RUN_NEXT, RunState
from skerry_cloud.store import tables
from skerry_edge.outbox import file_name, reply_id
from skerry_protos import records

from tests.simulator import app

if TYPE_CHECKING:
    from tests.simulator.devices import Device
    from tests.simulator.story import Story

Row = dict[str, Any]
WINDOW = 16
"""Chunks under way when a wire is cut (session.limits)."""
LOSSY = 4.0
"""What a wire that loses a fifth of all packets may cost."""
CHATTER = 400.0
"""Bytes a second for heartbeats, pings and their answers."""
ACCEPTED = frozenset({"replied", "refused"})


class BrokenError(AssertionError):
    """Something that must hold does not."""


def at_every_moment(story: "Story") -> None:
    """Raise BrokenError unless what must hold at every moment does."""
    _every_run_says_what_it_waits_for(story)


def at_the_end(story: "Story") -> None:
    """Raise BrokenError unless what was promised has come true."""
    tasks = list(story.shore.rows(tables.tasks))
    runs = {row["id"]: row for row in story.shore.rows(tables.runs)}
    events = list(story.shore.rows(tables.events))
    _no_task_is_open(tasks)
    for run in story.runs:
        own = [task for task in tasks if task["run"] == run]
        journal = [event for event in events if event["run"] == run]
        _ended_as_it_may(runs[run])
        _journal_is_legal(runs[run], journal, own)
        if runs[run]["state"] == "completed":
            _model_is_exact(story, runs[run], journal, own)
    _nothing_is_accepted_twice(tasks)
    _bytes_are_bounded(story, tasks)


def _every_run_says_what_it_waits_for(story: "Story") -> None:
    if not story.shore.up or not hasattr(story.shore, "runs"):
        return
    for run in story.runs:
        conductor = story.shore.runs.under_way(run)
        if conductor is None:
            continue
        waiting = conductor.waiting()
        if not waiting["why"]:
            raise BrokenError(f"run {run} waits and does not say for what: {waiting}")


def _no_task_is_open(tasks: list[Row]) -> None:
    for task in tasks:
        if task["state"] in OPEN_TASKS:
            raise BrokenError(f"task {task['id']} is {task['state']}, and nobody waits for it")


def _ended_as_it_may(run: Row) -> None:
    state = RunState(run["state"])
    if state is RunState.COMPLETED:
        return
    if state is RunState.FAILED and "for devices" in run["why"]:
        return
    raise BrokenError(f"run {run['id']} is {state}: {run['why']}")


def _journal_is_legal(run: Row, journal: list[Row], tasks: list[Row]) -> None:
    """Check each state's and each task's way through the journal."""
    state = RunState.CREATED
    told: dict[str, str] = {}
    known = {task["id"]: task for task in tasks}
    for event in journal:
        data = event["data"]
        match event["kind"]:
            case "state":
                after = RunState(data["state"])
                if after not in {to for (at, _), to in RUN_NEXT.items() if at == state}:
                    raise BrokenError(f"run {run['id']} went from {state} to {after}")
                state = after
            case "reply" | "failure" | "late":
                task = data["task"]
                if task in told and event["device"]:
                    raise BrokenError(f"task {task} is journalled as {told[task]} and {event}")
                told[task] = event["kind"]
                if "its reply was not taken" in data.get("why", ""):
                    raise BrokenError(f"an honest device's reply was not taken: {event}")
            case "refused":
                if told.get(data["task"]) != "reply":
                    raise BrokenError(f"task {data['task']} is refused without a reply")
    if state != run["state"]:
        raise BrokenError(f"run {run['id']} is {run['state']}, its journal ends with {state}")
    expected = {"replied": "reply", "refused": "reply", "failed": "failure", "late": "late"}
    for task, row in known.items():
        if told.get(task) != expected.get(row["state"], told.get(task)):
            raise BrokenError(f"task {task} is {row['state']}, the journal says {told.get(task)}")


def _model_is_exact(story: "Story", run: Row, journal: list[Row], tasks: list[Row]) -> None:
    """Compare the model, bit for bit, with the same accepted replies merged without any fault."""
    weights: app.Weights = app.first_weights(story.scenario.size)
    for round_ in range(1, story.scenario.options["rounds"] + 1):
        replied = {
            task["device"]
            for task in tasks
            if (task["round"], task["message_type"], task["state"]) == (round_, "train", "replied")
        }
        asked = _asked(journal, round_)
        if odd := replied - set(asked):
            raise BrokenError(f"round {round_} has replies of devices not asked: {odd}")
        used = [device for device in asked if device in replied]
        weights = app.merged(weights, used, round_)
    path = story.shore.blobs.path(run["model"])
    if path is None:
        raise BrokenError(f"run {run['id']} completed, but its model is not there")
    found = records.read(path).arrays["arrays"]
    for name, value in weights.items():
        if found[name].numpy().tobytes() != value.tobytes():
            raise BrokenError(
                f"run {run['id']}: the model's {name!r} is not what its accepted replies make"
            )


def _asked(journal: list[Row], round_: int) -> list[str]:
    """Return the devices asked to train in a round, in the order asked."""
    return next(
        event["data"]["devices"]
        for event in journal
        if event["kind"] == "asked"
        and event["round"] == round_
        and event["data"]["phase"] == "train"
    )


def _nothing_is_accepted_twice(tasks: list[Row]) -> None:
    """Check that one reply of a device counts in one phase of a round."""
    accepted = Counter(
        (task["run"], task["message_type"], task["round"], task["device"])
        for task in tasks
        if task["state"] in ACCEPTED
    )
    for what, count in accepted.items():
        if count > 1:
            raise BrokenError(f"{count} replies were accepted for {what}")


def when_training_begins(story: "Story", device: "Device", task: str) -> None:
    """Raise BrokenError if a device begins to train for what it has answered already."""
    if (device.plan.name, task) in story.answered:
        raise BrokenError(f"{device.plan.name} trains for {task} again; its reply was on the disk")
    if (device.home / "outbox" / f"{file_name(reply_id(task))}.parcel").exists():
        raise BrokenError(f"{device.plan.name} trains for {task}, whose reply is in its outbox")
    rows = list(story.shore.rows(tables.tasks))
    here = next((row for row in rows if row["id"] == task), None)
    if here is None:
        return
    about = ("run", "message_type", "round", "device")
    for row in rows:
        if all(row[name] == here[name] for name in about) and row["state"] in ACCEPTED:
            raise BrokenError(
                f"{device.plan.name} trains for {task}; {row['id']} was accepted for the same"
            )


def when_acknowledged(story: "Story", device: "Device", task: str) -> None:
    """Raise BrokenError if a device hears that a reply is stored, and it is not."""
    row = next((row for row in story.shore.rows(tables.tasks) if row["id"] == task), None)
    if row is None or row["state"] in OPEN_TASKS:
        state = "unknown" if row is None else row["state"]
        raise BrokenError(
            f"{device.plan.name} was told that its reply to {task} is stored; the task is {state}"
        )


def _bytes_are_bounded(story: "Story", tasks: list[Row]) -> None:
    """Check that what was sent is in proportion to what had to cross.

    A cut may cost what was under way, a lost packet is sent again, and heartbeats go on for ever;
    what moves without progress (RELIABILITY.md 4.1's livelocks) passes any such bound.
    """
    for name, weather in story.network.weathers.items():
        payload = sum(
            task["bytes_down"] + task["bytes_up"] for task in tasks if task["device"] == name
        )
        lost = 1.3 if weather.reliable else LOSSY
        under_way = weather.wires * (WINDOW * min(weather.chunk, 4 * story.scenario.size) + 16_384)
        most = lost * payload + under_way + CHATTER * story.now_s + 65_536
        if weather.bytes > most:
            raise BrokenError(
                f"{name}: {weather.bytes} bytes were sent for {payload} that had to cross, "
                f"over {weather.wires} wires in {story.now_s:.0f} s; expected at most {most:.0f}"
            )
