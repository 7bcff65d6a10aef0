"""The lives of a run and of a task, as tables: all of it can be read here and a test walks it."""

from enum import StrEnum


class RunState(StrEnum):
    """What a run is doing."""

    CREATED = "created"
    STARTING = "starting"  # its server side is loading
    RUNNING = "running"
    PAUSING = "pausing"  # a person asked it to rest; its server side ends
    PAUSED = "paused"  # its devices get nothing new; what they answer is kept
    STOPPING = "stopping"  # a person asked it to end
    COMPLETED = "completed"
    FAILED = "failed"
    STOPPED = "stopped"
    INTERRUPTED = "interrupted"  # what it needs to go on is damaged or gone


class RunEvent(StrEnum):
    """What may happen to a run."""

    STARTED = "started"  # a server side begins: the first, or one that hears all again
    READY = "ready"  # the app is loaded and runs
    DONE = "done"  # the app's server side returned
    BROKE = "broke"  # it raised, crashed, passed a limit, or waited in vain
    PAUSE = "pause"
    RESTED = "rested"  # its server side is gone, all it heard is kept
    RESUME = "resume"
    STOP = "stop"
    ENDED = "ended"  # its processes are gone
    LOST = "lost"  # what it needs to go on is damaged or gone


class TaskState(StrEnum):
    """What has become of one device's task."""

    QUEUED = "queued"  # stored here, not yet by the device
    SENT = "sent"  # stored by the device
    REPLIED = "replied"  # its reply is stored here
    FAILED = "failed"  # the device replied that it failed
    REJECTED = "rejected"  # the device will never take it
    REFUSED = "refused"  # its reply is not fit to be used
    LATE = "late"  # no reply when the round closed
    CANCELLED = "cancelled"  # the run ended first


class TaskEvent(StrEnum):
    """What may happen to a task."""

    STORED = "stored"  # the device acknowledged it
    REPLY = "reply"
    FAILURE = "failure"
    REJECT = "reject"
    REFUSE = "refuse"  # screening found a flaw
    CLOSE = "close"  # its round closed
    CANCEL = "cancel"  # its run ended


_R, _E = RunState, RunEvent

RUN_NEXT: dict[tuple[RunState, RunEvent], RunState] = {
    (_R.CREATED, _E.STARTED): _R.STARTING,
    (_R.CREATED, _E.BROKE): _R.FAILED,
    (_R.CREATED, _E.PAUSE): _R.PAUSING,
    (_R.CREATED, _E.STOP): _R.STOPPED,
    (_R.CREATED, _E.LOST): _R.INTERRUPTED,
    (_R.STARTING, _E.READY): _R.RUNNING,
    (_R.STARTING, _E.BROKE): _R.FAILED,
    (_R.STARTING, _E.PAUSE): _R.PAUSING,
    (_R.STARTING, _E.STOP): _R.STOPPING,
    (_R.STARTING, _E.LOST): _R.INTERRUPTED,
    # Another server side: the coordinator was killed or stopped, and is back.
    (_R.RUNNING, _E.STARTED): _R.STARTING,
    (_R.RUNNING, _E.DONE): _R.COMPLETED,
    (_R.RUNNING, _E.BROKE): _R.FAILED,
    (_R.RUNNING, _E.PAUSE): _R.PAUSING,
    (_R.RUNNING, _E.STOP): _R.STOPPING,
    (_R.RUNNING, _E.LOST): _R.INTERRUPTED,
    (_R.PAUSING, _E.RESTED): _R.PAUSED,
    (_R.PAUSING, _E.BROKE): _R.FAILED,
    (_R.PAUSING, _E.STOP): _R.STOPPING,
    (_R.PAUSING, _E.LOST): _R.INTERRUPTED,
    (_R.PAUSED, _E.RESUME): _R.STARTING,
    (_R.PAUSED, _E.BROKE): _R.FAILED,
    (_R.PAUSED, _E.STOP): _R.STOPPING,
    (_R.PAUSED, _E.LOST): _R.INTERRUPTED,
    (_R.STOPPING, _E.ENDED): _R.STOPPED,
    # Nothing is left to stop.
    (_R.STOPPING, _E.LOST): _R.STOPPED,
}

_T, _V = TaskState, TaskEvent

TASK_NEXT: dict[tuple[TaskState, TaskEvent], TaskState] = {
    (_T.QUEUED, _V.STORED): _T.SENT,
    # A reply may overtake the acknowledgement of its task.
    (_T.QUEUED, _V.REPLY): _T.REPLIED,
    (_T.QUEUED, _V.FAILURE): _T.FAILED,
    (_T.QUEUED, _V.REJECT): _T.REJECTED,
    (_T.QUEUED, _V.CLOSE): _T.LATE,
    (_T.QUEUED, _V.CANCEL): _T.CANCELLED,
    (_T.SENT, _V.REPLY): _T.REPLIED,
    (_T.SENT, _V.FAILURE): _T.FAILED,
    (_T.SENT, _V.CLOSE): _T.LATE,
    (_T.SENT, _V.CANCEL): _T.CANCELLED,
    # The device may have lost the task after it had acknowledged it (a new disk): sent again.
    (_T.SENT, _V.REJECT): _T.REJECTED,
    (_T.REPLIED, _V.REFUSE): _T.REFUSED,
}

OPEN_RUNS = frozenset(state for state, _ in RUN_NEXT)
RESTING = frozenset({RunState.PAUSING, RunState.PAUSED})
OPEN_TASKS = frozenset({TaskState.QUEUED, TaskState.SENT})


def advance_run(state: RunState, event: RunEvent) -> RunState:
    """Return the state after `event`; an event out of place changes nothing."""
    return RUN_NEXT.get((state, event), state)


def advance_task(state: TaskState, event: TaskEvent) -> TaskState:
    """Return the state after `event`; an event out of place changes nothing."""
    return TASK_NEXT.get((state, event), state)
