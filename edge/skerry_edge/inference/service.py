"""The inference process, seen from the agent: begun with the first model, and when it died.

Implements `skerry_edge.models.Service`: a release is served from its slot's folder, and what was
measured of it is read from the process every few seconds. A process that dies is begun again with
the models it had; how often it died is a reading that a rollout's gates look at.
"""

import asyncio
import contextlib
import logging
import os
import socket
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict, dataclass, field

import psutil
from skerry_protos.channel import Channel, Said
from skerry_protos.errors import ConfigError, LinkError, SkerryError

from skerry_edge.config import AgentConfig
from skerry_edge.energy import Budget, Share, Throttle
from skerry_edge.models.files import write_json
from skerry_edge.models.slots import Slot
from skerry_edge.worker.messages import Sandbox

log = logging.getLogger(__name__)

LOAD_S = 120.0
START_S = 30.0
POLL_S = 2.0
ANSWER_S = 10.0
STOP_S = 10.0
RESTART_S = (0.0, 0.5, 1.0, 2.0, 5.0, 15.0)
"""Waits before the process is begun again, by how often it died lately."""
CALM_S = 300.0
"""After so long without a death the waits begin anew."""
PARALLEL_LIMIT = 4
"""Most calls of the model at once, unless the settings say more: one loop feeds them all."""
ENDPOINT = "inference.json"
"""File in the agent's home that says where predictions are answered."""
PASSED = ("PATH", "LANG", "TZ", "PYTHONPATH", "VIRTUAL_ENV", "LD_LIBRARY_PATH", "HOME", "TMPDIR")

AskCloud = Callable[[str, bytes, float, str], Awaitable[bytes]]
"""Model name, encoded inputs, seconds, the request's traceparent: the cloud's encoded outputs."""


@dataclass(slots=True)
class Model:
    """A model that shall be served."""

    slot: Slot
    readings: dict[str, float] = field(default_factory=dict)
    crashes: int = 0
    rows: int = 0
    energy_j: float | None = None  # one input


class Inference:
    """The service of one agent; an async context manager."""

    def __init__(
        self,
        config: AgentConfig,
        device: str,
        budget: Budget,
        *,
        ask_cloud: AskCloud | None = None,
        journal: Callable[[str], None] = log.info,
    ) -> None:
        self._config, self._device, self._budget = config, device, budget
        self.ask_cloud, self.journal = ask_cloud, journal
        self._models: dict[str, Model] = {}
        self._channel: Channel | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._keeping: asyncio.Task[None] | None = None
        self._wanted = asyncio.Event()
        self._ready = asyncio.Event()
        self._deaths: list[float] = []
        self._share = Share(budget, idle_w=config.energy.idle_w)
        self._cpu_s = 0.0
        self._throttle = Throttle.NONE
        self.port = 0
        self.why = ""
        """Why nothing is served though it should be."""

    async def __aenter__(self) -> "Inference":
        if self._config.inference.enabled:
            self._keeping = asyncio.create_task(self._keep(), name="inference")
        return self

    async def __aexit__(self, *_: object) -> None:
        """End the process once it has answered what it was asked."""
        if self._keeping is not None:
            self._keeping.cancel()
            await asyncio.wait({self._keeping})
            (self._config.home / ENDPOINT).unlink(missing_ok=True)

    # skerry_edge.models.Service

    async def swap(self, model: str, slot: Slot | None) -> None:
        """Serve this release from now on; raise SkerryError when it cannot be served."""
        if self._keeping is None:
            return
        if slot is None:
            if self._models.pop(model, None) is not None and self._channel is not None:
                with contextlib.suppress(SkerryError):
                    await self._ask({"do": "withdraw", "model": model}, ANSWER_S)
            return
        self._wanted.set()
        await self._until_ready()
        await self._serve(model, slot)
        before = self._models.get(model)
        self._models[model] = Model(slot)
        if before is None or before.slot.release.digest != slot.release.digest:
            self.journal(f"serves {model} version {slot.release.version} on port {self.port}")

    def readings(self, model: str) -> Mapping[str, float] | None:
        """Return what was measured of a model, or None when none of that name is served."""
        found = self._models.get(model)
        if found is None:
            return None
        energy = {} if found.energy_j is None else {"energy_j": found.energy_j}
        return {**found.readings, **energy, "crashes": float(found.crashes)}

    # The process.

    async def _until_ready(self) -> None:
        try:
            async with asyncio.timeout(START_S):
                await self._ready.wait()
        except TimeoutError:
            # Nothing is served at all: no fault of the release that was to be served.
            raise ConfigError(self.why or f"inference did not start within {START_S:g} s") from None

    async def _keep(self) -> None:
        """Keep a process running from the first model on."""
        await self._wanted.wait()
        while True:
            try:
                await self._live()
                raise LinkError("the inference process ended")
            except (SkerryError, OSError) as error:
                self.why = str(error)
            now = time.monotonic()
            self._deaths = [at for at in self._deaths if now - at < CALM_S] + [now]
            for model in self._models.values():
                model.crashes += 1
                model.rows = 0
            self._cpu_s = 0.0
            wait_s = RESTART_S[min(len(self._deaths), len(RESTART_S)) - 1]
            log.warning("%s; begun again in %g s", self.why, wait_s)
            self.journal(f"inference: {self.why}; begun again in {wait_s:g} s")
            await asyncio.sleep(wait_s)

    async def _live(self) -> None:
        """Start the process and serve until it ends; nothing of it is left after that."""
        ours, theirs = socket.socketpair()
        try:
            process = self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                *("-P", "-X", "faulthandler", "-m", "skerry_edge.inference.child"),
                str(theirs.fileno()),
                pass_fds=(theirs.fileno(),),
                stdin=asyncio.subprocess.DEVNULL,
                env={name: os.environ[name] for name in PASSED if name in os.environ},
            )
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        channel = self._channel = await Channel.over(ours)
        tasks = [
            asyncio.create_task(channel.serve(self._handle)),
            asyncio.create_task(self._begin_and_watch()),
            asyncio.create_task(process.wait()),
        ]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for one in done:
                one.result()
            raise LinkError(f"the inference process {_ending(process.returncode)}")
        finally:
            self._ready.clear()
            self._channel = None
            channel.close()
            for one in tasks[:2]:
                one.cancel()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(STOP_S):
                    await process.wait()
            if process.returncode is None:
                process.kill()
                await process.wait()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _begin_and_watch(self) -> None:
        """Tell the process how to live, have it serve what it should, and read its measures."""
        home = self._config.home
        hidden = [home / name for name in ("identity", "inbox", "outbox")]
        box = Sandbox(
            agent_pid=os.getpid(),
            niceness=0,
            io_idle=False,
            hidden=tuple(str(folder) for folder in hidden if folder.exists()),
        )
        said, _ = await self._ask(
            {
                "do": "begin",
                "sandbox": asdict(box),
                "settings": asdict(self._config.inference),
                "device": self._device,
            },
            START_S,
        )
        self.port, self.why = int(said["port"]), ""
        self._say_where()
        for name, model in list(self._models.items()):
            try:
                await self._serve(name, model.slot)
            except SkerryError as error:
                self.journal(f"{name} cannot be served: {error}")
        self._throttle = Throttle.NONE
        self._ready.set()
        while True:
            await self._save_energy()
            await self._read()
            await asyncio.sleep(POLL_S)

    def _say_where(self) -> None:
        """Leave the endpoint's address where `skerry-agent status` and programs look."""
        host = self._config.inference.host
        url = f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"
        with contextlib.suppress(OSError):
            write_json(self._config.home / ENDPOINT, {"url": url})

    async def _serve(self, model: str, slot: Slot) -> None:
        threads, parallel = self._threads
        said = {
            "do": "serve",
            "model": model,
            "version": str(slot.release.version),
            "folder": str(slot.content),
            "threads": threads,
            "parallel": parallel,
        }
        await self._ask(said, LOAD_S)

    @property
    def _threads(self) -> tuple[int, int]:
        """Threads of one call of a model, and calls at once."""
        if self._throttle >= Throttle.FRUGAL:
            return 1, 1
        table, cores = self._config.inference, psutil.cpu_count() or 1
        threads = table.threads or cores
        fit = max(1, cores // threads)
        # One more than fit: while its thread waits for the interpreter, the core is another's.
        return threads, table.parallel or min(fit + (fit > 1), PARALLEL_LIMIT)

    async def _save_energy(self) -> None:
        """Tell the process to be as sparing as the day's energy asks for."""
        self._budget.update()
        step = self._budget.throttle
        if step == self._throttle:
            return
        fewer, self._throttle = self._threads, step
        await self._ask({"do": "throttle", "step": int(step), "why": self._budget.why()}, ANSWER_S)
        self.journal(self._budget.why() or "energy: no limit now")
        if self._threads != fewer:
            for name, model in list(self._models.items()):
                await self._serve(name, model.slot)

    async def _read(self) -> None:
        said, _ = await self._ask(
            {"do": "readings", "joules": self._budget.update(), "source": self._budget.source},
            ANSWER_S,
        )
        rows = 0
        for name, found in said["models"].items():
            model = self._models.get(name)
            if model is not None and found["version"] == str(model.slot.release.version):
                rows += max(0, int(found["rows"]) - model.rows)
                model.rows = int(found["rows"])
                model.readings = {str(k): float(v) for k, v in found["readings"].items()}
        if rows > 0:
            cpu_s, self._cpu_s = float(said["cpu_s"]) - self._cpu_s, float(said["cpu_s"])
            joules = self._share.joules(cpu_s) / rows
            for model in self._models.values():
                model.energy_j = joules

    async def _ask(self, said: Said, timeout_s: float) -> tuple[Said, bytes]:
        if self._channel is None:
            raise LinkError("the inference process is not there")
        return await self._channel.ask(said, timeout_s=timeout_s)

    async def _handle(self, said: Said, body: bytes) -> tuple[Said, bytes]:
        if said.get("do") != "cloud":
            raise SkerryError("the agent cannot do that")
        if self.ask_cloud is None:
            raise LinkError("there is no cloud to ask")
        wait_s = self._config.inference.cloud_wait_ms / 1e3
        model, traceparent = str(said["model"])[:200], str(said.get("traceparent", ""))
        return {}, await self.ask_cloud(model, body, wait_s, traceparent)


def _ending(status: int | None) -> str:
    if status is None:
        return "closed its channel"
    return f"died by signal {-status}" if status < 0 else f"ended with exit status {status}"
