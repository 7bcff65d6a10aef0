"""kill -9 of the coordinator at random points of a run: how soon it goes on, and what was lost.

One unmodified Flower app (benchmarks/apps/echo) for both; its devices note every training, its
server side the digest of the final model. Skerry: 2 devices on each link, all processes real, the
coordinator killed once in each run and started again on its home. Flower: SuperLink with
`--database` and two SuperNodes, the SuperLink killed in the same way and started again on the
same database; what then becomes of the run is waited for.

`resume_s` is from the start of the new process to the journal's word that the run goes on: the
start of Python and the database's check are in it.
"""

import json
import os
import random
import signal
import tempfile
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from skerry_devices.apps import read_app
from skerry_devices.client import Client, at
from skerry_devices.local import LocalFleet, plan_devices
from skerry_protos.errors import LinkError

from benchmarks import _flower
from benchmarks._measure import QUICK, REPO, finish, wait_until

APP = REPO / "benchmarks" / "apps" / "echo"
KILLS = 4 if QUICK else 20
DEVICES = 2
ROUNDS = 6
MEGABYTES = 4.0
RUN_S = 120.0
FLOWER_S = 90.0 if QUICK else 240.0
"""How long Flower's run is watched after the restart; six of its rounds take less."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One run with one kill."""

    who: str
    state: str
    resume_s: float
    updates: int
    retrained: int
    bit_exact: bool


def retrained(notes: Path) -> tuple[int, int]:
    """Return how many updates were trained, and how many of them again."""
    lines = notes.read_text().splitlines() if notes.exists() else []
    found = Counter(tuple(line.split()[:2]) for line in lines)
    return len(found), sum(times - 1 for times in found.values())


def wishes(folder: Path) -> dict[str, Any]:
    """Return the app's settings for a run that reports into a folder."""
    folder.mkdir()
    return {
        "devices": DEVICES,
        "megabytes": MEGABYTES,
        "rounds": ROUNDS,
        "report": str(folder / "rounds.jsonl"),
        "notes": str(folder / "notes"),
    }


def run_of(fleet: LocalFleet, run: str) -> dict[str, Any]:
    """Return a run as the API shows it; a coordinator that is starting is waited for."""
    ends = time.monotonic() + 30
    while True:
        try:
            with fleet.client() as client:
                return dict(client.get(at("runs", run)))
        except LinkError:
            if time.monotonic() > ends:
                raise
            time.sleep(0.05)


def begin(client: Client, app: str, config: dict[str, Any]) -> str:
    """Begin a run and return its id."""
    options = {"min_devices": DEVICES, "run_config": config, "seed": 7}
    return str(client.post(at("runs"), {"app": app, "options": options})["id"])


def ended(fleet: LocalFleet, run: str) -> dict[str, Any]:
    """Return a run when it is over."""
    wait_until(lambda: run_of(fleet, run)["ended_at"], f"the end of {run}", RUN_S)
    return run_of(fleet, run)


def skerry(link: str) -> list[Row]:
    """Return what became of the runs of a fleet on one link."""
    dice = random.Random(link)
    rows = []
    with (
        tempfile.TemporaryDirectory() as folder,
        tempfile.TemporaryDirectory() as noted,  # the agents' sandbox opens nothing new beside them
        LocalFleet(Path(folder), lasting=True) as fleet,
    ):
        home = Path(folder)
        fleet.start()
        plans = plan_devices(DEVICES, link)
        fleet.join(plans)
        fleet.run(plans)
        fleet.wait_online(plans)
        with fleet.client() as client:
            app = client.upload(at("apps"), read_app(APP).bundle)["digest"]
            for name in ("warm", "clean"):
                began = time.monotonic()
                ended(fleet, begin(client, app, wishes(Path(noted, name))))
                lasts = time.monotonic() - began
        wanted = Path(noted, "clean", "rounds.sha256").read_text()
        if retrained(Path(noted, "clean", "notes")) != (DEVICES * ROUNDS, 0):
            raise RuntimeError("the run without a kill did not train as often as it should")
        for number in range(KILLS):
            reports = Path(noted, f"run-{number}")
            with fleet.client() as client:
                run = begin(client, app, wishes(reports))
            time.sleep(dice.uniform(0.1, lasts * 0.9))
            kill(fleet, home)
            again = time.time()
            fleet.start()
            found = ended(fleet, run)
            with fleet.client() as client:
                events = client.items(at("runs", run, "events"))
            at_s = [e["at"] for e in events if e["kind"] == "resumed"]
            updates, twice = retrained(reports / "notes")
            if updates != DEVICES * ROUNDS:
                raise RuntimeError(f"{run}: {updates} updates of {DEVICES * ROUNDS}")
            digest = reports / "rounds.sha256"
            row = Row(
                who=f"skerry-{link}",
                state=found["state"],
                resume_s=round(at_s[0] - again, 2) if at_s else 0.0,
                updates=updates,
                retrained=twice,
                bit_exact=digest.exists() and digest.read_text() == wanted,
            )
            print(row, flush=True)
            rows.append(row)
            fleet.wait_online(plans)
    return rows


def kill(fleet: LocalFleet, home: Path) -> None:
    """Kill the coordinator, and expect it no more."""
    made = json.loads((home / "coordinator" / "coordinator.json").read_text())
    child = next(c for c in fleet.children if c.pid == made["pid"])
    os.kill(child.pid, signal.SIGKILL)
    child.wait(10)
    fleet.children.forget(child)


def flower() -> Row:
    """Return what became of Flower's run."""
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        database = str(home / "state.db")
        with _flower.deployment(DEVICES, home, database=database) as deployed:
            reports = home / "run"
            deployed.run(APP, wishes(reports))
            report = reports / "rounds.jsonl"
            wait_until(lambda: report.exists() and report.read_text(), "a round", RUN_S)
            deployed.superlink.kill()
            deployed.superlink.wait(10)
            began = time.monotonic()
            deployed.start_superlink()
            status = state = ""
            while time.monotonic() < began + FLOWER_S and not state.startswith("finished"):
                time.sleep(1)
                runs = deployed.runs()
                status = str(runs[0]) if runs else "forgotten"
                state = str(runs[0].get("status", "")) if runs else "forgotten"
            print(f"flower after {time.monotonic() - began:.0f} s: {status}", flush=True)
            updates, twice = retrained(reports / "notes")
            return Row(
                who="flower",
                state=state,
                resume_s=0.0,
                updates=updates,
                retrained=twice,
                bit_exact=(reports / "rounds.sha256").exists(),
            )


def main() -> None:
    """Kill, and print the JSON line."""
    rows = [row for link in ("grpc", "mqtt") for row in skerry(link)]
    peer = flower()
    finish(
        {
            "benchmark": "recovery",
            "kills": len(rows),
            "completed": sum(row.state == "completed" for row in rows),
            "resume_s_max": max(row.resume_s for row in rows),
            "retrained": sum(row.retrained for row in rows),
            "bit_exact": all(row.bit_exact for row in rows),
            "flower_state": peer.state,
            "flower_updates": f"{peer.updates} of {DEVICES * ROUNDS}",
            "rows": [asdict(row) for row in [*rows, peer]],
        }
    )


if __name__ == "__main__":
    main()
