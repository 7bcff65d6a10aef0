"""Running the agent as a process: one per home, until a signal asks it to stop."""

import asyncio
import logging
import os
import signal
from dataclasses import replace
from pathlib import Path

from skerry_protos.allocator import share_arenas

from skerry_edge.agent import Agent
from skerry_edge.config import AgentConfig, load_config
from skerry_edge.identity import Identity
from skerry_edge.status import alone

log = logging.getLogger(__name__)


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
    agent = asyncio.create_task(Agent(config, identity).run())
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


def _log_to_stderr(level: str) -> None:
    # systemd's journal has its own times.
    times = "" if os.environ.get("JOURNAL_STREAM") else "%(asctime)s "
    logging.basicConfig(level=level.upper(), format=f"{times}%(levelname)s %(message)s")
