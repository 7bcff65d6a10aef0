"""Flower's own deployment: a SuperLink and SuperNodes, each its own process.

It has a virtual environment of its own, because flwr's command line wants a newer typer than the
embedded broker allows.
"""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from benchmarks._measure import REPO, stopped_after, wait_until

VENV = REPO / ".bench" / "flower"
VERSION = "1.41.0"


def installed() -> Path:
    """Return the bin folder of Flower's environment, making it the first time."""
    if not (VENV / "bin" / "flwr").exists():
        subprocess.run([sys.executable, "-m", "venv", str(VENV)], check=True)
        subprocess.run(
            [VENV / "bin" / "pip", "install", "-q", f"flwr=={VERSION}"],
            check=True,
            stderr=subprocess.DEVNULL,
        )
    return VENV / "bin"


def free_port() -> int:
    """Return a port nobody listens on now."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """A running SuperLink and its SuperNodes."""

    superlink: psutil.Popen
    nodes: list[psutil.Popen]
    environment: dict[str, str]
    port: int
    start_superlink: Callable[[], psutil.Popen]
    """Start the SuperLink again, after somebody killed it."""

    @property
    def roots(self) -> list[int]:
        """Return the process ids at the top of the deployment's trees."""
        return [self.superlink.pid, *(node.pid for node in self.nodes)]

    def run(self, app: Path, config: dict[str, object]) -> None:
        """Start the app; it goes on in the deployment."""
        settings = " ".join(
            f'{key}="{value}"' if isinstance(value, str) else f"{key}={value}"
            for key, value in config.items()
        )
        subprocess.run(
            [installed() / "flwr", "run", str(app), "bench", "--run-config", settings],
            check=True,
            env=self.environment,
            capture_output=True,
            timeout=120,
        )

    def runs(self) -> list[dict[str, object]]:
        """Return what the SuperLink says of its runs."""
        said = subprocess.run(
            [installed() / "flwr", "list", "bench", "--format", "json"],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        ).stdout
        found = json.loads(said) if said.strip().startswith("{") else {}
        return list(found.get("runs", []))


@contextmanager
def deployment(devices: int, home: Path, *, database: str = "") -> Iterator[Deployment]:
    """Run a SuperLink and `devices` SuperNodes on loopback, without TLS, until the block ends.

    Without a `database` the SuperLink keeps its state in memory, which is its way by default.
    """
    flwr_home = home / "flwr"
    flwr_home.mkdir(parents=True, exist_ok=True)
    environment = os.environ | {
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_HOME": str(flwr_home),
        "PATH": f"{installed()}:{os.environ['PATH']}",
    }
    port = free_port()
    (flwr_home / "config.toml").write_text(
        f'[superlink]\ndefault = "bench"\n\n[superlink.bench]\n'
        f'address = "127.0.0.1:{port}"\ninsecure = true\n'
    )
    with ExitStack() as stack:

        def start(name: str, *arguments: object) -> psutil.Popen:
            log = stack.enter_context((home / f"{name}.log").open("ab"))
            process = psutil.Popen(
                [str(installed() / arguments[0]), *map(str, arguments[1:])],
                env=environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=home,
                start_new_session=True,
            )
            stack.enter_context(stopped_after(process))
            return process

        def start_superlink() -> psutil.Popen:
            process = start(
                "superlink",
                "flower-superlink",
                "--insecure",
                "--disable-runtime-dependency-installation",
                *("--port", port),
                *(("--database", database) if database else ()),
            )
            wait_until(lambda: listens(port), "the SuperLink to listen", 60)
            return process

        superlink = start_superlink()
        nodes = [
            start(
                f"supernode{index}",
                "flower-supernode",
                "--insecure",
                "--superlink",
                f"127.0.0.1:{port}",
                "--port",
                free_port(),
            )
            for index in range(devices)
        ]
        yield Deployment(
            superlink=superlink,
            nodes=nodes,
            environment=environment,
            port=port,
            start_superlink=start_superlink,
        )


def listens(port: int) -> bool:
    """Return whether somebody accepts connections on the port."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
