"""Seconds, processor time, memory and bytes of a round: Skerry over gRPC and MQTT beside Flower.

The app (benchmarks/apps/echo) is one unmodified Flower app for all; it notes when each round began
and ended. Every process is real; Skerry's traffic is mutual TLS and durable, Flower's plain and in
memory, which is each one's way out of the box here. `floor` is the same bytes through plain
loopback sockets, `kept_floor` the same with TLS, SHA-256 and fsync (see _floor.py). The first round
of a run warms up and is not counted.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil
from skerry_devices.local import LocalFleet, plan_devices

from benchmarks import _flower
from benchmarks._floor import copy_floor, kept_floor
from benchmarks._measure import (
    QUICK,
    REPO,
    cpu_seconds,
    finish,
    loopback_bytes,
    peak_rss_mb,
    tree,
    wait_until,
)

APP = REPO / "benchmarks" / "apps" / "echo"
ROUNDS = 4 if QUICK else 8
FLOWER_ROUNDS = 3 if QUICK else 5
CASES = [(8, 4.0)] if QUICK else [(d, mb) for d in (2, 8) for mb in (0.1, 4.0, 40.0)]
HEADLINE = (8, 4.0)
RUN_S = 600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """One row: medians over the counted rounds."""

    who: str
    devices: int
    megabytes: float
    seconds: float
    cpu_seconds: float
    coordinator_peak_rss_mb: float
    all_peak_rss_mb: float
    loopback_mb: float


def lines(report: Path) -> list[dict[str, float]]:
    """Return the rounds that the app has reported so far."""
    if not report.exists():
        return []
    return [json.loads(line) for line in report.read_text().splitlines() if line.endswith("}")]


class Watch:
    """Reads processor time, memory and bytes of the trees while the rounds pass."""

    def __init__(self, roots: list[int], report: Path) -> None:
        self.roots = roots
        self.report = report
        self.marks: list[tuple[int, float, int]] = []  # rounds done, CPU-seconds, bytes
        self.all_peak = 0.0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(0.02):
            done = len(lines(self.report))
            if done and (not self.marks or self.marks[-1][0] != done):
                self.marks.append((done, cpu_seconds(self.roots), loopback_bytes()))
                self.all_peak = max(self.all_peak, sum(_rss(p) for p in tree(self.roots)) / 1e6)

    def per_round(self, column: int) -> float:
        """Return the mean over the counted rounds: from the end of the first to the last."""
        first, last = self.marks[0], self.marks[-1]
        return (last[column] - first[column]) / max(1, last[0] - first[0])


def _rss(process: psutil.Process) -> int:
    try:
        return int(process.memory_info().rss)
    except psutil.NoSuchProcess:
        return 0


def measured(
    who: str,
    case: tuple[int, float],
    roots: list[int],
    coordinator: int,
    start: Callable[[Path, int], None],
    rounds: int,
) -> Figures:
    """Run the app once by `start(report, rounds)` and return its figures."""
    devices, megabytes = case
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "rounds.jsonl"
        with Watch(roots, report) as watch:
            start(report, rounds)
            wait_until(lambda: len(lines(report)) >= rounds, f"{rounds} rounds of {who}", RUN_S)
            wait_until(lambda: watch.marks and watch.marks[-1][0] >= rounds, "the last mark", 5)
        seconds = [line["ended"] - line["began"] for line in lines(report)[1:]]
        if any(line["replies"] != devices for line in lines(report)):
            raise RuntimeError(f"{who}: a round lost a reply: {lines(report)}")
    figures = Figures(
        who=who,
        devices=devices,
        megabytes=megabytes,
        seconds=round(statistics.median(seconds), 4),
        cpu_seconds=round(watch.per_round(1), 3),
        coordinator_peak_rss_mb=round(peak_rss_mb(coordinator), 1),
        all_peak_rss_mb=round(watch.all_peak, 1),
        loopback_mb=round(watch.per_round(2) / 1e6, 1),
    )
    print(figures, flush=True)
    return figures


def skerry(link: str, case: tuple[int, float], *, fresh: bool = False) -> Figures:
    """Return the figures of a fleet of our own, all on one link."""
    devices, megabytes = case
    with tempfile.TemporaryDirectory() as home, LocalFleet(Path(home)) as fleet:
        fleet.start()
        plans = plan_devices(devices, link)
        fleet.join(plans)
        agents = fleet.run(plans)
        fleet.wait_online(plans, timeout_s=120)
        coordinator = json.loads((Path(home) / "coordinator" / "coordinator.json").read_text())
        roots = [coordinator["pid"], *(agent.pid for agent in agents)]
        config = Path(home) / "config.toml"
        context = fleet.context
        config.write_text(
            f'current = "bench"\n[contexts.bench]\nurl = "{context.url}"\n'
            f'ca = "{context.ca}"\ntoken = "{context.token}"\n'
        )

        def start(report: Path, rounds: int) -> None:
            values = {
                "devices": devices,
                "megabytes": megabytes,
                "rounds": rounds,
                "report": f'"{report}"',
            }
            command = [sys.executable, "-m", "skerry_devices", "run", str(APP), "--detach"]
            command += ["--min-devices", str(devices)]
            command += ["--fresh-worker"] if fresh else []
            for key, value in values.items():
                command += ["--run-config", f"{key}={value}"]
            done = subprocess.run(
                command,
                env=psutil.Process().environ() | {"SKERRY_CONFIG": str(config)},
                capture_output=True,
                text=True,
                timeout=120,
                check=False,
            )
            if done.returncode:
                raise RuntimeError(f"skerry run failed: {done.stdout}{done.stderr}")

        who = f"skerry-{link}{'-fresh' if fresh else ''}"
        rounds = FLOWER_ROUNDS if fresh else ROUNDS
        return measured(who, case, roots, roots[0], start, rounds)


def flower(case: tuple[int, float]) -> Figures:
    """Return the figures of Flower's own deployment."""
    devices, megabytes = case
    with (
        tempfile.TemporaryDirectory() as home,
        _flower.deployment(devices, Path(home)) as deployed,
    ):

        def start(report: Path, rounds: int) -> None:
            config = {"devices": devices, "megabytes": megabytes, "rounds": rounds}
            deployed.run(APP, config | {"report": str(report)})

        pid = deployed.superlink.pid
        return measured("flower", case, deployed.roots, pid, start, FLOWER_ROUNDS)


def main() -> None:
    """Measure all cases, print a table and the JSON line."""
    rows: list[Figures] = []
    floors: dict[str, float] = {}
    kept: dict[str, float] = {}
    for case in CASES:
        devices, megabytes = case
        name, size = f"{devices}x{megabytes:g}", int(megabytes * 1e6)
        floors[name], kept[name] = copy_floor(devices, size), kept_floor(devices, size)
        rows += [skerry("grpc", case), skerry("mqtt", case), flower(case)]
    rows += [skerry(link, HEADLINE, fresh=True) for link in ("grpc", "mqtt")]

    def row(who: str) -> Figures:
        return next(r for r in rows if r.who == who and (r.devices, r.megabytes) == HEADLINE)

    def worst(attribute: str, suffix: str = "") -> float:
        ours = [getattr(row(f"skerry-{link}{suffix}"), attribute) for link in ("grpc", "mqtt")]
        return round(max(ours) / getattr(row("flower"), attribute), 4)

    headline = f"{HEADLINE[0]}x{HEADLINE[1]:g}"
    floor, kept_s = floors[headline], kept[headline]
    finish(
        {
            "benchmark": "rounds",
            # the slower of our two links, over Flower
            "vs_flower_time": worst("seconds"),
            "vs_flower_cpu": worst("cpu_seconds"),
            "vs_flower_time_fresh": worst("seconds", "-fresh"),
            "vs_flower_cpu_fresh": worst("cpu_seconds", "-fresh"),
            "vs_floor_grpc": round(row("skerry-grpc").seconds / floor, 2),
            "vs_floor_mqtt": round(row("skerry-mqtt").seconds / floor, 2),
            "vs_kept_floor_grpc": round(row("skerry-grpc").seconds / kept_s, 2),
            "vs_kept_floor_mqtt": round(row("skerry-mqtt").seconds / kept_s, 2),
            "kept_floor_s": {name: round(value, 5) for name, value in kept.items()},
            "floor_s": {name: round(value, 5) for name, value in floors.items()},
            "rows": [asdict(each) for each in rows],
        }
    )


if __name__ == "__main__":
    main()
