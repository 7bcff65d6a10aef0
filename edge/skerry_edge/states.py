"""What is kept on the device between the tasks of one run.

That is the app's state (Flower's Context.state) and its codec's feedback. What comes next is
prepared beside the current and applied only when the reply that goes with it is in the outbox, so a
task that is worked on twice begins from the same.
"""

import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

RUNS_KEPT = 32
"""Runs whose state is kept; the ones unused for longest go."""


STATE, FEEDBACK = "state", "feedback"
NBYTES = 4 * 1024**3
"""Disk that all runs' files may take, unless told otherwise."""


class States:
    """Records files by run and name."""

    def __init__(self, root: Path, limit: int = NBYTES) -> None:
        """Keep at most `limit` bytes below `root`."""
        self._root, self._limit = root, limit
        root.mkdir(parents=True, exist_ok=True)

    def current(self, run: str, name: str = STATE) -> Path | None:
        """Return a run's file of this name, or None when it has none."""
        path = self._folder(run) / name
        return path if path.exists() else None

    def prepare(self, run: str, task: str, files: Mapping[str, Path]) -> None:
        """Take over a worker's files by name, durably, without applying them."""
        folder = self._folder(run)
        for path, _, of in self._prepared(folder.name):
            if of == task:
                path.unlink()  # of an attempt that found no room for its reply
        if not files:
            return
        self._make_room(folder, sum(file.stat().st_size for file in files.values()))
        folder.mkdir(exist_ok=True)
        for name, file in files.items():
            with file.open("rb") as written:
                os.fsync(written.fileno())
            shutil.move(file, folder / f"{name}.{task}.next")

    def apply(self, run: str, task: str) -> None:
        """Make what was prepared the current."""
        for path, name, of in self._prepared(self._folder(run).name):
            if of == task:
                path.replace(path.with_name(name))

    def recover(self, answered: set[str]) -> None:
        """Apply what was prepared for answered tasks; what was for others is worked out again."""
        for path, name, task in self._prepared("*"):
            if task in answered:
                path.replace(path.with_name(name))
            else:
                path.unlink()

    def forget(self, run: str) -> None:
        """Remove what is kept for a run: it is over."""
        shutil.rmtree(self._folder(run), ignore_errors=True)

    def _prepared(self, folder: str) -> Iterator[tuple[Path, str, str]]:
        """Yield files that wait to be applied, each with its name and task."""
        for path in list(self._root.glob(f"{folder}/*.next")):
            name, _, task = path.stem.partition(".")
            yield path, name, task

    def _make_room(self, wanted: Path, nbytes: int) -> None:
        """Remove the runs unused for longest: there are too many, or they take too much disk."""
        others = sorted(
            (each for each in self._root.iterdir() if each != wanted),
            key=lambda each: each.stat().st_mtime,
        )
        sizes = [sum(file.stat().st_size for file in each.iterdir()) for each in others]
        room = self._limit - nbytes
        for place, folder in enumerate(others):
            if len(others) - place < RUNS_KEPT and sum(sizes[place:]) <= room:
                return
            shutil.rmtree(folder, ignore_errors=True)

    def _folder(self, run: str) -> Path:
        # A run's id may hold any visible character; its hash is a safe name.
        return self._root / hashlib.sha256(run.encode()).hexdigest()[:40]
