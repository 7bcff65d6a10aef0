"""Ending in order: SIGTERM and a closed terminal act as Ctrl-C; stopping is not cut short."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

ENDS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Raise KeyboardInterrupt for each signal that ends a program."""

    def interrupt(number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt(signal.Signals(number).name)

    with _handled(interrupt):
        yield


@contextlib.contextmanager
def shielded() -> Iterator[None]:
    """Let no signal cut short what the block does: it is the way out already."""
    with _handled(signal.SIG_IGN):
        yield


@contextlib.contextmanager
def _handled(handler: object) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread is told of signals
        return
    found = {number: signal.signal(number, handler) for number in ENDS}  # type: ignore[arg-type]
    try:
        yield
    finally:
        for number, before in found.items():
            signal.signal(number, before)
