"""What the tests of the device share: apps written on the spot, workers, records."""

import asyncio
import textwrap
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import numpy as np
import pytest
from skerry_edge.config import Limits
from skerry_edge.worker.messages import Job
from skerry_edge.worker.pool import Workers
from skerry_protos.records import Records, read, write
from skerry_protos.tensors import Tensor

WriteApp = Callable[[str], Path]
MakeJob = Callable[..., Job]

NATIVE = """
    import numpy as np

    def model():
        return {"w": np.zeros(3, np.float32)}

    def data(device):
        return list(range(5))
"""


def native(body: str) -> str:
    """Return the source of a native app whose train() is `body`."""
    train = textwrap.indent(textwrap.dedent(body).strip(), "    ")
    head = textwrap.dedent(NATIVE)
    evaluate = "def evaluate(model, data):\n    return 0.5\n"
    return f"{head}\ndef train(model, data, config):\n{train}\n\n{evaluate}"


@pytest.fixture
def write_app(tmp_path: Path) -> WriteApp:
    """Return a function that writes an app's module and returns its folder."""

    def write_it(source: str) -> Path:
        folder = tmp_path / f"app{len(list(tmp_path.glob('app*')))}"
        folder.mkdir()
        (folder / "app.py").write_text(textwrap.dedent(source))
        return folder

    return write_it


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    """Return a folder for what apps note; workers may write there."""
    folder = tmp_path / "notes"
    folder.mkdir()
    return folder


@pytest.fixture
def limits() -> Limits:
    return Limits(seconds=20, memory_mb=1024, output_kb=64, processes=8, worker_idle_s=30)


@pytest.fixture
async def workers(tmp_path: Path, limits: Limits) -> AsyncIterator[Workers]:
    async with Workers(tmp_path / "work", limits) as pool:
        yield pool


@pytest.fixture
def make_job(tmp_path: Path, workers: Workers) -> MakeJob:
    """Return a function that makes a job for an app: it asks with three floats."""

    def make(app: Path, name: str = "t1", **other: object) -> Job:
        content = tmp_path / f"{name}.content"
        write(content_of(np.array([1, 2, 3], np.float32)), content)
        folder = workers.folder(name)
        values: dict[str, object] = {
            "id": name,
            "kind": "native",
            "app": str(app),
            "entry": "app",
            "message_type": "train",
            "content": str(content),
            "reply": str(folder / "reply"),
            "state_out": str(folder / "state"),
            "run": "r1",
            "device": "d1",
            "node": 7,
            "flower_run": 9,
        }
        return Job(**(values | other))  # type: ignore[arg-type]

    return make


async def until(true: Callable[[], object], within_s: float = 20.0) -> None:
    """Wait until something is true; fail when it is not within a time."""
    ends = time.monotonic() + within_s
    while not true():
        assert time.monotonic() < ends, f"not true within {within_s} s"
        await asyncio.sleep(0.02)


def content_of(array: "np.ndarray[tuple[int, ...], np.dtype[np.float32]]") -> Records:
    """Return what a round asks with: one array and the round's number."""
    return Records(
        arrays={"arrays": {"w": Tensor.of(array)}}, configs={"config": {"server-round": 1}}
    )


def reply_of(job: Job) -> Records:
    """Return what the worker answered."""
    return read(Path(job.reply))
