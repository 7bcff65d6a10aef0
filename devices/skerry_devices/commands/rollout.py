"""`skerry rollout`: bring a signed version to the fleet in waves, watch it, take it back."""

import json
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer
from skerry_protos.errors import ConfigError, RejectedError

from skerry_devices.cli import group
from skerry_devices.output import Column, Format, Output, ago, clock, done, show_list, size
from skerry_devices.waiting import Timeout

if TYPE_CHECKING:
    from skerry_devices.client import Client

app = group("Bring a signed model to the fleet in waves, behind gates.")

Rollout = Annotated[
    str, typer.Argument(metavar="ROLLOUT", help="A rollout's id, or its beginning.")
]
ENDED = frozenset({"completed", "aborted", "rolled-back"})

COLUMNS = (
    Column("id", lambda r: str(r["id"]), cut=20),
    Column("model", lambda r: f"{r['model']}@{r['version']}", least=14),
    Column("channel", lambda r: str(r["channel"]), spare=1),
    Column("state", lambda r: str(r["state"])),
    Column("wave", lambda r: f"{r['wave'] + 1}/{r['waves']}"),
    Column("devices", lambda r: _counts(r), least=10),  # noqa: PLW0108 - defined below
    Column("began", lambda r: ago(r["created_at"]), spare=2),
    Column("why", lambda r: _why(r), least=14),  # noqa: PLW0108
)
DEVICE_COLUMNS = (
    Column("device", lambda d: str(d["device"]), least=24),
    Column("wave", lambda d: str(d["wave"] + 1)),
    Column("state", lambda d: str(d["state"])),
    Column("readings", lambda d: _readings(d), least=18),  # noqa: PLW0108
    Column("since", lambda d: ago(d["changed_at"]) if d["changed_at"] else "-", spare=1),
    Column("serves", lambda d: _serves(d), least=16, spare=2),  # noqa: PLW0108
    Column("why", lambda d: _device_why(d), least=20),  # noqa: PLW0108
)


class RolloutFailedError(RejectedError):
    """The rollout has ended, and the fleet does not have the version."""

    def __init__(self, rollout: str, state: str, why: str) -> None:
        super().__init__(f"rollout-{state}", f"{rollout} {state}: {why or 'no reason was given'}")
        self.hint = f"skerry rollout status {rollout}"


@app.command("start")
def start(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="model@version or model@label.")],
    channel: Annotated[str, typer.Option(help="As which channel signed it: stable, canary.")] = (
        "stable"
    ),
    wave: Annotated[
        list[str] | None,
        typer.Option("--wave", "-w", help="25%, 10 (devices), or a selector; repeat it."),
    ] = None,
    selector: Annotated[str, typer.Option("--selector", "-l", help="Which devices at all.")] = "",
    soak: Annotated[str, typer.Option(help="How long a wave is watched.")] = "5m",
    trial: Annotated[str, typer.Option(help="How long a device watches it first.")] = "1m",
    period: Annotated[str, typer.Option(help="A device's health period.")] = "30s",
    wave_deadline: Annotated[str, typer.Option(help="How long a wave may take.")] = "1d",
    gate: Annotated[
        list[str] | None,
        typer.Option(
            "--gate", "-g", help="As max_latency_p95_s=0.05 (docs/rollout.md); repeat it."
        ),
    ] = None,
    on_failure: Annotated[str, typer.Option(help="rollback or pause.")] = "rollback",
    queue: Annotated[
        bool, typer.Option("--queue", help="Begin after an open rollout with the same devices.")
    ] = False,
    retry: Annotated[
        bool, typer.Option("--retry", help="Also on devices that found it bad before.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Also when the version was quarantined.")
    ] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Watch it to its end.")] = False,
    timeout: Timeout = "0s",  # type: ignore[assignment]
    output: Output = Format.TABLE,
) -> None:
    """Begin a rollout of a signed version."""
    from skerry_devices.client import at, connect

    plan: dict[str, Any] = {
        "selector": selector,
        "soak_s": soak,
        "trial_s": trial,
        "period_s": period,
        "wave_s": wave_deadline,
        "on_failure": on_failure,
        "retry": retry,
        "force": force,
        **_gates(gate or []),
    }
    if wave:
        plan["waves"] = wave
    with connect() as client:
        made = client.post(
            at("rollouts"), {"model": model, "channel": channel, "plan": plan, "queue": queue}
        )
        if watch:
            _follow(client, made["id"], output, timeout)
            return
    name = f"{made['model']}@{made['version']}"
    done(made, f"{made['id']}: {name} to {len(made['devices'])} devices", output)


@app.command("status")
def status(rollout: Rollout, output: Output = Format.TABLE) -> None:
    """Say how a rollout is, what it waits for and why, and how every device is."""
    from skerry_devices.client import at, connect
    from skerry_devices.output import console, table

    with connect() as client:
        found = client.get(at("rollouts", rollout))
    if output is not Format.TABLE:
        print(json.dumps(found, indent=2 if output is Format.JSON else None))
        return
    console().print(table(COLUMNS, [found]))
    print()
    console().print(table(DEVICE_COLUMNS, found["devices"]))


@app.command("watch")
def watch_rollout(
    rollout: Rollout,
    timeout: Timeout = "0s",  # type: ignore[assignment]
    output: Output = Format.TABLE,
) -> None:
    """Watch a rollout until it ends; the status is 8 when the fleet does not have the version."""
    from skerry_devices.client import connect

    with connect() as client:
        _follow(client, rollout, output, timeout)


@app.command("history")
def history(
    model: Annotated[str, typer.Option(help="Only of this model.")] = "",
    output: Output = Format.TABLE,
) -> None:
    """List rollouts, newest first."""
    from skerry_devices.client import at, connect

    with connect() as client:
        items = client.items(at("rollouts"), model=model)
    show_list(items, COLUMNS, output, empty="No rollouts yet: skerry rollout start MODEL")


@app.command("pause")
def pause(rollout: Rollout, output: Output = Format.TABLE) -> None:
    """Let no further device take the version until it is resumed."""
    _order(rollout, "pause", output)


@app.command("resume")
def resume(rollout: Rollout, output: Output = Format.TABLE) -> None:
    """Go on with a paused rollout; devices that failed are left aside."""
    _order(rollout, "resume", output)


@app.command("abort")
def abort(rollout: Rollout, output: Output = Format.TABLE) -> None:
    """End a rollout; devices that have the version keep it."""
    _order(rollout, "abort", output)


@app.command("undo")
def undo(
    rollout: Rollout,
    wait: Annotated[bool, typer.Option("--wait", help="Wait until all have gone back.")] = False,
    timeout: Timeout = "10m",  # type: ignore[assignment]
    output: Output = Format.TABLE,
) -> None:
    """Let a rollout's devices serve again what they served before; also after its end."""
    from skerry_devices.client import at, connect
    from skerry_devices.waiting import until

    _order(rollout, "undo", output)
    if wait:
        with connect() as client:
            until(
                lambda: client.get(at("rollouts", rollout))["state"] in ENDED or None,
                timeout_s=timeout,
                what=f"the way back of {rollout}",
                hint=f"skerry rollout status {rollout}",
            )


def _order(rollout: str, order: str, output: Format) -> None:
    from skerry_devices.client import at, connect

    with connect() as client:
        made = client.post(at("rollouts", rollout, order))
    done(made, f"{made['id']} {made['state']}", output)


def _follow(client: "Client", rollout: str, output: Format, timeout_s: float) -> None:
    """Print events until the rollout has ended; raise RolloutFailedError when it ended badly."""
    from skerry_protos.errors import DeadlineError

    from skerry_devices.client import POLL_S, at

    after, deadline = 0, time.monotonic() + timeout_s if timeout_s else None
    while True:
        found = client.get(at("rollouts", rollout))
        events = client.items(
            at("rollouts", found["id"], "events"),
            after=after,
            wait_s=0 if found["state"] in ENDED else POLL_S,
        )
        for event in events:
            after = int(event["id"])
            print(json.dumps(event) if output is not Format.TABLE else _line(event), flush=True)
        if not events and found["state"] in ENDED:
            break
        if deadline is not None and time.monotonic() > deadline:
            raise DeadlineError(
                f"{found['id']} is {found['state']}: {_why(found)}",
                hint=f"skerry rollout watch {found['id']}",
            )
    if found["state"] != "completed":
        raise RolloutFailedError(found["id"], found["state"], found["why"])


def _line(event: dict[str, Any]) -> str:
    data = event["data"]
    wave = f"wave {event['wave'] + 1}"
    why = f": {data['why']}" if data.get("why") else ""
    if event["kind"] == "device":
        return f"{clock(event['at'])} {wave}  {event['device']} {data['to']}{why}"
    return f"{clock(event['at'])} {wave}  {data.get('state', event['kind'])}{why}"


def _gates(said: list[str]) -> dict[str, Any]:
    """Return `--gate` options as a plan's tables."""
    from skerry_cloud.rollouts.plan import Gates

    tables: dict[str, dict[str, float]] = {"gates": {}, "health": {}}
    for each in said:
        name, found, number = each.partition("=")
        try:
            value = float(number)
        except ValueError:
            found = ""
        if not found:
            raise ConfigError(f"--gate {each!r} is not NAME=NUMBER")
        tables["gates" if name in Gates.__dataclass_fields__ else "health"][name] = value
    return tables


def _counts(rollout: Any) -> str:
    return ", ".join(f"{n} {state}" for state, n in sorted(rollout["counts"].items())) or "-"


def _why(rollout: Any) -> str:
    waiting = rollout.get("waiting") or {}
    return str(waiting.get("why") or rollout["why"] or "-")


def _serves(device: Any) -> str:
    """Return which of the version's variants a device chose; `-`: there was no choice."""
    choice = device.get("choice") or {}
    if not choice.get("serves"):
        return "-"
    return f"{choice['serves'].rpartition('/')[2]}: {choice['why']}"


def _device_why(device: Any) -> str:
    """Return why a device is in its state, or what it is waited for."""
    why = device["why"] or "-"
    if device["state"] not in {"asked", "reverting"} or "asked_at" not in device:
        return str(why)
    here = device["connected"]
    seen = "it is here" if here else f"away, last seen {ago(device['last_seen_at'])}"
    if not device["asked_at"]:
        return f"not told yet: {seen}"
    told = f"told {ago(device['asked_at'])}"
    if device["phase"]:
        return f"{told}, {device['phase']}" + (f": {why}" if device["why"] else "")
    return f"{told}, no answer: {seen}"


def _readings(device: Any) -> str:
    now = device["readings"].get("now", {})
    return ", ".join(_reading(name, value) for name, value in sorted(now.items())) or "-"


def _reading(name: str, value: float) -> str:
    if name == "memory_bytes":
        return f"memory {size(value)}"
    return f"{name} {value:.4g}"
