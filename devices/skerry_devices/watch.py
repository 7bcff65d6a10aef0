"""Watching a run: a live view on a terminal, plain lines elsewhere, events as JSON lines on demand.

The coordinator's journal is followed by long polls; a coordinator that is away for a while is
waited for, because the run goes on without us.
"""

import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from skerry_protos.errors import DeadlineError, LinkError, RejectedError, SkerryError

from skerry_devices.client import POLL_S, Client, at
from skerry_devices.journal import Answer, Phase, Round, Story, shown_metrics
from skerry_devices.output import Column, Format, clock, coded_size, console, size, table
from skerry_devices.signals import interruptible

if TYPE_CHECKING:
    from rich.console import RenderableType

AWAY_S = 120.0
"""How long a coordinator that does not answer is waited for."""
ROUNDS_SHOWN = 12
LIVE_POLL_S = 1.0


class RunFailedError(RejectedError):
    """The run has ended, and not well."""

    def __init__(self, run: str, state: str, why: str) -> None:
        super().__init__(f"run-{state}", f"{run} {state}: {why or 'no reason was given'}")
        self.hint = f"skerry runs show {run}; skerry runs logs {run}"


class LeftAloneError(SkerryError):
    """A person has stopped watching; the run has not stopped."""

    code = "interrupted"
    exit_code = 130

    def __init__(self, run: str) -> None:
        super().__init__(
            f"no longer watching; {run} goes on",
            hint=f"skerry runs watch {run}, or skerry runs stop {run}",
        )


@contextmanager
def left_alone(run: str) -> Iterator[None]:
    """Say that a run goes on when its watching is interrupted."""
    try:
        with interruptible():
            yield
    except KeyboardInterrupt:
        raise LeftAloneError(run) from None


def follow_run(client: Client, run: str, output: Format, *, timeout_s: float = 0.0) -> Story:
    """Show a run until it ends and return its story; raise RunFailedError when it ended badly."""
    until = time.monotonic() + timeout_s if timeout_s else math.inf
    live = output is Format.TABLE and sys.stdout.isatty()
    with _view(run, output, live=live) as show:
        story = Story()
        for events in journal(client, run, poll_s=LIVE_POLL_S if live else POLL_S, until=until):
            story.tell(events)
            show(story, events, waiting_of(client, run) if live and not story.ended else None)
            if story.ended:
                break
            if time.monotonic() >= until:
                raise DeadlineError(
                    f"{run} did not end within {timeout_s:g} s; it goes on",
                    hint=f"skerry runs watch {run}",
                )
    if output is Format.JSON:
        print(json.dumps(client.get(at("runs", run)), indent=2))
    if story.state != "completed":
        raise RunFailedError(run, story.state, story.why)
    return story


def journal(
    client: Client, run: str, *, poll_s: float, until: float
) -> Iterator[list[dict[str, Any]]]:
    """Yield a run's events as they come, and an empty list when none came for a while."""
    after, away_since = 0, 0.0
    while True:
        try:
            wait_s = max(0.0, min(poll_s, until - time.monotonic()))
            events = client.items(at("runs", run, "events"), after=after, wait_s=wait_s)
        except LinkError:
            away_since = away_since or time.monotonic()
            if time.monotonic() - away_since > AWAY_S:
                raise
            time.sleep(1.0)
            continue
        away_since = 0.0
        after = max([after, *(int(event["id"]) for event in events)])
        yield events


def waiting_of(client: Client, run: str) -> dict[str, Any] | None:
    """Return what the run says it waits for."""
    try:
        waiting: dict[str, Any] | None = client.get(at("runs", run)).get("waiting")
    except LinkError:
        return {"why": "the coordinator does not answer; the run goes on without us"}
    return waiting


Show = Callable[[Story, list[dict[str, Any]], dict[str, Any] | None], None]


@contextmanager
def _view(run: str, output: Format, *, live: bool) -> Iterator[Show]:
    """Yield the function that shows what is new."""
    if live:
        from rich.live import Live

        with Live(console=console(), refresh_per_second=4, transient=False) as screen:

            def redraw(
                story: Story, _events: list[dict[str, Any]], waiting: dict[str, Any] | None
            ) -> None:
                screen.update(picture(run, story, waiting), refresh=True)

            yield redraw
        return

    def lines(story: Story, events: list[dict[str, Any]], _waiting: dict[str, Any] | None) -> None:
        for event in events:
            if output is Format.JSONL:
                print(json.dumps(event), flush=True)
            elif output is Format.TABLE and (line := line_of(event, story)):
                print(f"{clock(event['at'])} {line}", flush=True)

    yield lines


def line_of(event: dict[str, Any], story: Story) -> str:
    """Return an event as one line, or nothing for one that people need not see."""
    data, device = event["data"], event["device"]
    of = f"/{story.rounds}" if story.rounds else ""
    where = f"round {event['round']}{of}" + (f" {data['phase']}" if data.get("phase") else "")
    match event["kind"]:
        case "state":
            return f"run {data['state']}" + (f": {data['why']}" if data.get("why") else "")
        case "asked":
            return f"{where}: asked {len(data['devices'])}, until {clock(data['until_unix_s'])}"
        case "failure":
            return f"{where}: {device} failed: {data.get('why', '')}"
        case "late" | "refused" as kind:
            return f"{where}: {device} {kind}: {data.get('why', '')}"
        case "closed":
            said = [f"{data[name]} {name}" for name in ("replied", "failed", "late") if data[name]]
            return f"{where}: closed, {', '.join(said) or 'no replies'}"
        case "metrics":
            shown = shown_metrics(data["values"])
            return f"{where}: {shown}" if shown else ""
        case "note":
            return str(data.get("text", ""))
        case "model":
            return f"model kept, {size(data.get('bytes'))}"
    return ""


def picture(run: str, story: Story, waiting: dict[str, Any] | None) -> "RenderableType":
    """Return the live view: rounds so far, the open phase device by device, and the wait."""
    from rich.console import Group
    from rich.text import Text

    colour = {"completed": "green", "failed": "red", "stopped": "yellow", "interrupted": "red"}
    head = Text.assemble(
        (run, "bold"),
        "  ",
        (story.state, colour.get(story.state, "cyan")),
        f"  round {max(story.by_round, default=0)}"
        + (f" of {story.rounds}" if story.rounds else ""),
    )
    parts: list[RenderableType] = [head]
    if story.by_round:
        rounds = [story.by_round[number] for number in sorted(story.by_round)]
        if len(rounds) > ROUNDS_SHOWN:
            parts.append(Text(f"… {len(rounds) - ROUNDS_SHOWN} rounds before", style="dim"))
        parts.append(rounds_table(rounds[-ROUNDS_SHOWN:]))
    for each, phase in story.phases[-2:]:
        if not phase.closed_at and not story.ended:
            parts.append(_open_phase(each, phase))
    if waiting and not story.ended:
        left = waiting.get("until_unix_s") or 0.0
        until = f", at most {max(0.0, left - time.time()):.0f} s more" if left else ""
        parts.append(Text(f"waits: {waiting.get('why', '')}{until}", style="dim"))
    if story.why and story.ended:
        parts.append(Text(story.why, style=colour.get(story.state, "")))
    return Group(*parts)


Down = Mapping[tuple[int, str], int]


ROUND_COLUMNS = (
    Column("round", lambda r: r["cells"][0], right=True),
    Column("phase", lambda r: r["cells"][1]),
    Column("asked", lambda r: r["cells"][2], right=True),
    Column("replied", lambda r: r["cells"][3], right=True),
    Column("failed", lambda r: r["cells"][4], right=True),
    Column("late", lambda r: r["cells"][5], right=True),
    Column("refused", lambda r: r["cells"][6], right=True),
    Column("down", lambda r: r["down"], right=True, spare=2),
    Column("up", lambda r: r["cells"][7], right=True, spare=1),
    Column("time", lambda r: r["cells"][8], right=True),
    Column("metrics", lambda r: r["cells"][9], least=20),
)
"""What `phase_row` says, and what was sent to devices."""


def rounds_table(rounds: list[Round], down: Down | None = None) -> "RenderableType":
    """Return a table with one row for each phase of these rounds; `down`: bytes sent to devices."""
    rows = []
    for each in rounds:
        for phase in each.phases.values():
            sent = "" if down is None else size(down.get((each.number, phase.name)))
            rows.append({"cells": phase_row(each, phase), "down": sent})
        for name, values in each.metrics.items():
            if name not in each.phases:
                cells = [str(each.number), name, *[""] * 7, shown_metrics(values)]
                rows.append({"cells": cells, "down": ""})
    columns = [each for each in ROUND_COLUMNS if down is not None or each.title != "down"]
    return table(columns, rows)


def phase_row(each: Round, phase: Phase) -> list[str]:
    """Return the cells of one phase."""
    counts = [
        # A refused reply is also one that came.
        phase.count(Answer.REPLIED, Answer.REFUSED),
        phase.count(Answer.FAILED),
        phase.count(Answer.LATE),
        phase.count(Answer.REFUSED),
    ]
    took = phase.closed_at - phase.asked_at if phase.closed_at and phase.asked_at else 0.0
    return [
        str(each.number),
        phase.name,
        str(len(phase.parts)),
        *(str(count) if count else "-" for count in counts),
        coded_size(
            sum(part.bytes_up for part in phase.parts.values()),
            sum(part.plain_bytes for part in phase.parts.values()),
        ),
        f"{took:.1f} s" if took else "…",
        shown_metrics(each.metrics.get(phase.name, {})),
    ]


def _open_phase(each: Round, phase: Phase) -> "RenderableType":
    from rich.text import Text

    left = max(0.0, phase.until - time.time())
    came = len(phase.parts) - phase.count(Answer.ASKED)
    text = Text(
        f"round {each.number} {phase.name}: {came} of {len(phase.parts)} have answered, "
        f"closes in {left:.0f} s at the latest"
    )
    for part in list(phase.parts.values())[:16]:
        style = {Answer.REPLIED: "green", Answer.ASKED: "dim"}.get(part.answer, "red")
        why = f" {part.why}" if part.why else f" {part.took_s:.1f} s" if part.took_s else ""
        text.append(f"\n  {part.device:<24} {part.answer.value}{why}", style=style)
    return text
