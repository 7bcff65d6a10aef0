"""What a run's server side prints, on its way into the journal: in groups, and bounded."""

import asyncio

from skerry_protos.errors import SkerryError
from skerry_protos.messages import RunId

from skerry_cloud.runs.world import World
from skerry_cloud.store import runs as kept

GATHER_S = 0.3
"""How long lines wait for company before they are kept."""


class Printed:
    """Lines of one run."""

    def __init__(self, run: RunId, world: World) -> None:
        self._run = run
        self._world = world
        self._lines: list[str] = []
        self._task: asyncio.Task[None] | None = None

    def add(self, lines: list[str]) -> None:
        """Keep lines soon; of a flood, the newest."""
        self._lines = (self._lines + lines)[-kept.LOGS_KEPT :]
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._keep_soon())

    async def close(self) -> None:
        """Keep what has come so far."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self._keep()

    async def _keep_soon(self) -> None:
        await asyncio.sleep(GATHER_S)
        try:
            await self._keep()
        except SkerryError:
            return  # a lost line ends no run

    async def _keep(self) -> None:
        lines, self._lines = self._lines, []
        if lines:
            await self._world.write(lambda c: kept.keep_lines(c, self._run, lines))
