"""The self test of a release, seen from the agent: `trial.py` in a process that may do little."""

import asyncio
import contextlib
import json
import logging
import os
import signal
import sys
from collections.abc import Mapping

from skerry_protos.errors import DeadlineError, SkerryError

from skerry_edge.energy import EnergyTable
from skerry_edge.models.slots import Slot

log = logging.getLogger(__name__)

OUTPUT_LIMIT = 1 << 16
COMPLAINTS_LIMIT = 1 << 14
"""Bytes of the standard error that are kept: the last ones."""
LINES_KEPT = 8
LINE_LIMIT = 300
DRAIN_S = 1.0
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
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
            env={name: os.environ[name] for name in PASSED if name in os.environ},
        )
        assert process.stdout is not None
        assert process.stderr is not None
        complaints, late = Complaints(process.stderr), False
        try:
            async with asyncio.timeout(timeout_s):
                text = await process.stdout.read(OUTPUT_LIMIT)
                await process.wait()
        except TimeoutError:
            late = True
        finally:
            # With what a runtime has started: it would hold the pipes open, and `wait` with them.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            status = await process.wait()
            why = await complaints.end()
        name = slot.release.target or slot.release.digest[:12]
        if late:
            complaints.tell(name)
            raise DeadlineError(f"the self test took more than {timeout_s:g} s{why}")
        if status < 0:
            complaints.tell(name)
            raise SkerryError(f"the self test died by signal {-status}{why}")
        try:
            said = json.loads(text)
            if "error" in said:
                complaints.tell(name)
                raise SkerryError(str(said["error"])[:1000])
            return {str(name): float(value) for name, value in said["readings"].items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            complaints.tell(name)
            raise SkerryError(f"the self test ended with exit status {status}{why}") from error


class Complaints:
    """The last of what a process prints to its standard error, read while it runs.

    It is the runtime's own word, and hostile like the model: bounded, printable, never waited for.
    """

    def __init__(self, stream: asyncio.StreamReader) -> None:
        self._last = b""
        self._reading = asyncio.create_task(self._read(stream), name="self-test-stderr")

    async def _read(self, stream: asyncio.StreamReader) -> None:
        while block := await stream.read(COMPLAINTS_LIMIT):
            self._last = (self._last + block)[-COMPLAINTS_LIMIT:]

    @property
    def lines(self) -> list[str]:
        """The last lines, oldest first."""
        text = self._last.decode(errors="replace")
        whole = ("".join(c if c.isprintable() else " " for c in each) for each in text.splitlines())
        return [each.strip() for each in whole if each.strip()][-LINES_KEPT:]

    async def end(self) -> str:
        """Read no more; return what is added to a reason: the last line, where there is one."""
        await asyncio.wait({self._reading}, timeout=DRAIN_S)
        self._reading.cancel()
        await asyncio.gather(self._reading, return_exceptions=True)
        lines = self.lines
        return f": {lines[-1][:LINE_LIMIT]}" if lines else ""

    def tell(self, name: str) -> None:
        """Put the last lines into the agent's log."""
        for line in self.lines:
            log.warning("the self test of %s said: %s", name, line[:LINE_LIMIT])
