"""What the agent says of itself to other processes on the device: `<home>/status.json`."""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from skerry_protos.errors import ConfigError

from skerry_edge.models.variants import shown as variants
from skerry_edge.models.variants import tables

FILE = "status.json"
LOCK = "agent.lock"


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """One look at a running agent."""

    pid: int
    device: str
    state: str
    link: str
    connected: bool
    why: str = ""
    waiting_for: str = ""
    tasks: list[str] = field(default_factory=list)
    replies: int = 0
    clock_offset_s: float = 0.0
    certificate_until: float = 0.0


def write_status(home: Path, status: Status) -> None:
    """Replace the status; readers see the old one or the new one."""
    beside = home / f".{FILE}"
    beside.write_text(json.dumps(asdict(status), indent=1))
    beside.replace(home / FILE)


def read_status(home: Path) -> Status | None:
    """Return the status of the agent that runs in `home`, or None when none does."""
    if not running(home):
        return None
    try:
        found: dict[str, Any] = json.loads((home / FILE).read_text())
        return Status(**found)
    except (OSError, ValueError, TypeError):
        return None


def running(home: Path) -> bool:
    """Return whether an agent runs in `home`."""
    try:
        with (home / LOCK).open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


@contextmanager
def alone(home: Path) -> Iterator[None]:
    """Be the only agent in `home`, or raise ConfigError naming the other."""
    home.mkdir(parents=True, exist_ok=True)
    with (home / LOCK).open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise ConfigError(
                f"another agent runs in {home} (process {file.read().strip() or 'unknown'})",
                hint="stop it, or give this one another --home",
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def show(home: Path, *, as_json: bool) -> int:
    """Print what the agent in `home` does now; return 0 when it runs and is connected."""
    status = read_status(home)
    if as_json:
        said: dict[str, Any] = asdict(status) if status else {"state": "not running"}
        print(json.dumps(said | {"choices": tables(home)}))  # noqa: T201
    else:
        print("\n".join(lines(status, home)))  # noqa: T201
    return 3 if status is None else 0 if status.connected else 4


def lines(status: Status | None, home: Path) -> list[str]:
    """Return the status for people."""
    if status is None:
        return [f"no agent runs in {home}; start it: skerry-agent run --home {home}"]
    shown = [f"{status.device}: {status.state} (process {status.pid})"]
    shown.append(f"link: {status.link} {'connected' if status.connected else status.why}")
    if status.waiting_for:
        shown.append(f"waiting for {status.waiting_for}")
    shown.append(f"tasks held: {len(status.tasks)}; replies to deliver: {status.replies}")
    return shown + variants(home)
