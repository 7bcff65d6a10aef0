"""Apps: what a device runs, in a worker. One module per kind, loaded only in the child.

`native` runs plain functions; `flower` an unmodified Flower ClientApp, and is the one module of
the edge that imports flwr.
"""

from enum import IntEnum
from importlib import import_module
from typing import Protocol, cast

from skerry_protos.records import Records

from skerry_edge.worker.messages import Job


class FailureCode(IntEnum):
    """Why a task failed: Flower's ErrorCode numbers, so that its strategies know them."""

    UNKNOWN = 0
    LOAD = 1  # the app could not be loaded
    RAISED = 2  # the app raised
    UNAVAILABLE = 5  # the device could not work on it
    PRECONDITION = 6  # a mod refused
    BUNDLE = 7  # the bundle is invalid
    CRASHED = 8  # the worker died, or passed a limit and was killed


class AppFailure(Exception):  # noqa: N818 - it is an answer, not a mistake of ours
    """The app cannot answer: a code and one line of reason."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


class App(Protocol):
    """An app that is loaded in this worker."""

    def handle(
        self, job: Job, content: Records, state: Records | None
    ) -> tuple[Records, Records | None]:
        """Return the reply and the app's next state (None: it keeps none)."""
        ...


class AppModule(Protocol):
    """A module of this package."""

    def load(self, job: Job) -> App: ...


KINDS = ("native", "flower")


def load_app(job: Job) -> App:
    """Return the app a job names, loaded by the module of its kind."""
    if job.kind not in KINDS:
        raise AppFailure(FailureCode.LOAD, f"no such kind of app: {job.kind!r}; {KINDS}")
    return cast("AppModule", import_module(f"skerry_edge.apps.{job.kind}")).load(job)
