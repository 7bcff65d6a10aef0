"""A run's server side without a process: the real child code in simulated threads.

The messages are those of runs/channel.py, packed and unpacked as over the socket; what is replaced
is the process around them, and the threads inside it.
"""

import asyncio
import random
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Self

from skerry_cloud.runs import asker, channel, child
from skerry_cloud.runs.channel import Message
from skerry_cloud.runs.plan import ServerLimits
from skerry_protos.errors import SkerryError

from tests.simulator.threads import Threads

SLOWEST_S = 0.02
"""The longest that a message takes from one process to the other."""


class SimulatedEnd:
    """The child's end of the channel, for its simulated threads."""

    def __init__(self, server: "SimulatedServer", threads: Threads) -> None:
        self._server = server
        self._said: deque[Message] = deque()
        self._changed = threads.Condition()

    def put(self, message: Message) -> None:
        self._said.append(message)
        self._changed.notify_all()

    def send(self, said: dict[str, Any], body: bytes = b"") -> None:
        self._server.heard(_crossed(said, body))

    def receive(self) -> Message:
        with self._changed:
            self._changed.wait_for(lambda: bool(self._said))
            return self._said.popleft()

    def finish(self, said: dict[str, Any], patience_s: float = 10.0) -> None:
        self.send(said)


class SimulatedServer:
    """Stands for runs.process.ServerProcess."""

    dice: ClassVar[random.Random] = random.Random()

    def __init__(self) -> None:
        self.tail: list[str] = []
        self.passed = ""
        self._threads = Threads()
        self._end = SimulatedEnd(self, self._threads)
        self._heard: deque[Message] = deque()
        self._ready = asyncio.Event()
        self._over: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._due_s = {"here": 0.0, "there": 0.0}
        self._threads.start(self._run)

    @classmethod
    async def start(
        cls,
        folder: Path,
        limits: ServerLimits,
        on_lines: Callable[[list[str]], None],
        **_more: Any,
    ) -> Self:
        await asyncio.sleep(0.2 + cls.dice.random())
        return cls()

    def say(self, said: dict[str, Any], body: bytes = b"") -> None:
        self._later("there", self._end.put, _crossed(said, body))

    def heard(self, message: Message) -> None:
        self._later("here", self._hear, message)

    def _later(self, way: str, put: Callable[[Message], None], message: Message) -> None:
        """Deliver in order, after a moment."""
        loop = asyncio.get_running_loop()
        due = loop.time() + self.dice.random() * SLOWEST_S
        self._due_s[way] = due = max(due, self._due_s[way] + 1e-6)
        loop.call_at(due, put, message)

    def _hear(self, message: Message) -> None:
        self._heard.append(message)
        self._ready.set()

    async def hear(self) -> Message | None:
        while not self._heard:
            if self._over.done():
                return None
            self._ready.clear()
            await self._ready.wait()
        return self._heard.popleft()

    async def ended(self) -> str:
        return await asyncio.shield(self._over)

    async def end(self) -> str:
        self._threads.dead = True
        self._finish("was killed by SIGTERM")
        return self._over.result()

    def kill(self, why: str) -> None:
        self.passed = self.passed or why
        self._threads.dead = True
        self._finish("was killed by SIGKILL")

    def _finish(self, how: str) -> None:
        if not self._over.done():
            self._over.set_result(how)
        self._ready.set()

    def _run(self) -> None:
        """Do what child.main does in its process."""
        said, _ = self._end.receive()
        try:
            child._run(self._end, said)  # type: ignore[arg-type]
        except asker.EndedError:
            return
        except SkerryError as error:
            self._end.finish({"do": "failed", "why": f"the app's server side failed: {error}"})
            return
        except Exception as error:  # noqa: BLE001 - as main does
            why = f"the app's server side {child.describe(error, said)}"
            self._end.finish({"do": "failed", "why": why})
            return
        self._end.finish({"do": "done"})


def _crossed(said: dict[str, Any], body: bytes) -> Message:
    """Return a message as it comes out at the other end."""
    packed = channel.pack(said, body)
    text, _ = channel.HEAD.unpack_from(packed)
    begin = channel.HEAD.size
    return channel.unpack(packed[begin : begin + text], packed[begin + text :])
