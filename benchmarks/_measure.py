"""What every benchmark needs: processor time and memory of trees of processes, JSON out."""

import json
import os
import platform
import signal
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

# Who ends a benchmark early (timeout, CI) ends what it started, too: `finally` blocks are run.
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))

REPO = Path(__file__).resolve().parent.parent
QUICK = os.environ.get("QUICK", "") not in {"", "0"}


def tree(roots: Iterable[int]) -> list[psutil.Process]:
    """Return the processes with these ids and all their descendants, each once."""
    found: dict[int, psutil.Process] = {}
    for root in roots:
        try:
            process = psutil.Process(root)
            for each in [process, *process.children(recursive=True)]:
                found[each.pid] = each
        except psutil.NoSuchProcess:
            continue
    return list(found.values())


def cpu_seconds(roots: Iterable[int]) -> float:
    """Return user + system time of the trees, children that ended and were reaped included."""
    total = 0.0
    for process in tree(roots):
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system + times.children_user + times.children_system
    return total


def peak_rss_mb(pid: int) -> float:
    """Return the most memory the process ever held (VmHWM), MB of 10^6 bytes."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0.0
    line = next((x for x in status.splitlines() if x.startswith("VmHWM:")), "VmHWM: 0 kB")
    return int(line.split()[1]) * 1024 / 1e6


def pss_mb(pid: int) -> float:
    """Return the process's proportional share of memory now, MB of 10^6 bytes."""
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return sum(int(x.split()[1]) for x in rollup.splitlines() if x.startswith("Pss:")) * 1024 / 1e6


def loopback_bytes() -> int:
    """Return the bytes that crossed the loopback interface since boot."""
    return psutil.net_io_counters(pernic=True)["lo"].bytes_sent


@contextmanager
def stopped_after(*processes: "psutil.Popen") -> Iterator[None]:
    """Stop the processes and all they started, whatever happens inside."""
    try:
        yield
    finally:
        stop(processes)


def stop(processes: "Iterable[psutil.Popen]") -> None:
    """Ask the trees to end, then make them."""
    family = [each for process in processes for each in tree([process.pid])]
    for each in family:
        with_no_such(each.terminate)
    _, alive = psutil.wait_procs(family, timeout=5)
    for each in alive:
        with_no_such(each.kill)
    psutil.wait_procs(alive, timeout=5)


def with_no_such(call: object) -> None:
    """Call, and take an ended process for done."""
    try:
        call()  # type: ignore[operator]
    except psutil.NoSuchProcess:
        return


def wait_until(true: object, what: str, seconds: float) -> None:
    """Poll until `true()` holds, or raise TimeoutError naming what was waited for."""
    end = time.monotonic() + seconds
    while not true():  # type: ignore[operator]
        if time.monotonic() > end:
            raise TimeoutError(f"waited {seconds:.0f} s for {what}")
        time.sleep(0.02)


def machine() -> dict[str, object]:
    """Return what the figures were taken on."""
    return {
        "cpus": os.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "python": platform.python_version(),
        "kernel": platform.release(),
        "load1": round(os.getloadavg()[0], 2),
    }


def finish(result: dict[str, object]) -> None:
    """Print the result as the last line, one JSON object."""
    print(json.dumps({"machine": machine(), "quick": QUICK} | result), flush=True)
