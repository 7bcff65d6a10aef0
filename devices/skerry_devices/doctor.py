"""What can be wrong between a person's terminal and the coordinator, each checked and explained."""

import shutil
import ssl
import stat
import sys
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from cryptography import x509
from skerry_protos.errors import SkerryError
from skerry_protos.versions import installed_version

from skerry_devices import contexts
from skerry_devices.client import Client, at
from skerry_devices.contexts import Context
from skerry_devices.output import size

SKEW_S = 5.0
SKEW_LIMIT_S = 300.0
DISK_BYTES = 1_000_000_000
CA_DAYS = 30


class Verdict(StrEnum):
    """How a check went."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that was looked at."""

    check: str
    verdict: Verdict
    says: str
    hint: str = ""


def examine() -> Iterator[Finding]:
    """Yield what is found, the nearest things first; stop where nothing further can be seen."""
    yield python()
    yield versions()
    yield from runtimes()
    yield disk(contexts.config_path().parent)
    yield config_file(contexts.config_path())
    try:
        name, context = contexts.chosen()
    except SkerryError as error:
        yield failed("context", error)
        return
    yield Finding(check="context", verdict=Verdict.OK, says=f"{name}: {context.url}")
    yield from authority(context)
    yield from coordinator(context)


def python() -> Finding:
    """Say which Python this is."""
    said = ".".join(map(str, sys.version_info[:3]))
    fits = sys.version_info >= (3, 11)
    return Finding(
        check="python",
        verdict=Verdict.OK if fits else Verdict.FAIL,
        says=said,
        hint="" if fits else "install Python 3.11 or newer",
    )


def versions() -> Finding:
    """Say whether the four distributions belong together."""
    names = ("skerry-protos", "skerry-edge", "skerry-cloud", "skerry")
    found = {name: installed_version(name) for name in names}
    alike = len(set(found.values())) == 1
    return Finding(
        check="versions",
        verdict=Verdict.OK if alike else Verdict.FAIL,
        says=found["skerry"] if alike else ", ".join(f"{k} {v}" for k, v in found.items()),
        hint="" if alike else "install all four in the same version",
    )


def runtimes() -> Iterator[Finding]:
    """Say what local devices and a local coordinator could use; absent ones are no failure."""
    for module, what in (("torch", "PyTorch apps"), ("flwr", "Flower apps")):
        here = find_spec(module) is not None
        yield Finding(
            check=module,
            verdict=Verdict.OK if here else Verdict.WARN,
            says=f"{installed_version(module)}" if here else f"not installed: no {what} here",
            hint="" if here else "pip install 'skerry[examples]'",
        )
    broker = shutil.which("mosquitto") or shutil.which(
        "mosquitto", path="/usr/sbin:/usr/local/sbin"
    )
    yield Finding(
        check="broker",
        verdict=Verdict.OK,
        says=broker or "the embedded one (for more than some dozens of devices install mosquitto)",
    )


def disk(folder: Path) -> Finding:
    """Say how much room there is where homes lie."""
    there = next(each for each in (folder, *folder.parents) if each.exists())
    free = shutil.disk_usage(there).free
    fits = free >= DISK_BYTES
    return Finding(
        check="disk",
        verdict=Verdict.OK if fits else Verdict.WARN,
        says=f"{size(free)} free at {there}",
        hint="" if fits else "models and logs need room: free some",
    )


def config_file(path: Path) -> Finding:
    """Say whether the contexts can be read, and by whom."""
    try:
        known = contexts.load()
    except SkerryError as error:
        return failed("config", error)
    if not path.exists():
        says = f"no {path} yet"
        return Finding(check="config", verdict=Verdict.WARN, says=says, hint=contexts.HINT)
    if stat.S_IMODE(path.stat().st_mode) & 0o077:
        says = f"{path} holds tokens and others can read it"
        return Finding(check="config", verdict=Verdict.WARN, says=says, hint=f"chmod 600 {path}")
    count = len(known.contexts)
    return Finding(check="config", verdict=Verdict.OK, says=f"{path}: {count} context(s)")


def authority(context: Context) -> Iterator[Finding]:
    """Say whether the CA's certificate is here and valid."""
    if not context.ca:
        if context.url.startswith("https://"):
            says = "none named: this machine's own authorities are trusted"
            yield Finding(check="ca", verdict=Verdict.WARN, says=says)
        return
    try:
        certificate = x509.load_pem_x509_certificate(Path(context.ca).read_bytes())
        ssl.create_default_context(cafile=context.ca)
    except (OSError, ValueError) as error:
        hint = "skerry config set-context NAME --ca FILE"
        yield Finding(check="ca", verdict=Verdict.FAIL, says=f"{context.ca}: {error}", hint=hint)
        return
    days = (certificate.not_valid_after_utc - datetime.now(UTC)).days
    young = certificate.not_valid_before_utc > datetime.now(UTC)
    verdict = Verdict.FAIL if days < 0 or young else Verdict.WARN if days < CA_DAYS else Verdict.OK
    yield Finding(
        check="ca",
        verdict=verdict,
        says=f"{context.ca}: " + ("not valid yet" if young else f"valid for {days} days"),
        hint="" if verdict is Verdict.OK else "look at this machine's clock, then at the CA",
    )


def coordinator(context: Context) -> Iterator[Finding]:
    """Say whether the coordinator is there, healthy, of our version, and knows us."""
    try:
        client = Client(context, timeout_s=10.0)
    except SkerryError as error:
        yield failed("coordinator", error)
        return
    with client:
        asked, began = time.time(), time.monotonic()
        health = yield from attempt("coordinator", lambda: client.get(at("health")))
        if health is None:
            return
        took = time.monotonic() - began
        fine = health.get("status") == "ok"
        yield Finding(
            check="coordinator",
            verdict=Verdict.OK if fine else Verdict.WARN,
            says=f"answers in {took * 1000:.0f} ms" if fine else str(health.get("why")),
            hint="" if fine else "the coordinator's log says more",
        )
        yield clock(float(health["unix_time_s"]) - (asked + took / 2))
        yield same_version(str(health["version"]))
        who = yield from attempt("operator", lambda: client.get(at("whoami")))
        if who is None:
            return
        says = f"{who['name']}, {who['role']}"
        yield Finding(check="operator", verdict=Verdict.OK, says=says)
        devices = yield from attempt("devices", lambda: client.items(at("devices")))
        if devices is not None:
            online = sum(bool(device["connected"]) for device in devices)
            yield Finding(
                check="devices",
                verdict=Verdict.OK if online else Verdict.WARN,
                says=f"{online} online of {len(devices)}",
                hint="" if online else "skerry devices invite",
            )


def attempt(check: str, ask: Callable[[], Any]) -> Generator[Finding, None, Any]:
    """Return what `ask` returns, or yield the finding that it failed and return None."""
    try:
        return ask()
    except SkerryError as error:
        yield failed(check, error)
        return None


def clock(skew_s: float) -> Finding:
    """Say how far this machine's clock is from the coordinator's."""
    off = abs(skew_s)
    verdict = Verdict.OK if off < SKEW_S else Verdict.WARN if off < SKEW_LIMIT_S else Verdict.FAIL
    return Finding(
        check="clock",
        verdict=verdict,
        says=f"{off:.1f} s {'behind' if skew_s > 0 else 'ahead of'} the coordinator's",
        hint="" if verdict is Verdict.OK else "set the clock (timedatectl set-ntp true)",
    )


def same_version(theirs: str) -> Finding:
    """Say whether the coordinator is of this command's version."""
    ours = installed_version("skerry")
    alike = ours == theirs
    return Finding(
        check="coordinator version",
        verdict=Verdict.OK if alike else Verdict.WARN,
        says=theirs if alike else f"{theirs}, and this command is {ours}",
        hint="" if alike else f"pip install skerry=={theirs}",
    )


def failed(check: str, error: SkerryError) -> Finding:
    """Return a failed check."""
    return Finding(
        check=check,
        verdict=Verdict.FAIL,
        says=f"error[{error.code}]: {error.message}",
        hint=error.hint.removesuffix("skerry doctor says more").rstrip("; "),
    )
