"""One device as people see it: its state, labels, models, and what it chose those from."""

from collections.abc import Callable
from typing import Any

from skerry_devices.output import Column, Item, ago, console, labels, size, table


def doing(device: Item) -> str:
    beat = device.get("heartbeat") or {}
    state = str(beat.get("state") or "-")
    waits = beat.get("waiting_for") or beat.get("waitingFor")
    return f"{state}: {waits}" if waits else state


def rows_of(device: Item) -> list[tuple[str, str]]:
    beat = device.get("heartbeat") or {}

    def number(key: str, form: str) -> str:
        return form.format(float(beat[key])) if beat.get(key) is not None else "-"

    free, total = beat.get("memory_available_bytes"), beat.get("memory_total_bytes")
    rows = [
        ("id", device["id"]),
        ("state", device["state"]),
        ("link", device.get("transport") or "-"),
        ("last seen", "now" if device.get("connected") else ago(device.get("last_seen_at"))),
        ("enrolled", ago(device.get("enrolled_at"))),
        ("profile", device.get("profile") or "-"),
        ("labels", labels(device.get("labels"))),
        *_stated(device),
        ("agent", device.get("agent_version") or "-"),
        ("doing", doing(device)),
        ("capabilities", ", ".join(device.get("capabilities") or []) or "-"),
        ("cpus", f"{beat.get('cpus', '-')} {beat.get('arch', '')}"),
        ("load", number("load1", "{:.2f}")),
        ("memory free", f"{size(_float(free))} of {size(_float(total))}"),
        ("disk free", size(_float(beat.get("disk_free_bytes")))),
        ("temperature", number("temperature_c", "{:.0f} °C")),
        ("battery", number("battery_percent", "{:.0f} %")),
        (
            "versions",
            ", ".join(f"{k} {v}" for k, v in sorted((beat.get("versions") or {}).items())),
        ),
        ("last error", device.get("last_error") or "-"),
    ]
    if device.get("revoked_at"):
        why = f", because {device['revoked_why']}" if device.get("revoked_why") else ""
        rows.insert(2, ("revoked", ago(device["revoked_at"]) + why))
    return [(name, str(value)) for name, value in rows]


def _stated(device: Item) -> list[tuple[str, str]]:
    """Return what a person should know of the labels that a device states of itself."""
    rows, said = [], device.get("stated") or {}
    known = device.get("labels") or {}
    if over := [key for key, value in said.items() if known.get(f"device/{key}") != value]:
        rows.append(("", f"an operator has the word, not the device, on: {', '.join(over)}"))
    if why := (device.get("heartbeat") or {}).get("labels_refused"):
        rows.append(("", f"some that the device states were left out: {why}"))
    return rows


def show_models(models: list[dict[str, Any]]) -> None:
    """Print what a device serves, and of what it chose that."""
    if models:
        print()
        console().print(table(MODELS, models))
    for each in models:
        if rows := each["choice"].get("rows"):
            print(f"\n{each['model']}: serves {_file(each['choice']['serves'])}: ", end="")
            print(each["choice"]["why"])
            marked = [{**row, "serves": row["target"] == each["choice"]["serves"]} for row in rows]
            console().print(table(CANDIDATES, marked))


def _file(target: str) -> str:
    return target.rpartition("/")[2] or "-"


def _figure(row: Item, name: str, form: Callable[[float], str]) -> str:
    return form(row[name]) if name in row else "-"


def _energy(row: Item) -> str:
    guess = " (estimated)" if row.get("energy_source") == "estimated" else ""
    return _figure(row, "energy_j", "{:.3g} J".format) + guess


MODELS = (
    Column("model", lambda m: str(m["model"]), least=16),
    Column("phase", lambda m: str(m["phase"])),
    Column("serves", lambda m: m["serving"] or "-", least=20),
    Column("since", lambda m: ago(m["at"]), spare=1),
    Column("why", lambda m: m["why"] or "-", least=20),
)
CANDIDATES = (
    Column("", lambda r: "*" if r["serves"] else ""),
    Column("candidate", lambda r: _file(r["target"]), least=20),
    Column("accuracy", lambda r: _figure(r, "accuracy", "{:.4f}".format)),
    Column("p95", lambda r: _figure(r, "latency_s", lambda s: f"{s * 1e3:.3g} ms")),
    Column("energy", _energy, least=10),
    Column("memory", lambda r: _figure(r, "memory_bytes", size)),
    Column("note", lambda r: r["bad"] or ("on the Pareto front" if r["pareto"] else ""), least=18),
)


def _float(value: object) -> float | None:
    return None if value is None else float(str(value))
