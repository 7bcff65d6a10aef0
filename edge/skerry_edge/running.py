"""Running the agent as a process: one per home, until a signal asks it to stop."""

import asyncio
import logging
import os
import signal
from dataclasses import replace
from pathlib import Path

from skerry_protos import tracing
from skerry_protos.allocator import share_arenas

from skerry_edge.agent import Agent
from skerry_edge.config import AgentConfig, load_config
from skerry_edge.energy import Throttle, open_budget
from skerry_edge.identity import Identity
from skerry_edge.inference.selftest import Trials
from skerry_edge.inference.service import Inference
from skerry_edge.models import Service
from skerry_edge.models.variants import Variants
from skerry_edge.status import alone
from skerry_edge.telemetry import capabilities

log = logging.getLogger(__name__)

RUNTIMES = {"onnxruntime", "litert", "tflite"}
"""Capabilities any of which lets a device serve models."""


def run(home: Path, *, link: str | None = None) -> int:
    """Run the agent in `home`; return the exit status."""
    config = load_config(home)
    if link:
        config = replace(config, agent=replace(config.agent, link=link))
    identity = Identity.load(home)
    _log_to_stderr(config.agent.log_level)
    share_arenas(2)
    # Workers that run as another user read apps and models here; keys are kept from them anyway.
    os.umask(0o022 if config.limits.user else 0o077)
    with alone(home):
        asyncio.run(_until_signalled(config, identity))
    return 0


async def _until_signalled(config: AgentConfig, identity: Identity) -> None:
    """Run the agent until SIGTERM or SIGINT; its own errors are the caller's."""
    agent = asyncio.create_task(_serve(config, identity))
    loop = asyncio.get_running_loop()
    stopped = False

    def stop() -> None:
        nonlocal stopped
        stopped = True
        agent.cancel()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    log.info("device %s serves %s", identity.device, identity.url)
    try:
        await agent
    except asyncio.CancelledError:
        if not stopped:
            raise
    log.info("stopped")


async def _serve(config: AgentConfig, identity: Identity) -> None:
    """Run the agent, and what serves its models where a runtime is installed."""
    tracing.begin("skerry-agent", device=identity.device)
    try:
        await _serve_models(config, identity)
    finally:
        await asyncio.to_thread(tracing.end)


async def _serve_models(config: AgentConfig, identity: Identity) -> None:
    if not (config.inference.enabled and RUNTIMES & set(capabilities())):
        await Agent(config, identity).run()
        return
    budget = open_budget(config.home, config.energy)
    trials = Trials(
        threads=config.inference.threads or 1,
        memory_bytes=config.limits.memory_mb * 2**20,
        energy=config.energy,
    )
    async with Inference(config, identity.device, budget) as inference:
        service: Service = inference
        variants = None
        if config.choice.objective != "assigned" or config.energy.daily_j:
            service = variants = Variants(
                config.home,
                inference,
                trials,
                table=config.choice,
                profile=config.agent.profile,
                capabilities=capabilities(),
                energy_source=budget.source,
                sparing=lambda: budget.throttle >= Throttle.SCARCE,
            )
        agent = Agent(config, identity, budget=budget, self_test=trials, service=service)
        if variants is not None:
            variants.journal = agent.note
        inference.journal, inference.ask_cloud = agent.note, agent.ask_cloud
        await agent.run()


def _log_to_stderr(level: str) -> None:
    # systemd's journal has its own times.
    times = "" if os.environ.get("JOURNAL_STREAM") else "%(asctime)s "
    logging.basicConfig(level=level.upper(), format=f"{times}%(levelname)s %(message)s")
