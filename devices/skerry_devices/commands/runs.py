"""`skerry runs`: what runs there are, why one waits, what came of it, and its model."""

import json
import time
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

import typer

from skerry_devices.cli import group
from skerry_devices.completing import ids_of
from skerry_devices.output import (
    Column,
    Format,
    Item,
    Output,
    ago,
    clock,
    coded_size,
    console,
    done,
    show_list,
    size,
    table,
)
from skerry_devices.waiting import Timeout, until

if TYPE_CHECKING:
    from skerry_devices.client import Client

app = group("List, watch, pause, stop runs and fetch their models.")

Run = Annotated[
    str,
    typer.Argument(
        metavar="RUN", help="A run's id, or its beginning.", autocompletion=ids_of("runs", "name")
    ),
]
NO_RUNS = "No runs yet. Start one with: skerry run PATH"

COLUMNS = (
    Column("id", lambda r: str(r["id"]), cut=16),
    Column("name", lambda r: str(r["name"]), least=16),
    Column("state", lambda r: str(r["state"])),
    Column("round", lambda r: f"{r['round']}/{r['rounds'] or '?'}"),
    Column("started", lambda r: ago(r.get("started_at") or r.get("created_at")), spare=1),
    Column("by", lambda r: str(r.get("created_by", "-")), least=12, spare=2),
    Column("why", lambda r: _why(r), least=24),  # noqa: PLW0108 - defined below
)
DEVICE_COLUMNS = (
    Column("device", lambda d: str(d["device"]), least=24),
    Column("asked", lambda d: str(d["asked"])),
    Column("replied", lambda d: str(d["replied"] + d["refused"])),
    Column("failed", lambda d: _count(d["failed"])),
    Column("late", lambda d: _count(d["late"])),
    Column("refused", lambda d: _count(d["refused"])),
    Column("compute", lambda d: f"{d['compute_s']:.1f} s", spare=3),
    Column("down", lambda d: size(d.get("bytes_down")), spare=4),
    Column("up", lambda d: coded_size(d["bytes_up"], d["plain_bytes"]), spare=2),
    Column("codec", lambda d: d["codec"] or "-", spare=5),
    Column("now", lambda d: _now(d), least=12),  # noqa: PLW0108 - defined below
    Column("latest metrics", lambda d: d.get("metrics") or "-", least=16, spare=1),
    Column("last reason", lambda d: d["last_why"] or "-", least=16),
)
UNWANTED_COLUMNS = (
    Column("not taken from", lambda u: str(u["device"]), least=24),
    Column("reason", lambda u: str(u["reason"])),
    Column("times", lambda u: str(u["times"])),
    Column("when", lambda u: ago(u["last_at"])),
    Column("last reason", lambda u: str(u["last_why"]), least=20),
)
METRIC_COLUMNS = (
    Column("round", lambda m: str(m["round"])),
    Column("phase", lambda m: str(m["phase"])),
    Column("device", lambda m: str(m.get("device") or "all")),
    Column("name", lambda m: str(m["name"])),
    Column("value", lambda m: f"{m['value']:.6g}"),
)


@app.command("list")
def list_runs(
    state: Annotated[str, typer.Option(help="Only these, as running or failed.")] = "",
    output: Output = Format.TABLE,
) -> None:
    """List the runs, newest first."""
    from skerry_devices.client import at, connect

    with connect() as client:
        items = [run for run in client.items(at("runs")) if state in ("", run["state"])]
    show_list(items, COLUMNS, output, empty=NO_RUNS if not state else f"No run is {state}.")


@app.command("show")
def show_run(run: Run, output: Output = Format.TABLE) -> None:
    """Say how a run is, what it waits for, why and until when; its rounds and devices."""
    from skerry_devices.client import at, connect

    with connect() as client:
        found = client.get(at("runs", run))
        if output is not Format.TABLE:
            print(json.dumps(found, indent=2 if output is Format.JSON else None))
            return
        show_story(client, found)


@app.command("watch")
def watch(
    run: Run,
    timeout: Timeout = "0s",  # type: ignore[assignment]
    output: Output = Format.TABLE,
) -> None:
    """Watch a run until it ends; the status is 8 when it ends badly."""
    from skerry_devices.client import at, connect
    from skerry_devices.watch import follow_run, left_alone

    with connect() as client:
        found = client.get(at("runs", run))
        with left_alone(found["id"]):
            follow_run(client, found["id"], output, timeout_s=timeout)


@app.command("logs")
def logs(
    run: Run,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on as lines come.")] = False,
    output: Output = Format.TABLE,
) -> None:
    """Show what the run's server side has printed; devices' lines: skerry devices logs."""
    from skerry_devices.client import POLL_S, at, connect

    after = 0
    with connect() as client:
        found = client.get(at("runs", run))
        while True:
            lines = client.items(
                at("runs", found["id"], "logs"), after=after, wait_s=POLL_S if follow else 0
            )
            for line in lines:
                _print_line(line, output)
            if lines:
                after = int(lines[-1]["id"])
            elif not follow or _ended(client, found["id"]):
                return


@app.command("stop")
def stop(
    run: Run,
    wait: Annotated[bool, typer.Option("--wait", help="Wait until it has ended.")] = False,
    timeout: Timeout = "60s",  # type: ignore[assignment]
    output: Output = Format.TABLE,
) -> None:
    """Stop a run; devices are told to stop working on it."""
    from skerry_devices.client import at, connect

    with connect() as client:
        found = client.get(at("runs", run))
        made = client.post(at("runs", found["id"], "stop"))
        if wait:
            until(
                lambda: _ended(client, found["id"]) or None,
                timeout_s=timeout,
                what=f"the end of {found['id']}",
                hint=f"skerry runs show {found['id']}",
            )
            made = client.get(at("runs", found["id"]))
    done(made, f"{found['id']} {made.get('state', 'stopping')}", output)


@app.command("pause")
def pause(run: Run, output: Output = Format.TABLE) -> None:
    """Pause a run: devices get nothing new, and what they still answer is kept."""
    _change(run, "pause", output)


@app.command("resume")
def resume(run: Run, output: Output = Format.TABLE) -> None:
    """Let a paused run go on where it was."""
    _change(run, "resume", output)


def _change(run: str, what: str, output: Format) -> None:
    from skerry_devices.client import at, connect

    with connect() as client:
        found = client.get(at("runs", run))
        made = client.post(at("runs", found["id"], what))
    done(made, f"{found['id']} {made['state']}", output)


@app.command("metrics")
def metrics(
    run: Run,
    name: Annotated[str, typer.Option(help="Only this metric, as accuracy.")] = "",
    devices: Annotated[bool, typer.Option("--devices", help="Each device's, too.")] = False,
    output: Output = Format.TABLE,
) -> None:
    """Show a run's metrics, of whole rounds or of each device."""
    from skerry_devices.client import at, connect

    with connect() as client:
        items = [
            item
            for item in client.items(at("runs", run, "metrics"))
            if name in ("", item["name"]) and (devices or not item.get("device"))
        ]
    show_list(items, METRIC_COLUMNS, output, empty="No metrics yet.")


@app.command("model")
def model(
    run: Run,
    save: Annotated[
        Path | None, typer.Option("--save", "-s", help="The file; else RUN.npz in this folder.")
    ] = None,
    output: Output = Format.TABLE,
) -> None:
    """Fetch a run's trained model as an .npz file, one array for each of the model's tensors."""
    from skerry_devices.client import at, connect
    from skerry_devices.models import how_to_load, save_model

    with connect() as client:
        found = client.get(at("runs", run))
        path = save or Path(f"{found['id']}.npz")
        kept = save_model(client, found["id"], path)
    item = {"run": found["id"], "file": str(path), "tensors": kept.tensors, "bytes": kept.nbytes}
    done(item, f"{path}: {kept.tensors} tensors, {size(kept.nbytes)}\n{how_to_load(path)}", output)


@app.command("export")
def export(
    run: Run,
    to: Annotated[str, typer.Option("--to", help="mlflow.")] = "mlflow",
    uri: Annotated[
        str,
        typer.Option(help="The tracking store, as sqlite:///mlflow.db; else by MLflow's variable."),
    ] = "",
    experiment: Annotated[str, typer.Option(help="The experiment; else the run's name.")] = "",
    artefacts: Annotated[
        Path | None, typer.Option(help="Where a new experiment keeps its files.")
    ] = None,
    devices: Annotated[bool, typer.Option("--devices", help="Each device's metrics, too.")] = False,
    output: Output = Format.TABLE,
) -> None:
    """Export a run that has ended to MLflow: options, metrics by round, and its model."""
    from skerry_protos.errors import ConfigError

    from skerry_devices.client import at, connect
    from skerry_devices.mlflow_export import MlflowStore
    from skerry_devices.models import save_model

    if to != "mlflow":
        raise ConfigError(f"a run cannot be exported to {to!r}", hint="--to mlflow")
    store = MlflowStore(uri, artefacts=artefacts)
    with connect() as client, TemporaryDirectory(prefix="skerry-export-") as folder:
        found = client.get(at("runs", run))
        files = []
        if found["model"]:
            files.append(Path(folder) / "model.npz")
            save_model(client, found["id"], files[0])
        metrics = client.items(at("runs", found["id"], "metrics"))
        made = store.export_run(found, metrics, files, experiment=experiment, devices=devices)
    said = "was there already" if made.again else "is exported"
    done(asdict(made), f"{found['id']} {said}: {made.experiment}, run {made.run_id}", output)


def show_story(client: "Client", found: dict[str, Any]) -> None:
    """Print a run for people: its state, what it waits for, its rounds and devices."""
    from skerry_devices.client import at
    from skerry_devices.journal import Story
    from skerry_devices.watch import rounds_table

    story, after = Story(), 0
    while events := client.items(at("runs", found["id"], "events"), after=after):
        story.tell(events)
        after = story.last
    for name, value in _rows(found):
        print(f"{name:<10}{value}")
    screen = console()
    if story.by_round:
        print()
        down = {(row["round"], row["phase"]): row["bytes_down"] for row in found["rounds_table"]}
        rounds = [story.by_round[number] for number in sorted(story.by_round)]
        screen.print(rounds_table(rounds, down))
    if devices := story.devices:
        latest = _latest(client.items(at("runs", found["id"], "metrics")))
        print()
        known = {row["device"]: row for row in found["devices"]}
        rows = [
            {**known.get(row["device"], {}), **row, "metrics": latest.get(row["device"], "")}
            for row in devices
        ]
        screen.print(table(DEVICE_COLUMNS, rows))
    if unwanted := found.get("unwanted"):  # a coordinator may be older than this
        print()
        screen.print(table(UNWANTED_COLUMNS, unwanted))
    if story.notes:
        print()
        for note in story.notes[-10:]:
            print(f"note: {note}")


def _rows(found: Item) -> list[tuple[str, str]]:
    rows = [
        ("run", f"{found['id']}  {found['name']} ({found.get('app_kind', '?')})"),
        ("state", str(found["state"]) + (f": {found['why']}" if found.get("why") else "")),
        ("round", f"{found['round']} of {found['rounds'] or '?'}"),
        ("created", f"{clock(found['created_at'])} by {found.get('created_by', '?')}"),
    ]
    if found.get("started_at"):
        end = found.get("ended_at") or time.time()
        rows.append(("lasted", f"{end - found['started_at']:.1f} s"))
    if waiting := found.get("waiting"):
        rows.append(("waits for", f"{waiting.get('what', '')}: {waiting.get('why', '')}"))
        if waiting.get("until_unix_s"):
            left = waiting["until_unix_s"] - time.time()
            rows.append(("until", f"{clock(waiting['until_unix_s'])}, in {max(0.0, left):.0f} s"))
        if waiting.get("on"):
            rows.append(("on", ", ".join(waiting["on"][:16])))
    if found.get("model"):
        rows.append(("model", f"skerry runs model {found['id']}"))
    return rows


def _latest(items: list[dict[str, Any]]) -> dict[str, str]:
    """Return each device's newest metrics as text."""
    from skerry_devices.journal import shown_metrics

    newest: dict[str, dict[str, float]] = {}
    for item in sorted(items, key=lambda each: int(each["round"])):
        if item.get("device"):
            prefix = "" if item["phase"] == "evaluate" else f"{item['phase']} "
            newest.setdefault(item["device"], {})[f"{prefix}{item['name']}"] = item["value"]
    return {
        device: shown_metrics({k: v for k, v in values.items() if "num" not in k})
        for device, values in newest.items()
    }


def _why(run: Item) -> str:
    waiting = run.get("waiting") or {}
    return str(run.get("why") or waiting.get("why") or "-")


def _ended(client: "Client", run: str) -> bool:
    from skerry_devices.client import at
    from skerry_devices.journal import ENDED

    return client.get(at("runs", run))["state"] in ENDED


def _print_line(line: Item, output: Format) -> None:
    if output is Format.TABLE:
        data = line.get("data") or line
        print(f"{clock(line['at'])} {data.get('text', '')}", flush=True)
    else:
        print(json.dumps(line), flush=True)


def _now(device: Item) -> str:
    """Return what a device does for the run now."""
    if device.get("task") not in {"queued", "sent"}:
        return "-"
    done_part = f"{device['progress']:.0%} " if device.get("progress") else ""
    here = "works" if device.get("connected") else "away"
    return f"{done_part}{device.get('doing') or here}"


def _count(number: int) -> str:
    return str(number) if number else "-"
