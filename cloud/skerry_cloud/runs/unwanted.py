"""What devices sent that no run takes: counted by run, device and reason, and named in its journal.

The journal hears of the first at once, of more together and ever less often: a flood of them costs
a few lines. What it has not heard yet is in memory; `rows` adds both up.
"""

import time
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import sqlalchemy as sa
from skerry_protos.errors import PeerError, RejectCode, RejectedError, SkerryError
from skerry_protos.messages import DeviceId, RunId

from skerry_cloud.runs.tasks import shown
from skerry_cloud.runs.world import World
from skerry_cloud.store import runs as kept
from skerry_cloud.store.runs import Event

KIND = "unwanted"
FIRST_GAP_S = 1.0
LONGEST_GAP_S = 60.0
KNOWN = 4096
"""Most (run, device, reason) that are counted in memory at once."""
WHY_LIMIT = 300


class Reason(StrEnum):
    """Why something was not taken."""

    NOT_ASKED = "not-asked"  # no such task was given to this device
    LATE = "late"  # the round had closed
    REPEATED = "repeated"  # the same answer again: acknowledged, and nothing changes
    CHANGED = "changed"  # another answer to a task that is answered
    WRONG_ROUND = "wrong-round"
    MALFORMED = "malformed"
    OVERSIZE = "oversize"
    CONTENT = "content"  # its blob did not come, or is not what it said
    SCREENED = "screened"  # read, and found unfit: not finite, another shape, unreadable
    PROTOCOL = "protocol"  # it broke the session's protocol while it had a task of the run


_CODES: dict[str, Reason] = {
    RejectCode.MALFORMED: Reason.MALFORMED,
    RejectCode.OVERSIZE: Reason.OVERSIZE,
    RejectCode.EXPIRED: Reason.LATE,
    RejectCode.UNEXPECTED: Reason.NOT_ASKED,
}


def reason_of(error: SkerryError) -> Reason:
    """Return what kind of bad input an error means."""
    if isinstance(error, RejectedError):
        return _CODES.get(error.code, Reason.CONTENT)
    return Reason.MALFORMED if isinstance(error, PeerError) else Reason.CONTENT


@dataclass(slots=True)
class _Count:
    """What was not taken of one device for one reason, and not journalled yet."""

    left: int = 0
    why: str = ""
    round: int = 0
    at: float = 0.0
    due: float = 0.0  # monotonic
    gap_s: float = FIRST_GAP_S


Key = tuple[RunId, DeviceId, Reason]


class Unwanted:
    """Counts, and journals."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._counts: OrderedDict[Key, _Count] = OrderedDict()

    async def note(
        self, run: RunId, device: DeviceId, reason: Reason, why: str, *, round_: int = 0
    ) -> None:
        """Count one thing; the run exists."""
        if self.count(run, device, reason, why, round_=round_):
            await self.write((run, device, reason))

    def count(
        self, run: RunId, device: DeviceId, reason: Reason, why: str, *, round_: int = 0
    ) -> bool:
        """Count one thing; return whether the journal should hear of it now (`write`)."""
        key = (run, device, reason)
        found = self._counts.setdefault(key, _Count())
        self._counts.move_to_end(key)
        found.left += 1
        found.why, found.round, found.at = shown(why, WHY_LIMIT), round_, time.time()
        if (now := time.monotonic()) < found.due:
            return False
        found.due, found.gap_s = now + found.gap_s, min(LONGEST_GAP_S, 2 * found.gap_s)
        return True

    async def write(self, *keys: Key) -> None:
        """Journal what was counted of these, and what there is no room for."""
        events: list[tuple[Key, _Count, Event]] = []
        crowd = list(self._counts)[: max(0, len(self._counts) - KNOWN)]
        for key in dict.fromkeys([*keys, *crowd]):
            found = self._counts.get(key)
            if found is not None and found.left:
                events.append((key, found, _event(key, found)))
                found.left = 0
        for key in crowd:
            del self._counts[key]

        def write(connection: sa.Connection) -> None:
            for (run, _, _), _, event in events:
                kept.note(connection, run, event)

        try:
            if events:
                await self._world.write(write)
        except BaseException:
            for _, found, event in events:
                found.left += event.data["times"]
            raise

    async def write_all(self) -> None:
        """Journal everything: the coordinator stops."""
        await self.write(*self._counts)

    async def rows(self, run: RunId) -> list[dict[str, Any]]:
        """Return what was not taken for a run, by device and reason."""
        events = await self._world.store.read(
            lambda c: kept.journal_of(c, run, (KIND, "late-reply", "refused"))
        )
        fresh = [
            {"kind": KIND, "device": key[1], "at": one.at, "data": _event(key, one).data}
            for key, one in self._counts.items()
            if key[0] == run and one.left
        ]
        return added_up([*events, *fresh])


def _event(key: Key, found: _Count) -> Event:
    data = {"reason": key[2].value, "times": found.left, "why": found.why}
    return Event(kind=KIND, round=found.round, device=key[1], data=data)


def added_up(events: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return one row for each device and reason: how often, why and when the last time."""
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for event in events:
        data = event["data"]
        usual = Reason.LATE if event["kind"] == "late-reply" else Reason.SCREENED
        reason = str(data.get("reason", usual.value))
        row = rows.setdefault(
            (event["device"], reason),
            {"device": event["device"], "reason": reason, "times": 0, "last_why": "", "last_at": 0},
        )
        row["times"] += int(data.get("times", 1))
        if event["at"] >= row["last_at"]:
            row |= {"last_why": data["why"], "last_at": event["at"]}
    return [rows[key] for key in sorted(rows)]
