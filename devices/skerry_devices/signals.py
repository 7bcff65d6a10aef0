"""Ending in order: SIGTERM and a closed terminal act as Ctrl-C; stopping is not cut short."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

ENDS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Raise KeyboardInterrupt for each signal that ends a program.

    One that whoever started us had us ignore (nohup, a shell's background job) stays ignored.
    """

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
    found = {
        number: signal.signal(number, handler)  # type: ignore[arg-type]
        for number in ENDS
        if signal.getsignal(number) is not signal.SIG_IGN
    }
    try:
        yield
    finally:
        for number, before in found.items():
            signal.signal(number, before)
