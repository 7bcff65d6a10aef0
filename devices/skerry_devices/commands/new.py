"""`skerry new`: an app that runs as it is, to put one's own model and data into."""

import keyword
import re
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Annotated

import typer
from skerry_protos.errors import ConfigError

from skerry_devices.cli import single

app = single()


@app.command()
def new(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The app's name, and its folder's.")],
    flower: Annotated[bool, typer.Option("--flower", help="Make a plain Flower app.")] = False,
) -> None:
    """Make a new app that runs as it is: skerry run NAME."""
    folder = Path(name)
    title = folder.name
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]{0,62}", title):
        raise ConfigError(
            f"{title!r} cannot be an app's name",
            hint="use letters, digits, - and _, a letter first",
        )
    if folder.exists() and any(folder.iterdir() if folder.is_dir() else [folder]):
        raise ConfigError(f"{folder} is there already", hint="choose another name")
    module = title.replace("-", "_").lower()
    module = f"{module}_app" if keyword.iskeyword(module) else module
    kind = "flower" if flower else "native"
    template = files("skerry_devices") / "templates" / kind
    for path in _write(template, folder, {"@name@": title, "@module@": module}, module):
        print(f"  {path}")
    print(f"made a {kind} app; next: skerry run {folder}  (needs devices: skerry up --devices 4)")


def _write(source: Traversable, target: Path, words: dict[str, str], module: str) -> list[Path]:
    """Write a template's files with their words filled in; return them."""
    target.mkdir(parents=True, exist_ok=True)
    written = []
    for entry in sorted(source.iterdir(), key=lambda each: each.name):
        if entry.name == "__pycache__":
            continue
        if entry.is_dir():
            name = module if entry.name == "package" else entry.name
            written += _write(entry, target / name, words, module)
            continue
        text = entry.read_text(encoding="utf-8")
        for mark, word in words.items():
            text = text.replace(mark, word)
        # The suffix keeps tools from reading a template as Python.
        path = target / entry.name.removesuffix(".tmpl")
        path.write_text(text, encoding="utf-8")
        written.append(path)
    return written
