"""A coordinator and agents as the processes they always are, each device behind a proxy of its own.

The proxies run in a thread of their own, so that trials are plain functions: begin a run, break
something, wait. The app (tests/apps/ledger) notes every training, and what its model must be
follows from who has answered.
"""

import asyncio
import contextlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
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

from tests.faults.proxy import FaultProxy
from tests.mqtt import listens, mosquitto_program

APP = Path(__file__).parents[1] / "apps" / "ledger"
SIZE = 2_000_000
"""Bytes of the app's model."""
START_S = 60.0
RUN_S = 120.0
WINDOW = 32 * 1024
OVER = {"completed", "failed", "stopped", "interrupted"}


class Proxies:
    """Fault proxies in an event loop of their own; leaving the block closes them."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxies", daemon=True)
        self._open: list[FaultProxy] = []

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for proxy in self._open:
            self._do(proxy.__aexit__(None, None, None))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def open(self, port: int) -> FaultProxy:
        """Return a proxy in front of a port of this machine."""
        proxy = FaultProxy(port, window=WINDOW)
        self._do(proxy.__aenter__())
        self._open.append(proxy)
        return proxy

    def cut(self, proxy: FaultProxy) -> None:
        """Reset a proxy's connections."""
        self._loop.call_soon_threadsafe(proxy.cut)

    def _do(self, coroutine: Any) -> None:
        asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(20)


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
                ports = {name: _free_port(held) for name in ("http", "grpc", "mqtt")}
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
        _wait_gone(below, "the coordinator")
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
        _wait_gone(workers, "the agents")
        for boat in boats:
            boat.child = None

    def online(self) -> set[str]:
        """Return the devices that the coordinator says are connected."""
        return {d["id"] for d in self.ask(at("devices"))["items"] if d["connected"]}

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

    def begin(self, *, rounds: int = 1, **options: Any) -> "Trip":
        """Begin a run of the ledger app on all devices."""
        self._runs += 1
        report = self.home / "reports" / f"{self._runs}"
        report.mkdir(parents=True)
        config = {"report": str(report), **options.pop("run_config", {})}
        asked = {"rounds": rounds, "min_devices": len(self.boats), "run_config": config, **options}
        with self.client() as client:
            begun = client.post(at("runs"), {"app": self.app, "options": asked})
        return Trip(self, begun["id"], rounds, report, self._bytes())

    def clean(self, rounds: int = 1, **options: Any) -> "Clean":
        """Return what a run without faults comes to here; found once."""
        key = json.dumps([rounds, options], sort_keys=True)
        if key not in self._clean:
            self.begin(rounds=1, **options).end()  # the worker is warm now
            trip = self.begin(rounds=rounds, **options)
            found = trip.end()
            took = found["ended_at"] - found["created_at"]
            self._clean[key] = Clean(found["model"], took, trip.moved(), resident(self.tree()))
        return self._clean[key]

    def _bytes(self) -> dict[str, tuple[int, int]]:
        return {boat.name: (boat.proxy.up, boat.proxy.down) for boat in self.boats}


@dataclass(frozen=True, slots=True, kw_only=False)
class Clean:
    """A run without faults: its model's digest, seconds, bytes on the wire, largest memory."""

    model: str
    seconds: float
    moved: int
    resident: dict[str, int]


@dataclass
class Trip:
    """One run, and what the devices noted of it."""

    world: World
    id: str
    rounds: int
    report: Path
    before: dict[str, tuple[int, int]]

    def detail(self) -> dict[str, Any]:
        found: dict[str, Any] = self.world.ask(at("runs", self.id))
        return found

    def over(self) -> bool:
        return self.detail()["state"] in OVER

    def end(self, timeout_s: float = RUN_S) -> dict[str, Any]:
        """Return the run when it is over; one that does not end is an AssertionError."""
        ends = time.monotonic() + timeout_s
        while (found := self.detail())["state"] not in OVER:
            if time.monotonic() > ends:
                raise AssertionError(f"{self.id} is {found['state']}: {found['waiting']}")
            time.sleep(0.05)
        return found

    def events(self, *kinds: str) -> list[dict[str, Any]]:
        """Return the journal, or what is of these kinds."""
        found: list[dict[str, Any]] = []
        while True:
            after = found[-1]["id"] if found else 0
            page = self.world.ask(at("runs", self.id, "events"), after=after)["items"]
            found += page
            if not page:
                return [event for event in found if not kinds or event["kind"] in kinds]

    def noted(self, device: str) -> list[dict[str, Any]]:
        """Return what a device noted of its trainings."""
        with contextlib.suppress(FileNotFoundError):
            lines = (self.report / device).read_text().splitlines()
            return [json.loads(line) for line in lines if line.endswith("}")]
        return []

    def has(self, device: str, what: str, round_: int = 1) -> bool:
        """Return whether a device has begun or ended its training of a round."""
        return any(n["what"] == what and n["round"] == round_ for n in self.noted(device))

    def wait(self, claim: Callable[[], bool], what: str, timeout_s: float = 60.0) -> bool:
        """Return True once a claim holds, False when the run is over before it does."""
        ends = time.monotonic() + timeout_s
        look = 0
        while not claim():
            look += 1
            if look % 50 == 0 and self.over():
                return claim()
            if time.monotonic() > ends:
                raise AssertionError(f"{self.id}: not within {timeout_s:g} s: {what}")
            time.sleep(0.004)
        return True

    def moved(self) -> int:
        """Return the bytes that crossed since the run began, both ways, all devices."""
        after = self.world._bytes()
        return sum(sum(after[n]) - sum(b) for n, b in self.before.items() if n in after)

    def sent_up(self, boat: Boat) -> int:
        """Return the bytes a device has sent since the run began."""
        return boat.proxy.up - self.before[boat.name][0]


def resident(processes: Sequence[psutil.Process]) -> dict[str, int]:
    """Return the largest memory that each kind of process ever held, bytes."""
    found: dict[str, int] = {}
    for process in processes:
        with contextlib.suppress(psutil.Error, OSError, StopIteration):
            command = " ".join(process.cmdline())
            kind = next(
                kind
                for kind, mark in (
                    ("worker", "skerry_edge.worker"),
                    ("agent", "skerry_edge"),
                    ("server side", "skerry_cloud.runs"),
                    ("coordinator", "skerry_cloud"),
                    ("broker", "mosquitto"),
                )
                if mark in command
            )
            status = Path(f"/proc/{process.pid}/status").read_text().splitlines()
            line = next(each for each in status if each.startswith("VmHWM:"))
            found[kind] = max(found.get(kind, 0), int(line.split()[1]) * 1024)
    return found


def _wait_gone(processes: Sequence[psutil.Process], whose: str) -> None:
    """Wait until processes run no more; who adopted them may take its time to bury them."""
    ends = time.monotonic() + 10
    while left := [each for each in processes if _runs(each)]:
        assert time.monotonic() < ends, f"left behind by {whose}: {left}"
        time.sleep(0.005)


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _free_port(held: contextlib.ExitStack) -> int:
    listener = held.enter_context(socket.create_server(("127.0.0.1", 0)))
    return int(listener.getsockname()[1])


@contextlib.contextmanager
def small_disk(folder: Path, megabytes: float) -> Iterator[Path]:
    """Mount a file system of this size; OSError where this user may not."""
    folder.mkdir(parents=True, exist_ok=True)
    size = f"size={int(megabytes * 1024)}k"
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", size, "tmpfs", str(folder)], check=False, capture_output=True
    )
    if done.returncode:
        raise OSError(f"cannot mount a small file system: {done.stderr.decode().strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)
        shutil.rmtree(folder, ignore_errors=True)
