"""Starts the exporting process and hears what came of it; imports no torch."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from skerry_protos.errors import DeadlineError, SkerryError

from skerry_cloud.models.export import ExportError
from skerry_cloud.models.export.request import Request

PROGRAM = "skerry_cloud.models.export.child"
_PASSED_ON = ("PATH", "HOME", "LANG", "LC_ALL", "TZ", "SKERRY_DATA", "VIRTUAL_ENV")
TAIL = 5


class ChildError(SkerryError):
    """What the exporting process found wrong; `code` is its error's."""

    exit_code = 8

    def __init__(self, code: str, message: str, hint: str) -> None:
        super().__init__(message, hint=hint)
        self.code = code


def run_export(
    request: Request, *, timeout_s: float, on_line: Callable[[str], None]
) -> list[dict[str, Any]]:
    """Export in a process of its own and return its artefacts; raise what it found wrong."""
    with tempfile.TemporaryDirectory(prefix="skerry-export-") as folder:
        asked, answered = Path(folder, "request.json"), Path(folder, "result.json")
        asked.write_text(request.to_json())
        with Path(folder, "errors").open("w+") as errors:
            process = subprocess.Popen(
                [sys.executable, "-m", PROGRAM, str(asked), str(answered)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                errors="replace",
                env=_environment(folder),
                start_new_session=True,
            )
            tail = _hear(process, timeout_s, on_line)
            errors.seek(0)
            tail = (errors.read().splitlines() or tail)[-TAIL:]
        return _result(answered, process.returncode, tail)


def _hear(
    process: "subprocess.Popen[str]", timeout_s: float, on_line: Callable[[str], None]
) -> list[str]:
    """Pass on what it prints until it ends; kill it, and all it started, at the deadline."""
    late = threading.Event()

    def end() -> None:
        late.set()
        os.killpg(process.pid, signal.SIGKILL)

    timer = threading.Timer(timeout_s, end)
    timer.start()
    lines: list[str] = []
    try:
        assert process.stdout is not None
        with process.stdout:
            for line in process.stdout:
                lines = [*lines, line.rstrip()][-TAIL:]
                on_line(line.rstrip())
        process.wait()
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        raise
    finally:
        timer.cancel()
    if late.is_set():
        raise DeadlineError(
            f"the export took longer than {timeout_s:.0f} s",
            hint="allow more with --timeout",
        )
    return lines


def _result(file: Path, status: int, tail: list[str]) -> list[dict[str, Any]]:
    try:
        result = json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        said = f": {tail[-1][:300]}" if tail else ""
        raise ExportError(f"the exporting process ended with status {status}{said}") from error
    if "error" in result:
        found = result["error"]
        raise ChildError(found["code"], found["message"], found["hint"])
    return list(result["artefacts"])


def _environment(folder: str) -> dict[str, str]:
    passed = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    return passed | {
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "PYTHONUNBUFFERED": "1",
        "OMP_NUM_THREADS": "1",
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "HF_HUB_OFFLINE": "1",
        "MPLCONFIGDIR": folder,
        "TMPDIR": folder,  # so that nothing is left of a process that was killed
    }
