"""skerry-agent: join a coordinator, run the device's agent, look at it, find what is wrong.

Commands import what they need when they run, so `--version` and errors are quick.
"""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from skerry_protos.errors import SkerryError
from skerry_protos.versions import PROTOCOL, installed_version

if TYPE_CHECKING:
    from collections.abc import Sequence


def main(arguments: "Sequence[str] | None" = None) -> None:
    """Parse the command line, run one command, and exit with its status."""
    options = parser().parse_args(arguments)
    try:
        status = COMMANDS[options.command](options)
    except SkerryError as error:
        print(f"skerry-agent: {error.code}: {error}", file=sys.stderr)  # noqa: T201
        status = error.exit_code
    except KeyboardInterrupt:
        status = 130
    sys.exit(status)


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    made = argparse.ArgumentParser(prog="skerry-agent", description="The Skerry agent of a device.")
    shown = f"skerry-agent {installed_version('skerry-edge')} (protocol {PROTOCOL})"
    made.add_argument("--version", action="version", version=shown)
    commands = made.add_subparsers(dest="command", required=True, metavar="COMMAND")
    home = argparse.ArgumentParser(add_help=False)
    home.add_argument(
        "--home", type=Path, help="where the agent lives ($SKERRY_AGENT_HOME or ~/.skerry/agent)"
    )
    join = commands.add_parser("join", parents=[home], help="enrol this device by a join token")
    join.add_argument("token", help="what `skerry devices invite` prints; - reads it from stdin")
    join.add_argument("--name", default="", help="the device's id (default: the host's name)")
    join.add_argument("--profile", default="", help="a profile's name, or the path of its file")
    join.add_argument("--link", choices=("auto", "grpc", "mqtt"), help="which link to use")
    run = commands.add_parser("run", parents=[home], help="run the agent until it is stopped")
    run.add_argument("--link", choices=("auto", "grpc", "mqtt"), help="overrides agent.toml")
    doctor = commands.add_parser("doctor", parents=[home], help="check what the agent needs")
    doctor.add_argument("--json", action="store_true", help="print one JSON object")
    status = commands.add_parser("status", parents=[home], help="say what the agent does now")
    status.add_argument("--json", action="store_true", help="print one JSON object")
    return made


def _home(options: argparse.Namespace) -> Path:
    from skerry_edge.config import default_home

    return (options.home or default_home()).expanduser().absolute()


def _join(options: argparse.Namespace) -> int:
    from skerry_edge.joining import join

    token = sys.stdin.readline() if options.token == "-" else options.token  # noqa: S105
    device = join(
        token.strip(),
        _home(options),
        name=options.name,
        profile=options.profile,
        link=options.link,
    )
    print(f"joined as {device}; start the agent: skerry-agent run")  # noqa: T201
    return 0


def _run(options: argparse.Namespace) -> int:
    from skerry_edge.running import run

    return run(_home(options), link=options.link)


def _doctor(options: argparse.Namespace) -> int:
    from skerry_edge.doctor import run

    return run(_home(options), as_json=options.json)


def _status(options: argparse.Namespace) -> int:
    from skerry_edge.status import show

    return show(_home(options), as_json=options.json)


COMMANDS = {"join": _join, "run": _run, "doctor": _doctor, "status": _status}


if __name__ == "__main__":
    main()
