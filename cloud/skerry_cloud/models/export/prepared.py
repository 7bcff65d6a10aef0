"""What every runtime's files are made from and judged by."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from skerry_cloud.models.export.measure import Judge
from skerry_cloud.models.export.program import Traced
from skerry_cloud.models.export.ranges import Federated
from skerry_cloud.models.export.request import Request
from skerry_cloud.models.export.source import Arrays, Subject

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A model on its way: as it will be converted, with its judge and its calibration set."""

    request: Request
    subject: Subject
    traced: Traced
    judge: Judge
    calibration: Arrays | None
    federated: Federated | None = None
    folder: Path  # for files on the way
    say: Say
    notes: list[str] = field(default_factory=list)  # why a recipe gave nothing

    @property
    def order(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The names of inputs and outputs, in the model's order."""
        return self.traced.inputs, self.traced.outputs
