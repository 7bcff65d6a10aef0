"""`skerry demo`: what Skerry does, shown with a real model on a real fleet of this machine's.

`training` is the story; with `--full` it goes on in `releasing`. `asking` puts questions to devices
over HTTP, `showing` is what a person sees of it.
"""

from dataclasses import dataclass
from pathlib import Path

from skerry_protos.errors import SkerryError


class DemoError(SkerryError):
    """The demo ran and did not show what it should."""

    code = "demo"


@dataclass(frozen=True, slots=True, kw_only=True)
class Demo:
    """What to show."""

    devices: int = 4
    link: str = "both"
    rounds: int = 0  # 0: as the app says
    save: Path = Path("skerry-demo")
    keep: bool = False  # the temporary home, for a look at logs
    full: bool = False  # go on to export, sign, roll out, ask, and refuse a bad model


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """What training left: the run, its weights, and their accuracy on the held-out digits."""

    run: str
    rounds: int
    weights: Path
    accuracy: float
