"""Micro-batching: requests that wait together are answered by one call of the model.

While the model works, requests gather; when it is free it takes all that fit. So a lone request
never waits for others (unless told to), and under load the batch grows by itself.
"""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from skerry_protos.errors import DeadlineError, SkerryError

In = TypeVar("In")
Out = TypeVar("Out")

Work = Callable[[Sequence[In]], Sequence[Out]]


class BusyError(SkerryError):
    """More requests wait than may: come back later."""

    code = "busy"
    exit_code = 8


@dataclass(slots=True)
class _Waiting(Generic[In, Out]):
    item: In
    rows: int
    done: "asyncio.Future[Out]" = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )


class Batcher(Generic[In, Out]):
    """One thread that works on what has gathered; an async context manager."""

    def __init__(
        self,
        work: Work[In, Out],
        *,
        max_rows: int,
        wait_s: float,
        queue: int,
        executor: ThreadPoolExecutor,
    ) -> None:
        """Call `work` in `executor` with up to `max_rows` rows' worth of items."""
        self.max_rows, self.wait_s = max_rows, wait_s
        self._work, self._queue, self._executor = work, queue, executor
        self._waiting: list[_Waiting[In, Out]] = []
        self._doing: list[_Waiting[In, Out]] = []
        self._came = asyncio.Event()
        self._running: asyncio.Task[None] | None = None
        self.batches = 0
        self.rows = 0

    async def __aenter__(self) -> "Batcher[In, Out]":
        self._running = asyncio.create_task(self._serve(), name="batcher")
        return self

    async def __aexit__(self, *_: object) -> None:
        """Answer what waits, then end."""
        while left := [one.done for one in (*self._doing, *self._waiting) if not one.done.done()]:
            await asyncio.wait(left)
        assert self._running is not None
        self._running.cancel()
        await asyncio.wait([self._running])

    @property
    def waiting(self) -> int:
        """How many requests wait."""
        return len(self._waiting)

    async def ask(self, item: In, *, rows: int = 1, timeout_s: float) -> Out:
        """Return the answer to one item; raise BusyError, DeadlineError or what the work raised."""
        if len(self._waiting) >= self._queue:
            raise BusyError(f"{self._queue} requests wait already; come back later")
        waiting: _Waiting[In, Out] = _Waiting(item, rows)
        self._waiting.append(waiting)
        self._came.set()
        try:
            async with asyncio.timeout(timeout_s):
                return await waiting.done
        except TimeoutError:
            raise DeadlineError(f"no answer within {timeout_s:g} s; the device is busy") from None
        finally:
            waiting.done.cancel()

    async def _serve(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._came.wait()
            if self.wait_s:
                await self._gather()
            batch = self._doing = self._take()
            if not batch:
                continue
            try:
                answers = await loop.run_in_executor(
                    self._executor, self._work, [one.item for one in batch]
                )
            except Exception as error:  # noqa: BLE001 - it is handed to who asked
                if len(batch) > 1:
                    # One bad request must not fail those that came beside it.
                    await self._one_by_one(batch)
                elif not batch[0].done.done():
                    batch[0].done.set_exception(error)
                continue
            for one, answer in zip(batch, answers, strict=True):
                if not one.done.done():
                    one.done.set_result(answer)

    async def _one_by_one(self, batch: Sequence[_Waiting[In, Out]]) -> None:
        loop = asyncio.get_running_loop()
        for one in batch:
            try:
                answer = await loop.run_in_executor(self._executor, self._work, [one.item])
            except Exception as error:  # noqa: BLE001 - as above
                if not one.done.done():
                    one.done.set_exception(error)
            else:
                if not one.done.done():
                    one.done.set_result(answer[0])

    async def _gather(self) -> None:
        """Let others come, for as long as it was said and no longer than a full batch needs."""
        loop = asyncio.get_running_loop()
        until = loop.time() + self.wait_s
        while sum(one.rows for one in self._waiting) < self.max_rows:
            self._came.clear()
            try:
                async with asyncio.timeout_at(until):
                    await self._came.wait()
            except TimeoutError:
                return

    def _take(self) -> list[_Waiting[In, Out]]:
        """Take what fits into one call, in the order it came; skip what nobody waits for."""
        taken: list[_Waiting[In, Out]] = []
        rows = number = 0
        for one in self._waiting:
            if one.done.done():
                number += 1
                continue
            if taken and rows + one.rows > self.max_rows:
                break
            taken.append(one)
            rows += one.rows
            number += 1
        del self._waiting[:number]
        if not self._waiting:
            self._came.clear()
        self.batches += bool(taken)
        self.rows += rows
        return taken
