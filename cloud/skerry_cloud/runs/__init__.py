"""Runs: from "train this" to a model, over devices that come and go. Start at engine.py.

    engine.py     Runs: begins, stops and finds runs; gives arriving replies to the right one
    conductor.py  one run and its server side (a child process)
    questions.py  what it has asked of devices: stored, sent, answered, closed
    muster.py     which devices it has, and why not more
    child.py      the child: the app's server side, through asker.py

plan.py and lifecycle.py say what may be wished and what may happen.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from skerry_cloud.runs.engine import Runs

__all__ = ["Runs"]


def __getattr__(name: str) -> Any:
    # The child process lives in this package and must not load the coordinator.
    if name == "Runs":
        from skerry_cloud.runs.engine import Runs

        return Runs
    raise AttributeError(name)
