"""A coordinator and agents as the processes they always are, each device behind a proxy of its own.

The proxies run in a thread of their own, so that trials are plain functions: begin a run, break
something, wait. The app (tests/apps/ledger) notes every training, and what its model must be
follows from who has answered.
"""

import contextlib
import json
import os
import random
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil
import tomli_w
from skerry_cloud.identity import Authority
from skerry_devices.apps import read_app
from skerry_devices.children import Child, Children
from skerry_devices.client import Client, at
from skerry_devices.commands.config import of_home
from skerry_devices.local import DevicePlan, joined, settle
from skerry_devices.waiting import until
from skerry_edge.enrolment import join
from skerry_protos.errors import LinkError, SkerryError

from tests.faults.machine import Proxies, free_port, resident, wait_gone
from tests.faults.proxy import FaultProxy
from tests.faults.trips import CROSSED, Clean, Trip
from tests.mqtt import listens, mosquitto_program

APP = Path(__file__).parents[1] / "apps" / "ledger"
SIZE = 2_000_000
"""Bytes of the app's model."""
START_S = 60.0


@dataclass
class Boat:
    """One device: its home, its proxy, its process."""

    plan: DevicePlan
    home: Path
    proxy: FaultProxy
    child: Child | None = None
    environment: dict[str, str] = field(default_factory=dict)
    program: Sequence[str] = (sys.executable, "-m", "skerry_edge")

    @property
    def name(self) -> str:
        return self.plan.name


class World:
    """A running coordinator and its devices, all on one link ("grpc" or "mqtt")."""

    def __init__(
        self,
        home: Path,
        link: str,
        devices: int = 3,
        *,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        """Prepare a world in a folder; `settings` are of coordinator.toml."""
        self.home = home
        self.link = link
        self.cloud = home / "coordinator"
        self.children = Children()
        self.boats: list[Boat] = []
        self.coordinator: Child | None = None
        self.started_s = 0.0
        self.app = ""
        self.dice = random.Random(4)
        self._proxies = Proxies()
        self._count = devices
        self._settings = dict(settings or {})
        self._runs = 0
        self._clean: dict[str, Clean] = {}

    def __enter__(self) -> Self:
        self._proxies.__enter__()
        try:
            self.cloud.mkdir(parents=True, exist_ok=True)
            with contextlib.ExitStack() as held:
                ports = {name: free_port(held) for name in ("http", "grpc", "mqtt")}
            table = {f"{name}_port": port for name, port in ports.items()} | self._settings
            if table.get("broker") == "stock":
                table["broker"] = self._stock_broker(ports["mqtt"])
            (self.cloud / "coordinator.toml").write_text(tomli_w.dumps(table))
            self.start_coordinator()
            with self.client() as client:
                self.app = client.upload(at("apps"), read_app(APP).bundle)["digest"]
            for number in range(self._count):
                self.boats.append(self.launch(number))
            self.start_agents()
            self.wait_online()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop everything."""
        for process in self.tree():
            with contextlib.suppress(psutil.Error):
                process.resume()
        self.children.stop()
        self._proxies.__exit__(None, None, None)

    # The coordinator.

    def _stock_broker(self, port: int) -> str:
        """Start a mosquitto with its own defaults but for who may come in; return its URL."""
        keys = Authority.open(self.cloud).server(["127.0.0.1"])
        config = self.home / "mosquitto.conf"
        config.write_text(
            f"listener {port} 127.0.0.1\nuser root\ncafile {keys.ca}\ncertfile {keys.certificate}\n"
            f"keyfile {keys.key}\nrequire_certificate true\nuse_identity_as_username true\n"
            f"use_username_as_clientid true\nallow_anonymous false\n"
        )
        self.children.start(
            "mosquitto", [mosquitto_program(), "-c", str(config)], log=self.home / "mosquitto.log"
        )
        until(lambda: listens(port) or None, timeout_s=START_S, what="mosquitto", every_s=0.05)
        return f"mqtts://127.0.0.1:{port}"

    def start_coordinator(
        self, environment: Mapping[str, str] | None = None, *, ready: bool = True
    ) -> None:
        """Start the coordinator; `ready`: wait until it is."""
        began = time.monotonic()
        self.coordinator = self.children.start(
            "the coordinator",
            [sys.executable, "-m", "skerry_cloud", "--home", str(self.cloud)],
            log=self.home / "coordinator.log",
            env={"FLWR_TELEMETRY_ENABLED": "0", **(environment or {})},
        )
        if ready:
            self.wait_ready()
        self.started_s = time.monotonic() - began

    def wait_ready(self) -> None:
        """Return when the coordinator has said that it is ready."""
        child = self.coordinator
        assert child is not None

        def announced() -> bool | None:
            child.check()
            with contextlib.suppress(OSError, ValueError):
                made = json.loads((self.cloud / "coordinator.json").read_text())
                return made.get("pid") == child.pid or None
            return None

        until(announced, timeout_s=START_S, what=f"start; {child.log}", every_s=0.02)

    def kill_coordinator(self, number: int = signal.SIGKILL) -> None:
        """Kill the coordinator and wait until it and its children are gone."""
        child = self.coordinator
        assert child is not None
        below = [each for each in child.tree() if each.pid != child.pid]
        with contextlib.suppress(ProcessLookupError):
            os.kill(child.pid, number)
        assert child.wait(30) is not None, "the coordinator does not end"
        self.children.forget(child)
        wait_gone(below, "the coordinator")
        self.coordinator = None

    def broker(self) -> psutil.Process:
        """Return the mosquitto that the coordinator runs."""
        assert self.coordinator is not None
        for process in self.coordinator.tree():
            with contextlib.suppress(psutil.Error):
                if process.name() == "mosquitto":
                    return process
        raise AssertionError("the coordinator runs no mosquitto now")

    def client(self) -> Client:
        """Return a client of the operator API."""
        return Client(of_home(self.cloud))

    def ask(self, path: str, *, patience_s: float = 30.0, **query: Any) -> Any:
        """Return what the API says; a coordinator that is away now is waited for."""
        ends = time.monotonic() + patience_s
        while True:
            try:
                with self.client() as client:
                    return client.get(path, **query)
            except (LinkError, SkerryError) as error:
                if time.monotonic() > ends or not isinstance(error, LinkError):
                    raise
                time.sleep(0.05)

    # Devices.

    def launch(self, number: int, *, name: str = "") -> Boat:
        """Enrol a device and put a proxy in front of its way to the cloud."""
        plan = DevicePlan(
            name=name or f"device-{number + 1}",
            link=self.link,
            node={"partition-id": number, "num-partitions": self._count},
        )
        home = self.home / "agents" / plan.name
        settle(home, plan)
        if not joined(home):
            with self.client() as client:
                token = client.post(at("invites"), {"uses": 1})["token"]
            join(token, home, name=plan.name)
        file = home / "identity" / "identity.json"
        fields = json.loads(file.read_text())
        fields["links"] = [each for each in fields["links"] if each["kind"] == self.link]
        address, _, port = fields["links"][0]["url"].rpartition(":")
        proxy = self._proxies.open(int(port))
        fields["links"][0]["url"] = f"{address}:{proxy.port}"
        file.write_text(json.dumps(fields))
        return Boat(plan, home, proxy)

    def start_agents(self, *boats: Boat) -> None:
        """Start agents, all or some."""
        for boat in boats or self.boats:
            boat.child = self.children.start(
                boat.name,
                [*boat.program, "run", "--home", str(boat.home)],
                log=self.home / f"{boat.name}.log",
                env=boat.environment,
            )

    def kill_agents(self, *boats: Boat, number: int = signal.SIGKILL) -> None:
        """Kill agents, at once; their workers die with them."""
        children = [boat.child for boat in boats if boat.child is not None]
        workers = [each for child in children for each in child.tree()[1:]]
        for child in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child.pid, number)
        for child in children:
            assert child.wait(30) is not None, f"{child.name} does not end"
            self.children.forget(child)
        wait_gone(workers, "the agents")
        for boat in boats:
            boat.child = None

    def online(self) -> set[str]:
        """Return the devices that the coordinator says are connected."""
        return {d["id"] for d in self.ask(at("devices"))["items"] if d["connected"]}

    def wait_here(self, *names: str) -> None:
        """Wait until devices are connected, be they of this world or beside it."""
        until(
            lambda: set(names) <= self.online() or None,
            timeout_s=60,
            what=f"{names} coming online",
            every_s=0.05,
        )

    def context(self) -> Path:
        """Return a file that has `skerry` speak to this coordinator ($SKERRY_CONFIG)."""
        path = self.home / "skerry.toml"
        table = {"current": "here", "contexts": {"here": asdict(of_home(self.cloud))}}
        path.write_text(tomli_w.dumps(table))
        path.chmod(0o600)
        return path

    def wait_online(self, *boats: Boat, timeout_s: float = 60.0) -> float:
        """Return how long it took until these devices, or all, were connected."""
        began = time.monotonic()
        names = {boat.name for boat in boats or self.boats}
        until(
            lambda: names <= self.online() or None,
            timeout_s=timeout_s,
            what=f"{names} coming online",
            hint=f"their logs are in {self.home}",
            every_s=0.05,
        )
        return time.monotonic() - began

    def cut(self, boat: Boat) -> None:
        """Reset a device's connections."""
        self._proxies.cut(boat.proxy)

    def heal(self) -> None:
        """Let no proxy harm anybody."""
        for boat in self.boats:
            boat.proxy.heal()

    def tree(self) -> list[psutil.Process]:
        """Return all processes of this world."""
        children = [self.coordinator, *(boat.child for boat in self.boats)]
        return [each for child in children if child is not None for each in child.tree()]

    # Runs.

    def begin(self, *, rounds: int = 1, beside: int = 0, **options: Any) -> Trip:
        """Begin a run of the ledger app on all devices, and on so many `beside` them."""
        self._runs += 1
        for boat in self.boats:  # the same models again, which are to cross again
            for held in (boat.home / "blobs").glob("brief-*/*"):
                held.unlink(missing_ok=True)
        report = self.home / "reports" / f"{self._runs}"
        report.mkdir(parents=True)
        config = {"report": str(report), **options.pop("run_config", {})}
        asked = {
            "rounds": rounds,
            "min_devices": len(self.boats) + beside,
            "run_config": config,
            **options,
        }
        with self.client() as client:
            begun = client.post(at("runs"), {"app": self.app, "options": asked})
        return Trip(self, begun["id"], rounds, report, self.crossed())

    def clean(self, rounds: int = 1, **options: Any) -> Clean:
        """Return what a run without faults comes to here; found once."""
        key = json.dumps([rounds, options], sort_keys=True)
        if key not in self._clean:
            self.begin(rounds=1, **options).end()  # the worker is warm now
            trip = self.begin(rounds=rounds, **options)
            found = trip.end()
            took = found["ended_at"] - found["created_at"]
            self._clean[key] = Clean(found["model"], took, trip.moved(), resident(self.tree()))
        return self._clean[key]

    def crossed(self) -> CROSSED:
        """Return the bytes that have crossed so far."""
        return {boat.name: (boat.proxy.up, boat.proxy.down) for boat in self.boats}
