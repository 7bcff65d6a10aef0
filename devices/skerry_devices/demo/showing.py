"""What a person sees of the demo: each command as it is typed, and a summary at the end."""

import os
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from secrets import token_urlsafe

import typer

from skerry_devices import contexts
from skerry_devices.cli import EXIT_INTERRUPTED, root
from skerry_devices.demo import DemoError
from skerry_devices.local import LocalFleet
from skerry_devices.signing import KEYS_VARIABLE, PASSWORD_VARIABLE

CONTEXT = "demo"


def heading(text: str) -> None:
    """Begin a part."""
    typer.secho(f"\n== {text}", bold=True)


def typed(*words: object) -> None:
    """Show a command as a person types it, and do it: the command itself, not something like it.

    Raise what it raises; KeyboardInterrupt too, which Typer turns into an exit status.
    """
    said = [str(word) for word in words]
    typer.secho(f"\n$ {shlex.join(['skerry', *said])}", bold=True)
    status = typer.main.get_command(root).main(said, prog_name="skerry", standalone_mode=False)
    if status == EXIT_INTERRUPTED:
        raise KeyboardInterrupt
    if isinstance(status, int) and status:
        raise DemoError(f"skerry {' '.join(said[:2])} ended with status {status}")


@contextmanager
def operator(fleet: LocalFleet) -> Iterator[None]:
    """Let the commands in the block speak to this fleet, with keys of its own.

    A person has these in ~/.skerry and types the password; the demo leaves both alone.
    """
    ours = {
        "SKERRY_CONFIG": str(fleet.home / "operator" / "config.toml"),
        "SKERRY_CONTEXT": CONTEXT,
        KEYS_VARIABLE: str(fleet.home / "operator" / "keys"),
        PASSWORD_VARIABLE: token_urlsafe(24),
    }
    before = {name: os.environ.get(name) for name in ours}
    os.environ.update(ours)
    try:
        contexts.keep(CONTEXT, fleet.context, use=True)
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def summary(rows: Sequence[tuple[str, str]]) -> None:
    """Print what was shown, one line for each part."""
    heading("What you have seen")
    width = max(len(name) for name, _ in rows) + 2
    for name, text in rows:
        typer.echo(f"{name:<{width}}{text}")
