"""The exporting process: python -m skerry_cloud.models.export.child REQUEST RESULT.

It imports the app's code. What it does is printed line by line; what came of it is the JSON in the
file RESULT: {"artefacts": [...]} or {"error": {"code", "message", "hint"}}.
"""

import contextlib
import json
import os
import resource
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

from skerry_protos.errors import SkerryError

from skerry_cloud.models.export.request import Request


def main() -> int:
    """Export what the request says."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    request = Request.from_json(Path(sys.argv[1]).read_text())
    result = _run(request)
    Path(sys.argv[2]).write_text(json.dumps(result))
    return 0 if "artefacts" in result else 1


def _run(request: Request) -> dict[str, Any]:
    try:
        with tempfile.TemporaryDirectory(prefix="skerry-export-") as folder:
            if request.probe:
                from skerry_cloud.models.export.probe import write

                return {"artefacts": write(request, Path(folder), _say)}
            from skerry_cloud.models.export.flow import export

            return {"artefacts": export(request, Path(folder), _say)}
    except SkerryError as error:
        return _failed(error.code, error.message, error.hint)
    except ModuleNotFoundError as error:
        return _failed(
            "missing",
            f"{error.name} is not installed",
            "pip install 'skerry-cloud[export]', and 'skerry-cloud[litert]' for LiteRT",
        )
    except BaseException as error:  # noqa: BLE001 - the app may raise anything
        traceback.print_exc()
        where = _where(error, Path(request.folder))
        return _failed("export", f"{type(error).__name__}: {_line(error)}{where}", "")


def _failed(code: str, message: str, hint: str) -> dict[str, Any]:
    return {"error": {"code": code, "message": message, "hint": hint}}


def _where(error: BaseException, app: Path) -> str:
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        with contextlib.suppress(ValueError):
            return f", in {frame.name}() at {Path(frame.filename).relative_to(app)}:{frame.lineno}"
    return ""


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:500]


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # neither the app's threads nor a converter's hold it
