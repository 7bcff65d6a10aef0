"""`skerry config`: which coordinator the commands speak to."""

import json
from pathlib import Path
from typing import Annotated

import typer
from skerry_protos.errors import ConfigError

from skerry_devices import contexts
from skerry_devices.cli import group
from skerry_devices.contexts import Context, Contexts
from skerry_devices.output import Column, Format, Output, show_list

app = group("Choose which coordinator the commands speak to.")

Name = Annotated[str, typer.Argument(metavar="NAME", help="A context's name.")]

COLUMNS = (
    Column("current", lambda c: "*" if c["current"] else ""),
    Column("name", lambda c: str(c["name"])),
    Column("url", lambda c: str(c["url"]), least=24),
    Column("ca", lambda c: str(c["ca"] or "-"), least=20),
    Column("token", lambda c: "yes" if c["token"] else "no"),
)


@app.command("get-contexts")
def get_contexts(output: Output = Format.TABLE) -> None:
    """List the contexts; tokens are not shown."""
    known = contexts.load()
    items = [
        {
            "name": name,
            "current": name == known.current,
            "url": context.url,
            "ca": context.ca,
            "token": bool(context.token),
        }
        for name, context in sorted(known.contexts.items())
    ]
    show_list(items, COLUMNS, output, empty=f"No contexts: {contexts.HINT}")


@app.command("current-context")
def current_context() -> None:
    """Print the name of the context that is used."""
    print(contexts.chosen()[0])


@app.command("use-context")
def use_context(name: Name) -> None:
    """Use this context from now on."""
    known = contexts.load()
    if name not in known.contexts:
        names = ", ".join(sorted(known.contexts)) or "none yet"
        raise ConfigError(f"no context {name!r}; there are: {names}", hint=contexts.HINT)
    contexts.save(Contexts(current=name, contexts=known.contexts))
    print(f"commands now speak to {known.contexts[name].url} ({name})")


@app.command("set-context")
def set_context(
    name: Name,
    url: Annotated[str, typer.Option(help="The coordinator's HTTPS address.")] = "",
    ca: Annotated[str, typer.Option(help="The file with its CA certificate.")] = "",
    token: Annotated[
        str, typer.Option(help="An operator's token; - reads it from the standard input.")
    ] = "",
    home: Annotated[
        str, typer.Option(help="Take all three from this coordinator's home, on this machine.")
    ] = "",
    use: Annotated[bool, typer.Option("--use/--no-use", help="Use it from now on.")] = True,
) -> None:
    """Add a context, or change what is named of one."""
    known = contexts.load()
    old = known.contexts.get(name, Context(url=""))
    if home:
        old = of_home(Path(home))
    if token == "-":  # noqa: S105
        token = typer.get_text_stream("stdin").readline().strip()
    made = Context(
        url=url or old.url,
        ca=str(Path(ca).expanduser().resolve()) if ca else old.ca,
        token=token or old.token,
    )
    if not made.url.startswith(("https://", "http://")):
        raise ConfigError(
            f"context {name!r} has no address", hint="give --url https://HOST:8470, or --home DIR"
        )
    if made.ca and not Path(made.ca).is_file():
        raise ConfigError(f"there is no file {made.ca}", hint="copy the coordinator's ca.pem here")
    path = contexts.keep(name, made, use=use)
    print(f"context {name} is in {path}")


@app.command("delete-context")
def delete_context(name: Name) -> None:
    """Forget a context."""
    known = contexts.load()
    if name not in known.contexts:
        raise ConfigError(f"no context {name!r}", hint="skerry config get-contexts")
    left = {key: value for key, value in known.contexts.items() if key != name}
    contexts.save(Contexts(current=known.current if known.current in left else "", contexts=left))
    print(f"forgot {name}")


def of_home(home: Path) -> Context:
    """Return the context that a coordinator's home on this machine describes."""
    try:
        made = json.loads((home.expanduser() / "coordinator.json").read_text())
        token = Path(made["admin_token_file"]).read_text().strip()
        return Context(url=made["http_url"], ca=str(made["ca"]), token=token)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{home} is not the home of a running coordinator: {error}",
            hint="start one with: skerry-coordinator, or skerry up",
        ) from error
