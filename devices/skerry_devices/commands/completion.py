"""`skerry completion`: the script that makes a shell complete commands and options."""

from enum import StrEnum
from typing import Annotated

import typer

from skerry_devices.cli import single

app = single()


class Shell(StrEnum):
    """Shells that can complete."""

    BASH = "bash"
    ZSH = "zsh"
    FISH = "fish"


@app.command()
def completion(
    shell: Annotated[Shell, typer.Argument(help="Your shell.")],
) -> None:
    """Print a completion script: add `eval "$(skerry completion bash)"` to your shell's profile."""
    from click.shell_completion import get_completion_class

    found = get_completion_class(shell.value)
    assert found is not None, shell
    from skerry_devices.cli import root

    print(found(typer.main.get_command(root), {}, "skerry", "_SKERRY_COMPLETE").source())
