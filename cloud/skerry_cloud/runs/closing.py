"""The end of a question, as it is recorded: who is late, and why. The database decides who is.

A reply and the end of its question may be on their way to the database at once; the task's row
says which came first, and what it says is what the server side hears, now and after a restart.
"""

from collections.abc import Callable, Collection

import sqlalchemy as sa
from skerry_protos import steady
from skerry_protos.messages import DeviceId, ParcelId, RunId

from skerry_cloud.runs.exchange import Exchange, Outcome, Part, outcome_of
from skerry_cloud.runs.lifecycle import TaskEvent
from skerry_cloud.runs.tasks import NODE_UNAVAILABLE
from skerry_cloud.store import questions as recorded
from skerry_cloud.store import runs as kept
from skerry_cloud.store import tasks as kept_tasks
from skerry_cloud.store.runs import Event


def of(
    exchange: Exchange, run: RunId, here: Collection[DeviceId]
) -> Callable[[sa.Connection], dict[ParcelId, str]]:
    """Return what records a question's end, and returns who is late and why."""
    early = steady.unix_s() < exchange.deadline
    reasons = {part.task: why_late(part, part.device in here, early) for part in exchange.open}

    def write(connection: sa.Connection) -> dict[ParcelId, str]:
        late = {}
        for task, why in reasons.items():
            if kept_tasks.move(connection, task, TaskEvent.CLOSE, why, code=NODE_UNAVAILABLE):
                late[task] = why
                data = {"task": task, "phase": exchange.phase, "why": why}
                device = exchange.parts[task].device
                event = Event(kind="late", round=exchange.round, device=device, data=data)
                kept.note(connection, run, event)
        counts = dict.fromkeys(Outcome, 0)
        for state, count in recorded.outcomes(connection, run, exchange.number).items():
            counts[outcome_of(state)] += count
        closed = {
            "phase": exchange.phase,
            "asked": len(exchange.parts),
            "replied": counts[Outcome.REPLIED],
            "failed": counts[Outcome.FAILED],
            "late": counts[Outcome.LATE],
        }
        kept.note(connection, run, Event(kind="closed", round=exchange.round, data=closed))
        recorded.close_question(connection, run, exchange.number)
        return late

    return write


def why_late(part: Part, connected: bool, early: bool) -> str:
    """Return why a device is left out of a round that has closed."""
    end = "before the quorum was reached" if early else "by the round's deadline"
    if not connected:
        return f"no reply {end}: the device is not connected"
    if not part.stored:
        return f"no reply {end}: the device has not taken the task yet"
    return f"no reply {end}" + (f"; it was at {part.progress:.0%}" if part.progress else "")
