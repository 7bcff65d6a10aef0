"""`skerry up`: a coordinator and local devices, for trying things out."""

import contextlib
import time
from pathlib import Path
from typing import Annotated

import typer

from skerry_devices.cli import single

app = single()


@app.command()
def up(
    devices: Annotated[
        int, typer.Option("--devices", "-n", min=0, max=100, help="How many local devices.")
    ] = 4,
    link: Annotated[str, typer.Option(help="How they connect: grpc, mqtt, or both.")] = "both",
    profile: Annotated[str, typer.Option(help="The device profile they have.")] = "generic",
    home: Annotated[
        Path, typer.Option(help="Where the fleet lives; kept, and found again next time.")
    ] = Path("~/.skerry/local"),
    context: Annotated[
        str, typer.Option("--name", help="The context that commands then use.")
    ] = "local",
) -> None:
    """Start a coordinator and local devices, each its own process, until Ctrl-C."""
    from skerry_devices import contexts
    from skerry_devices.local import LocalFleet, plan_devices
    from skerry_devices.signals import interruptible

    plans = plan_devices(devices, link, profile=profile)
    with interruptible(), LocalFleet(home.expanduser(), lasting=True) as fleet:
        typer.echo("starting the coordinator …")
        contexts.keep(context, fleet.start(), use=True)
        typer.echo(f"coordinator  {fleet.context.url}  (context {context!r})")
        if plans:
            typer.echo(f"starting {len(plans)} devices …")
            fleet.join(plans)
            fleet.run(plans)
            fleet.wait_online(plans)
        for plan in plans:
            typer.echo(f"device       {plan.name}  online over {plan.link}")
        typer.echo(NEXT.format(home=fleet.home))
        with contextlib.suppress(KeyboardInterrupt):
            while True:
                fleet.children.check()
                time.sleep(0.5)
        typer.echo("stopping …")


NEXT = """
In another terminal:
  skerry devices list
  skerry new my-app && skerry run my-app
  skerry devices invite          # lets another device join

Logs are in {home}. Ctrl-C stops everything; skerry up starts it again."""
