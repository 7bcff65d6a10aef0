"""Micro-batching: requests that wait together are answered by one call of the model.

While the model works, requests gather; when it is free it takes all that fit. So a lone request
never waits for others (unless told to), and under load the batch grows by itself. Where several
calls may run at once, each takes its share of what waits. A thread that is done takes the next
batch by itself: the loop, which is reading requests then, would have it wait.
"""

import asyncio
import math
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

from skerry_protos.errors import DeadlineError, SkerryError

In = TypeVar("In")
Out = TypeVar("Out")

Work = Callable[[Sequence[In]], Sequence[Out]]


class BusyError(SkerryError):
    """More requests wait than may: come back later."""

    code = "busy"
    exit_code = 8


@dataclass(slots=True, eq=False)
class _Waiting(Generic[In, Out]):
    item: In
    rows: int
    came: float
    done: "asyncio.Future[Out]"


class Batcher(Generic[In, Out]):
    """Has what gathered worked on by a pool of threads; an async context manager."""

    def __init__(
        self,
        work: Work[In, Out],
        *,
        max_rows: int,
        wait_s: float,
        queue: int,
        executor: ThreadPoolExecutor,
        at_once: int = 1,
    ) -> None:
        """Call `work` in `executor` with up to `max_rows` rows' worth of items.

        `at_once` calls may run beside each other.
        """
        self.max_rows, self.wait_s = max_rows, wait_s
        self._work, self._queue, self._executor = work, queue, executor
        self._lock = threading.Lock()  # of what waits, and how many calls run
        self._at_once, self._running = at_once, 0
        self._waiting: deque[_Waiting[In, Out]] = deque()
        self._quiet = asyncio.Event()
        self._woken: asyncio.Handle | None = None
        self._later: asyncio.TimerHandle | None = None
        self.batches = 0
        self.rows = 0

    async def __aenter__(self) -> "Batcher[In, Out]":
        self._loop = asyncio.get_running_loop()
        return self

    async def __aexit__(self, *_: object) -> None:
        """Answer what waits, then end; no thread is at work for it any more."""
        while self._running or self._waiting:
            self._quiet.clear()
            await self._quiet.wait()
        for handle in (self._woken, self._later):
            if handle is not None:
                handle.cancel()

    @property
    def waiting(self) -> int:
        """How many requests wait."""
        return len(self._waiting)

    async def ask(self, item: In, *, rows: int = 1, timeout_s: float) -> Out:
        """Return the answer to one item; raise BusyError, DeadlineError or what the work raised."""
        if len(self._waiting) >= self._queue:
            raise BusyError(f"{self._queue} requests wait already; come back later")
        loop = self._loop
        waiting: _Waiting[In, Out] = _Waiting(item, rows, loop.time(), loop.create_future())
        with self._lock:
            self._waiting.append(waiting)
        if self._woken is None:
            # After the others that came in the same turn of the loop.
            self._woken = loop.call_soon(self._wake)
        late = loop.call_later(timeout_s, _too_late, waiting.done, timeout_s)
        try:
            return await waiting.done
        finally:
            late.cancel()
            waiting.done.cancel()

    def _wake(self) -> None:
        self._woken = None
        self._begin()

    def _begin(self) -> None:
        """Begin as many calls as may run, each with its share of what waits."""
        with self._lock:
            while self._running < self._at_once and (batch := self._next()):
                self._running += 1
                self._executor.submit(self._call, batch)
            if not self._running and not self._waiting:
                self._quiet.set()

    def _next(self) -> list[_Waiting[In, Out]]:
        """Take the next batch; the lock is held. Empty: nothing waits, or others may still come."""
        while self._waiting and self._waiting[0].done.done():
            self._waiting.popleft()  # nobody waits for it any more
        if not self._waiting or self._must_gather():
            return []
        rows = sum(one.rows for one in self._waiting)
        return self._take(math.ceil(rows / self._at_once))

    def _must_gather(self) -> bool:
        """Return whether others may still come, and see to it that they are not waited for long."""
        if not self.wait_s or sum(one.rows for one in self._waiting) >= self.max_rows:
            return False
        until = self._waiting[0].came + self.wait_s
        if self._loop.time() >= until:
            return False
        if self._later is not None:
            self._later.cancel()
        self._later = self._loop.call_at(until, self._begin)
        return True

    def _take(self, share: int) -> list[_Waiting[In, Out]]:
        """Take what fits into one call, in the order it came; skip what nobody waits for."""
        most = min(share, self.max_rows)
        taken: list[_Waiting[In, Out]] = []
        rows = 0
        while self._waiting:
            one = self._waiting[0]
            if taken and rows + one.rows > most:
                break
            self._waiting.popleft()
            if not one.done.done():
                taken.append(one)
                rows += one.rows
        self.batches += 1
        self.rows += rows
        return taken

    def _call(self, batch: Sequence[_Waiting[In, Out]]) -> None:
        """Work on a batch, in a thread of the pool."""
        outcomes = self._outcomes([one.item for one in batch])
        with self._lock:
            # Only the loop may gather, which needs its timers.
            following = [] if self.wait_s else self._next()
            if following:
                self._executor.submit(self._call, following)  # after those of other models
            else:
                self._running -= 1
        self._loop.call_soon_threadsafe(self._ended, batch, outcomes)

    def _outcomes(self, items: Sequence[In]) -> Sequence[Out | BaseException]:
        try:
            return self._work(items)
        except BaseException as error:  # noqa: BLE001 - it is handed to who asked
            if len(items) == 1:
                return [error]
        # One bad request must not fail those that came beside it.
        return [self._outcomes([one])[0] for one in items]

    def _ended(
        self, batch: Sequence[_Waiting[In, Out]], outcomes: Sequence[Out | BaseException]
    ) -> None:
        self._begin()  # the model does not wait until these are told
        for one, outcome in zip(batch, outcomes, strict=True):
            if one.done.done():
                continue
            if isinstance(outcome, BaseException):
                one.done.set_exception(outcome)
            else:
                one.done.set_result(outcome)


def _too_late(done: "asyncio.Future[Out]", timeout_s: float) -> None:
    if not done.done():
        done.set_exception(DeadlineError(f"no answer within {timeout_s:g} s; the device is busy"))
