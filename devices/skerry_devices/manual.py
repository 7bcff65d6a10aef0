"""The list of commands in docs/cli.md, written from the commands themselves.

`python -m skerry_devices.manual docs/cli.md` writes it below the page's marker; a test compares.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import click
import typer

from skerry_devices.cli import root

MARKER = "<!-- below: python -m skerry_devices.manual docs/cli.md -->\n"


def manual() -> str:
    """Return a section for each command: what it does, its arguments and options."""
    command = typer.main.get_command(root)
    sections = list(_sections(command, click.Context(command, info_name="skerry")))
    return "\n" + "\n\n".join(sections) + "\n"


def commands() -> list[str]:
    """Return every command's words, as "devices list"."""
    command = typer.main.get_command(root)
    found = _sections(command, click.Context(command, info_name="skerry"))
    return [section.partition("\n")[0].removeprefix("## skerry ") for section in found]


def _sections(command: click.Command, context: click.Context) -> Iterator[str]:
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            assert below is not None
            yield from _sections(below, click.Context(below, info_name=name, parent=context))
        return
    lines = [f"## {context.command_path}", "", (command.help or "").strip()]
    rows = [_row(one) for one in command.params if one.name != "help"]
    if rows:
        lines += ["", "| | |", "|---|---|", *rows]
    yield "\n".join(lines)


def _row(parameter: click.Parameter) -> str:
    if isinstance(parameter, click.Argument):
        name = f"`{parameter.metavar or str(parameter.name).upper()}`"
    else:
        name = ", ".join(f"`{word}`" for word in (*parameter.opts, *parameter.secondary_opts))
    said = str(getattr(parameter, "help", "") or "").strip()
    default = parameter.default
    if isinstance(parameter, click.Option) and not parameter.is_flag:
        name += f" {parameter.metavar or parameter.make_metavar()}"
        if default not in (None, "", ()) and not callable(default):
            said += f" Default: {getattr(default, 'value', default)}."
    elif isinstance(parameter, click.Option) and default is True:
        said += f" Default: {parameter.opts[0]}."
    return f"| {_cell(name)} | {_cell(said)} |"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def write(page: Path) -> None:
    """Write the list below the page's marker."""
    head, marker, _ = page.read_text().partition(MARKER)
    page.write_text(head + (marker or MARKER) + manual())


if __name__ == "__main__":
    write(Path(sys.argv[1]))
