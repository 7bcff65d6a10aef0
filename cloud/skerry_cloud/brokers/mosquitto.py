"""A mosquitto of our own: a child process with a hardened configuration that we generate.

It dies with us, is started again when it dies, and keeps nothing on disk: delivery is the session's
work, not the broker's. Rights are ACLs on the certificate's name, so a device that is expelled
loses them on its live connection too, as soon as mosquitto has read the list again (SIGHUP).
"""

import asyncio
import base64
import contextlib
import hashlib
import logging
import os
import secrets
import signal
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self

import aiomqtt
from skerry_protos.errors import ConfigError, LinkError
from skerry_protos.kin import dying_with_parent
from skerry_protos.messages import DeviceId
from skerry_protos.topics import COORDINATOR, ROOT

from skerry_cloud.brokers import BrokerConfig, broker_url, listen, reachable
from skerry_cloud.files import write_private

log = logging.getLogger(__name__)

START_S = 10.0
STOP_S = 5.0
BACKOFF_S = (0.1, 5.0)
LOG_LIMIT = 16 * 1024 * 1024
QUEUE_LIMIT = 2000
"""Messages held for one slow client; 0 means other things in other versions (#1956, #2879)."""

_CONTROL = "skerry-control"


class Mosquitto:
    """Runs mosquitto, and starts it again with back-off for as long as the context is open."""

    kind = "mosquitto"

    def __init__(self, config: BrokerConfig, program: str) -> None:
        self._config = config
        self._program = program
        self._state = config.state
        self._log = config.state / "mosquitto.log"
        self._denied: set[str] = set(config.denied)
        self._password = secrets.token_urlsafe(24)
        self._process: asyncio.subprocess.Process | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._run_dir: tempfile.TemporaryDirectory[str] | None = None
        self.keys = config.keys
        self.address = (reachable(config.host), config.port)
        self.url = ""

    @property
    def pid(self) -> int | None:
        """The child's process id, or None while it is not running."""
        return self._process.pid if self._process and self._process.returncode is None else None

    async def __aenter__(self) -> Self:
        # A socket's path may have 107 characters, and the state folder's may be long already.
        self._run_dir = tempfile.TemporaryDirectory(prefix="skerry-")
        tries = 1 if self._config.port else 3  # a free port may be taken before mosquitto has it
        try:
            while True:
                tries -= 1
                with listen(self._config) as probe:
                    port = int(probe.getsockname()[1])
                self.address = (self.address[0], port)
                self.url = broker_url(self._config, port)
                await asyncio.to_thread(self._write_state)
                try:
                    await self._start()
                    break
                except ConfigError as error:
                    if not tries or "in use" not in error.message:
                        raise
        except BaseException:
            await self._stop()
            raise
        self._keeper = asyncio.create_task(self._keep(), name="mosquitto")
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._stop()

    async def expel(self, device: DeviceId) -> None:
        """Take the device's rights, then its connection: a take-over by the same client id."""
        self._denied.add(device)
        await self._reload()
        control = aiomqtt.Client(
            str(self._control),
            transport="unix",
            identifier=device,
            username=_CONTROL,
            password=self._password,
            timeout=STOP_S,
        )
        try:
            async with control:
                log.info("cut the MQTT connection of %s", device)
        except aiomqtt.MqttError as error:
            log.warning("cannot cut the MQTT connection of %s now: %s", device, error)

    async def _reload(self) -> None:
        await asyncio.to_thread(self._write_rights)
        if self._process and self._process.returncode is None:
            self._process.send_signal(signal.SIGHUP)

    async def _start(self) -> None:
        self._trim_log()
        mark = self._log.stat().st_size
        self._process = await asyncio.create_subprocess_exec(
            *dying_with_parent(),
            self._program,
            "-c",
            str(self._state / "mosquitto.conf"),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )
        try:
            async with asyncio.timeout(START_S):
                while self._process.returncode is None and not _says_running(self._log, mark):  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
        except TimeoutError:
            pass
        else:
            if self._process.returncode is None:
                return
        raise ConfigError(
            f"mosquitto did not start on {self._config.host}:{self.address[1]}: "
            f"{_tail(self._log, mark)}",
            hint=f"its log is {self._log}",
        )

    async def _keep(self) -> None:
        """Start mosquitto again whenever it dies."""
        wait_s = BACKOFF_S[0]
        while self._process is not None:
            began = asyncio.get_running_loop().time()
            code = await self._process.wait()
            if asyncio.get_running_loop().time() - began > BACKOFF_S[1]:
                wait_s = BACKOFF_S[0]
            log.error(
                "mosquitto died with status %s and is started again: %s", code, _tail(self._log, 0)
            )
            while True:
                await asyncio.sleep(wait_s)
                wait_s = min(wait_s * 2, BACKOFF_S[1])
                try:
                    await self._start()
                    break
                except (ConfigError, OSError) as error:
                    log.error("%s", error)

    async def _stop(self) -> None:
        if self._keeper is not None:
            self._keeper.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._keeper
        process, self._process = self._process, None
        if process is not None and process.returncode is None:
            process.terminate()
            try:
                async with asyncio.timeout(STOP_S):
                    await process.wait()
            except TimeoutError:
                process.kill()
                await process.wait()
        if self._run_dir is not None:
            self._run_dir.cleanup()

    @property
    def _control(self) -> Path:
        if self._run_dir is None:
            raise LinkError("the broker is not running")
        return Path(self._run_dir.name) / "control"

    def _write_state(self) -> None:
        self._state.mkdir(parents=True, exist_ok=True)
        self._state.chmod(0o700)
        self._log.touch(mode=0o600)
        self._write_rights()
        secret = f"{_CONTROL}:{_password_hash(self._password)}\n"
        write_private(self._state / "passwords", secret.encode())
        write_private(self._state / "mosquitto.conf", self._configuration().encode())

    def _write_rights(self) -> None:
        write_private(self._state / "acl", rights(self._denied).encode())

    def _trim_log(self) -> None:
        if self._log.stat().st_size > LOG_LIMIT:
            self._log.replace(self._log.with_suffix(".log.1"))
            self._log.touch(mode=0o600)

    def _configuration(self) -> str:
        """Return mosquitto.conf; docker/mosquitto/mosquitto.conf is its production sibling."""
        lines = [
            "# Written by skerry-coordinator at each start; changes are lost.",
            "per_listener_settings false",
            "user root" if os.geteuid() == 0 else "# it runs as the coordinator's user",
            "persistence false",
            "sys_interval 0",
            "set_tcp_nodelay true",
            f"max_packet_size {self._config.max_packet}",
            f"max_queued_messages {QUEUE_LIMIT}",
            "max_inflight_messages 100",
            "max_keepalive 120",
            f"log_dest file {self._log}",
            "log_type error",
            "log_type warning",
            "log_type notice",
            "log_type information",
            "connection_messages false",
            "log_timestamp_format %Y-%m-%dT%H:%M:%S",
            f"acl_file {self._state / 'acl'}",
            f"listener 0 {self._control}",
            f"listener {self.address[1]} {self._config.host}",
        ]
        if self.keys is None:  # plaintext on loopback: the client's own word for its name
            return "\n".join([*lines, "allow_anonymous true", "use_username_as_clientid true", ""])
        return "\n".join(
            [
                *lines,
                f"cafile {self.keys.ca.resolve()}",
                f"certfile {self.keys.certificate.resolve()}",
                f"keyfile {self.keys.key.resolve()}",
                "tls_version tlsv1.2",
                "require_certificate true",
                "use_identity_as_username true",
                "use_username_as_clientid true",
                "allow_anonymous false",
                f"password_file {self._state / 'passwords'}",
                "",
            ]
        )


def rights(denied: set[str]) -> str:
    """Return the ACL file: skerry_protos.topics.allowed in mosquitto's words, less the denied."""
    lines = [
        f"user {COORDINATOR}",
        f"topic readwrite {ROOT}/#",
        "",
        f"pattern write {ROOT}/up/%u",
        f"pattern read {ROOT}/down/%u",
        f"pattern read {ROOT}/cast/#",
        f"pattern read {ROOT}/coordinator",
    ]
    for name in sorted(denied):
        lines += ["", f"user {name}", f"topic deny {ROOT}/#"]
    return "\n".join([*lines, ""])


def _password_hash(password: str) -> str:
    salt = secrets.token_bytes(12)
    digest = hashlib.pbkdf2_hmac("sha512", password.encode(), salt, 101)
    return f"$7$101${base64.b64encode(salt).decode()}${base64.b64encode(digest).decode()}"


def _tail(path: Path, since: int) -> str:
    """Return the last errors (else lines) of the log after `since`, in one line."""
    with path.open("rb") as file:
        file.seek(max(since, path.stat().st_size - 4096))
        lines = file.read().decode(errors="replace").splitlines()
    said = [line.partition(": ")[2] or line for line in lines]  # less the time
    errors = [line for line in said if line.startswith("Error")]
    return " | ".join((errors or said)[-3:]) or "it said nothing"


def _says_running(path: Path, since: int) -> bool:
    """Return whether the log says after `since` that mosquitto is ready."""
    with path.open("rb") as file:
        file.seek(since)
        return b" running\n" in file.read()
