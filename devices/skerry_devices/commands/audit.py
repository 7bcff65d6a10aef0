"""`skerry audit`: who did what."""

from typing import Annotated

import typer

from skerry_devices.cli import single
from skerry_devices.output import Column, Format, Output, clock, show_list

app = single()

COLUMNS = (
    Column("at", lambda a: clock(a["at"])),
    Column("operator", lambda a: str(a["operator"]), least=12),
    Column("action", lambda a: str(a["action"]), least=16),
    Column("target", lambda a: str(a["target"]), least=20),
    Column("outcome", lambda a: str(a["outcome"])),
)


@app.command()
def audit(
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="Newest entries.")] = 50,
    output: Output = Format.TABLE,
) -> None:
    """Show who did what, newest last."""
    from skerry_devices.client import at, connect

    with connect() as client:
        items = client.items(at("audit"), limit=limit)
    items.sort(key=lambda item: float(item["at"]))
    show_list(items, COLUMNS, output, empty="Nothing yet.")
