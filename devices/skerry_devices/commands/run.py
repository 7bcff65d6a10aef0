"""`skerry run`: an app folder becomes a signed bundle, and a run that this terminal watches."""

from pathlib import Path
from typing import Annotated, Any

import typer

from skerry_devices.cli import single
from skerry_devices.output import Format, Output, show_one, size
from skerry_devices.waiting import duration

app = single()


@app.command()
def run(
    path: Annotated[
        Path, typer.Argument(metavar="PATH", help="An app's folder: Skerry's or Flower's.")
    ] = Path(),
    select: Annotated[
        str, typer.Option("--select", "-l", help="Devices: k=v, k!=v, 'k in (a,b)', by commas.")
    ] = "",
    capability: Annotated[
        list[str] | None, typer.Option(help="Only devices that have this, as torch; repeat.")
    ] = None,
    fraction: Annotated[
        float | None, typer.Option(min=0.0, max=1.0, help="Of these, the part asked in a round.")
    ] = None,
    min_devices: Annotated[
        int | None, typer.Option(min=1, help="How many must be online before a round begins.")
    ] = None,
    rounds: Annotated[int | None, typer.Option(min=1, help="Instead of the app's own.")] = None,
    deadline: Annotated[
        float | None,
        typer.Option(parser=duration, metavar="DURATION", help="Longest time of a round."),
    ] = None,
    quorum: Annotated[
        float | None,
        typer.Option(min=0.0, max=1.0, help="Close a round when this part of it has answered."),
    ] = None,
    wait_devices: Annotated[
        float | None,
        typer.Option(parser=duration, metavar="DURATION", help="Longest wait for --min-devices."),
    ] = None,
    run_config: Annotated[
        list[str] | None,
        typer.Option("--run-config", "-c", metavar="K=V", help="Set one of the app's; repeat."),
    ] = None,
    strategy: Annotated[
        str, typer.Option(help="How a native app's answers are merged, as fedavg.")
    ] = "",
    codec: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[SELECTOR:]CODEC[,K=V]",
            help="Code updates: lossless, bf16, int8, int4, topk, powersgd; as topk,ratio=0.02 or "
            "profile=pi4:int8; repeat.",
        ),
    ] = None,
    broadcast_codec: Annotated[
        str, typer.Option(help="Code models on their way to devices: lossless, bf16 or int8.")
    ] = "",
    initial: Annotated[
        str, typer.Option("--from", metavar="RUN", help="Begin with the model of this run.")
    ] = "",
    seed: Annotated[int | None, typer.Option(min=0, help="Make the run repeatable.")] = None,
    fresh_worker: Annotated[
        bool, typer.Option("--fresh-worker", help="A new process on the device for each task.")
    ] = False,
    task_limit: Annotated[
        float | None,
        typer.Option(parser=duration, metavar="DURATION", help="Longest time of one task."),
    ] = None,
    memory_mb: Annotated[
        int | None, typer.Option(min=1, help="Most memory of one task on a device, MB.")
    ] = None,
    name: Annotated[str, typer.Option(help="The run's name; else the app's.")] = "",
    follow: Annotated[
        bool, typer.Option("--follow/--detach", help="Watch it to its end, or only start it.")
    ] = True,
    output: Output = Format.TABLE,
) -> None:
    """Train an app on the fleet. Ctrl-C stops watching, not the run."""
    from skerry_devices.apps import read_app
    from skerry_devices.client import at, connect
    from skerry_devices.watch import follow_run, left_alone

    found = read_app(path)
    general, special = codecs_of(codec or [])
    limits = _given(seconds=task_limit, memory_bytes=memory_mb and memory_mb * 1024**2)
    options = _given(
        selector=select or None,
        capabilities=capability,
        fraction=fraction,
        min_devices=min_devices,
        rounds=rounds,
        round_deadline_s=deadline,
        quorum=quorum,
        wait_deadline_s=wait_devices,
        run_config=_settings(run_config or []) or None,
        strategy=strategy or None,
        codec=general,
        codecs=special or None,
        broadcast_codec=broadcast_codec or None,
        initial=initial or None,
        seed=seed,
        fresh_worker=fresh_worker or None,
        limits=limits or None,
    )
    with connect() as client:
        kept = client.upload(at("apps"), found.bundle)
        wanted = {"app": kept["digest"], "name": name or found.name, "options": options}
        started = client.post(at("runs"), wanted)
        if not follow:
            rows = [("run", str(started["id"])), ("watch", f"skerry runs watch {started['id']}")]
            show_one(started, rows, output)
            return
        typer.echo(
            f"{started['id']}  {found.name} ({found.kind}, {found.files} files, "
            f"{size(len(found.bundle))}) is signed and on its way",
            err=output is not Format.TABLE,
        )
        with left_alone(started["id"]):
            follow_run(client, started["id"], output)


def _given(**options: Any) -> dict[str, Any]:
    """Return the options that were given."""
    return {key: value for key, value in options.items() if value is not None}


def codecs_of(
    texts: list[str],
) -> tuple[str | dict[str, Any] | None, dict[str, str | dict[str, Any]]]:
    """Return the codec of all devices, and those of devices that a selector means, in order."""
    general: str | dict[str, Any] | None = None
    special: dict[str, str | dict[str, Any]] = {}
    for text in texts:
        selector, _, said = text.rpartition(":")
        name, *options = (word.strip() for word in said.split(","))
        made = {"name": name, **_settings(options)} if options else name
        if selector:
            special[selector.strip()] = made
        else:
            general = made
    return general, special


def _settings(texts: list[str]) -> dict[str, bool | int | float | str]:
    """Return `K=V` texts as settings; one text may hold several, as Flower writes them."""
    import shlex

    from skerry_devices.apps import read_value

    found = {}
    for text in texts:
        words = shlex.split(text) if "=" in text.partition("=")[2] else [text]
        for word in words:
            key, equals, value = word.partition("=")
            if not equals or not key:
                raise typer.BadParameter(f"{word!r} is no setting: write k=v")
            found[key] = read_value(value)
    return found
