"""`skerry models policy`: a run that begins by itself when a model's inputs have drifted."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from skerry_protos.errors import ConfigError

from skerry_devices.cli import group
from skerry_devices.output import Column, Format, Output, ago, done, show_list
from skerry_devices.waiting import duration

app = group("Begin a run when devices say that a model's inputs have drifted.")

Model = Annotated[str, typer.Argument(metavar="MODEL", help="The model's name.")]

COLUMNS = (
    Column("model", lambda p: str(p["model"]), least=16),
    Column("on", lambda p: "yes" if p["enabled"] else "no"),
    Column("drift", lambda p: f">= {p['threshold']:g}"),
    Column("devices", lambda p: f"{len(p['drifting'])} of {p['min_devices']}"),
    Column("cooldown", lambda p: _shown(p["cooldown_s"]), spare=2),
    Column("app", lambda p: str(p["app"])[:12], spare=1),
    Column("last run", lambda p: f"{p['last_run'] or '-'} {ago(p['last_at'])}", least=12),
    Column("now", lambda p: str(p["now"] or p["last_why"]), least=20),
)


@app.command("set")
def set_policy(
    model: Model,
    path: Annotated[Path, typer.Argument(metavar="APP", help="The app's folder.")],
    threshold: Annotated[
        float, typer.Option(help="Population stability index from which on a device counts.")
    ] = 0.2,
    devices: Annotated[int, typer.Option(min=1, help="How many devices must count.")] = 1,
    window: Annotated[
        float,
        typer.Option(parser=duration, metavar="DURATION", help="Older reports do not count."),
    ] = "1d",  # type: ignore[assignment]
    cooldown: Annotated[
        float,
        typer.Option(parser=duration, metavar="DURATION", help="Least time between two runs."),
    ] = "1d",  # type: ignore[assignment]
    option: Annotated[
        list[str] | None,
        typer.Option(metavar="K=V", help="Of the run, as rounds=5 or selector=site=north; repeat."),
    ] = None,
    off: Annotated[bool, typer.Option("--off", help="Keep it, but begin nothing.")] = False,
    output: Output = Format.TABLE,
) -> None:
    """Keep a model's policy, in place of its old one; the app is sent now."""
    from skerry_devices.apps import read_app
    from skerry_devices.client import at, connect

    wish: dict[str, Any] = {
        "threshold": threshold,
        "min_devices": devices,
        "window_s": window,
        "cooldown_s": cooldown,
        "options": dict(map(_option, option or [])),
        "enabled": not off,
    }
    found = read_app(path)
    with connect() as client:
        sent = client.upload(at("apps"), found.bundle)
        made = client.put(at("policies", model), {**wish, "app": sent["digest"]})
    done(made, f"{model}: a run of {found.name} begins when it drifts; now: {made['now']}", output)


@app.command("list")
def list_policies(output: Output = Format.TABLE) -> None:
    """List policies, which devices count, and why no run begins now."""
    from skerry_devices.client import at, connect

    with connect() as client:
        items = client.items(at("policies"))
    show_list(items, COLUMNS, output, empty="No policies: skerry models policy set MODEL APP")


@app.command("remove")
def remove_policy(model: Model, output: Output = Format.TABLE) -> None:
    """Forget a model's policy; a run that it began goes on."""
    from skerry_devices.client import at, connect

    with connect() as client:
        client.delete(at("policies", model))
    done({"model": model}, f"{model} has no policy any more", output)


def _option(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not (key and equals):
        raise ConfigError(f"{text[:80]!r} is no option", hint="write k=v, as rounds=5")
    try:
        return key, json.loads(value)
    except ValueError:
        return key, value


def _shown(seconds: float) -> str:
    from skerry_cloud.durations import shown_duration

    return shown_duration(seconds)
