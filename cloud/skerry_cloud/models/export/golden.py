"""The golden set: a few examples by which a device finds out whether the file works there."""

from pathlib import Path

import numpy as np
from skerry_protos.manifest import Golden

from skerry_cloud.models.export.measure import Judge
from skerry_cloud.models.export.runners import File
from skerry_cloud.models.export.source import Arrays

MIN_AGREEMENT = 0.95
CLOSE = 0.02
"""Of the outputs' spread: kernels of another processor round int8 differently."""


def choose(
    judge: Judge, answers: Arrays, count: int
) -> "np.ndarray[tuple[int], np.dtype[np.int64]]":
    """Return rows of held-out examples: of every class, each with a clear answer.

    A class by a hair's breadth may differ on another processor and would say nothing about it.
    """
    scores = answers[0]
    if not judge.classes or scores.ndim != 2:
        return np.linspace(0, len(scores) - 1, min(count, len(scores))).astype(np.int64)
    ordered = np.sort(scores, axis=-1)
    margin = ordered[:, -1] - ordered[:, -2]
    clear = np.argsort(-margin, kind="stable")[: max(count, len(scores) * 3 // 4)]
    classes = scores.argmax(-1)
    queues = [list(clear[classes[clear] == each][::-1]) for each in np.unique(classes[clear])]
    rows: list[int] = []
    while len(rows) < count and any(queues):
        for queue in queues:
            if queue and len(rows) < count:
                rows.append(int(queue.pop()))
    return np.array(sorted(rows), dtype=np.int64)


def write(path: Path, file: File, judge: Judge, answers: Arrays, count: int) -> Golden:
    """Write the golden set of a file, and return what the manifest says of it."""
    rows = choose(judge, answers, count)
    arrays = {
        f"input.{port.name}": each[rows]
        for port, each in zip(file.inputs, judge.data.inputs, strict=True)
    }
    arrays |= {
        f"output.{port.name}": each[rows] for port, each in zip(file.outputs, answers, strict=True)
    }
    if judge.data.labels is not None:
        arrays["labels"] = judge.data.labels[rows]
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return Golden(
        examples=len(rows),
        compare="argmax" if judge.classes else "close",
        min_agreement=MIN_AGREEMENT,
        tolerance=0.0 if judge.classes else CLOSE * float(np.ptp(answers[0])) + 1e-6,
        labels=judge.data.labels is not None,
    )
