"""Many real agents in few processes: the agent's own class, real links, an identity and home each.

`simulate_fleet` is the parent: it asks for one invite, spreads the devices over processes
(`python -m skerry_devices.simulated`) and shows how many are online. A process joins its devices
and runs all their agents in one event loop; their tasks share that process's few workers.
"""

import asyncio
import contextlib
import json
import logging
import os
import secrets
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import typer
from skerry_edge.agent import Agent
from skerry_edge.config import load_config
from skerry_edge.enrolment import join
from skerry_edge.identity import Identity
from skerry_edge.profile import find_profile
from skerry_edge.worker.pool import Workers
from skerry_protos.errors import ConfigError, SkerryError

from skerry_devices.children import Children
from skerry_devices.client import Client, at, connect
from skerry_devices.local import DevicePlan, joined, plan_devices, settle
from skerry_devices.signals import interruptible
from skerry_devices.waiting import until

log = logging.getLogger(__name__)

JOINING = 8
"""Devices of one process that join at the same time."""
INVITE_S = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """What to simulate."""

    count: int
    profile: str = "pi4"
    link: str = "mqtt"
    processes: int = 0  # 0: as many as there are CPUs
    workers: int = 1  # for each process
    labels: Mapping[str, str] = field(default_factory=dict)
    home: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """What one process simulates; it travels as JSON on its standard input's file."""

    token: str
    home: str
    profile: str
    workers: int
    devices: tuple[DevicePlan, ...]

    @classmethod
    def read(cls, file: Path) -> "Share":
        """Return the share that the parent wrote."""
        made = json.loads(file.read_text())
        devices = tuple(DevicePlan(**plan) for plan in made.pop("devices"))
        return cls(**made, devices=devices)


def simulate_fleet(fleet: Fleet, *, timeout_s: float) -> None:
    """Run the fleet until Ctrl-C."""
    find_profile(fleet.profile)  # a ConfigError names the profiles there are
    with interruptible(), connect() as client, _home(fleet.home) as home, Children() as children:
        plans = _plans(fleet, home)
        began = time.monotonic()
        typer.echo(f"starting {fleet.count} devices ({fleet.profile}, {fleet.link}) …")
        start_shares(fleet, plans, home, client, children)
        _wait_online(client, {plan.name for plan in plans}, children, timeout_s)
        took = time.monotonic() - began
        typer.echo(f"{fleet.count} devices are online after {took:.1f} s; Ctrl-C stops them")
        with contextlib.suppress(KeyboardInterrupt):
            while True:
                children.check()
                time.sleep(0.5)
        typer.echo("stopping …")
        names = [plan.name for plan in plans]
    if not fleet.home:
        _let_go(names)


def start_shares(
    fleet: Fleet, plans: list[DevicePlan], home: Path, client: Client, children: Children
) -> None:
    """Start the processes, each with its share of the devices."""
    invite = client.post(
        at("invites"),
        {"uses": len(plans), "expires_s": INVITE_S, "labels": dict(fleet.labels)},
    )
    count = min(fleet.processes or os.cpu_count() or 1, len(plans))
    for number in range(count):
        share = Share(
            token=invite["token"],
            home=str(home),
            profile=fleet.profile,
            workers=fleet.workers,
            devices=tuple(plans[number::count]),
        )
        file = home / f"share-{number}.json"
        file.touch(mode=0o600)
        file.write_text(json.dumps(asdict(share)))
        children.start(
            f"simulator {number + 1}",
            [sys.executable, "-m", "skerry_devices.simulated", str(file)],
            log=home / f"simulator-{number + 1}.log",
        )


def _plans(fleet: Fleet, home: Path) -> list[DevicePlan]:
    """Return the devices, named so that several simulations get on with each other."""
    prefix = home.name if fleet.home else f"{fleet.profile}-{secrets.token_hex(2)}"
    return [
        DevicePlan(
            name=f"{prefix}-{plan.name.removeprefix('device-')}",
            link=plan.link,
            profile=fleet.profile,
            labels=fleet.labels,
        )
        for plan in plan_devices(fleet.count, fleet.link, profile=fleet.profile)
    ]


@contextlib.contextmanager
def _home(named: str) -> Iterator[Path]:
    """Yield the folder of the simulated homes; a temporary one is removed."""
    if named:
        home = Path(named).expanduser().absolute()
        home.mkdir(parents=True, exist_ok=True)
        yield home
        return
    home = Path(tempfile.mkdtemp(prefix="skerry-simulated-"))
    try:
        yield home
    finally:
        shutil.rmtree(home, ignore_errors=True)


def _wait_online(client: Client, names: set[str], children: Children, timeout_s: float) -> None:
    shown = 0

    def all_online() -> bool | None:
        nonlocal shown
        children.check()
        here = {d["id"] for d in client.items(at("devices")) if d["connected"]} & names
        if len(here) // 20 > shown // 20:
            typer.echo(f"  {len(here)} online")
        shown = len(here)
        return here == names or None

    until(all_online, timeout_s=timeout_s, what=f"{len(names)} devices coming online", every_s=1.0)


def _let_go(names: list[str]) -> None:
    """Revoke devices whose identities are gone, so that the fleet's list stays true."""
    try:
        with connect() as client:
            for name in names:
                client.post(at("devices", name, "revoke"), {"why": "the simulation ended"})
    except SkerryError as error:
        typer.echo(f"the simulated devices are still listed: {error.message}", err=True)


# In a process of the simulation.


async def run_share(share: Share) -> None:
    """Join a share's devices and run their agents until a signal asks to stop."""
    loop, running = asyncio.get_running_loop(), asyncio.current_task()
    assert running is not None
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, running.cancel)
    home = Path(share.home)
    gate = asyncio.Semaphore(JOINING)
    limits = load_config(home / share.devices[0].name).limits
    async with (
        Workers(home / f"work-{os.getpid()}", limits) as workers,
        asyncio.TaskGroup() as group,
    ):
        for plan in share.devices:
            group.create_task(_run_device(share, plan, gate, workers), name=plan.name)


async def _run_device(
    share: Share, plan: DevicePlan, gate: asyncio.Semaphore, workers: Workers
) -> None:
    """Join and run one device; its failure is its own."""
    home = Path(share.home, plan.name)
    try:
        async with gate:
            identity = await asyncio.to_thread(_identity, share, plan, home)
        await Agent(load_config(home), identity, workers=workers).run()
    except SkerryError as error:
        log.error("%s stopped: %s", plan.name, error)
    except Exception:
        log.exception("%s stopped", plan.name)


def _identity(share: Share, plan: DevicePlan, home: Path) -> Identity:
    if joined(home):
        return Identity.load(home)
    return join(share.token, home, name=plan.name, profile=plan.profile)


def _prepare(share: Share) -> None:
    """Write the homes' settings; the processes' limits are those of the profile."""
    profile = find_profile(share.profile).text
    for plan in share.devices:
        home = Path(share.home, plan.name)
        settle(home, plan)
        (home / "profile.toml").write_text(profile)


def main() -> None:
    """Run the share in the file that is the one argument."""
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger(__name__).setLevel(logging.INFO)
    file = Path(sys.argv[1])
    try:
        share = Share.read(file)
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(f"cannot read {file}: {error}") from error
    _prepare(share)
    with contextlib.suppress(asyncio.CancelledError):
        asyncio.run(run_share(share))


if __name__ == "__main__":
    main()
