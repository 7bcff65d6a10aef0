"""The command skerry-coordinator: read the settings, serve, turn errors into one line."""

import argparse
import contextlib
import logging
import resource
import sys
from collections.abc import Sequence
from pathlib import Path

from skerry_protos.allocator import share_arenas
from skerry_protos.errors import SkerryError
from skerry_protos.versions import installed_version

ARENAS = 2
"""Heaps for all threads: with one for each, what they freed of 100 replies took 40 MB more."""
FLAGS = {
    "host": "address to listen on (default 127.0.0.1; 0.0.0.0 or :: for all)",
    "public-host": "name or address that devices and operators reach this machine by",
    "http-port": "port of the operator API and of enrolment (default 8470; 0: any)",
    "grpc-port": "port for devices on gRPC (default 8471; 0: any)",
    "mqtt-port": "port for devices on MQTT (default 8883; 0: any)",
    "broker": "auto, embedded, mosquitto, or mqtts://host:port (default auto)",
    "database": "sqlite:////file.db or postgresql://user:password@host/name (default: in the home)",
    "objects": "object store for blobs: s3://bucket/prefix, gs://, az://, file:///path",
    "log-level": "debug, info, warning or error (default info)",
}


def parser() -> argparse.ArgumentParser:
    """Return the command's arguments."""
    made = argparse.ArgumentParser(
        prog="skerry-coordinator",
        description="The Skerry coordinator: devices, runs, and the operator API in one process.",
        epilog="Settings may also stand in <home>/coordinator.toml; see docs/operators.md.",
    )
    made.add_argument("--version", action="store_true", help="print the version and exit")
    made.add_argument(
        "command",
        nargs="?",
        choices=["serve", "admin-token"],
        default="serve",
        help="serve (the default), or give the operator admin a new token while it is stopped",
    )
    made.add_argument("--home", type=Path, help="folder of its state (~/.skerry/coordinator)")
    for name, text in FLAGS.items():
        kind = int if name.endswith("-port") else str
        made.add_argument(f"--{name}", type=kind, help=text)
    made.add_argument(
        "--insecure",
        action="store_true",
        default=None,
        help="let devices connect without TLS; loopback only",
    )
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    share_arenas(ARENAS)
    _open_many_files()
    given = parser().parse_args(arguments)
    if given.version:
        print(f"skerry-coordinator {installed_version('skerry-cloud')}")  # noqa: T201
        return 0
    settings = {
        name.replace("-", "_"): value
        for name in [*FLAGS, "insecure"]
        if (value := getattr(given, name.replace("-", "_"))) is not None
    }
    try:
        _run(given.command, given.home, settings)
    except SkerryError as error:
        print(f"skerry-coordinator: {error.code}: {error}", file=sys.stderr)  # noqa: T201
        return error.exit_code
    except OSError as error:
        print(f"skerry-coordinator: os: {error}", file=sys.stderr)  # noqa: T201
        return 1
    return 0


def _open_many_files() -> None:
    """Raise the limit of open files to what is allowed: every connection is one.

    A service begins with 1024, which a thousand connections that say nothing use up.
    """
    with contextlib.suppress(OSError, ValueError):
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _run(command: str, home: Path | None, settings: dict[str, object]) -> None:
    import asyncio

    from skerry_cloud.config import CoordinatorConfig, default_home

    config = CoordinatorConfig.read(home or default_home(), settings)
    logging.basicConfig(
        level=config.log_level.upper(),
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        stream=sys.stderr,
    )
    for noisy in ("alembic", "uvicorn"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    from skerry_cloud.coordinator import reset_admin, serve

    if command == "admin-token":
        print(f"the new token is in {asyncio.run(reset_admin(config))}")  # noqa: T201
    else:
        asyncio.run(serve(config))


if __name__ == "__main__":
    sys.exit(main())
