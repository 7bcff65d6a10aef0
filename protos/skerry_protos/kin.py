"""Processes that are not to outlive the one that started them."""

import os
import shutil
import signal
import sys
from pathlib import Path


def dying_with_parent(by: signal.Signals = signal.SIGKILL) -> list[str]:
    """Return what goes before a command so that it is sent `by` when this process dies.

    Nothing where the machine has no such means. Not a preexec_fn: with one Python forks instead of
    vforks, and where gRPC's threads run the child hangs or aborts now and then before it is what
    it should be (1 of 80 starts in the tests).
    """
    if sys.platform != "linux":
        return []
    setpriv = shutil.which("setpriv")  # of util-linux; busybox has one without the option
    if setpriv is None or Path(setpriv).resolve().name == "busybox":
        return []
    # The shell looks whether this process had died before the kernel was asked.
    still = f'[ "$PPID" = {os.getpid()} ] && exec "$@"'
    return [setpriv, "--pdeathsig", by.name.removeprefix("SIG"), "--", "sh", "-c", still, "sh"]
