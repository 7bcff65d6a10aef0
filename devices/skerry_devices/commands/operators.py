"""`skerry operators`: who may use the coordinator, and how far."""

from enum import StrEnum
from typing import Annotated

import typer

from skerry_devices.cli import group
from skerry_devices.output import Column, Format, Output, ago, done, show_list, show_one

app = group("List, add and remove who may use the coordinator.")


class Role(StrEnum):
    """What an operator may do."""

    VIEWER = "viewer"
    OPERATOR = "operator"
    ADMIN = "admin"


COLUMNS = (
    Column("name", lambda o: str(o["name"])),
    Column("role", lambda o: str(o["role"])),
    Column("since", lambda o: ago(o.get("created_at"))),
    Column("state", lambda o: "removed" if o.get("revoked_at") else "active"),
)


@app.command("list")
def list_operators(output: Output = Format.TABLE) -> None:
    """List the operators."""
    from skerry_devices.client import at, connect

    with connect() as client:
        show_list(client.items(at("operators")), COLUMNS, output, empty="No operators.")


@app.command("add")
def add(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Who it is.")],
    role: Annotated[
        Role,
        typer.Option(
            help="viewer reads; operator also runs, labels and invites; admin also revokes devices"
            " and manages operators."
        ),
    ] = Role.OPERATOR,
    output: Output = Format.TABLE,
) -> None:
    """Add an operator and print the token, which is shown only now."""
    from skerry_devices.client import at, connect

    with connect() as client:
        made = client.post(at("operators"), {"name": name, "role": role.value})
        if output is not Format.TABLE:
            show_one(made, (), output)
            return
        print(made["token"])
        typer.echo(
            f"{name} runs: skerry config set-context NAME --url {client.url} --ca ca.pem --token -",
            err=True,
        )


@app.command("rotate")
def rotate(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Whose token.")],
    output: Output = Format.TABLE,
) -> None:
    """Give an operator a new token; the old one stops working at once."""
    from skerry_devices.client import at, connect

    with connect() as client:
        made = client.post(at("operators", name, "token"))
    done(made, str(made["token"]), output)


@app.command("remove")
def remove(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Who goes.")],
    output: Output = Format.TABLE,
) -> None:
    """Remove an operator; the token stops working at once."""
    from skerry_devices.client import at, connect

    with connect() as client:
        made = client.delete(at("operators", name))
    done(made or {"name": name}, f"removed {name}", output)
