"""Fresh workers are forked from a warmed process: as bounded and as alone as those that are not."""

import asyncio
import os
import signal
import sys
import textwrap
from collections.abc import AsyncIterator
from dataclasses import asdict
from pathlib import Path

import psutil
import pytest
from skerry_edge.config import Limits
from skerry_edge.worker import processes
from skerry_edge.worker.messages import Job
from skerry_edge.worker.pool import Workers
from skerry_edge.worker.process import Result
from skerry_protos import hiding
from skerry_protos.messages import Digest

from tests.edge.conftest import MakeJob, WriteApp, native, reply_of, until
from tests.edge.test_worker import BUNDLE, MB, gone, pids_in

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="workers are forked on Linux")


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    folder = tmp_path / "identity"
    folder.mkdir()
    (folder / "key.pem").write_text("key")
    return folder


@pytest.fixture
async def workers(tmp_path: Path, secret: Path) -> AsyncIterator[Workers]:
    limits = Limits(
        seconds=20, memory_mb=1024, output_kb=64, processes=8, fresh_worker=True, workers=2
    )
    async with Workers(tmp_path / "work", limits, hidden=[secret]) as pool:
        yield pool


async def work(workers: Workers, job: Job, bundle: Digest = BUNDLE, **bounds: float) -> Result:
    return await workers.run(
        job,
        bundle,
        workers.bounds(
            seconds=bounds.get("seconds", 20),
            memory_bytes=int(bounds.get("memory_mb", 0) * MB),
            output_bytes=0,
        ),
    )


WHO = """
    import os
    from pathlib import Path
    status = Path("/proc/self/status").read_text()
    marks = Path("/proc/self/environ").read_bytes().count(os.environ["SKERRY_WORKER"].encode())
    return {"pid": os.getpid(), "parent": os.getppid(), "nice": os.nice(0), "marks": marks,
            "session": os.getsid(0), "privileges": int("NoNewPrivs:\\t1" in status)}
"""


async def test_fresh_workers_have_one_parent_and_a_session_and_a_mark_each(
    workers: Workers, write_app: WriteApp, make_job: MakeJob
) -> None:
    app, found = write_app(native(WHO)), []
    for name in ("a", "b", "c"):
        job = make_job(app, name)
        result = await work(workers, job)
        assert not result.outcome.failed, result
        assert not result.warm
        found.append(reply_of(job).metrics["metrics"])
    assert len({each["pid"] for each in found}) == 3
    (zygote,) = {each["parent"] for each in found}
    assert zygote != os.getpid()
    for each in found:
        assert each["session"] == each["pid"]
        assert (each["nice"], each["marks"], each["privileges"]) == (min(19, os.nice(0) + 10), 1, 1)


async def test_what_an_app_leaves_in_its_process_is_not_in_the_next(
    workers: Workers, write_app: WriteApp, make_job: MakeJob
) -> None:
    body = """
        import os, sys, random
        import numpy as np
        import skerry_protos
        was = getattr(skerry_protos, "left", 0)
        skerry_protos.left = 1
        return {"was": was, "numpy": int(np.random.randint(2**31)), "random": random.random(),
                "apps": sum("app" == name for name in sys.modules)}
    """
    found = []
    for name in ("a", "b"):
        job = make_job(write_app(native(body)), name)
        assert not (await work(workers, job)).outcome.failed
        found.append(reply_of(job).metrics["metrics"])
    assert [(each["was"], each["apps"]) for each in found] == [(0, 1), (0, 1)]
    assert found[0]["numpy"] != found[1]["numpy"]
    assert found[0]["random"] != found[1]["random"]


@pytest.mark.skipif(not hiding.available(), reason="this kernel has no Landlock")
async def test_neither_keys_nor_the_zygotes_memory_can_be_read(
    workers: Workers, write_app: WriteApp, make_job: MakeJob, secret: Path
) -> None:
    body = f"""
        import os
        def opens(path):
            try:
                open(path, "rb").close()
            except OSError:
                return 0
            return 1
        return {{"key": opens({str(secret / "key.pem")!r}), "self": opens("/proc/self/mem"),
                 "memory": opens(f"/proc/{{os.getppid()}}/mem")}}
    """
    job = make_job(write_app(native(body)))
    result = await work(workers, job)
    assert not result.outcome.failed, result
    found = reply_of(job).metrics["metrics"]
    assert (found["key"], found["self"], found["memory"]) == (0, 1, 0)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("import time; time.sleep(600)", "passed its time limit of 2 s and was killed"),
        ("import os; os._exit(7)", "the worker ended by itself with exit status 7"),
        (
            "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)",
            "the worker died by SIGSEGV",
        ),
        (
            "import time\n"
            "eaten = []\n"
            "while True:\n"
            "    eaten.append(bytearray(b'x' * 20_000_000))\n"
            "    time.sleep(0.02)",
            "the limit is 300 MB",
        ),
        (
            "import os, time\n"
            "for _ in range(30):\n"
            "    if os.fork() == 0:\n"
            "        os.setsid()\n"
            "        time.sleep(600)\n"
            "time.sleep(600)",
            "processes; the limit is 8",
        ),
    ],
)
async def test_a_forked_worker_that_breaks_a_limit_is_ended_and_the_next_is_sound(
    workers: Workers, write_app: WriteApp, make_job: MakeJob, body: str, reason: str, notes: Path
) -> None:
    note = notes / "pid"
    start = f"import os\nopen({str(note)!r}, 'w').write(str(os.getpid()))\n"
    seconds = 2 if "time limit" in reason else 20
    job = make_job(write_app(native(start + body)))
    result = await work(workers, job, seconds=seconds, memory_mb=300)
    assert result.outcome.code == 8
    assert reason in result.outcome.reason
    await gone(pids_in(note)[0])
    left = [one for one in psutil.process_iter() if session_of(one.pid) == pids_in(note)[0]]
    assert not left
    assert not (await work(workers, make_job(write_app(native("return {}")), "t2"))).outcome.failed


def session_of(pid: int) -> int:
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return 0


async def test_a_zygote_that_dies_takes_its_worker_along_and_another_is_started(
    workers: Workers, write_app: WriteApp, make_job: MakeJob, notes: Path
) -> None:
    note = notes / "pids"
    body = f"""
        import os, time
        open({str(note)!r}, "w").write(f"{{os.getpid()}} {{os.getppid()}}")
        time.sleep(600)
    """
    running = asyncio.create_task(work(workers, make_job(write_app(native(body)))))
    await until(lambda: note.exists() and len(pids_in_line(note)) == 2)
    worker, zygote = pids_in_line(note)
    os.kill(zygote, signal.SIGKILL)
    result = await running
    assert result.outcome.code == 8
    await gone(worker)
    job = make_job(write_app(native(WHO)), "t2")
    assert not (await work(workers, job)).outcome.failed
    assert reply_of(job).metrics["metrics"]["parent"] not in (zygote, os.getpid())


def pids_in_line(note: Path) -> list[int]:
    return [int(word) for word in note.read_text().split()]


async def test_a_zygote_that_answers_no_more_is_done_without(
    workers: Workers, write_app: WriteApp, make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("skerry_edge.worker.zygotes.FORK_S", 0.5)
    first, second = (make_job(write_app(native(WHO)), name) for name in ("a", "b"))
    assert not (await work(workers, first)).outcome.failed
    os.kill(int(reply_of(first).metrics["metrics"]["parent"]), signal.SIGSTOP)  # type: ignore[arg-type]
    assert not (await work(workers, second)).outcome.failed
    assert reply_of(second).metrics["metrics"]["parent"] == os.getpid()


async def test_where_libraries_leave_threads_running_nothing_is_forked(
    workers: Workers,
    write_app: WriteApp,
    make_job: MakeJob,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import threading, time\n"
        "threading.Thread(target=time.sleep, args=[600], daemon=True).start()\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    job = make_job(write_app(native(WHO)))
    result = await work(workers, job)
    assert not result.outcome.failed, result
    assert reply_of(job).metrics["metrics"]["parent"] == os.getpid()


async def test_an_idle_zygote_is_stopped(
    tmp_path: Path, write_app: WriteApp, make_job: MakeJob
) -> None:
    limits = Limits(worker_idle_s=0.3, fresh_worker=True)
    async with Workers(tmp_path / "brief", limits) as brief:
        job = make_job(write_app(native(WHO)))
        await work(brief, job)
        await gone(int(reply_of(job).metrics["metrics"]["parent"]))  # type: ignore[arg-type]


async def test_forked_workers_die_with_their_agent(
    write_app: WriteApp, make_job: MakeJob, notes: Path, tmp_path: Path
) -> None:
    """An agent-like process is killed in the middle of a job."""
    note = notes / "pids"
    body = f"""
        import os, time
        open({str(note)!r}, "w").write(f"{{os.getpid()}} {{os.getppid()}}")
        time.sleep(600)
    """
    job = make_job(write_app(native(body)))
    script = f"""
        import asyncio
        from pathlib import Path
        from skerry_edge.config import Limits
        from skerry_edge.worker.messages import Job
        from skerry_edge.worker.pool import Workers
        async def main():
            limits = Limits(fresh_worker=True)
            async with Workers(Path({str(tmp_path / "other")!r}), limits) as workers:
                bounds = workers.bounds(seconds=60, memory_bytes=0, output_bytes=0)
                await workers.run(Job(**{asdict(job)!r}), "x", bounds)
        asyncio.run(main())
    """
    parent = await asyncio.create_subprocess_exec(sys.executable, "-c", textwrap.dedent(script))
    try:
        await until(lambda: note.exists() and len(pids_in_line(note)) == 2)
    finally:
        parent.send_signal(signal.SIGKILL)
        await parent.wait()
    await gone(*pids_in_line(note))


async def test_many_fresh_workers_leave_neither_processes_nor_descriptors(
    workers: Workers, write_app: WriteApp, make_job: MakeJob
) -> None:
    app = write_app(native(WHO))
    jobs = [make_job(app, f"t{number}") for number in range(12)]
    await work(workers, jobs[0])
    zygote = psutil.Process(int(reply_of(jobs[0]).metrics["metrics"]["parent"]))  # type: ignore[arg-type]
    await until(lambda: not processes.tree(zygote.pid)[1:])
    before = psutil.Process().num_fds(), zygote.num_fds()
    results = await asyncio.gather(*(work(workers, job) for job in jobs[1:]))
    assert [result.outcome.reason for result in results] == [""] * len(results)
    await until(lambda: not processes.tree(zygote.pid)[1:])
    await until(lambda: psutil.Process().num_fds() <= before[0])
    await until(lambda: zygote.num_fds() <= before[1])
