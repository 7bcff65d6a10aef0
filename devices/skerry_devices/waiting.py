"""Waiting with a deadline: durations on the command line, and one loop that polls a condition."""

import time
from collections.abc import Callable
from typing import Annotated, TypeVar

import typer
from skerry_protos.errors import ConfigError, DeadlineError

T = TypeVar("T")


def duration(text: str) -> float:
    """Return the seconds in `1h30m`, for an option; typer shows what is wrong with it."""
    from skerry_cloud.durations import parse_duration

    try:
        return parse_duration(text)
    except ConfigError as error:
        raise typer.BadParameter(str(error)) from error


Timeout = Annotated[
    float,
    typer.Option(
        "--timeout", parser=duration, metavar="DURATION", help="Longest wait, such as 90s or 1h30m."
    ),
]


def until(
    look: Callable[[], T | None],
    *,
    timeout_s: float,
    what: str,
    hint: str = "",
    every_s: float = 0.3,
) -> T:
    """Return the first thing `look` finds, or raise DeadlineError naming `what` was waited for."""
    deadline = time.monotonic() + timeout_s
    while True:
        if (found := look()) is not None:
            return found
        if time.monotonic() >= deadline:
            raise DeadlineError(f"{what} did not happen within {timeout_s:g} s", hint=hint)
        time.sleep(every_s)
