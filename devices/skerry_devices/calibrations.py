"""Ranges for int8 from the devices' own data: a run of one question, made from an app to export.

The app's files and the float model, in the format of each runtime, become a bundle like any other:
signed by the coordinator, run in the devices' workers. What comes back is the run's model: ranges
and histograms of all devices together, one .npz file.
"""

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from skerry_cloud.models.export.request import Request
from skerry_cloud.strategies import CALIBRATE
from skerry_protos.calibration import BINS, FOLDER, PLAN, read_plan
from skerry_protos.errors import ConfigError, DeadlineError

from skerry_devices.apps import App, app_files, read_app
from skerry_devices.client import Client, at
from skerry_devices.journal import Answer, Story
from skerry_devices.models import save_model
from skerry_devices.watch import RunFailedError, journal, left_alone

DEVICES, RUN = "devices", "run:"
CAPABILITY = {"onnx": "onnxruntime", "litert": "litert"}
"""What a device has that can run a runtime's graph with all of its tensors to be seen."""
ROUND_S = 600.0
POLL_S = 2.0

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """Who is asked, and how long is waited."""

    said: str  # "devices", or "run:ID" for what a run before came to
    selector: str = ""
    timeout_s: float = 1800.0


def with_ranges(client: Client, request: Request, wish: Wish, folder: Path, say: Say) -> Request:
    """Return the request with ranges that devices measured; files come into `folder`."""
    if wish.said == DEVICES:
        run = ask_devices(client, request, wish, folder, say)
    elif wish.said.startswith(RUN):
        run = str(client.get(at("runs", wish.said.removeprefix(RUN)))["id"])
    else:
        raise ConfigError(
            f"--calibrate takes {DEVICES}, or {RUN}ID of a calibration before, not {wish.said!r}"
        )
    ranges = folder / "ranges.npz"
    save_model(client, run, ranges)
    return replace(request, ranges=str(ranges), ranges_run=run)


def ask_devices(client: Client, request: Request, wish: Wish, folder: Path, say: Say) -> str:
    """Let the devices calibrate and return the run's id; raise RunFailedError when none could."""
    until = time.monotonic() + wish.timeout_s
    app = bundle_of(request, folder / "bundle", wish.timeout_s, say)
    left = max(1.0, until - time.monotonic())
    options: dict[str, Any] = {
        "round_deadline_s": min(ROUND_S, left),
        "wait_deadline_s": left,
        "reply_bytes": reply_limit(folder / "bundle" / FOLDER / PLAN),
    }
    if wish.selector:
        options["selector"] = wish.selector
    if len(request.to) == 1:
        options["capabilities"] = [CAPABILITY[request.to[0]]]
    kept = client.upload(at("apps"), app.bundle)
    wanted = {"app": kept["digest"], "name": app.name, "options": options}
    run = str(client.post(at("runs"), wanted)["id"])
    say(f"{run} asks the devices for ranges")
    with left_alone(run):
        _follow(client, run, until, say)
    return run


def reply_limit(plan: Path) -> int:
    """Return the most bytes that an answer to this plan may have."""
    tensors = sum(len(graph.tensors) for graph in read_plan(plan.read_bytes()).graphs.values())
    return tensors * (BINS + 8) * 8 + 1024**2


def bundle_of(request: Request, folder: Path, timeout_s: float, say: Say) -> App:
    """Return the bundle that devices calibrate with, its files below `folder`."""
    from skerry_cloud.models.export.start import run_export

    source = Path(request.folder)
    for path in app_files(source):
        target = folder / path.relative_to(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    probe = folder / FOLDER
    probe.mkdir(parents=True, exist_ok=True)
    name = f"{request.name}-calibration"
    (folder / "skerry.toml").write_text(
        f"[app]\nname = {json.dumps(name)}\nmodule = {json.dumps(request.module)}\n"
        f'[run]\nrounds = 1\nstrategy = "{CALIBRATE}"\n'
    )
    run_export(replace(request, probe=str(probe)), timeout_s=timeout_s, on_line=say)
    return read_app(folder)


def _follow(client: Client, run: str, until: float, say: Say) -> None:
    """Wait for the run's end; say who was left out, and why."""
    story = Story()
    for events in journal(client, run, poll_s=POLL_S, until=until):
        story.tell(events)
        if story.ended:
            break
        if time.monotonic() >= until:
            raise DeadlineError(
                f"{run} did not end in time; it goes on",
                hint=f"skerry runs watch {run}, then --calibrate run:{run}",
            )
    parts = [
        part
        for one in story.by_round.values()
        for phase in one.phases.values()
        for part in phase.parts.values()
    ]
    for part in parts:
        if part.answer is not Answer.REPLIED:
            say(f"{part.device} is left out ({part.answer.value}): {part.why}")
    if story.state != "completed":
        raise RunFailedError(run, story.state, story.why)
    say(
        f"{sum(part.answer is Answer.REPLIED for part in parts)} of {len(parts)} devices calibrated"
    )
