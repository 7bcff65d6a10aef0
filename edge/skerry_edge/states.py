"""What an app keeps on the device between the tasks of one run (Flower's Context.state).

A next state is prepared beside the current one and applied only when the reply that goes with it
is in the outbox, so a task that is worked on twice begins from the same state.
"""

import hashlib
import os
import shutil
from pathlib import Path

RUNS_KEPT = 32
"""Runs whose state is kept; the ones unused for longest go."""


class States:
    """Records files by run."""

    def __init__(self, root: Path) -> None:
        self._root = root
        root.mkdir(parents=True, exist_ok=True)

    def current(self, run: str) -> Path | None:
        """Return the file of a run's state, or None when it has none."""
        path = self._folder(run) / "state"
        return path if path.exists() else None

    def prepare(self, run: str, task: str, state: Path) -> None:
        """Take over a worker's state file, durably, without applying it."""
        folder = self._folder(run)
        if not folder.exists():
            self._make_room()
            folder.mkdir()
        with state.open("rb") as file:
            os.fsync(file.fileno())
        shutil.move(state, folder / f"{task}.next")

    def apply(self, run: str, task: str) -> None:
        """Make the prepared state the current one."""
        folder = self._folder(run)
        (folder / f"{task}.next").replace(folder / "state")

    def recover(self, answered: set[str]) -> None:
        """Apply what was prepared for answered tasks; what was for others is worked out again."""
        for path in self._root.glob("*/*.next"):
            if path.stem in answered:
                path.replace(path.with_name("state"))
            else:
                path.unlink()

    def _make_room(self) -> None:
        folders = sorted(self._root.iterdir(), key=lambda each: each.stat().st_mtime)
        for folder in folders[: max(0, len(folders) - RUNS_KEPT + 1)]:
            shutil.rmtree(folder, ignore_errors=True)

    def _folder(self, run: str) -> Path:
        # A run's id may hold any visible character; its hash is a safe name.
        return self._root / hashlib.sha256(run.encode()).hexdigest()[:40]
