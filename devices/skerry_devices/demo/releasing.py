"""The second half of the demo: a trained model goes to the devices, and a bad one does not.

`release` is the story. Everything is done by the commands that a person types, with the keys and
the context of the demo's own home; only the questions to devices are asked from here.
"""

import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import numpy as np
import typer
from numpy.typing import NDArray
from skerry_protos.errors import DeadlineError

from skerry_devices.client import Client, at
from skerry_devices.commands.rollout import RolloutFailedError
from skerry_devices.demo import Demo, DemoError, Trained
from skerry_devices.demo.asking import Endpoint, Tally, Traffic, ask_all
from skerry_devices.demo.showing import heading, operator, summary, typed
from skerry_devices.local import DevicePlan, LocalFleet
from skerry_devices.output import shown_path, size

MODEL = "digits"
QUICK = ("--soak", "2s", "--trial", "1s", "--period", "0.5s", "--timeout", "3m", "--watch")
"""A minute for a device's trial is right for a fleet; here nothing else happens meanwhile."""
UNSURE_RISK = "0.03"
SPARE = 0.1
"""So much below what training reached may a device's accuracy on the golden set be."""
LEAST_GATE = 0.3
CLASSES = 10
UNTOLD = frozenset({"waiting", "left"})
"""States of devices that a rollout has told nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOut:
    """Digits that no device trained on: raw pixels (N x 1 x 8 x 8, 0 to 16), what they show."""

    images: NDArray[np.uint8]
    digits: NDArray[np.int64]


def release(
    fleet: LocalFleet, plans: Sequence[DevicePlan], trained: Trained, demo: Demo, *, app: Path
) -> None:
    """Export, sign and roll out what was trained, ask a device, then try the same with a bad one.

    Raise DemoError when the good model does not answer well, or the bad one is not stopped.
    """
    held_out = load_held_out(app)
    gate = f"min_accuracy={max(LEAST_GATE, trained.accuracy - SPARE):.2f}"
    with operator(fleet), fleet.client() as client, ExitStack() as opened:
        good = publish_good(client, trained, demo)
        roll_out_good(good, gate)
        endpoints = [
            opened.enter_context(Endpoint.of(fleet.home_of(plan), MODEL)) for plan in plans
        ]
        answers = ask_one_device(plans[0].name, endpoints[0], held_out)
        if answers.accuracy < trained.accuracy - SPARE:
            raise DemoError(
                f"{plans[0].name} answers {answers.accuracy:.1%} right; training reached "
                f"{trained.accuracy:.1%}"
            )
        bad = publish_bad(client, trained, demo.save / "broken", app)
        traffic = try_to_roll_out_bad(client, bad, gate, endpoints, held_out)
        summary(
            [
                (
                    "trained",
                    f"{trained.rounds} rounds on {len(plans)} devices: {trained.run}, "
                    f"{trained.accuracy:.1%} of the held-out digits right",
                ),
                *exported_rows(client, good),
                ("signed", f"{good} by the stable key, {bad} by the canary key"),
                ("rolled out", f"{good}: {rollout_line(client, good)}"),
                ("answered", tally_line(answers)),
                ("stopped", f"{bad}: {rollout_line(client, bad)}"),
                ("meanwhile", tally_line(traffic)),
            ]
        )
        typer.echo(f"\nthe exported files are in {shown_path(demo.save / 'exported')}")


def publish_good(client: Client, trained: Trained, demo: Demo) -> str:
    """Export the run's model for both runtimes, make keys, sign it; return its name@version."""
    out = demo.save / "exported"
    # A model of a few rounds is wrong too often for any promise.
    unsure = () if demo.rounds else ("--unsure-risk", UNSURE_RISK)
    heading("Export: two formats, int8, each measured against the float model")
    typed("models", "export", trained.run, "--out", shown_path(out), *unsure)
    heading("Sign: offline keys vouch for what devices may run")
    typer.echo("(keys and their password lie in the demo's home and go with it)")
    typed("keys", "init")
    return publish(client, exported(out, "litert", "onnx"), "stable")


def exported(folder: Path, *runtimes: str) -> list[Path]:
    """Return the files that an export left in a folder, which may hold older ones."""
    return [folder / f"{MODEL}-{runtime}-int8.zip" for runtime in runtimes]


def publish(client: Client, files: Sequence[Path], channel: str) -> str:
    """Import artefacts as a new version and sign it in a channel; return its name@version."""
    typed("models", "import", MODEL, *(shown_path(file) for file in files))
    made = client.get(at("models", MODEL))
    name = f"{made['model']}@{made['version']}"
    typed("models", "sign", name, "--channel", channel)
    return name


def roll_out_good(name: str, gate: str) -> None:
    """Bring the model to a quarter of the devices, then to all."""
    heading("Roll out: to a quarter of the devices first, then to all of them")
    typed("rollout", "start", name, "-w", "25%", "-w", "100%", "--gate", gate, *QUICK)


def ask_one_device(device: str, endpoint: Endpoint, held_out: HeldOut) -> Tally:
    """Ask one device for the digit in every held-out image."""
    heading(f"Ask: {device} answers on this machine, over HTTP (Open Inference Protocol v2)")
    image, digit = held_out.images[0], held_out.digits[0]
    one = endpoint.request(image)["inputs"][0]
    data = ", ".join(str(value) for value in one["data"][:6])
    typer.echo(
        f'\n$ curl {endpoint.url}/v2/models/{MODEL}/infer -d \'{{"inputs": [{{'
        f'"name": "{one["name"]}", "datatype": "{one["datatype"]}", "shape": {one["shape"]}, '
        f'"data": [{data}, …]}}]}}\''
    )
    answer = endpoint.ask(image)
    typer.echo(
        f"it shows a {answer.digit} (probability {answer.confidence:.3f}), says version "
        f"{answer.version}; it is a {digit}"
    )
    tally = ask_all(endpoint, held_out.images, held_out.digits)
    typer.echo(f"all held-out digits: {tally_line(tally)}")
    return tally


def publish_bad(client: Client, trained: Trained, folder: Path, app: Path) -> str:
    """Publish a model that takes every digit for the next one; return its name@version."""
    heading("Break it: a model that takes every digit for the next one")
    folder.mkdir(parents=True, exist_ok=True)
    weights = folder / "broken.npz"
    misread(trained.weights, weights)
    typer.echo(
        f"{shown_path(weights)}: the trained weights, the last layer's rows moved on by one.\n"
        "It loads, is as small and as fast, and as sure of itself. An export compares it with its\n"
        "own float model, so it passes there; whether it is right shows on the golden set."
    )
    typed(
        *("models", "export", shown_path(app), "--weights", shown_path(weights), "--to", "onnx"),
        *("--out", shown_path(folder)),
    )
    return publish(client, exported(folder, "onnx"), "canary")


def try_to_roll_out_bad(
    client: Client, name: str, gate: str, endpoints: Sequence[Endpoint], held_out: HeldOut
) -> Tally:
    """Begin the bad model's rollout while all devices are asked; raise DemoError if it serves."""
    heading("Stop it: the canary's gate, while every device goes on answering")
    words = ("rollout", "start", name, "--channel", "canary", "-w", "25%", "-w", "100%")
    with Traffic(endpoints, held_out.images, held_out.digits) as traffic:
        try:
            typed(*words, "--gate", gate, *QUICK)
        except RolloutFailedError as error:
            typer.echo(f"so it should be: {error.message}")
        else:
            raise DemoError(f"{name} is wrong on purpose, and was rolled out to every device")
    typed("models", "list")
    ended, served = newest_rollout(client, name), sorted(traffic.tally.versions)
    if (
        ended["state"] != "rolled-back"
        or "accuracy" not in ended["why"]
        or traffic.tally.failures
        or name.rpartition("@")[2] in served
    ):
        raise DemoError(
            f"the bad model's rollout is {ended['state']}: {ended['why']}; "
            f"{len(traffic.tally.failures)} of {traffic.tally.asked} questions failed, "
            f"answers came from versions {', '.join(served)}",
            hint="expected: rolled back for its accuracy, and every question answered by the "
            "version before",
        )
    return traffic.tally


def misread(weights: Path, target: Path) -> None:
    """Write the weights with the last layer's rows, one for each class, moved on by one."""
    with np.load(weights, allow_pickle=False) as arrays:
        made = {name: arrays[name] for name in arrays.files}
    for name, values in made.items():
        if len(values) == CLASSES:
            made[name] = np.roll(values, 1, axis=0)
    np.savez(target, **made)


def load_held_out(app: Path) -> HeldOut:
    """Return the held-out digits of the demo's app, as a camera would give them."""
    spec = spec_from_file_location("skerry_demo_digits", app / "app.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    images, digits = module.held_out()
    return HeldOut(images=np.rint(images / module.SCALE).astype(np.uint8), digits=digits)


def newest_rollout(client: Client, name: str) -> dict[str, Any]:
    """Return the newest rollout of a version, with its devices."""
    model, _, version = name.partition("@")
    for each in client.items(at("rollouts"), model=model):
        if str(each["version"]) == version:
            return dict(client.get(at("rollouts", each["id"])))
    raise DeadlineError(f"there is no rollout of {name}")


def exported_rows(client: Client, name: str) -> list[tuple[str, str]]:
    """Return a line for each artefact of a version, as its manifest says."""
    rows = []
    for each in client.get(at("models", name))["artefacts"]:
        figures = each["manifest"]["figures"]
        rows.append(
            (
                "exported",
                f"{each['runtime']} int8 ({each['manifest']['recipe']}): {size(figures['bytes'])}, "
                f"{figures['bytes'] / figures['float_bytes']:.2f}x the float file, "
                f"{figures['drop_points']:.2f} points lost, {figures['latency_s'] * 1e6:.0f} us",
            )
        )
    return rows


def rollout_line(client: Client, name: str) -> str:
    """Return how a version's rollout ended, where, and why."""
    found = newest_rollout(client, name)
    reached = [each for each in found["devices"] if each["state"] not in UNTOLD]
    names = ", ".join(sorted(each["device"] for each in reached))
    names = f" ({names})" if len(reached) < len(found["devices"]) else ""
    why = f": {found['why']}" if found["state"] != "completed" and found["why"] else ""
    return (
        f"{found['state']}, told to {len(reached)} of {len(found['devices'])} devices{names}{why}"
    )


def tally_line(tally: Tally) -> str:
    """Return what came of questions in one line."""
    versions = ", ".join(sorted(tally.versions)) or "none"
    return (
        f"{tally.asked} questions, {len(tally.failures)} failed, {tally.accuracy:.1%} right, "
        f"p50 {tally.latency_ms(0.5):.1f} ms, p95 {tally.latency_ms(0.95):.1f} ms, "
        f"by version {versions}"
    )
