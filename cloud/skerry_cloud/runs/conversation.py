"""What one server side says, heard until it is done; its crash, its silence, its last words."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from skerry_cloud.runs.process import ServerProcess
from skerry_cloud.runs.world import BrokenRunError

CRASH_S = 3.0
"""How long the last words of a process that has ended may take to be heard."""

Grant = Callable[[Mapping[str, Any], bytes], Awaitable[None]]


class Conversation:
    """Hears one process; each thing it says is granted before the next is heard."""

    def __init__(
        self,
        process: ServerProcess,
        grant: Grant,
        *,
        busy: Callable[[], bool],
        silence_s: float,
    ) -> None:
        """`busy` says whether the process waits for us; else it may be silent for `silence_s`."""
        self._process = process
        self._grant = grant
        self._busy = busy
        self._silence_s = silence_s
        self._heard_at = time.monotonic()

    def heard(self) -> None:
        """Note that something was said, by either side."""
        self._heard_at = time.monotonic()

    async def hold(self, *ends: "asyncio.Future[Any]") -> bool:
        """Return True when the process is done, False when one of `ends` came first.

        Raise BrokenRunError for a crash, a silence or nonsense, or what one of `ends` raises.
        """
        hearing = asyncio.create_task(self._hear())
        tasks: list[asyncio.Task[Any]] = [
            hearing,
            asyncio.create_task(self._watch_silence()),
            asyncio.create_task(self._watch_end(hearing)),
        ]
        try:
            done, _ = await asyncio.wait({*tasks, *ends}, return_when=asyncio.FIRST_COMPLETED)
            for one in done:
                one.result()
            return hearing in done
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _hear(self) -> None:
        while (message := await self._process.hear()) is not None:
            self.heard()
            said, body = message
            if said["do"] == "done":
                return
            await self._grant(said, body)
        try:
            async with asyncio.timeout(CRASH_S):
                raise BrokenRunError(await self._crash())
        except TimeoutError:
            raise BrokenRunError("the app's server side closed its channel and went on") from None

    async def _crash(self) -> str:
        """Return why the channel closed before the process was done."""
        how = await self._process.ended()
        if self._process.passed:
            return f"the app's server side {self._process.passed} and was killed"
        last = next((line for line in reversed(self._process.tail) if line.strip()), "")
        return f"the app's server side {how}" + (f"; it last printed: {last[:300]}" if last else "")

    async def _watch_end(self, hearing: "asyncio.Task[None]") -> None:
        """Raise when the process is gone though its channel is open: what it forked holds it."""
        why = await self._crash()
        await asyncio.wait({hearing}, timeout=CRASH_S)
        raise BrokenRunError(why)

    async def _watch_silence(self) -> None:
        """Return only by raising: the process computes too long without asking anything."""
        while (left := self._heard_at + self._silence_s - time.monotonic()) > 0:
            await asyncio.sleep(left)
            if self._busy():
                self.heard()
        raise BrokenRunError(
            f"the app's server side asked for nothing in {self._silence_s:g} s and was killed "
            "(server_limits.silence_s)"
        )
