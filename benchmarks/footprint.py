"""What the agent costs a device while nothing happens, and how quickly it and the CLI are there.

Flower's SuperNode is measured beside it: memory of the idle processes, installed size, processor
time to start. Sizes are net of an empty virtual environment; MB are 10^6 bytes. The physical limit
is Python itself: an empty interpreter is printed beside.
"""

import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
from skerry_devices.local import LocalFleet, plan_devices

from benchmarks import _flower
from benchmarks._measure import QUICK, REPO, cpu_seconds, finish, pss_mb, tree, wait_until

SETTLE_S = 5 if QUICK else 20
REPEATS = 3 if QUICK else 7


def folder_mb(folder: Path) -> float:
    """Return the bytes of all files under a folder, each counted once, MB."""
    files = {(p.stat().st_ino): p.stat().st_size for p in folder.rglob("*") if p.is_file()}
    return sum(files.values()) / 1e6


def environment_mb(name: str, *packages: str) -> float:
    """Return the size of a fresh virtual environment with these packages, net of an empty one."""
    venv = REPO / ".bench" / name
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(venv)], check=True)
    empty = folder_mb(venv)
    if packages:
        subprocess.run(
            [venv / "bin" / "pip", "install", "-q", *packages],
            check=True,
            cwd=REPO,
            stderr=subprocess.DEVNULL,
        )
    return round(folder_mb(venv) - empty, 1)


def command_cpu(*command: str) -> float:
    """Return the median CPU-seconds of a command, after one run that warms the file cache."""
    seconds = []
    for _ in range(REPEATS + 1):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(command, check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return round(statistics.median(seconds[1:]), 3)


def idle(roots: list[int]) -> dict[str, float]:
    """Return memory of the trees after they have settled."""
    time.sleep(SETTLE_S)  # idle is a state of time: nothing announces it
    family = tree(roots)
    return {
        "processes": len(family),
        "pss_mb": round(sum(pss_mb(p.pid) for p in family), 1),
        "rss_mb": round(sum(p.memory_info().rss for p in family) / 1e6, 1),
    }


def agents() -> dict[str, dict[str, float]]:
    """Return idle memory and the CPU-seconds until online of one agent on each link."""
    found = {}
    for link in ("grpc", "mqtt"):
        with tempfile.TemporaryDirectory() as home, LocalFleet(Path(home)) as fleet:
            fleet.start()
            plans = plan_devices(1, link)
            fleet.join(plans)
            (agent,) = fleet.run(plans)
            fleet.wait_online(plans)
            ready = round(cpu_seconds([agent.pid]), 3)
            found[link] = idle([agent.pid]) | {"ready_cpu_s": ready}
            print(link, found[link], flush=True)
    return found


def supernode() -> dict[str, float]:
    """Return the same of Flower's SuperNode."""
    with tempfile.TemporaryDirectory() as home, _flower.deployment(1, Path(home)) as deployed:
        node = deployed.nodes[0]
        log = Path(home) / "supernode0.log"
        superlink = Path(home) / "superlink.log"

        def online() -> bool:
            return "activate-node" in superlink.read_text() or "ctivate" in log.read_text()

        wait_until(online, "the SuperNode to be online", 60)
        ready = round(cpu_seconds([node.pid]), 3)
        figures = idle([node.pid]) | {"ready_cpu_s": ready}
        print("supernode", figures, flush=True)
        return figures


def main() -> None:
    """Measure, and print the JSON line."""
    bare = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    ours = agents()
    python_pss = round(pss_mb(bare.pid), 1)
    psutil.Process(bare.pid).kill()
    bare.wait()
    flower = supernode()
    scripts = Path(sys.executable).parent
    result = {
        "benchmark": "footprint",
        "agent_idle_pss_mb": max(figures["pss_mb"] for figures in ours.values()),
        "agent_idle_rss_mb": max(figures["rss_mb"] for figures in ours.values()),
        "agent_ready_cpu_s": max(figures["ready_cpu_s"] for figures in ours.values()),
        "agent_version_cpu_s": command_cpu(str(scripts / "skerry-agent"), "--version"),
        "cli_version_cpu_s": command_cpu(str(scripts / "skerry"), "--version"),
        "install_mb": environment_mb("edge", "./protos", "./edge[grpc,mqtt]"),
        "agents": ours,
        "bare_python_pss_mb": python_pss,
        "flower_supernode": flower,
        "flower_install_mb": environment_mb("flower", f"flwr=={_flower.VERSION}"),
        "flower_version_cpu_s": command_cpu(str(_flower.installed() / "flwr"), "--version"),
    }
    result["vs_flower_pss"] = round(result["agent_idle_pss_mb"] / flower["pss_mb"], 3)
    print(json.dumps(ours, indent=1))
    finish(result)


if __name__ == "__main__":
    main()
