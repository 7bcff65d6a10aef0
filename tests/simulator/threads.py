"""Threads of a simulated process: greenlets that the loop resumes, one at a time and in order.

`Threads` has what the server side takes from the `threading` module. Who would block a real thread
goes back to the loop instead, so plain blocking code runs in virtual time and never by chance.
"""

import asyncio
import contextlib
import contextvars
import functools
import weakref
from collections import deque
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any

import greenlet

from tests.simulator.loop import PowerCutError


class Threads:
    """The threads of one process; stands for the module `threading` inside it."""

    def __init__(self) -> None:
        self.dead = False
        self._main: greenlet.greenlet | None = None  # the first one that is started
        self._context = contextvars.copy_context()
        self._context.run(_THREADS.set, self)

    # What code of the process calls.

    def Thread(
        self,
        target: Callable[..., None],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
        **_named: Any,
    ) -> "_Thread":
        return _Thread(self, target, args, kwargs or {})

    def Lock(self) -> "_Lock":
        return _Lock(self)

    def RLock(self) -> "_Lock":
        return _Lock(self)

    def Condition(self, _lock: object = None) -> "_Condition":
        return _Condition(self)

    def Event(self) -> "_Event":
        return _Event(self)

    def local(self) -> "_Local":
        return _Local()

    def current_thread(self) -> object:
        return greenlet.getcurrent()

    def main_thread(self) -> object:
        return self._main

    # What the classes below stand on.

    def start(self, target: Callable[[], None]) -> None:
        """Run `target` from now on, beside everything else."""
        hub = greenlet.getcurrent()
        while hub.parent is not None:
            hub = hub.parent  # the loop's own, whoever starts this one
        thread = greenlet.greenlet(target, parent=hub)
        thread.gr_context = self._context.copy()
        self._main = self._main or thread
        self.wake(thread)

    def wake(self, thread: "greenlet.greenlet") -> None:
        """Let a parked thread go on, soon."""
        asyncio.get_running_loop().call_soon(self._resume, thread)

    def park(self) -> None:
        """Wait until woken."""
        thread = greenlet.getcurrent()
        assert thread.parent is not None, "only a simulated thread may block"
        thread.parent.switch()

    def _resume(self, thread: "greenlet.greenlet") -> None:
        if not self.dead and not thread.dead:
            with contextlib.suppress(PowerCutError):
                thread.switch()


_THREADS: contextvars.ContextVar[Threads] = contextvars.ContextVar("threads")


class Threading:
    """Stands for the module `threading` in modules that several simulated processes share."""

    def __getattr__(self, name: str) -> Any:
        return getattr(_THREADS.get(), name)


class _Parking:
    """Those who wait for one thing; each is woken once."""

    def __init__(self, threads: Threads) -> None:
        self._threads = threads
        self._parked: deque[greenlet.greenlet] = deque()

    def wait(self, timeout_s: float | None) -> None:
        thread = greenlet.getcurrent()
        self._parked.append(thread)
        timer = None
        if timeout_s is not None:
            loop = asyncio.get_running_loop()
            timer = loop.call_later(max(0.0, timeout_s), self._expire, thread)
        self._threads.park()
        if timer is not None:
            timer.cancel()

    def _expire(self, thread: "greenlet.greenlet") -> None:
        if thread in self._parked:
            self._parked.remove(thread)
            self._threads.wake(thread)

    def wake(self, most: int) -> None:
        for _ in range(min(most, len(self._parked))):
            self._threads.wake(self._parked.popleft())


class _Lock:
    """A lock (re-entrant, too); the first who waits is the next who has it."""

    def __init__(self, threads: Threads) -> None:
        self._parking = _Parking(threads)
        self._owner: greenlet.greenlet | None = None
        self._depth = 0

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        me = greenlet.getcurrent()
        while self._owner not in {None, me}:
            if not blocking:
                return False
            self._parking.wait(None if timeout < 0 else timeout)
            if timeout >= 0 and self._owner not in {None, me}:
                return False
        self._owner = me
        self._depth += 1
        return True

    def release(self) -> None:
        self._depth -= 1
        if not self._depth:
            self._owner = None
            self._parking.wake(1)

    def locked(self) -> bool:
        return self._owner is not None

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.release()


class _Condition(_Lock):
    """A condition variable."""

    def __init__(self, threads: Threads) -> None:
        super().__init__(threads)
        self._waiting = _Parking(threads)

    def wait_for(self, predicate: Callable[[], bool], timeout: float | None = None) -> bool:
        loop = asyncio.get_running_loop()
        until = None if timeout is None else loop.time() + timeout
        while not (found := predicate()):
            left = None if until is None else until - loop.time()
            if left is not None and left <= 0:
                break
            self.wait(left)
        return found

    def wait(self, timeout: float | None = None) -> None:
        depth, self._depth = self._depth, 1
        self.release()
        self._waiting.wait(timeout)
        self.acquire()
        self._depth = depth

    def notify(self, n: int = 1) -> None:
        self._waiting.wake(n)

    def notify_all(self) -> None:
        self._waiting.wake(2**30)


class _Event:
    """A flag that may be waited for."""

    def __init__(self, threads: Threads) -> None:
        self._condition = _Condition(threads)
        self._set = False

    def is_set(self) -> bool:
        return self._set

    def set(self) -> None:
        self._set = True
        self._condition.notify_all()

    def clear(self) -> None:
        self._set = False

    def wait(self, timeout: float | None = None) -> bool:
        with self._condition:
            return self._condition.wait_for(self.is_set, timeout)


class _Local:
    """Attributes that each thread has for itself."""

    def __init__(self) -> None:
        self.__dict__["_by_thread"] = weakref.WeakKeyDictionary()

    def _own(self) -> dict[str, Any]:
        own: dict[str, Any] = self.__dict__["_by_thread"].setdefault(greenlet.getcurrent(), {})
        return own

    def __getattr__(self, name: str) -> Any:
        try:
            return self._own()[name]
        except KeyError:
            raise AttributeError(name) from None

    def __setattr__(self, name: str, value: Any) -> None:
        self._own()[name] = value


class _Thread:
    """A thread that is started once."""

    def __init__(
        self,
        threads: Threads,
        target: Callable[..., None],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
    ) -> None:
        self._threads = threads
        self._target = functools.partial(target, *args, **kwargs)
        self._over = _Event(threads)

    def start(self) -> None:
        def run() -> None:
            try:
                self._target()
            finally:
                self._over.set()

        self._threads.start(run)

    def join(self, timeout: float | None = None) -> None:
        self._over.wait(timeout)

    def is_alive(self) -> bool:
        return not self._over.is_set()
