"""How much memory a round takes on the server side: 24 and 100 replies of a 40 MB model.

An unmodified Flower app with Flower's FedAvg (apps/heavy) trains with devices that hold real
sessions over gRPC (_farm.py): every reply is uploaded, kept, screened and folded in as in any run.
The peak is that of the coordinator and of the app's server side together (resident memory, sampled
each 10 ms), above what both take for the same run with a model of 0.1 MB. Flower's own
`FedAvg.aggregate_train` runs beside it, in a process of its own, over as many replies.
"""

import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import psutil

from benchmarks._measure import QUICK, REPO, finish, peak_rss_mb, stop

APP = REPO / "benchmarks" / "apps" / "heavy"
MODEL_MB = 4.0 if QUICK else 40.0
SMALL_MB = 0.1
COUNTS = (6, 24) if QUICK else (24, 100)
ROUNDS = 2
PATIENCE_S = 500.0
EVERY_S = 0.01


class Memory:
    """The most that the coordinator and its server side held, sampled while the block runs."""

    def __init__(self, coordinator: int) -> None:
        self._coordinator = psutil.Process(coordinator)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.peak = self.peak_coordinator = self.peak_child = 0.0  # resident
        self.peak_anonymous = 0.0  # without mapped files
        self.peak_pss = 0.0

    def __enter__(self) -> "Memory":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        turn = 0
        while not self._ended.wait(EVERY_S):
            turn += 1
            own = _status(self._coordinator.pid)
            children = [_status(child) for child in _children(self._coordinator)]
            child = (sum(one[0] for one in children), sum(one[1] for one in children))
            self.peak_coordinator = max(self.peak_coordinator, own[0])
            self.peak_child = max(self.peak_child, child[0])
            self.peak = max(self.peak, own[0] + child[0])
            self.peak_anonymous = max(self.peak_anonymous, own[1] + child[1])
            if turn % 20 == 0:
                pids = [self._coordinator.pid, *_children(self._coordinator)]
                self.peak_pss = max(self.peak_pss, sum(_pss(pid) for pid in pids))


def _children(process: psutil.Process) -> list[int]:
    try:
        return [child.pid for child in process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _status(pid: int) -> tuple[float, float]:
    """Return resident and anonymous memory, MB of 10^6 bytes."""
    found = {"VmRSS:": 0.0, "RssAnon:": 0.0}
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            key, _, rest = line.partition("\t")
            if key in found:
                found[key] = int(rest.split()[0]) * 1024 / 1e6
    except OSError:
        pass
    return found["VmRSS:"], found["RssAnon:"]


def _pss(pid: int) -> float:
    try:
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0.0
    return sum(int(x.split()[1]) for x in rollup.splitlines() if x.startswith("Pss:")) * 1024 / 1e6


def measured(devices: int) -> dict[str, Any]:
    """Return the figures of one fleet: a run with a small model, then one with the large."""
    with tempfile.TemporaryDirectory() as home:
        farm: list[subprocess.Popen[str]] = []
        try:
            cloud = _start("coordinator", home, str(devices))
            farm.append(cloud)
            url = _line(cloud)["url"]
            there = _start("devices", home, str(devices), url)
            farm.append(there)
            _line(there)
            idle = _status(cloud.pid)[0]
            small = _train(cloud, devices, SMALL_MB)
            between = _status(cloud.pid)[0]
            large = _train(cloud, devices, MODEL_MB)
        finally:
            stop(psutil.Process(one.pid) for one in farm)
    base = max(between, idle) + small["child"]
    return {
        "devices": devices,
        "model_mb": MODEL_MB,
        "idle_coordinator_mb": round(idle, 1),
        "small_run": small,
        "large_run": large,
        "base_mb": round(base, 1),
        "peak_over_base_mb": round(large["both"] - base, 1),
        "peak_over_model": round((large["both"] - base) / MODEL_MB, 2),
        "child_and_all_over_idle_mb": round(large["both"] - idle, 1),
    }


def _start(*arguments: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "benchmarks._farm", *arguments],
        cwd=REPO,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def _line(process: "subprocess.Popen[str]") -> dict[str, Any]:
    """Return the next line a process says; it may take PATIENCE_S."""
    timer = threading.Timer(PATIENCE_S, process.kill)
    timer.start()
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
    finally:
        timer.cancel()
    if not line:
        raise RuntimeError(f"{process.args} ended, or was silent for {PATIENCE_S:.0f} s")
    return dict(json.loads(line))


def _train(cloud: "subprocess.Popen[str]", devices: int, megabytes: float) -> dict[str, Any]:
    options = {
        "rounds": ROUNDS,
        "min_devices": devices,
        "run_config": {"devices": devices, "megabytes": megabytes},
    }
    assert cloud.stdin is not None
    with Memory(cloud.pid) as memory:
        cloud.stdin.write(json.dumps({"app": str(APP), "options": options}) + "\n")
        cloud.stdin.flush()
        ended = _line(cloud)
    if ended["state"] != "completed":
        raise RuntimeError(f"the run {ended['state']}: {ended['why']}")
    return {
        "both": round(memory.peak, 1),
        "coordinator": round(memory.peak_coordinator, 1),
        "child": round(memory.peak_child, 1),
        "anonymous": round(memory.peak_anonymous, 1),
        "pss": round(memory.peak_pss, 1),
        "seconds": ended["seconds"],
    }


FLOWER = """
import sys
import numpy as np
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg
from flwr.supercore.task_identity import TaskIdentity

TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1
count, floats = int(sys.argv[1]), int(float(sys.argv[2]) * 1e6) // 16

def status(name):
    lines = open("/proc/self/status").read().splitlines()
    return next(int(x.split()[1]) for x in lines if x.startswith(name)) * 1024 / 1e6

def replies():
    random = np.random.default_rng(0)
    for node in range(count):
        arrays = [random.standard_normal(floats, dtype=np.float32) for _ in range(4)]
        metrics = MetricRecord({"num-examples": 1})
        asked = Message(RecordDict(), node, "train")
        yield Message(RecordDict({"a": ArrayRecord(arrays), "m": metrics}), reply_to=asked)

base = status("VmRSS:")
FedAvg(fraction_evaluate=0.0).aggregate_train(1, replies())
print(status("VmHWM:") - base)
"""


def flower(count: int) -> float:
    """Return what Flower's aggregation takes above its start, MB."""
    command = [sys.executable, "-c", FLOWER, str(count), str(MODEL_MB)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=PATIENCE_S)
    return float(done.stdout.split()[-1])


def main() -> None:
    """Measure and print."""
    result: dict[str, Any] = {"model_mb": MODEL_MB}
    for count in COUNTS:
        began = time.monotonic()
        found = measured(count)
        theirs = flower(count)
        result[f"peak_over_model_{count}"] = found["peak_over_model"]
        result[f"flower_over_model_{count}"] = round(theirs / MODEL_MB, 2)
        result[f"flower_peak_{count}_mb"] = round(theirs, 1)
        result[f"detail_{count}"] = found
        print(f"{count} replies, {time.monotonic() - began:.0f} s: {json.dumps(found)}", flush=True)
    result["own_peak_mb"] = round(peak_rss_mb(psutil.Process().pid), 1)
    finish(result)


if __name__ == "__main__":
    main()
