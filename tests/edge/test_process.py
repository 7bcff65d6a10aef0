"""The agent as a real process: killed at any moment, small, and alone in its home."""

import asyncio
import os
import random
import signal
import sys
from collections.abc import AsyncIterator
from io import FileIO
from pathlib import Path

import numpy as np
import psutil
import pytest
from skerry_cloud.fleets.grpc import GrpcFleet
from skerry_edge.status import read_status
from skerry_protos.messages import BlobRef, DeviceId, Parcel

from tests.edge.conftest import WriteApp, content_of, native, until
from tests.edge.sea import Cloud

pytestmark = pytest.mark.network

DEVICE = DeviceId("dev-1")
URGENT = "niceness = 0\nio_idle = false\n"
"""Beside busy neighbours a nice worker may take a minute to start."""
SMALL = content_of(np.array([1, 2, 3], np.float32))
COUNTING = """
    from flwr.app import ConfigRecord, Context, Message, MetricRecord, RecordDict
    from flwr.clientapp import ClientApp

    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        count = int(context.state["count"]["n"]) + 1 if "count" in context.state else 1
        context.state["count"] = ConfigRecord({"n": count})
        return Message(RecordDict({"metrics": MetricRecord({"count": count})}), reply_to=message)
"""


class AgentProcess:
    """`skerry-agent run` in a home."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.process: asyncio.subprocess.Process | None = None

    async def start(self) -> int:
        """Start it, and return its process id."""
        (self.home / "log").touch()
        with (self.home / "log").open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "skerry_edge", "run", "--home", str(self.home)),
                stdout=log,
                stderr=log,
            )
        return self.process.pid

    async def kill(self, number: int = signal.SIGKILL) -> int:
        """Send it a signal and wait for its end; return its exit status."""
        assert self.process is not None
        if self.process.returncode is None:
            self.process.send_signal(number)
        return await asyncio.wait_for(self.process.wait(), 20)


@pytest.fixture
async def cloud(tmp_path: Path) -> AsyncIterator[Cloud]:
    made = Cloud(tmp_path)
    async with GrpcFleet(gate=made, blobs=made.blobs, keys=None, heartbeat_s=0.3) as fleet:
        made.fleet = fleet
        made.enrol(tmp_path / "home", DEVICE, kind="grpc", url=fleet.url)
        (tmp_path / "home" / "agent.toml").write_text(f"[limits]\n{URGENT}")
        yield made
        await made.close()


@pytest.fixture
async def agent(tmp_path: Path, cloud: Cloud) -> AsyncIterator[AgentProcess]:
    made = AgentProcess(tmp_path / "home")
    yield made
    if made.process is not None:
        await made.kill()


def noting(note: Path, then: str = "") -> str:
    """Return train() that notes each run of it."""
    return native(f"import os, time\nopen({str(note)!r}, 'a').write(f'{{os.getpid()}}\\n')\n{then}")


async def test_killed_while_working_it_works_again_and_its_worker_is_gone(
    cloud: Cloud, agent: AgentProcess, write_app: WriteApp, tmp_path: Path, notes: Path
) -> None:
    note = notes / "pids"
    then = f"if len(open({str(note)!r}).readlines()) == 1:\n    time.sleep(600)"
    parcel = cloud.task(cloud.bundle(write_app(noting(note, then))), SMALL)
    await agent.start()
    cloud.ask(DEVICE, parcel)
    await until(lambda: note.exists() and note.read_text().endswith("\n"))
    await agent.kill()
    worker = int(note.read_text().split()[0])
    await until(lambda: not alive(worker), 5)
    await agent.start()
    await cloud.answered(parcel.id)
    assert len(note.read_text().split()) == 2


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


async def test_killed_before_the_acknowledgement_it_delivers_again_without_working_again(
    cloud: Cloud, agent: AgentProcess, write_app: WriteApp, tmp_path: Path, notes: Path
) -> None:
    note = notes / "pids"
    parcel = cloud.task(cloud.bundle(write_app(noting(note))), SMALL)
    cloud.open_gate.clear()
    await agent.start()
    cloud.ask(DEVICE, parcel)
    await until(lambda: cloud.accepted[f"{parcel.id}/reply"])
    await agent.kill()
    cloud.open_gate.set()
    await agent.start()
    await until(lambda: not list((tmp_path / "home" / "outbox").glob("*.parcel")))
    await cloud.answered(parcel.id)
    assert len(note.read_text().split()) == 1


async def test_killed_after_the_acknowledgement_it_remembers(
    cloud: Cloud, agent: AgentProcess, write_app: WriteApp, tmp_path: Path, notes: Path
) -> None:
    note = notes / "pids"
    bundle = cloud.bundle(write_app(noting(note)))
    parcel, other = cloud.task(bundle, SMALL), cloud.task(bundle, SMALL)
    await agent.start()
    cloud.ask(DEVICE, parcel)
    await cloud.answered(parcel.id)
    await until(lambda: not list((tmp_path / "home" / "outbox").glob("*.parcel")))
    await agent.kill()
    await agent.start()
    for each in (parcel, other):
        cloud.ask(DEVICE, each)
    await cloud.answered(other.id)
    assert len(note.read_text().split()) == 2
    assert cloud.accepted[f"{parcel.id}/reply"] == 1


async def test_killed_at_random_moments_each_task_counts_once(
    cloud: Cloud, agent: AgentProcess, write_app: WriteApp
) -> None:
    """The app counts its tasks in Context.state: the count tells every lost or doubled effect."""
    bundle = cloud.bundle(write_app(COUNTING), kind="flower", client="app:app")
    dice, counts = random.Random(5), []
    await agent.start()
    for _ in range(7):
        parcel = cloud.task(bundle, SMALL)
        cloud.ask(DEVICE, parcel)
        await asyncio.sleep(dice.uniform(0.1, 2.0))  # taken, loading, working, answered, or over
        await agent.kill()
        await agent.start()
        await cloud.answered(parcel.id)
        counts.append(cloud.contents[parcel.id].metrics["metrics"]["count"])
    assert counts == list(range(1, 8))


async def test_a_signal_stops_it_cleanly(cloud: Cloud, agent: AgentProcess) -> None:
    await agent.start()
    await until(lambda: DEVICE in cloud.present_now)
    assert await agent.kill(signal.SIGTERM) == 0
    assert read_status(agent.home) is None


async def test_two_agents_do_not_share_a_home(cloud: Cloud, agent: AgentProcess) -> None:
    pid = await agent.start()
    await until(lambda: DEVICE in cloud.present_now)
    second = AgentProcess(agent.home)
    await second.start()
    assert await asyncio.wait_for(second.process.wait(), 20) == 2  # type: ignore[union-attr]
    said = (agent.home / "log").read_text()
    assert f"another agent runs in {agent.home} (process {pid})" in said

    def first() -> tuple[object, ...]:
        status = read_status(agent.home)  # written twice a second at most
        return () if status is None else (status.pid, status.connected, status.state)

    await until(lambda: first() == (pid, True, "idle"))


async def test_an_idle_agent_is_small_and_quick_to_start(
    cloud: Cloud, agent: AgentProcess, write_app: WriteApp
) -> None:
    """Ready in under 1 s of CPU; 60 MB of PSS at most, also after work."""
    (agent.home / "agent.toml").write_text(f"[limits]\nworker_idle_s = 0.2\n{URGENT}")
    process = psutil.Process(await agent.start())
    await until(lambda: cloud.beats)
    used = process.cpu_times()
    assert used.user + used.system < 1.0
    bundle = cloud.bundle(write_app(native("pass")))
    big = content_of(np.zeros(10_000_000, np.float32))
    task = cloud.ask(DEVICE, cloud.task(bundle, big))
    await cloud.answered(task)
    await until(lambda: not process.children())
    beats = len(cloud.beats)
    await until(lambda: len(cloud.beats) > beats + 1)  # by then it has given memory back
    assert process.memory_full_info().pss < 60_000_000
    mapped = {Path(each.path).name for each in process.memory_maps()}
    assert not [name for name in mapped if "torch" in name or "multiarray" in name]


async def test_the_agent_loads_neither_numpy_nor_torch_nor_flower(
    cloud: Cloud, agent: AgentProcess, write_app: WriteApp, tmp_path: Path
) -> None:
    said = tmp_path / "modules"
    script = f"""
import atexit, sys
atexit.register(lambda: open({str(said)!r}, "w").write(" ".join(sys.modules)))
from skerry_edge.__main__ import main
main(["run", "--home", {str(agent.home)!r}])
"""
    agent.process = await asyncio.create_subprocess_exec(sys.executable, "-c", script)
    task = cloud.ask(DEVICE, cloud.task(cloud.bundle(write_app(native("pass"))), SMALL))
    await cloud.answered(task)
    assert await agent.kill(signal.SIGTERM) == 0
    modules = set(said.read_text().split())
    assert "skerry_edge.agent" in modules
    assert not modules & {"numpy", "torch", "flwr", "aiomqtt", "http.server", "skerry_cloud"}


async def mounted(folder: Path, size: str) -> bool:
    """Mount a small file system there, if we may."""
    await asyncio.to_thread(folder.mkdir)
    command = ("mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder))
    done = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.DEVNULL)
    return await done.wait() == 0


@pytest.fixture
async def small_disk(tmp_path: Path, cloud: Cloud) -> AsyncIterator[AgentProcess]:
    """An agent whose home is a file system of 6 MB."""
    folder = tmp_path / "disk"
    if os.geteuid() != 0 or not await mounted(folder, "6m"):
        pytest.skip("mounting a small file system takes root")
    made = AgentProcess(folder / "home")
    assert isinstance(cloud.fleet, GrpcFleet)
    cloud.enrol(made.home, "small", kind="grpc", url=cloud.fleet.url)
    (made.home / "agent.toml").write_text(f"[limits]\n{URGENT}[conditions]\nmin_disk_mb = 0\n")
    try:
        await made.start()
        yield made
        await made.kill()
    finally:
        done = await asyncio.create_subprocess_exec("umount", "-l", str(folder))
        await done.wait()


def write_some(file: FileIO) -> bool:
    """Write a block; return whether there was room for it."""
    try:
        return file.write(b"x" * 4096) > 0
    except OSError:
        return False


def ask_small(cloud: Cloud, bundle: BlobRef) -> Parcel:
    parcel = cloud.task(bundle, SMALL)
    cloud.ask(DeviceId("small"), parcel)
    return parcel


async def test_a_reply_that_does_not_fit_on_the_disk_is_a_failure_with_that_reason(
    cloud: Cloud, small_disk: AgentProcess, write_app: WriteApp
) -> None:
    big = "model['w'] = np.zeros(3_000_000, np.float32)"
    parcel = ask_small(cloud, cloud.bundle(write_app(native(big))))
    (reply,) = await cloud.answered(parcel.id)
    assert "No space left on device" in reply.failure.reason
    fine = ask_small(cloud, cloud.bundle(write_app(native("pass"))))
    (reply,) = await cloud.answered(fine.id)
    assert not reply.HasField("failure")


async def test_with_a_full_disk_tasks_wait_and_go_on_when_there_is_room(
    cloud: Cloud, small_disk: AgentProcess, write_app: WriteApp
) -> None:
    await until(lambda: "small" in cloud.present_now)
    fill = small_disk.home / "fill"
    with fill.open("wb", buffering=0) as file:
        while write_some(file):
            pass
    parcel = ask_small(cloud, cloud.bundle(write_app(native("pass"))))
    beats = len(cloud.beats)
    await until(lambda: len(cloud.beats) > beats + 3)  # it lives, and has not taken the task
    assert not cloud.replies
    fill.unlink()
    (reply,) = await cloud.answered(parcel.id)
    assert not reply.HasField("failure"), reply
