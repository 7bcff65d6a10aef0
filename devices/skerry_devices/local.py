"""A whole fleet on this machine: a coordinator and agents, as the processes they always are.

Everything is real: join tokens, certificates, mutual TLS, both links. `skerry up` and `skerry demo`
stand on this, and so do the end-to-end tests.
"""

import contextlib
import json
import shutil
import socket
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import tomli_w
from skerry_protos.errors import ConfigError, SkerryError
from skerry_protos.settings import load_tables

from skerry_devices.children import Child, Children
from skerry_devices.client import Client, at
from skerry_devices.commands.config import of_home
from skerry_devices.contexts import Context
from skerry_devices.waiting import until

PORTS = {"http_port": 8470, "grpc_port": 8471, "mqtt_port": 8883}
START_S = 60.0
JOIN_S = 60.0
ONLINE_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class DevicePlan:
    """One local device."""

    name: str
    link: str  # "grpc" or "mqtt"
    profile: str = "generic"
    labels: Mapping[str, str] = field(default_factory=dict)
    node: Mapping[str, Any] = field(default_factory=dict)


def plan_devices(count: int, link: str, *, profile: str = "generic") -> list[DevicePlan]:
    """Return `count` devices with equal shares of the data; both links: half and half."""
    kinds = {"grpc": ("grpc",), "mqtt": ("mqtt",), "both": ("grpc", "mqtt")}
    if link not in kinds:
        raise ConfigError(f"there is no link {link!r}", hint="choose grpc, mqtt or both")
    return [
        DevicePlan(
            name=f"device-{number + 1:0{len(str(count))}d}",
            link=kinds[link][number % len(kinds[link])],
            profile=profile,
            node={"partition-id": number, "num-partitions": count},
        )
        for number in range(count)
    ]


class LocalFleet:
    """A coordinator and agents under one folder; leaving the block stops them all.

    One that is `lasting` is found again in the same folder: its ports stay what they were.
    """

    def __init__(self, home: Path, *, lasting: bool = False) -> None:
        self.home = home
        self.children = Children()
        self._lasting = lasting
        self._context: Context | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.children.stop()

    @property
    def context(self) -> Context:
        """Return how to speak to the coordinator, as its first admin."""
        assert self._context is not None, "start() first"
        return self._context

    def client(self) -> Client:
        """Return a client for the coordinator."""
        return Client(self.context)

    def start(self) -> Context:
        """Start the coordinator and return when it is ready."""
        home = self.home / "coordinator"
        arguments = ["--http-port", "0", "--grpc-port", "0", "--mqtt-port", "0"]
        if self._lasting:
            keep_ports(home / "coordinator.toml")
            arguments.clear()
        ready = home / "coordinator.json"
        child = self.children.start(
            "the coordinator",
            [sys.executable, "-m", "skerry_cloud", "--home", str(home), *arguments],
            log=self.home / "coordinator.log",
        )

        def announced() -> dict[str, Any] | None:
            child.check()
            try:
                made = json.loads(ready.read_text())
            except (OSError, ValueError):
                return None
            return made if made.get("pid") == child.pid else None

        until(
            announced,
            timeout_s=START_S,
            what="the coordinator's start",
            hint=f"its log is {child.log}",
            every_s=0.05,
        )
        self._context = of_home(home)
        return self._context

    def join(self, plans: Sequence[DevicePlan]) -> None:
        """Give each device that has no identity yet one, by join tokens."""
        for plan in plans:
            settle(self.home_of(plan), plan)
        fresh = [plan for plan in plans if not joined(self.home_of(plan))]
        if not fresh:
            return
        with self.client() as client:
            invite = client.post(at("invites"), {"uses": len(fresh), "expires_s": 600.0})
            joins = [(plan, self._start_join(plan, invite["token"])) for plan in fresh]
            for plan, child in joins:
                if child.wait(JOIN_S) != 0:
                    shutil.rmtree(self.home_of(plan), ignore_errors=True)
                    child.terminate()
                    raise SkerryError(
                        f"{plan.name} could not join: {child.last_words()}",
                        hint=f"its log is {child.log}",
                    )
                self.children.forget(child)
                if plan.labels:
                    client.patch(at("devices", plan.name), {"labels": dict(plan.labels)})

    def _start_join(self, plan: DevicePlan, token: str) -> Child:
        return self.children.start(
            plan.name,
            [
                *(sys.executable, "-m", "skerry_edge", "join", token),
                *("--home", str(self.home_of(plan))),
                *("--name", plan.name, "--profile", plan.profile),
            ],
            log=self.home / f"{plan.name}.log",
        )

    def run(self, plans: Sequence[DevicePlan]) -> list[Child]:
        """Start the agents."""
        return [
            self.children.start(
                plan.name,
                [sys.executable, "-m", "skerry_edge", "run", "--home", str(self.home_of(plan))],
                log=self.home / f"{plan.name}.log",
            )
            for plan in plans
        ]

    def wait_online(self, plans: Sequence[DevicePlan], *, timeout_s: float = ONLINE_S) -> None:
        """Return when all these devices are connected; raise when an agent stops instead."""
        wanted = {plan.name for plan in plans}
        with self.client() as client:

            def all_online() -> bool | None:
                self.children.check()
                items = client.items(at("devices"))
                return wanted <= {d["id"] for d in items if d["connected"]} or None

            until(
                all_online,
                timeout_s=timeout_s,
                what=f"{len(wanted)} devices coming online",
                hint=f"their logs are in {self.home}",
            )

    def home_of(self, plan: DevicePlan) -> Path:
        """Return where a device's agent lives."""
        return self.home / "agents" / plan.name


def joined(home: Path) -> bool:
    """Return whether an agent's home holds an identity."""
    return (home / "identity" / "identity.json").exists()


def settle(home: Path, plan: DevicePlan) -> None:
    """Write a device's settings; others that its owner has made stay."""
    file = home / "agent.toml"
    tables = load_tables(file) if file.exists() else {}
    tables["agent"] = {**tables.get("agent", {}), "name": plan.name, "link": plan.link}
    tables["node"] = {**tables.get("node", {}), **plan.node}
    tables["labels"] = {**tables.get("labels", {}), **plan.labels}
    # several on one machine cannot all have the default port
    tables["inference"] = {"port": 0, **tables.get("inference", {})}
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    file.write_text(tomli_w.dumps(tables))


def keep_ports(file: Path) -> None:
    """Choose the coordinator's ports once: devices that have joined know them."""
    if file.exists():
        return
    with contextlib.ExitStack() as held:
        ports = {name: _free_port(held, wanted) for name, wanted in PORTS.items()}
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(tomli_w.dumps(ports))


def _free_port(held: contextlib.ExitStack, wanted: int) -> int:
    """Return `wanted` when nobody listens there, else a free port; hold it for now."""
    for port in (wanted, 0):
        with contextlib.suppress(OSError):
            listener = held.enter_context(socket.create_server(("127.0.0.1", port)))
            return int(listener.getsockname()[1])
    raise SkerryError("no port is free on this machine")
