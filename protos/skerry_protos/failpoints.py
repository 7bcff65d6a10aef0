"""Named places where a test kills the process, to prove that nothing is lost there.

SKERRY_FAILPOINT=name kills it with SIGKILL when it comes to that place, name:3 at the third time;
several are joined by commas. Unset, as in production, a place costs one call of an empty function.
"""

import os
import signal
import sys
import threading
from collections.abc import Callable

VARIABLE = "SKERRY_FAILPOINT"


def _parse(text: str) -> dict[str, int]:
    wanted: dict[str, int] = {}
    for one in filter(None, (part.strip() for part in text.split(","))):
        name, _, count = one.partition(":")
        wanted[name] = int(count) if count.isdecimal() and int(count) else 1
    return wanted


def _counting(wanted: dict[str, int]) -> Callable[[str], None]:
    lock = threading.Lock()

    def reached(name: str) -> None:
        if name not in wanted:
            return
        with lock:
            wanted[name] -= 1
            last = wanted[name] == 0
        if last:
            sys.stderr.write(f"failpoint {name}: killed\n")
            sys.stderr.flush()
            os.kill(os.getpid(), signal.SIGKILL)

    return reached


def _nothing(_name: str) -> None:
    return None


_WANTED = _parse(os.environ.get(VARIABLE, ""))
failpoint: Callable[[str], None] = _counting(_WANTED) if _WANTED else _nothing
"""Say that the process has come to the place of this name."""
