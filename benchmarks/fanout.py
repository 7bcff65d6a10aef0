"""What the coordinator sends for a model that 10, 50 and 200 devices get over MQTT.

Real agents in few processes, each with a session and a connection of its own; mosquitto between.
The bytes are those that the kernel counts on the coordinator's connection to the broker (`ss`):
TLS, tasks, bundles, acknowledgements and all. Each round has a new model; the first warms up.
Beside it the least there is, the model once, and gRPC, where every device has its own connection.
"""

import itertools
import json
import re
import statistics
import subprocess
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import urlsplit

import psutil
from skerry_devices.apps import read_app
from skerry_devices.client import at
from skerry_devices.local import LocalFleet, plan_devices
from skerry_devices.simulated import Fleet, start_shares

from benchmarks._measure import QUICK, REPO, finish, peak_rss_mb, wait_until

APP = REPO / "benchmarks" / "apps" / "listen"
COUNTS = (10, 50) if QUICK else (10, 50, 200)
MEGABYTES = 8.0
ROUNDS = 3
ONLINE_S = 180.0
RUN_S = 400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One size of fleet."""

    link: str
    devices: int
    megabytes: float
    egress_mb: float
    egress_over_model: float
    seconds: float
    coordinator_peak_rss_mb: float
    broker_peak_rss_mb: float


def sent_by(pid: int, port: int, *, listens: bool) -> int:
    """Return the bytes that a process has had acknowledged on connections to (or from) a port.

    Not what the kernel sent: a broker that is slow to read has loopback send parts several times.
    """
    side = "sport" if listens else "dport"
    said = subprocess.run(
        ["ss", "-tinpHO", "state", "established", f"( {side} = :{port} )"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    lines = [line for line in said.splitlines() if f"pid={pid}," in line]
    return sum(int(found[1]) for line in lines if (found := re.search(r"bytes_acked:(\d+)", line)))


def measured(link: str, devices: int) -> Row:
    """Return the figures of a fleet of this size."""
    with (
        tempfile.TemporaryDirectory() as folder,
        tempfile.TemporaryDirectory() as noted,  # the sandbox opens nothing new beside a home
        LocalFleet(Path(folder)) as fleet,
    ):
        home = Path(folder)
        fleet.start()
        made = json.loads((home / "coordinator" / "coordinator.json").read_text())
        port, pid = urlsplit(made[f"{link}_url"]).port, made["pid"]
        plans = plan_devices(devices, link)
        with fleet.client() as client:
            start_shares(
                Fleet(count=devices, profile="generic", link=link),
                plans,
                home,
                client,
                fleet.children,
            )
            fleet.wait_online(plans, timeout_s=ONLINE_S)
            app = client.upload(at("apps"), read_app(APP).bundle)["digest"]
            report = Path(noted, "rounds.jsonl")
            config = {
                "devices": devices,
                "megabytes": MEGABYTES,
                "rounds": ROUNDS,
                "report": str(report),
            }
            options = {"min_devices": devices, "run_config": config, "round_deadline_s": RUN_S}
            begun = client.post(at("runs"), {"app": app, "options": options})
            marks: list[int] = []

            def passed() -> bool:
                fleet.children.check()
                done = report.read_text().count("\n") if report.exists() else 0
                while len(marks) < done:
                    marks.append(sent_by(pid, int(port or 0), listens=link == "grpc"))
                found = client.get(at("runs", begun["id"]))
                if found["state"] == "failed":
                    raise RuntimeError(found["why"])
                return done >= ROUNDS

            wait_until(passed, f"{ROUNDS} rounds", RUN_S)
            rounds = [json.loads(line) for line in report.read_text().splitlines()]
            if any(each["replies"] != devices for each in rounds):
                raise RuntimeError(f"a round lost a reply: {rounds}")
            wait_until(
                lambda: client.get(at("runs", begun["id"]))["state"] == "completed", "its end", 60
            )
        egress = max(after - before for before, after in itertools.pairwise(marks))
        broker = [p for p in psutil.Process(pid).children() if p.name() == "mosquitto"]
        row = Row(
            link=link,
            devices=devices,
            megabytes=MEGABYTES,
            egress_mb=round(egress / 1e6, 2),
            egress_over_model=round(egress / (MEGABYTES * 1e6), 3),
            seconds=round(statistics.median(r["ended"] - r["began"] for r in rounds[1:]), 2),
            coordinator_peak_rss_mb=round(peak_rss_mb(pid), 1),
            broker_peak_rss_mb=round(peak_rss_mb(broker[0].pid) if broker else 0.0, 1),
        )
    print(row, flush=True)
    time.sleep(0.5)
    return row


def main() -> None:
    """Measure every size of fleet and print the JSON line."""
    rows = [measured("mqtt", devices) for devices in COUNTS]
    beside = measured("grpc", COUNTS[0])
    finish(
        {
            "benchmark": "fanout",
            "egress_over_model_max": max(row.egress_over_model for row in rows),
            "grpc_egress_over_model": beside.egress_over_model,
            "floor": 1.0,  # the model has to leave once
            "rows": [asdict(row) for row in [*rows, beside]],
        }
    )


if __name__ == "__main__":
    main()
