"""The model that a run begins with when that is another run's; strategies/beginning.py uses it."""

from pathlib import Path

from skerry_cloud.runs.lifecycle import OPEN_RUNS
from skerry_cloud.runs.world import DamagedError, World
from skerry_cloud.store import runs as kept
from skerry_cloud.store.runs import Run


def flaw(run: Run | None, name: str) -> str | None:
    """Return why no run can begin with the model of `run`, or None."""
    if run is None:
        return f"there is no run {name[:80]!r}"
    if run.state in OPEN_RUNS:
        return f"run {run.id} is {run.state.value}: its model may still change"
    return None if run.model is not None else f"run {run.id} has no model"


async def initial_model(world: World, name: str) -> Path | None:
    """Return the file of the model to begin with; None where `name` is empty.

    Raise DamagedError when it is not here any more: a run that goes on must not begin otherwise.
    """
    if not name:
        return None
    run = await world.store.read(lambda c: kept.find(c, name))
    path = world.blobs.path(run.model) if run is not None and run.model is not None else None
    if path is None:
        raise DamagedError(f"the model of run {name} that it begins with is not here any more")
    return path
