"""What devices hold that nobody waits for any more, so that they can be told to stop.

A device that was away when a round closed has not heard of it. The task's deadline ends it too, but
that may be far: the coordinator's clock may have been ahead when it asked.
"""

from collections.abc import Collection

import sqlalchemy as sa
from skerry_protos.messages import DeviceId, Parcel, ParcelId, RunId

from skerry_cloud.runs.lifecycle import OPEN_TASKS
from skerry_cloud.runs.tasks import cancel_parcel
from skerry_cloud.store.tables import tasks

HELD_LIMIT = 64
"""Most tasks of one heartbeat that are looked at: it is a device's word."""


def unwanted_of(connection: sa.Connection, device: DeviceId, held: Collection[str]) -> list[Parcel]:
    """Return what tells a device to stop what it holds, of its own tasks, that are not open."""
    found = connection.execute(
        sa.select(tasks.c.id, tasks.c.run).where(
            tasks.c.id.in_(list(held)),
            tasks.c.device == device,
            tasks.c.state.not_in([state.value for state in OPEN_TASKS]),
        )
    )
    by_run: dict[RunId, list[ParcelId]] = {}
    for row in found:
        by_run.setdefault(RunId(row.run), []).append(ParcelId(row.id))
    return [cancel_parcel(run, names, "its round has closed") for run, names in by_run.items()]
