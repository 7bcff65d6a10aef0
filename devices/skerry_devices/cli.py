"""The tree of commands, each module imported when its command is called, and what errors look like.

An error is one line, `error[code]: what is wrong`, then `hint: what to do next`, or one JSON object
where the output is to be JSON; docs/errors.md lists the codes and exit statuses. A traceback never
reaches the terminal: it goes to a file.
"""

import difflib
import json
import os
import re
import sys
import time
import traceback
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import click
import typer
from skerry_protos.errors import SkerryError
from typer.core import TyperGroup

COMMANDS = {
    "up": "Start a coordinator and local devices, until Ctrl-C.",
    "demo": "Train a real model on four local devices and show every round.",
    "new": "Make a new app that runs as it is.",
    "devices": "List, invite, label, hold back and revoke devices.",
    "run": "Train an app (a folder) on the fleet.",
    "runs": "List, watch, stop runs and fetch their models.",
    "models": "Export, import, sign, compare and retire models.",
    "apps": "Sign and withdraw apps for devices that run signed ones only.",
    "keys": "Make, use and rotate the offline keys that models are signed with.",
    "rollout": "Bring a signed model to the fleet in waves, behind gates.",
    "config": "Choose which coordinator the commands speak to.",
    "operators": "List, add and remove who may use the coordinator.",
    "audit": "Show who did what.",
    "doctor": "Check this machine, the context and the coordinator.",
    "completion": "Print a shell's completion script.",
}
EXIT_INTERRUPTED = 130


class Group(TyperGroup):
    """A group of commands that says which command was probably meant."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the command that the first argument names, or raise UsageError."""
        name = args[0] if args else ""
        if name and not name.startswith("-") and self.get_command(ctx, name) is None:
            near = difflib.get_close_matches(name, self.list_commands(ctx), 1, 0.5)
            also = f"; did you mean {near[0]!r}?" if near else ""
            raise click.UsageError(f"there is no command {name!r}{also}", ctx)
        return super().resolve_command(ctx, args)


class LazyGroup(Group):
    """The root: knows its commands' names, and imports one when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        """Return the names in the order of COMMANDS."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """Return the command, imported now, or None."""
        if cmd_name not in COMMANDS:
            return None
        module = import_module(f"skerry_devices.commands.{cmd_name}")
        command = typer.main.get_command(module.app)
        command.name = cmd_name
        command.help = command.help or COMMANDS[cmd_name]
        command.short_help = COMMANDS[cmd_name]
        return command


def group(help_text: str) -> typer.Typer:
    """Return an empty group of commands."""
    return typer.Typer(cls=Group, help=help_text, no_args_is_help=True, add_completion=False)


def single() -> typer.Typer:
    """Return a Typer for a module with one command."""
    return typer.Typer(add_completion=False)


root = typer.Typer(
    cls=LazyGroup,
    name="skerry",
    no_args_is_help=True,
    add_completion=False,
    epilog="Start here: skerry demo. Every command takes --help; docs/cli.md has them all.",
)


@root.callback()
def skerry(
    context: Annotated[
        str,
        typer.Option(
            "--context", metavar="NAME", envvar="SKERRY_CONTEXT", help="Use this context for once."
        ),
    ] = "",
    version: Annotated[bool, typer.Option("--version", "-V", help="Show the version.")] = False,
) -> None:
    """Train, ship and run models across a fleet of devices."""
    del context  # read where it is needed, by contexts.chosen
    if version:
        from importlib.metadata import version as installed

        print(f"skerry {installed('skerry')}")
        raise typer.Exit


def run(arguments: list[str] | None = None) -> int:
    """Run one command line and return its exit status."""
    say = _Sayer(sys.argv[1:] if arguments is None else arguments)
    try:
        result = typer.main.get_command(root).main(
            arguments, prog_name="skerry", standalone_mode=False
        )
        sys.stdout.flush()
        return result if isinstance(result, int) else 0
    except click.UsageError as error:
        if type(error).__name__ == "NoArgsIsHelpError":  # click 8.2 and newer
            print(error.format_message())
            return 2
        path = error.ctx.command_path if error.ctx else "skerry"
        return say("usage", error.format_message().rstrip("."), f"see {path} --help", 2)
    except click.ClickException as error:
        return say("usage", error.format_message(), "", 2)
    except (click.Abort, KeyboardInterrupt):
        return say("interrupted", "stopped by the user", "", EXIT_INTERRUPTED)
    except BrokenPipeError:  # as in `skerry devices list | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except SkerryError as error:
        return say(error.code, error.message, error.hint, error.exit_code)
    except Exception as error:  # noqa: BLE001
        return _unexpected(error, say)


class _Sayer:
    """Says what went wrong, in the form that these arguments ask for output in."""

    def __init__(self, arguments: list[str]) -> None:
        # Not what the command line was parsed to: that may be what went wrong.
        self._json = re.search(r"(^| )(-o ?|--output[ =])jsonl?( |$)", " ".join(arguments))

    def __call__(self, code: str, message: str, hint: str, status: int) -> int:
        text = " ".join(message.split())
        if self._json:
            said = {"code": code, "message": text, "hint": hint, "exit_status": status}
            print(json.dumps({"error": said}), file=sys.stderr)
            return status
        print(f"error[{code}]: {text}", file=sys.stderr)
        if hint:
            print(f"hint: {hint}", file=sys.stderr)
        return status


def _unexpected(error: Exception, say: _Sayer) -> int:
    """Keep the traceback in a file; say where."""
    path = Path(os.environ.get("SKERRY_CONFIG", "~/.skerry/config.toml")).expanduser()
    path = path.with_name("skerry-error.log")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a") as log:
            log.write(f"--- {time.strftime('%Y-%m-%d %H:%M:%S')} skerry {sys.argv[1:2]}\n")
            log.writelines(traceback.format_exception(error))
        where = f"please report it with the end of {path}"
    except OSError as unwritable:
        where = f"please report it (no traceback kept: {unwritable})"
    return say("internal", f"{type(error).__name__}: {error}", where, 1)


def choices(ctx: Any) -> dict[str, Any]:
    """Return the options of the root command that this call was given."""
    return dict(ctx.find_root().params)
