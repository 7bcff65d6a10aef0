"""An event loop in virtual time whose tasks belong to nodes, and a node can die between two steps.

Nothing waits for real time: the clock jumps to the next timer. A node (a device's agent, the
coordinator) is known by a context variable, so whatever one of its tasks starts is its own. A dead
node's callbacks never run: no `finally`, no cancellation, as after `kill -9`. Tasks and futures
have serial numbers for hashes, because sets of them are iterated.
"""

import asyncio
import contextlib
import contextvars
import itertools
import logging
import random
import sys
import time
import warnings
from collections.abc import Callable, Coroutine, Generator, Iterator
from typing import Any, TypeVar

T = TypeVar("T")

EPOCH_S = 1_800_000_000.0
"""What every honest clock shows when a story begins, seconds since 1970."""
BEGIN_S = 1000.0
"""What the loop's clock shows then."""


class PowerCutError(BaseException):
    """The node died in the middle of a function; nothing of it goes on."""


class Node:
    """One life of a machine: its name, whether it lives, and how wrong its clock is."""

    def __init__(self, name: str, *, wrong_s: float = 0.0, slow_s: float = 0.0) -> None:
        self.name = name
        self.alive = True
        self.wrong_s = wrong_s
        self.began_s = EPOCH_S - BEGIN_S + wrong_s  # for its steady clock
        self.slow_s = slow_s  # longest that its disk takes
        self.context = contextvars.copy_context()
        self.context.run(NODE.set, self)

    def __repr__(self) -> str:
        return self.name


NODE: contextvars.ContextVar[Node | None] = contextvars.ContextVar("node", default=None)
NOBODY = contextvars.Context()
"""Where callbacks run that belong to the world, not to a node."""


class _Serial:
    """Hashes that are the same in every run of a story; addresses are not."""

    numbers: Iterator[int] = itertools.count()


class SimulatedTask(asyncio.Task[T]):
    """A task with a serial number."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.serial = next(_Serial.numbers)
        super().__init__(*args, **kwargs)

    def __hash__(self) -> int:
        return self.serial

    def __eq__(self, other: object) -> bool:
        return self is other


class SimulatedFuture(asyncio.Future[T]):
    """A future with a serial number."""

    def __init__(self, **kwargs: Any) -> None:
        self.serial = next(_Serial.numbers)
        super().__init__(**kwargs)

    def __hash__(self) -> int:
        return self.serial

    def __eq__(self, other: object) -> bool:
        return self is other


class _Jump:
    """Passes the time that the loop would wait, instead of waiting."""

    now_s = BEGIN_S

    def select(self, timeout: float | None = None) -> list[Any]:
        if timeout is None:
            raise RuntimeError("everything waits, and nothing will happen any more")
        if timeout > 0:
            self.now_s += timeout
        return []

    def close(self) -> None:
        """Nothing is open."""


class SimulatedLoop(asyncio.BaseEventLoop):
    """See the module; `dice` decides how long disks take."""

    def __init__(self, dice: random.Random) -> None:
        super().__init__()
        self._selector = _Jump()
        self._dice = dice
        self._over = False
        self.every: list[asyncio.Task[Any]] = []
        self.set_task_factory(self._make_task)
        _Serial.numbers = itertools.count()

    def time(self) -> float:
        return self._selector.now_s

    def create_future(self) -> asyncio.Future[Any]:
        return SimulatedFuture(loop=self)

    def _make_task(
        self,
        loop: asyncio.AbstractEventLoop,
        coro: Coroutine[Any, Any, T] | Generator[Any, None, T],
        **kwargs: Any,
    ) -> asyncio.Task[T]:
        task: asyncio.Task[T] = SimulatedTask(coro, loop=loop, **kwargs)
        self.every.append(task)  # a dead node's tasks must not be collected, and so finished
        return task

    def _call_soon(
        self, callback: Callable[..., Any], args: tuple[Any, ...], context: Any
    ) -> asyncio.Handle:
        handle = asyncio.Handle(callback, args, self, context)
        if not self._over and _lives(handle):
            self._ready.append(handle)  # type: ignore[attr-defined]
        else:
            handle.cancel()
        return handle

    def kill(self, node: Node) -> None:
        """End a node between two of its steps."""
        node.alive = False
        for handle in itertools.chain(self._ready, list(self._scheduled)):  # type: ignore[attr-defined]
            if handle._context.get(NODE) is node:
                handle.cancel()

    def moment(self, longest_s: float) -> float:
        """Return how long something takes that takes at most so long."""
        return self._dice.random() * longest_s if longest_s else 0.0

    def run_in_executor(  # type: ignore[override]
        self, executor: object, func: Callable[..., Any], *args: Any
    ) -> asyncio.Future[Any]:
        """Do a thread's work in one step, after a moment that the seed chooses."""
        future = self.create_future()
        node = NODE.get()
        slow_s = node.slow_s if node is not None else 0.0
        before, after = self.moment(slow_s), self.moment(slow_s)

        def work() -> None:
            try:
                value = func(*args)
            except PowerCutError:
                return
            except Exception as error:  # noqa: BLE001 - as an executor does
                self._later(after, _settle, future, None, error)
            else:
                self._later(after, _settle, future, value, None)

        self._later(before, work)
        return future

    def _later(self, delay_s: float, callback: Callable[..., None], *args: Any) -> None:
        if delay_s:
            self.call_later(delay_s, callback, *args)
        else:
            callback(*args)

    def _check_closed(self) -> None:
        """Let what is buried do what it likes: nothing comes of it."""

    # What BaseEventLoop asks of its subclasses; there is nothing to read or write here.

    def _process_events(self, events: list[Any]) -> None:
        """There are none."""

    def _write_to_self(self) -> None:
        """The loop never sleeps."""


def _settle(future: asyncio.Future[Any], value: Any, error: Exception | None) -> None:
    if future.cancelled():
        return
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(value)


def _lives(handle: asyncio.Handle) -> bool:
    node = handle._context.get(NODE)  # type: ignore[attr-defined]
    return node is None or node.alive


@contextlib.contextmanager
def _virtual_clocks(loop: SimulatedLoop) -> Iterator[None]:
    """Have the clocks of the time module show the loop's time; each node's wall clock its own."""

    def wall() -> float:
        node = NODE.get()
        return EPOCH_S + loop.time() - BEGIN_S + (0.0 if node is None else node.wrong_s)

    def since_boot(_clock: int = 0) -> float:
        return loop.time()

    real = (time.time, time.monotonic, time.clock_gettime, time.perf_counter)
    time.time, time.monotonic = wall, since_boot
    time.clock_gettime, time.perf_counter = since_boot, since_boot
    try:
        yield
    finally:
        time.time, time.monotonic, time.clock_gettime, time.perf_counter = real


def run(work: Callable[[SimulatedLoop], Coroutine[Any, Any, T]], dice: random.Random) -> T:
    """Run to the end on a loop of its own, in virtual time."""
    loop = SimulatedLoop(dice)
    try:
        with _virtual_clocks(loop):
            return loop.run_until_complete(work(loop))
    finally:
        _bury(loop)


def _bury(loop: SimulatedLoop) -> None:
    """Let go of what died in the middle; what its `finally` blocks do is of no interest."""
    hook, sys.unraisablehook = sys.unraisablehook, lambda _: None
    logging.disable(logging.CRITICAL)
    loop._over = True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for task in loop.every:
                if not task.done():
                    task._log_destroy_pending = False  # type: ignore[attr-defined]
                    _close(task.get_coro())
            loop.every.clear()
            loop._ready.clear()  # type: ignore[attr-defined]
            loop._scheduled.clear()  # type: ignore[attr-defined]
            loop.close()
    finally:
        logging.disable(logging.NOTSET)
        sys.unraisablehook = hook


def _close(coroutine: Any) -> None:
    """Close a coroutine, as often as it takes one that awaits in its `finally` blocks."""
    for _ in range(100):
        try:
            coroutine.close()
            return
        except BaseException:  # noqa: BLE001 - whatever it says
            continue
