"""What devices answer, given to the run it belongs to: checked, fetched, stored once."""

import sqlalchemy as sa
from skerry_protos import steady
from skerry_protos.errors import PeerError, RejectCode, RejectedError, TrustError
from skerry_protos.failpoints import failpoint
from skerry_protos.messages import BlobRef, DeviceId, Parcel, ParcelId
from skerry_protos.v1.work_pb2 import Progress

from skerry_cloud.runs.conductor import Conductor
from skerry_cloud.runs.exchange import Exchange, Outcome, Part
from skerry_cloud.runs.lifecycle import OPEN_TASKS, TaskEvent
from skerry_cloud.runs.tasks import Answer, read_reply, shown, task_of
from skerry_cloud.runs.world import World
from skerry_cloud.store import runs as kept
from skerry_cloud.store import tasks as kept_tasks
from skerry_cloud.store.runs import Event

FETCH_S = 3600.0
LATE_FETCH_S = 1.0
"""The least time a reply's content gets, when its round is about to close."""


class Intake:
    """Takes replies and progress."""

    def __init__(self, world: World) -> None:
        self._world = world

    async def reply(self, device: DeviceId, parcel: Parcel, conductor: Conductor | None) -> None:
        """Store a reply, idempotently; the device may forget it when this returns."""
        try:
            task = task_of(parcel)
        except PeerError as error:
            raise RejectedError(RejectCode.MALFORMED, error.message) from error
        found = conductor.questions.find(task) if conductor is not None else None
        if conductor is None or found is None or found[1].device != device:
            await self._out_of_place(device, task)
            return
        exchange, part = found
        if part.outcome is not Outcome.OPEN:
            return  # said again: its acknowledgement was lost
        try:
            answer = read_reply(parcel)
            await self._content(device, conductor, exchange, part, answer)
        except (PeerError, TrustError, RejectedError) as error:
            code = error.code if isinstance(error, RejectedError) else RejectCode.MALFORMED
            await conductor.questions.fail(task, 0, f"its reply was not taken: {error.message}")
            raise RejectedError(code, error.message) from error
        if answer.failed:
            await conductor.questions.fail(
                task, answer.code, answer.reason, log_tail=answer.log_tail
            )
        elif not await conductor.questions.replied(exchange, part, answer, parcel):
            await self._out_of_place(device, task)

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

    async def _out_of_place(self, device: DeviceId, task: str) -> None:
        """Accept a reply nobody waits for, so that the device forgets it; refuse one not asked."""

        def look(connection: sa.Connection) -> None:
            row = kept_tasks.find_task(connection, task)
            if row is None or row.device != device:
                raise RejectedError(
                    RejectCode.UNEXPECTED, f"no task {task[:80]!r} was given to {device!r}"
                )
            if row.state in OPEN_TASKS:
                kept_tasks.move(connection, task, TaskEvent.CANCEL, "its run has ended")
            data = {"task": task, "why": f"it came after the task was {row.state.value}"}
            event = Event(kind="late-reply", round=row.round, device=device, data=data)
            if kept_tasks.reply_out_of_place(connection, task):
                kept.note(connection, row.run, event)

        await self._world.write(look)

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
