"""A run's server side as a process: started, heard, limited, and surely ended.

It is the leader of its own process group, so that whatever it forks goes with it. What it prints
is kept line by line; what it says arrives by a socket pair (channel.py).
"""

import asyncio
import contextlib
import os
import secrets
import signal
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import psutil

from skerry_cloud.runs import channel
from skerry_cloud.runs.channel import Message
from skerry_cloud.runs.plan import ServerLimits

LINE_LIMIT = 2000
"""Longest line kept, characters."""
WATCH_S = 1.0
TERM_S = 3.0
"""How long a process may take to end after SIGTERM."""
TAIL = 20
_PASSED_ON = ("PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR", "SKERRY_DATA", "VIRTUAL_ENV")
"""Variables the app may see; the coordinator's secrets are not among them."""


MARKER = "SKERRY_SERVER_SIDE"


@dataclass(frozen=True, slots=True)
class Channels:
    """The parent's ends: of the socket pair, and of the pipe that takes what is printed."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    output: asyncio.StreamReader
    pipe: asyncio.ReadTransport


class ServerProcess:
    """The child; make it with `start`, end it with `end`."""

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        channels: "Channels",
        marker: str,
        limits: ServerLimits,
        on_lines: Callable[[list[str]], None],
    ) -> None:
        self._process = process
        self._reader, self._writer = channels.reader, channels.writer
        self._output, self._pipe = channels.output, channels.pipe
        self._marker = marker
        self._limits = limits
        self._on_lines = on_lines
        self._printed = 0
        self.tail: list[str] = []
        self.passed = ""  # the limit it passed, in words
        self._tasks = [
            asyncio.create_task(self._read_output()),
            asyncio.create_task(self._watch_memory()),
        ]

    @classmethod
    async def start(
        cls,
        folder: Path,
        limits: ServerLimits,
        on_lines: Callable[[list[str]], None],
        *,
        hash_seed: int = 0,
    ) -> Self:
        """Start the child in `folder`; one `hash_seed` is one order of its sets of texts."""
        ours, theirs = socket.socketpair()
        # A pipe of our own: asyncio's would keep `wait` from returning while a forked process of
        # the app holds it.
        output, printed = os.pipe()
        marker = secrets.token_hex(8)
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "skerry_cloud.runs.child",
                str(theirs.fileno()),
                cwd=folder,
                env=_environment() | {MARKER: marker, "PYTHONHASHSEED": str(hash_seed)},
                stdin=asyncio.subprocess.DEVNULL,
                stdout=printed,
                stderr=asyncio.subprocess.STDOUT,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
            )
        except BaseException:
            ours.close()
            os.close(output)
            raise
        finally:
            theirs.close()
            os.close(printed)
        reader, writer = await asyncio.open_connection(sock=ours, limit=1024 * 1024)
        lines = asyncio.StreamReader(limit=64 * 1024)
        pipe, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(lines), os.fdopen(output, "rb", buffering=0)
        )
        return cls(process, Channels(reader, writer, lines, pipe), marker, limits, on_lines)

    def say(self, said: dict[str, Any], body: bytes = b"") -> None:
        """Send a message; to one who has gone, nothing."""
        if not self._writer.is_closing():
            self._writer.write(channel.pack(said, body))

    async def hear(self) -> Message | None:
        """Return what the child says next, or None when it has closed; PeerError for nonsense."""
        return await channel.receive(self._reader)

    async def end(self) -> str:
        """End the process and all it started; return how it ended, in words."""
        self._writer.close()
        with contextlib.suppress(ConnectionError, OSError):
            await self._writer.wait_closed()
        self._signal(signal.SIGTERM)
        try:
            await asyncio.wait_for(self._process.wait(), TERM_S)
        except TimeoutError:
            pass
        finally:
            self._signal(signal.SIGKILL)  # also what it forked and left
        code = await self._process.wait()
        await asyncio.to_thread(self._end_escaped)
        await asyncio.wait(self._tasks[:1], timeout=0.5)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._pipe.close()
        return _ending(code)

    def _end_escaped(self) -> None:
        """Kill what the app started outside its process group: it has our marker with it."""
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                if process.environ().get(MARKER) == self._marker:
                    process.kill()

    async def ended(self) -> str:
        """Wait for its end, all printed lines heard, and return how it ended, in words."""
        code = await self._process.wait()
        # A child of a child may hold the pipe open for ever.
        await asyncio.wait(self._tasks[:1], timeout=TERM_S / 2)
        return _ending(code)

    def kill(self, why: str) -> None:
        """Kill it for passing a limit; its end is heard as that of the channel."""
        self.passed = self.passed or why
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, number)

    async def _read_output(self) -> None:
        rest = b""
        while block := await self._output.read(64 * 1024):
            self._printed += len(block)
            if self._printed > self._limits.output_bytes:
                self.kill(f"printed more than {self._limits.output_bytes} bytes")
                return
            *lines, rest = (rest + block).split(b"\n")
            if len(rest) > LINE_LIMIT * 4:
                lines, rest = [*lines, rest], b""
            self._keep(lines)
        if rest:
            self._keep([rest])

    def _keep(self, lines: list[bytes]) -> None:
        texts = [_text(line) for line in lines]
        if texts:
            self.tail = (self.tail + texts)[-TAIL:]
            self._on_lines(texts)

    async def _watch_memory(self) -> None:
        most = self._limits.memory_bytes or psutil.virtual_memory().total * 9 // 10
        try:
            root = psutil.Process(self._process.pid)
            while True:
                used = _resident(root)
                if used > most:
                    self.kill(f"used {used // 1024**2} of {most // 1024**2} MiB of memory")
                    return
                await asyncio.sleep(WATCH_S)
        except psutil.Error:
            return


def _resident(root: psutil.Process) -> int:
    total = int(root.memory_info().rss)
    for child in root.children(recursive=True):
        with contextlib.suppress(psutil.Error):
            total += int(child.memory_info().rss)
    return total


def _text(line: bytes) -> str:
    """Return a printed line as it may be kept and shown: no control characters, bounded."""
    text = line[: LINE_LIMIT * 4].decode("utf-8", "replace")[:LINE_LIMIT]
    return "".join(one if one.isprintable() or one == "\t" else " " for one in text).rstrip()


def _ending(code: int) -> str:
    if code < 0:
        try:
            return f"was killed by {signal.Signals(-code).name}"
        except ValueError:
            return f"was killed by signal {-code}"
    return f"exited with status {code}"


def _environment() -> dict[str, str]:
    passed = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    return passed | {
        "PYTHONUNBUFFERED": "1",
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        # Both phone home by default.
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "HF_HUB_OFFLINE": os.environ.get("HF_HUB_OFFLINE", "0"),
    }
