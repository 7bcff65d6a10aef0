"""`skerry demo`: a real model, trained on local devices in two minutes."""

from pathlib import Path
from typing import Annotated

import typer

from skerry_devices.cli import single

app = single()


@app.command()
def demo(
    devices: Annotated[
        int, typer.Option("--devices", "-n", min=1, max=32, help="How many local devices.")
    ] = 4,
    link: Annotated[str, typer.Option(help="How they connect: grpc, mqtt, or both.")] = "both",
    rounds: Annotated[int, typer.Option(min=0, help="Rounds; 0: as the app says.")] = 0,
    save: Annotated[
        Path, typer.Option("--save", "-s", help="The folder for the trained model.")
    ] = Path("skerry-demo"),
    full: Annotated[
        bool,
        typer.Option(
            "--full",
            help="Go on: export, sign, roll out in waves, ask a device, and stop a bad model.",
        ),
    ] = False,
    keep: Annotated[
        bool, typer.Option("--keep", help="Leave the temporary home with all logs.")
    ] = False,
) -> None:
    """Train handwritten digits on four local devices, show every round, and save the model."""
    from skerry_devices.demo import Demo
    from skerry_devices.demo.training import run_demo

    run_demo(Demo(devices=devices, link=link, rounds=rounds, save=save, keep=keep, full=full))
