"""What devices sent that no run takes: counted by run, device and reason, and named in its journal.

The journal hears of the first at once, of more together and ever less often: a flood of them costs
a few lines. What it has not heard yet is in memory, for LONGEST_GAP_S at most; `rows` adds both up.
"""

import asyncio
import logging
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

log = logging.getLogger(__name__)

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
        self._due: asyncio.TimerHandle | None = None
        self._writing: asyncio.Task[None] | None = None

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
            self._expect(found.due - now)
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
        if self._due is not None:
            self._due.cancel()
        if self._writing is not None:
            await asyncio.wait({self._writing})
        await self.write(*self._counts)

    def _expect(self, in_s: float) -> None:
        """Have what was counted journalled then, also when nothing more comes."""
        loop = asyncio.get_running_loop()
        if self._due is not None and self._due.when() <= loop.time() + in_s:
            return
        if self._due is not None:
            self._due.cancel()
        self._due = loop.call_later(in_s, self._begin_writing)

    def _begin_writing(self) -> None:
        self._due = None
        if self._writing is None or self._writing.done():
            self._writing = asyncio.create_task(self._write_due(), name="unwanted")
        else:
            self._expect(FIRST_GAP_S)

    async def _write_due(self) -> None:
        now = time.monotonic()
        due = [key for key, one in self._counts.items() if one.left and one.due <= now]
        for key in due:
            found = self._counts[key]
            found.due, found.gap_s = now + found.gap_s, min(LONGEST_GAP_S, 2 * found.gap_s)
        try:
            await self.write(*due)
        except SkerryError as error:
            log.warning("what devices sent unasked could not be journalled: %s", error)
        if later := [one.due for one in self._counts.values() if one.left]:
            self._expect(max(0.0, min(later) - time.monotonic()))

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
