"""What people shall read of a device: an app's output and the agent's own notes, sent as lines.

Best effort and bounded: what cannot be sent is dropped, oldest first, and counted.
"""

import asyncio
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from skerry_protos.messages import Parcel, ParcelId, ParcelKind, RunId, new_id
from skerry_protos.v1 import work_pb2

from skerry_edge.clock import Clock

HELD = 2000
"""Lines kept while they cannot be sent."""
PARCEL_BYTES = 24 * 1024
"""Text of one parcel, about."""
LASTS_S = 120.0


@dataclass(frozen=True, slots=True)
class _Line:
    run: str
    source: str
    when: float
    level: str
    text: str


class Journal:
    """Lines that wait to be sent."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lines: deque[_Line] = deque()
        self._dropped = 0
        self.filled = asyncio.Event()
        """Set while there is something to send."""

    def __len__(self) -> int:
        return len(self._lines)

    def add(
        self,
        text: str,
        *,
        run: str = "",
        source: str = "agent",
        level: str = "info",
        when: float = 0.0,
    ) -> None:
        """Keep a line to be sent; the oldest makes room."""
        if len(self._lines) >= HELD:
            self._lines.popleft()
            self._dropped += 1
        self._lines.append(_Line(run, source, when or time.time(), level, text))
        self.filled.set()

    def parcels(self) -> Iterator[Parcel]:
        """Yield all lines as parcels, each of one run and source; they are kept no longer."""
        if self._dropped:
            text = f"[{self._dropped} lines were dropped: there was no way to send them]"
            self._lines.appendleft(_Line("", "agent", time.time(), "warning", text))
            self._dropped = 0
        while self._lines:
            first = self._lines[0]
            body, size = work_pb2.LogLines(source=first.source), 0
            while self._lines and size < PARCEL_BYTES:
                line = self._lines[0]
                if (line.run, line.source) != (first.run, first.source):
                    break
                self._lines.popleft()
                size += len(line.text.encode()) + 32
                body.lines.add(unix_time_s=line.when, level=line.level, text=line.text)
            if not self._lines:
                self.filled.clear()
            yield Parcel(
                id=ParcelId(new_id("log-")),
                kind=ParcelKind.LOG,
                run=RunId(first.run),
                deadline_unix_s=self._clock.deadlines() + LASTS_S,
                body=body.SerializeToString(),
            )
