"""`skerry devices`: who is in the fleet, who may join, and who is held back."""

import time
from collections.abc import Callable
from typing import Annotated, Any

import typer

from skerry_devices.cli import group
from skerry_devices.completing import ids_of
from skerry_devices.output import (
    Column,
    Format,
    Item,
    Output,
    ago,
    ahead,
    clock,
    console,
    done,
    labels,
    show_list,
    show_one,
    size,
    table,
)
from skerry_devices.waiting import Timeout, duration, until

app = group("List, invite, label, hold back and revoke devices.")

Device = Annotated[
    str,
    typer.Argument(
        metavar="DEVICE",
        help="A device's id, or its beginning.",
        autocompletion=ids_of("devices", "state"),
    ),
]
Selector = Annotated[
    str,
    typer.Option("--selector", "-l", help="Only these: k=v, k!=v, 'k in (a,b)', !k, by commas."),
]
NO_DEVICES = "No devices. Invite one with: skerry devices invite"

COLUMNS = (
    Column("id", lambda d: str(d["id"]), least=24),
    Column("state", lambda d: str(d["state"])),
    Column("link", lambda d: str(d.get("transport") or "-")),
    Column("seen", lambda d: "now" if d.get("connected") else ago(d.get("last_seen_at"))),
    Column("profile", lambda d: str(d.get("profile") or "-"), least=12, spare=2),
    Column("doing", lambda d: _doing(d), least=14),  # noqa: PLW0108 - defined below
    Column("labels", lambda d: labels(d.get("labels")).replace(",", ", "), least=16),
    Column("agent", lambda d: str(d.get("agent_version") or "-"), spare=1),
)


@app.command("list")
def list_devices(
    selector: Selector = "",
    state: Annotated[
        str, typer.Option(help="Only these: online, offline, cordoned, drained or revoked.")
    ] = "",
    every: Annotated[
        bool, typer.Option("--all", "-a", help="Revoked devices, too, which else are left out.")
    ] = False,
    wait: Annotated[
        int, typer.Option("--wait", metavar="N", help="Wait until N devices are online.")
    ] = 0,
    timeout: Timeout = "60s",  # type: ignore[assignment]  # typer parses the default too
    output: Output = Format.TABLE,
) -> None:
    """List the devices of the fleet."""
    from skerry_devices.client import at, connect

    with connect() as client:

        def enough() -> dict[str, Any] | None:
            found: dict[str, Any] = client.get(at("devices"), selector=selector, state=state)
            here = sum(bool(device["connected"]) for device in found["items"])
            return found if here >= wait else None

        found = until(
            enough,
            timeout_s=timeout if wait else 0.0,
            what=f"{wait} devices online",
            hint="skerry devices list shows who is; skerry devices invite invites another",
        )
    items = [one for one in found["items"] if every or state or one["state"] != "revoked"]
    empty = f"No device fits: {found['hint']}" if found.get("hint") else NO_DEVICES
    show_list(items, COLUMNS, output, empty=empty if not state else f"No device is {state}.")


@app.command("show")
def show_device(device: Device, output: Output = Format.TABLE) -> None:
    """Show all that is known of one device."""
    from skerry_devices.client import at, connect

    with connect() as client:
        found = client.get(at("devices", device))
        models = client.items(at("devices", found["id"], "models"))
    show_one({**found, "models": models}, _rows(found), output)
    if output is Format.TABLE:
        _show_models(models)


@app.command("invite")
def invite(
    uses: Annotated[int, typer.Option(min=1, help="How many devices may join with it.")] = 1,
    expires: Annotated[
        float, typer.Option(parser=duration, metavar="DURATION", help="How long it is good for.")
    ] = "1h",  # type: ignore[assignment]
    label: Annotated[
        list[str] | None, typer.Option(metavar="K=V", help="Give who joins this label; repeat.")
    ] = None,
    listed: Annotated[
        bool, typer.Option("--list", help="List the invites there are instead.")
    ] = False,
    withdraw: Annotated[str, typer.Option(metavar="ID", help="Withdraw an invite instead.")] = "",
    output: Output = Format.TABLE,
) -> None:
    """Print a join token; on the device run: skerry-agent join TOKEN."""
    from skerry_devices.client import at, connect

    with connect() as client:
        if withdraw:
            made = client.delete(at("invites", withdraw))
            done(made, f"withdrew invite {withdraw}; who has joined stays", output)
        elif listed:
            show_list(client.items(at("invites")), INVITES, output, empty="No invites.")
        else:
            wanted = {"uses": uses, "expires_s": expires, "labels": _pairs(label or [])}
            made = client.post(at("invites"), wanted)
            if output is Format.TABLE:
                print(made["token"])
                _note(f"on the device, within {ahead(made.get('expires_at'))[3:]}:")
                _note(f"  skerry-agent join {made['token'][:12]}… && skerry-agent run")
            else:
                show_one(made, (), output)


@app.command("revoke")
def revoke(
    device: Device,
    reason: Annotated[str, typer.Option("--reason", help="Why; the audit log keeps it.")] = "",
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    output: Output = Format.TABLE,
) -> None:
    """Cut a device off for good, live connections included. It can only join as a new device."""
    from skerry_devices.client import at, connect

    with connect() as client:
        found = client.get(at("devices", device))
        if not yes:
            _ask(f"Revoke {found['id']} for good?")
        made = client.post(at("devices", found["id"], "revoke"), {"why": reason})
    done(made or found, f"revoked {found['id']}", output)


@app.command("label")
def label_device(
    device: Device,
    changes: Annotated[
        list[str], typer.Argument(metavar="K=V|K-...", help="Labels to set (k=v) or remove (k-).")
    ],
    output: Output = Format.TABLE,
) -> None:
    """Set or remove labels, by which runs choose devices."""
    from skerry_devices.client import at, connect

    removed: dict[str, str | None] = {
        each.removesuffix("-"): None for each in changes if each.endswith("-") and "=" not in each
    }
    wanted = _pairs([each for each in changes if each[:-1] not in removed])
    with connect() as client:
        found = client.patch(at("devices", device), {"labels": {**wanted, **removed}})
    done(found, f"{found['id']}: {labels(found.get('labels'))}", output)


@app.command("cordon")
def cordon(device: Device, output: Output = Format.TABLE) -> None:
    """Give a device no new work; what it does now it finishes."""
    _act(device, "cordon", "takes no new work; undo with: skerry devices uncordon {id}", output)


@app.command("uncordon")
def uncordon(device: Device, output: Output = Format.TABLE) -> None:
    """Give a device work again."""
    _act(device, "uncordon", "takes work again", output)


@app.command("drain")
def drain(
    device: Device,
    wait: Annotated[bool, typer.Option("--wait", help="Wait until it holds no work.")] = False,
    timeout: Timeout = "60s",  # type: ignore[assignment]
    output: Output = Format.TABLE,
) -> None:
    """Cordon a device and take back the work it has."""
    from skerry_devices.client import at, connect

    _act(device, "drain", "is drained; undo with: skerry devices uncordon {id}", output)
    if not wait:
        return
    with connect() as client:

        def empty() -> bool | None:
            beat = client.get(at("devices", device)).get("heartbeat") or {}
            return None if beat.get("tasks") else True

        until(empty, timeout_s=timeout, what=f"{device} letting go of its work")


@app.command("logs")
def logs(
    device: Device,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on as lines come.")] = False,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="Newest lines.")] = 200,
    output: Output = Format.TABLE,
) -> None:
    """Show what a device's agent and apps have said."""
    from skerry_devices.client import POLL_S, at, connect

    with connect() as client:
        path = at("devices", device, "logs")
        lines, after = client.items(path, limit=limit), 0
        if not lines and not follow:
            show_list([], (), output, empty="No lines yet.")
        while True:
            _print_lines(lines, output)
            if not follow:
                return
            after = lines[-1]["id"] if lines else after
            time.sleep(0.0 if after else 1.0)  # after 0 means the newest lines, and no waiting
            lines = client.items(path, after=after, limit=1000, wait_s=POLL_S if after else 0)


@app.command("simulate")
def simulate(
    count: Annotated[int, typer.Argument(metavar="N", min=1, max=5000, help="How many.")],
    profile: Annotated[str, typer.Option(help="The device profile they have.")] = "pi4",
    link: Annotated[str, typer.Option(help="grpc, mqtt, or both (half and half).")] = "mqtt",
    processes: Annotated[
        int,
        typer.Option(min=0, help="Processes to spread them over; 0: as many as there are CPUs."),
    ] = 0,
    workers: Annotated[
        int, typer.Option(min=1, help="App processes that work for all devices of one process.")
    ] = 1,
    label: Annotated[
        list[str] | None, typer.Option(metavar="K=V", help="Give them this label; repeat.")
    ] = None,
    home: Annotated[str, typer.Option(help="Where their homes go; none: a temporary folder.")] = "",
    timeout: Timeout = "300s",  # type: ignore[assignment]
) -> None:
    """Run N real agents in few processes, until Ctrl-C: real links, real identities."""
    from skerry_devices.simulated import Fleet, simulate_fleet

    simulate_fleet(
        Fleet(
            count=count,
            profile=profile,
            link=link,
            processes=processes,
            workers=workers,
            labels=_pairs(label or []),
            home=home,
        ),
        timeout_s=timeout,
    )


INVITES = (
    Column("id", lambda i: str(i["id"])),
    Column("state", lambda i: str(i["state"])),
    Column("uses left", lambda i: f"{i['uses_left']} of {i['uses']}"),
    Column("by", lambda i: str(i["created_by"])),
    Column("expires", lambda i: ahead(i.get("expires_at"))),
    Column("labels", lambda i: labels(i.get("labels")), least=16),
)


def _act(device: str, verb: str, sentence: str, output: Format) -> None:
    from skerry_devices.client import at, connect

    with connect() as client:
        found = client.get(at("devices", device))
        made = client.post(at("devices", found["id"], verb))
    done(made or found, f"{found['id']} {sentence.format(id=found['id'])}", output)


def _pairs(texts: list[str]) -> dict[str, str]:
    pairs = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise typer.BadParameter(f"{text!r} is no label: write k=v")
        pairs[key] = value
    return pairs


def _ask(question: str) -> None:
    import sys

    if not sys.stdin.isatty():
        raise typer.BadParameter("there is no terminal to ask at: say --yes")
    typer.confirm(question, abort=True)


def _note(text: str) -> None:
    typer.echo(text, err=True)


def _print_lines(lines: list[dict[str, Any]], output: Format) -> None:
    import json

    for line in lines:
        if output is Format.TABLE:
            print(f"{clock(line['at'])} {line['source']:<5} {line['level']:<7} {line['text']}")
        else:
            print(json.dumps(line), flush=True)


def _doing(device: Item) -> str:
    beat = device.get("heartbeat") or {}
    state = str(beat.get("state") or "-")
    waits = beat.get("waiting_for") or beat.get("waitingFor")
    return f"{state}: {waits}" if waits else state


def _rows(device: Item) -> list[tuple[str, str]]:
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
        ("doing", _doing(device)),
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


def _show_models(models: list[dict[str, Any]]) -> None:
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
