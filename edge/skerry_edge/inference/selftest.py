"""The self test of a release, seen from the agent: `trial.py` in a process that may do little."""

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import Mapping

from skerry_protos.errors import DeadlineError, SkerryError

from skerry_edge.energy import EnergyTable
from skerry_edge.models.slots import Slot

OUTPUT_LIMIT = 1 << 16
PASSED = ("PATH", "LANG", "TZ", "PYTHONPATH", "VIRTUAL_ENV", "LD_LIBRARY_PATH", "HOME", "TMPDIR")


class Trials:
    """Implements `skerry_edge.models.SelfTest`."""

    def __init__(
        self, *, threads: int = 1, memory_bytes: int = 0, energy: EnergyTable | None = None
    ) -> None:
        """Give each trial at most `memory_bytes` of memory; 0: no limit."""
        self._threads, self._memory = threads, memory_bytes
        self._energy = energy or EnergyTable()

    async def test(self, slot: Slot, *, timeout_s: float) -> Mapping[str, float]:
        """Return the readings of a release's self test; raise SkerryError saying why it failed."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-P", "-m", "skerry_edge.inference.trial"),
            str(slot.content),
            str(self._threads),
            str(self._memory),
            str(self._energy.idle_w),
            str(self._energy.busy_w),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            env={name: os.environ[name] for name in PASSED if name in os.environ},
        )
        assert process.stdout is not None
        try:
            async with asyncio.timeout(timeout_s):
                text = await process.stdout.read(OUTPUT_LIMIT)
                status = await process.wait()
        except TimeoutError:
            raise DeadlineError(f"the self test took more than {timeout_s:g} s") from None
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
        if status < 0:
            raise SkerryError(f"the self test died by signal {-status}")
        try:
            said = json.loads(text)
            if "error" in said:
                raise SkerryError(str(said["error"])[:1000])
            return {str(name): float(value) for name, value in said["readings"].items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise SkerryError(f"the self test ended with exit status {status}") from error
