"""What devices answer, given to the run it belongs to: checked, fetched, stored once.

What is not taken is counted and named in the run's journal (unwanted.py).
"""

import sqlalchemy as sa
from google.protobuf.message import DecodeError
from skerry_protos import steady
from skerry_protos.errors import PeerError, RejectCode, RejectedError, SkerryError, TrustError
from skerry_protos.failpoints import failpoint
from skerry_protos.messages import BlobRef, DeviceId, Parcel, ParcelId, RunId
from skerry_protos.session.frames import read_parcel
from skerry_protos.v1 import fleet_pb2
from skerry_protos.v1.work_pb2 import Progress

from skerry_cloud.runs import traces
from skerry_cloud.runs.conductor import Conductor
from skerry_cloud.runs.exchange import Exchange, Outcome, Part
from skerry_cloud.runs.lifecycle import OPEN_RUNS, OPEN_TASKS, TaskEvent, TaskState
from skerry_cloud.runs.tasks import Answer, read_reply, shown, task_of
from skerry_cloud.runs.unwanted import Reason, Unwanted, reason_of
from skerry_cloud.runs.world import World
from skerry_cloud.store import runs as kept
from skerry_cloud.store import tasks as kept_tasks
from skerry_cloud.store.runs import Event
from skerry_cloud.store.tasks import TaskRow

FETCH_S = 3600.0
LATE_FETCH_S = 1.0
"""The least time a reply's content gets, when its round is about to close."""

ANSWERED = frozenset({TaskState.REPLIED, TaskState.REFUSED})


class Intake:
    """Takes replies and progress."""

    def __init__(self, world: World, unwanted: Unwanted) -> None:
        self._world = world
        self._unwanted = unwanted

    async def reply(self, device: DeviceId, parcel: Parcel, conductor: Conductor | None) -> None:
        """Store a reply, idempotently; the device may forget it when this returns."""
        try:
            task = task_of(parcel)
        except PeerError as error:
            await self._name(parcel.run, device, Reason.MALFORMED, error.message)
            raise RejectedError(RejectCode.MALFORMED, error.message) from error
        found = conductor.questions.find(task) if conductor is not None else None
        if conductor is None or found is None or found[1].device != device:
            await self._out_of_place(device, task, parcel)
            return
        exchange, part = found
        if part.outcome is not Outcome.OPEN:
            await self._out_of_place(device, task, parcel)
            return
        try:
            answer = read_reply(parcel)
            _require_round(parcel, exchange)
            with traces.taking_in(conductor.run.id, part):
                await self._content(device, conductor, exchange, part, answer)
        except (PeerError, TrustError, RejectedError) as error:
            code = error.code if isinstance(error, RejectedError) else RejectCode.MALFORMED
            reason = reason_of(error) if code != RejectCode.UNEXPECTED else Reason.WRONG_ROUND
            await self._unwanted.note(
                conductor.run.id, device, reason, error.message, round_=exchange.round
            )
            await conductor.questions.fail(task, 0, f"its reply was not taken: {error.message}")
            raise RejectedError(code, error.message) from error
        if answer.failed:
            await conductor.questions.fail(
                task, answer.code, answer.reason, log_tail=answer.log_tail
            )
        elif not await conductor.questions.replied(exchange, part, answer, parcel):
            await self._out_of_place(device, task, parcel)

    async def _content(
        self,
        device: DeviceId,
        conductor: Conductor,
        exchange: Exchange,
        part: Part,
        answer: Answer,
    ) -> None:
        """Fetch a reply's blob."""
        if answer.failed or not isinstance(answer.content, BlobRef):
            return
        if answer.content.size > conductor.options.reply_bytes:
            raise RejectedError(
                RejectCode.OVERSIZE,
                f"the reply has {answer.content.size} bytes; this run takes "
                f"{conductor.options.reply_bytes} (reply_bytes)",
            )
        left = exchange.deadline - steady.unix_s() if exchange.left_s is None else FETCH_S
        part.text = "sends its reply"
        await self._world.fleet.fetch(
            device, answer.content, deadline_s=max(LATE_FETCH_S, min(FETCH_S, left))
        )
        failpoint("reply.fetched")

    async def _out_of_place(self, device: DeviceId, task: ParcelId, parcel: Parcel) -> None:
        """Accept a reply nobody waits for, so that the device forgets it; refuse one not asked."""
        row = await self._world.store.read(lambda c: kept_tasks.find_task(c, task))
        if row is None or row.device != device:
            why = f"no task {task[:80]!r} was given to {device!r}"
            await self._name(parcel.run if row is None else row.run, device, Reason.NOT_ASKED, why)
            raise RejectedError(RejectCode.UNEXPECTED, why)
        if row.run != parcel.run:
            why = f"task {task} is of run {row.run}, not of {parcel.run[:80]!r}"
            await self._unwanted.note(row.run, device, Reason.NOT_ASKED, why)
            raise RejectedError(RejectCode.UNEXPECTED, why)
        if row.state not in ANSWERED and await self._world.write(lambda c: _close_late(c, task)):
            return
        if not _same(row, parcel):
            why = f"task {task} is answered already, and this is another answer"
            await self._unwanted.note(row.run, device, Reason.CHANGED, why, round_=row.round)
            raise RejectedError(RejectCode.UNEXPECTED, why)
        why = f"the answer to task {task} came again: nothing changes"
        await self._unwanted.note(row.run, device, Reason.REPEATED, why, round_=row.round)

    async def _name(self, run: RunId, device: DeviceId, reason: Reason, why: str) -> None:
        """Count what was not taken, if there is a run of that name."""
        if await self._world.store.read(lambda c: kept.find(c, run)) is not None:
            await self._unwanted.note(run, device, reason, why)

    def progress(self, device: DeviceId, parcel: Parcel, conductor: Conductor | None) -> None:
        """Show how far a device is."""
        try:
            said = Progress.FromString(parcel.body)
        except ValueError as error:
            raise RejectedError(RejectCode.MALFORMED, "the progress cannot be read") from error
        found = conductor.questions.find(ParcelId(said.task)) if conductor is not None else None
        if found is not None and found[1].device == device:
            found[1].progress = min(1.0, max(0.0, said.fraction)) if said.fraction > 0 else 0.0
            found[1].text = shown(said.text, 200)


def _require_round(parcel: Parcel, exchange: Exchange) -> None:
    if parcel.round != exchange.round:
        raise RejectedError(
            RejectCode.UNEXPECTED,
            f"the reply is of round {parcel.round}; its task is of round {exchange.round}",
        )


def _close_late(connection: sa.Connection, task: ParcelId) -> bool:
    """Note the first reply to a task that ended without one; return whether this is it."""
    row = kept_tasks.find_task(connection, task)
    if row is None or row.state in ANSWERED:
        return False
    if row.state in OPEN_TASKS:
        run = kept.find(connection, row.run)
        if run is not None and run.state in OPEN_RUNS:
            raise SkerryError(f"run {row.run} is being taken up again: offer the reply again")
        kept_tasks.move(connection, task, TaskEvent.CANCEL, "its run has ended")
    if not kept_tasks.reply_out_of_place(connection, task):
        return False
    data = {"task": task, "why": f"it came after the task was {row.state.value}"}
    event = Event(kind="late-reply", round=row.round, device=row.device, data=data)
    kept.note(connection, row.run, event)
    return True


def _same(row: TaskRow, parcel: Parcel) -> bool:
    """Return whether a reply is the one that was taken, as far as that is still known."""
    if row.reply:
        try:
            taken = read_parcel(fleet_pb2.Parcel.FromString(row.reply))
        except (DecodeError, RejectedError):
            return True
        return (taken.body, taken.blobs) == (parcel.body, parcel.blobs)
    content = parcel.blob("content")
    return not row.answer or (content is not None and content.digest == row.answer)
