"""A fleet of devices in the same process, by name: memory://NAME."""

import asyncio
import contextlib
import itertools
from collections.abc import Callable
from types import TracebackType
from typing import Self

from skerry_protos.errors import LinkError, RefusedError
from skerry_protos.seams import Blobs
from skerry_protos.session import Inflow, Limits
from skerry_protos.session.handshake import HELLO_S
from skerry_protos.session.memory import Faults, MemoryEnd, listen, memory_wire

from skerry_cloud.fleets import Gate
from skerry_cloud.fleets.sessions import Sessions


class MemoryFleet(Sessions):
    """A Fleet over skerry_protos.session.memory; `faults` says how bad each new wire is."""

    def __init__(
        self,
        name: str,
        gate: Gate,
        blobs: Blobs,
        *,
        faults: Callable[[int], Faults] = lambda _wire: Faults(),
        inflow: Inflow | None = None,
        limits: Limits | None = None,
        heartbeat_s: float = 15.0,
        resume_s: float = 120.0,
        ping_s: float = 10.0,
    ) -> None:
        super().__init__(
            gate=gate,
            blobs=blobs,
            transport="memory",
            inflow=inflow,
            limits=limits,
            heartbeat_s=heartbeat_s,
            resume_s=resume_s,
            ping_s=ping_s,
        )
        self._name = name
        self._faults = faults
        self._numbers = itertools.count()
        self._wires: set[asyncio.Task[None]] = set()
        self._listening = listen(name, self._connected)
        self.ends: list[MemoryEnd] = []

    async def __aenter__(self) -> Self:
        self._listening.__enter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._listening.__exit__(None, None, None)
        await self.close()
        for task in self._wires:
            task.cancel()
        if self._wires:
            await asyncio.wait(self._wires)

    def _connected(self) -> MemoryEnd:
        """Return a device's end of a new wire, and read the other."""
        theirs, ours = memory_wire(self._faults(next(self._numbers)))
        task = asyncio.ensure_future(self._read(ours))
        self._wires.add(task)
        task.add_done_callback(self._wires.discard)
        return theirs

    async def _read(self, end: MemoryEnd) -> None:
        self.ends.append(end)
        try:
            async with asyncio.timeout(HELLO_S):
                visit = await self.greet(
                    await end.receive(),
                    end,
                    identity=None,
                    close=end.finish,
                    max_packet=end.max_received,
                )
        except (LinkError, RefusedError, TimeoutError):
            self.ends.remove(end)
            end.finish()
            return
        why = "the device closed the wire"
        try:
            with contextlib.suppress(LinkError):
                while True:
                    visit.receive(await end.receive())
        finally:
            self.ends.remove(end)
            end.close()
            await self.leave(visit, why)
