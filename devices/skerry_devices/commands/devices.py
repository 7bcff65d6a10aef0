"""`skerry devices`: who is in the fleet, who may join, and who is held back."""

import time
from typing import Annotated, Any

import typer

from skerry_devices.cli import group
from skerry_devices.completing import ids_of
from skerry_devices.one_device import doing, rows_of, show_models
from skerry_devices.output import (
    Column,
    Format,
    Output,
    ago,
    ahead,
    clock,
    done,
    labels,
    show_list,
    show_one,
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
    Column("doing", lambda d: doing(d), least=14),  # noqa: PLW0108 - defined below
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
    show_one({**found, "models": models}, rows_of(found), output)
    if output is Format.TABLE:
        show_models(models)


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
