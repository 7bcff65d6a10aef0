"""What came of a run, round by round and device by device: from rows of the database, purely."""

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from skerry_cloud.runs.lifecycle import OPEN_TASKS, TaskState

Row = Mapping[str, Any]

_COUNTED = {
    TaskState.REPLIED: "replied",
    TaskState.FAILED: "failed",
    TaskState.REJECTED: "failed",
    TaskState.REFUSED: "refused",
    TaskState.LATE: "late",
    TaskState.CANCELLED: "cancelled",
}


def round_rows(tasks: Iterable[Row], metrics: Iterable[Row]) -> list[dict[str, Any]]:
    """Return one row for each round and phase, in order, with the round's own metrics."""
    rows: dict[tuple[int, str], dict[str, Any]] = {}

    def row(number: int, phase: str) -> dict[str, Any]:
        return rows.setdefault(
            (number, phase), {"round": number, "phase": phase, **_counts(), "metrics": {}}
        )

    for task in tasks:
        made = row(task["round"], task["message_type"].partition(".")[0])
        _count(made, task)
        made["began_at"] = min(made.get("began_at", task["created_at"]), task["created_at"])
        if task["replied_at"]:
            made["ended_at"] = max(made.get("ended_at", 0.0), task["replied_at"])
    for metric in metrics:
        if not metric["device"]:
            row(metric["round"], metric["phase"])["metrics"][metric["name"]] = metric["value"]
    for made in rows.values():
        made["seconds"] = max(0.0, made.get("ended_at", 0.0) - made.get("began_at", 0.0))
    return [rows[key] for key in sorted(rows, key=lambda key: key[0])]


def device_rows(
    tasks: Iterable[Row],
    *,
    connected: Collection[str],
    progress: Callable[[str], tuple[float, str]] | None,
) -> list[dict[str, Any]]:
    """Return one row for each device that was asked, with why its last bad task was bad."""
    rows: dict[str, dict[str, Any]] = {}
    for task in tasks:
        device = task["device"]
        made = rows.setdefault(device, {"device": device, **_counts(), "last_why": ""})
        _count(made, task)
        made["task"] = task["state"]
        if task["why"]:
            made["last_why"] = task["why"]
    for device, made in rows.items():
        made["connected"] = device in connected
        if progress is not None and TaskState(made["task"]) in OPEN_TASKS:
            made["progress"], made["doing"] = progress(device)
    return [rows[device] for device in sorted(rows)]


def _counts() -> dict[str, Any]:
    return {
        "asked": 0,
        **dict.fromkeys(("replied", "failed", "refused", "late", "cancelled"), 0),
        "bytes_down": 0,
        "bytes_up": 0,
    }


def _count(row: dict[str, Any], task: Row) -> None:
    row["asked"] += 1
    if (name := _COUNTED.get(TaskState(task["state"]))) is not None:
        row[name] += 1
    row["bytes_down"] += task["bytes_down"]
    row["bytes_up"] += task["bytes_up"]
