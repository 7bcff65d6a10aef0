"""skerry-agent doctor: what can keep a device from working, each checked and explained.

Checks go from near to far and never disturb a running agent: a link is tried as far as TLS, and
a broker's welcome only while no agent runs, since a broker lets a certificate in once.
"""

import contextlib
import http.client
import json
import os
import socket
import ssl
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from email.utils import parsedate_to_datetime
from enum import StrEnum
from pathlib import Path
from urllib.parse import urlsplit

import psutil
from skerry_protos.errors import SkerryError

from skerry_edge.config import AgentConfig, load_config
from skerry_edge.enrolment import trusted_context
from skerry_edge.identity import Identity, LinkAddress
from skerry_edge.routes import ways
from skerry_edge.status import read_status
from skerry_edge.telemetry import capabilities, versions

TIMEOUT_S = 5.0
CLOCK_WARN_S, CLOCK_FAIL_S = 30.0, 300.0
DISK_WARN_MB, DISK_FAIL_MB = 1024, 64
MEMORY_WARN_MB = 256


class Verdict(StrEnum):
    """How a check went."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One check: what was found, and what to do when that is not well."""

    check: str
    verdict: Verdict
    says: str
    hint: str = ""


def run(home: Path, *, as_json: bool) -> int:
    """Print what was found; return 1 when anything fails."""
    findings = []
    for finding in examine(home):
        findings.append(finding)
        if not as_json:
            print(line(finding), flush=True)  # noqa: T201
    failed = any(finding.verdict is Verdict.FAIL for finding in findings)
    if as_json:
        shown = {"ok": not failed, "findings": [asdict(each) for each in findings]}
        print(json.dumps(shown))  # noqa: T201
    return int(failed)


def line(finding: Finding) -> str:
    """Return a finding for people."""
    hint = f"\n{'':18}{finding.hint}" if finding.hint else ""
    return f"{finding.verdict:<5} {finding.check:<11} {finding.says}{hint}"


def examine(home: Path) -> Iterator[Finding]:
    """Yield what is found, the nearest things first; stop where nothing further can be seen."""
    try:
        config = load_config(home)
    except SkerryError as error:
        yield failed("config", error)
        return
    yield ok("config", str(config.file) if config.file.exists() else "none; defaults hold")
    yield agent(home)
    yield disk(home)
    yield memory(config)
    yield runtimes()
    yield worker(config)
    try:
        identity = Identity.load(home)
    except SkerryError as error:
        yield failed("identity", error)
        return
    yield certificate(identity)
    yield from coordinator(identity)
    try:
        addresses = ways(identity.links, config.agent.link)
    except SkerryError as error:
        yield failed("link", error)
        return
    status = read_status(home)
    for address in addresses:
        yield link(identity, address, knock=status is None)


def ok(check: str, says: str) -> Finding:
    """Return a finding that is well."""
    return Finding(check=check, verdict=Verdict.OK, says=says)


def failed(check: str, error: Exception) -> Finding:
    """Return a finding for an error, with its own advice."""
    if isinstance(error, SkerryError):
        return Finding(check=check, verdict=Verdict.FAIL, says=error.message, hint=error.hint)
    return Finding(check=check, verdict=Verdict.FAIL, says=f"{type(error).__name__}: {error}")


def agent(home: Path) -> Finding:
    """Say whether the agent runs and is connected."""
    status = read_status(home)
    if status is None:
        hint = "start it: skerry-agent run, or systemctl start skerry-agent"
        return Finding(check="agent", verdict=Verdict.WARN, says="it does not run", hint=hint)
    if not status.connected:
        return Finding(check="agent", verdict=Verdict.WARN, says=f"not connected: {status.why}")
    return ok("agent", f"{status.state}, connected to {status.link}")


def disk(home: Path) -> Finding:
    """Say how much room there is, and that the agent can write there."""
    there = next(each for each in (home, *home.parents) if each.exists())
    free_mb = psutil.disk_usage(str(there)).free // 2**20
    says = f"{free_mb} MB free in {there}"
    try:
        began = time.monotonic()
        with tempfile.NamedTemporaryFile(dir=there) as file:
            file.write(b"x" * 4096)
            os.fsync(file.fileno())
        says += f", a write takes {(time.monotonic() - began) * 1000:.0f} ms"
    except OSError as error:
        hint = "the agent's user must own its home, and the disk must not be full or read-only"
        return Finding(
            check="disk",
            verdict=Verdict.FAIL,
            says=f"cannot write in {there}: {error.strerror}",
            hint=hint,
        )
    if free_mb < DISK_FAIL_MB:
        hint = "the agent takes no tasks until there is room: free some, or lower limits.blobs_mb"
        return Finding(check="disk", verdict=Verdict.FAIL, says=says, hint=hint)
    if free_mb < DISK_WARN_MB:
        hint = "models and apps need room: free some"
        return Finding(check="disk", verdict=Verdict.WARN, says=says, hint=hint)
    return ok("disk", says)


def memory(config: AgentConfig) -> Finding:
    """Say whether the limit for workers fits the machine."""
    found = psutil.virtual_memory()
    total, free = found.total // 2**20, found.available // 2**20
    limit = config.limits.memory_mb or total * 8 // 10
    says = f"{free} of {total} MB available, workers may use {limit}"
    if limit > total:
        hint = f"set limits.memory_mb in {config.file} to less than the device has"
        return Finding(check="memory", verdict=Verdict.FAIL, says=says, hint=hint)
    if free < MEMORY_WARN_MB:
        hint = "apps that use PyTorch need some hundred MB: stop other programs"
        return Finding(check="memory", verdict=Verdict.WARN, says=says, hint=hint)
    return ok("memory", says)


def runtimes() -> Finding:
    """Say what kinds of apps can run here."""
    found = versions()
    says = ", ".join(f"{name} {version}" for name, version in found.items() if name != "os")
    if not {"torch", "flower"} & set(capabilities()):
        hint = "native apps on numpy run; others need pip install 'skerry-edge[flower,torch]'"
        return Finding(check="runtimes", verdict=Verdict.WARN, says=says, hint=hint)
    return ok("runtimes", says)


def worker(config: AgentConfig) -> Finding:
    """Say whether a worker starts within its limits and answers."""
    import asyncio

    from skerry_edge.worker.pool import Workers
    from skerry_edge.worker.trial import trial

    began = time.monotonic()
    try:
        with tempfile.TemporaryDirectory(dir=config.home if config.home.exists() else None) as made:
            Path(made).chmod(0o711)
            says = asyncio.run(trial(Workers(Path(made), config.limits)))
    except (SkerryError, OSError) as error:
        return failed("worker", error)
    if says:
        hint = "its user must be able to read this Python and the agent's home"
        return Finding(check="worker", verdict=Verdict.FAIL, says=says, hint=hint)
    return ok("worker", f"starts and answers in {time.monotonic() - began:.1f} s")


def certificate(identity: Identity) -> Finding:
    """Say how long the device's certificate is good for."""
    left = identity.valid_until - time.time()
    until = time.strftime("%Y-%m-%d %H:%M", time.localtime(identity.valid_until))
    says = f"{identity.device}, certificate until {until}"
    if left < 0:
        hint = "it is renewed when the agent starts, within 90 days; else join again"
        return Finding(check="identity", verdict=Verdict.FAIL, says=f"{says}: expired", hint=hint)
    if time.time() < identity.valid_from - 60:
        hint = "check the clock: timedatectl"
        says = f"{says}: not valid yet"
        return Finding(check="identity", verdict=Verdict.FAIL, says=says, hint=hint)
    if identity.needs_renewal(time.time()):
        hint = "it is renewed while the agent is connected"
        return Finding(check="identity", verdict=Verdict.WARN, says=f"{says}: due", hint=hint)
    return ok("identity", says)


def coordinator(identity: Identity) -> Iterator[Finding]:
    """Say whether the coordinator answers, is the one that was joined, and has our time."""
    parts = urlsplit(identity.url)
    began = time.time()
    try:
        connection = http.client.HTTPSConnection(
            parts.hostname or "",
            parts.port,
            timeout=TIMEOUT_S,
            context=trusted_context(identity.credentials.ca.read_text()),
        )
        with contextlib.closing(connection):
            connection.request("GET", "/v1/health")
            answer = connection.getresponse()
            answer.read(65536)
    except ValueError as error:
        says = f"{identity.credentials.ca} is damaged: {error}"
        hint = f"remove {identity.folder} and join again"
        yield Finding(check="coordinator", verdict=Verdict.FAIL, says=says, hint=hint)
        return
    except (OSError, http.client.HTTPException, SkerryError) as error:
        yield unreachable("coordinator", identity.url, error)
        return
    took_ms = (time.time() - began) * 1000
    yield ok("coordinator", f"{identity.url} answers in {took_ms:.0f} ms")
    with contextlib.suppress(TypeError, ValueError):
        yield clock(parsedate_to_datetime(answer.getheader("Date") or "").timestamp() - began)


def clock(ahead_s: float) -> Finding:
    """Say how far the coordinator's clock is from ours (its Date header has whole seconds)."""
    if abs(ahead_s) < CLOCK_WARN_S:
        return ok("clock", f"within {max(1, round(abs(ahead_s)))} s of the coordinator's")
    says = f"{abs(ahead_s):.0f} s {'behind' if ahead_s > 0 else 'ahead of'} the coordinator's"
    verdict = Verdict.FAIL if abs(ahead_s) > CLOCK_FAIL_S else Verdict.WARN
    hint = "switch on time synchronisation: timedatectl set-ntp true"
    return Finding(check="clock", verdict=verdict, says=says, hint=hint)


def unreachable(check: str, url: str, error: Exception) -> Finding:
    """Return a finding for a connection that failed: name, network, port, or trust."""
    host, port = urlsplit(url).hostname, urlsplit(url).port
    if isinstance(error, ssl.SSLCertVerificationError):
        hint = "wrong clock, or not the coordinator this device joined; see the check of the clock"
        says = f"{url} is not trusted: {error.verify_message}"
    elif isinstance(error, ssl.SSLError):
        says, hint = f"{url}: TLS failed: {error}", "the certificate may be revoked or old"
    elif isinstance(error, socket.gaierror):
        says, hint = f"{host} has no address", "check DNS, or join by an address"
    elif isinstance(error, ConnectionRefusedError):
        says, hint = f"nothing listens at {url}", "start the coordinator, or check its address"
    elif isinstance(error, TimeoutError):
        hint = f"a firewall may drop port {port}: nc -vz {host} {port}"
        says = f"{url} does not answer within {TIMEOUT_S:g} s"
    else:
        says, hint = f"{url}: {error}", "check the network: ip route, ping"
    return Finding(check=check, verdict=Verdict.FAIL, says=says, hint=hint)


def link(identity: Identity, address: LinkAddress, *, knock: bool) -> Finding:
    """Say whether a link's port answers our TLS; with `knock`, whether a broker lets us in."""
    parts = urlsplit(address.url)
    secure = parts.scheme.endswith("s")
    check = f"{address.kind} link"
    try:
        with socket.create_connection((parts.hostname or "", parts.port or 0), TIMEOUT_S) as plain:
            if not secure:
                return ok(check, f"{address.url} answers, without TLS")
            context = identity.credentials.context()
            if address.kind == "grpc":
                context.set_alpn_protocols(["h2"])
            with context.wrap_socket(plain, server_hostname=parts.hostname) as wrapped:
                version = wrapped.version()
        note = BROKERS[address.kind](identity, address) if knock and address.kind in BROKERS else ""
    except (OSError, SkerryError) as error:
        return unreachable(check, address.url, error)
    return ok(check, f"{address.url} answers, {version}{note}")


def _broker(identity: Identity, address: LinkAddress) -> str:
    """Return a note that the broker let us in, or raise OSError."""
    import asyncio

    import aiomqtt
    from skerry_protos.mqtt import Address, connect
    from skerry_protos.topics import up

    parts = urlsplit(address.url)

    async def knock() -> None:
        async with asyncio.timeout(TIMEOUT_S):
            connection = await connect(
                Address(
                    host=parts.hostname or "",
                    port=parts.port or 8883,
                    name=identity.device,
                    tls=identity.credentials.context(),
                ),
                on_message=lambda _topic, _packet: None,
                on_lost=lambda _why: None,
                will=aiomqtt.Will(up(identity.device), b""),
            )
            await connection.close()

    asyncio.run(knock())
    return ", the broker lets us in"


BROKERS: dict[str, Callable[[Identity, LinkAddress], str]] = {"mqtt": _broker}
