"""The demo: a whole fleet in a temporary home trains real digits, then everything is shown.

`run_demo` is the story; it leaves a model, with `--full` its exported files, and nothing else.
"""

import shutil
import tempfile
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import typer
from skerry_protos.errors import ConfigError

from skerry_devices.apps import read_app
from skerry_devices.client import Client, at
from skerry_devices.commands.runs import show_story
from skerry_devices.demo import Demo, DemoError, Trained
from skerry_devices.demo.releasing import release
from skerry_devices.journal import Story
from skerry_devices.local import DevicePlan, LocalFleet, plan_devices
from skerry_devices.models import how_to_load, save_model
from skerry_devices.output import Format
from skerry_devices.signals import interruptible
from skerry_devices.watch import follow_run

GOAL = 0.93
NEEDS = ("torch", "sklearn", "flwr", "flwr_datasets")
NEEDS_FULL = (
    "onnx",
    "onnxruntime",
    "litert_torch",
    "ai_edge_quantizer",
    "ai_edge_litert",
    "orjson",
)
RUN_S = 600.0
NEXT = "next: skerry up, then skerry new my-app && skerry run my-app (docs/quickstart.md)"
NEXT_FULL = (
    "next: skerry demo --full exports, signs and rolls this model out, and stops a bad one\n"
    "      skerry up, then skerry new my-app && skerry run my-app (docs/quickstart.md)"
)


def run_demo(demo: Demo) -> None:
    """Start a fleet, train examples/digits on it, show every round, and save the model."""
    app = read_app(digits())
    _require(NEEDS, "pip install 'skerry[examples]'")
    if demo.full:
        _require(NEEDS_FULL, "pip install 'skerry-cloud[litert]' 'skerry-edge[onnx]'")
    began = time.monotonic()
    home = Path(tempfile.mkdtemp(prefix="skerry-demo-"))
    succeeded = False
    try:
        with interruptible(), LocalFleet(home) as fleet:
            typer.echo(
                f"Skerry demo: a coordinator and {demo.devices} devices on this machine, "
                "each its own process with its own certificate (mutual TLS)"
            )
            plans = start(fleet, demo)
            shown = ", ".join(f"{plan.name} ({plan.link})" for plan in plans)
            typer.echo(f"online after {time.monotonic() - began:.1f} s: {shown}")
            typer.echo(
                "training handwritten digits; every device has its own share, uneven by digit:\n"
            )
            with fleet.client() as client:
                run = begin(client, app.bundle, app.name, demo)
                story = follow_run(client, run, Format.TABLE, timeout_s=RUN_S)
                trained = conclude(client, run, story, demo, seconds=time.monotonic() - began)
            if demo.full:
                release(fleet, plans, trained, demo, app=digits())
            typer.echo(f"\n{NEXT if demo.full else NEXT_FULL}")
            succeeded = True
    finally:
        if succeeded and not demo.keep:
            shutil.rmtree(home, ignore_errors=True)
        else:
            typer.echo(f"the demo's home with all logs is {home}", err=True)


def start(fleet: LocalFleet, demo: Demo) -> Sequence[DevicePlan]:
    """Start the coordinator and its devices; return them once all are online."""
    plans = plan_devices(demo.devices, demo.link)
    fleet.start()
    fleet.join(plans)
    fleet.run(plans)
    fleet.wait_online(plans)
    return plans


def begin(client: Client, bundle: bytes, name: str, demo: Demo) -> str:
    """Send the app, begin its run, and return the run's id."""
    kept = client.upload(at("apps"), bundle)
    options = {"min_devices": demo.devices, "rounds": demo.rounds, "seed": 7}
    run = client.post(at("runs"), {"app": kept["digest"], "name": name, "options": options})
    return str(run["id"])


def conclude(client: Client, run: str, story: Story, demo: Demo, *, seconds: float) -> Trained:
    """Show rounds, devices and the accuracy; save the model; raise DemoError below the goal."""
    typer.echo("")
    show_story(client, client.get(at("runs", run)))
    path = demo.save / "digits.npz"
    kept = save_model(client, run, path)
    accuracy = final_accuracy(story)
    typer.echo(
        f"\ntest accuracy {accuracy:.1%} after {max(story.by_round)} rounds, {seconds:.0f} s in all"
    )
    typer.echo(f"model: {path} ({kept.tensors} tensors)\n{how_to_load(path)}")
    if accuracy < GOAL and not demo.rounds:
        raise DemoError(
            f"the test accuracy is {accuracy:.1%}; expected at least {GOAL:.0%}",
            hint="skerry demo --keep leaves the logs to look at",
        )
    return Trained(run=run, rounds=max(story.by_round), weights=path, accuracy=accuracy)


def final_accuracy(story: Story) -> float:
    """Return the accuracy of the last round that was evaluated; 0 when none was."""
    for number in sorted(story.by_round, reverse=True):
        for values in story.by_round[number].metrics.values():
            if "accuracy" in values:
                return values["accuracy"]
    return 0.0


def digits() -> Path:
    """Return the folder of examples/digits: in the repository, else in the package."""
    package = Path(__file__).parents[1]
    for folder in (package.parents[1] / "examples" / "digits", package / "examples" / "digits"):
        if (folder / "skerry.toml").is_file():
            return folder
    raise ConfigError("examples/digits is not installed", hint="run the demo from the repository")


def _require(packages: Sequence[str], hint: str) -> None:
    """Raise ConfigError naming the packages that are not installed."""
    if missing := [name for name in packages if find_spec(name) is None]:
        raise ConfigError(f"the demo needs {', '.join(missing)}", hint=hint)
