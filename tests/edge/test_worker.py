"""A worker runs the code of others: whatever that code does, the agent gets a result in time."""

import asyncio
import os
import shutil
import signal
import sys
import textwrap
import time
from dataclasses import asdict, replace
from pathlib import Path

import psutil
import pytest
from skerry_edge.config import Limits
from skerry_edge.worker import processes
from skerry_edge.worker.messages import Job, Outcome
from skerry_edge.worker.pool import Workers
from skerry_edge.worker.process import Result
from skerry_protos.errors import ConfigError, PeerError
from skerry_protos.messages import Digest

from tests.edge.conftest import MakeJob, WriteApp, native, reply_of, until

BUNDLE = Digest("ab" * 32)
OTHER = Digest("cd" * 32)
MB = 2**20


async def work(workers: Workers, job: Job, bundle: Digest = BUNDLE, **bounds: float) -> Result:
    """Run one job within small bounds."""
    return await workers.run(
        job,
        bundle,
        workers.bounds(
            seconds=bounds.get("seconds", 20),
            memory_bytes=int(bounds.get("memory_mb", 0) * MB),
            output_bytes=int(bounds.get("output_bytes", 0)),
        ),
    )


def ended(pid: int) -> bool:
    """Return whether the process is gone."""
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


async def gone(*pids: int) -> None:
    """Wait until these processes are gone."""
    await until(lambda: all(map(ended, pids)), 5)


def readable_by_all() -> bool:
    """Return whether another user can run this Python."""
    prefix = Path(sys.base_prefix)
    return all(each.stat().st_mode & 0o1 for each in (prefix, *prefix.parents))


def pids_in(file: Path) -> list[int]:
    return [int(line) for line in file.read_text().split()]


async def test_an_app_trains_and_its_reply_is_a_file(
    workers: Workers, write_app: WriteApp, make_job: MakeJob
) -> None:
    job = make_job(write_app(native("model['w'] += 1\nreturn {'loss': 0.25}")))
    result = await work(workers, job)
    assert not result.outcome.failed, result
    reply = reply_of(job)
    assert reply.arrays["arrays"]["w"].numpy().tolist() == [2, 3, 4]
    assert reply.metrics["metrics"] == {"loss": 0.25, "num-examples": 5}
    assert result.outcome.cpu_s > 0
    assert result.outcome.peak_rss_bytes > 10 * MB


async def test_a_worker_stays_warm_for_its_bundle_alone(
    workers: Workers, write_app: WriteApp, make_job: MakeJob
) -> None:
    source = native("import os; return {'pid': os.getpid()}")
    one, other = write_app(source), write_app(source)
    pids = []
    for name, app, bundle in (("a", one, BUNDLE), ("b", one, BUNDLE), ("c", other, OTHER)):
        job = make_job(app, name)
        assert (await work(workers, job, bundle)).warm == (name == "b")
        pids.append(reply_of(job).metrics["metrics"]["pid"])
    assert pids[0] == pids[1] != pids[2]
    await gone(pids[0])  # type: ignore[arg-type]


async def test_a_fresh_worker_is_one_per_task(
    workers: Workers, write_app: WriteApp, make_job: MakeJob
) -> None:
    app = write_app(native("import os; return {'pid': os.getpid()}"))
    for name in ("a", "b"):
        bounds = workers.bounds(seconds=20, memory_bytes=0, output_bytes=0)
        result = await workers.run(make_job(app, name), BUNDLE, bounds, fresh=True)
        assert not result.warm
    assert workers.idle == 0


async def test_an_idle_worker_is_stopped(
    tmp_path: Path, write_app: WriteApp, make_job: MakeJob
) -> None:
    async with Workers(tmp_path / "brief", Limits(worker_idle_s=0.3)) as brief:
        await work(brief, make_job(write_app(native("return {}"))))
        assert brief.idle == 1
        await until(lambda: not brief.idle, 5)


async def test_an_app_that_raises_fails_in_one_line_with_its_traceback_in_the_log(
    workers: Workers, write_app: WriteApp, make_job: MakeJob
) -> None:
    app = write_app(native("print('so far so good')\nraise ValueError('bad\\nshape')"))
    result = await work(workers, make_job(app))
    assert (result.outcome.failed, result.outcome.code) == (True, 2)
    assert result.outcome.reason.startswith("ValueError: bad shape, in train() at app.py:")
    assert "so far so good" in result.log_tail
    assert "Traceback" in result.log_tail
    again = await work(workers, make_job(app, "t2"))
    assert again.warm  # an exception does not cost the worker


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("import nonsense_module", "ModuleNotFoundError"),
        ("def model(:", "SyntaxError"),
        ("def model(): return 3", "no function data"),
        ("raise SystemExit(3)", "SystemExit"),
    ],
)
async def test_an_app_that_does_not_load_says_so(
    workers: Workers, write_app: WriteApp, make_job: MakeJob, source: str, reason: str
) -> None:
    result = await work(workers, make_job(write_app(source)))
    assert result.outcome.code in (1, 2)
    assert reason in result.outcome.reason or "model() returned int" in result.outcome.reason


async def test_an_app_that_hangs_is_killed_at_its_time(
    workers: Workers, write_app: WriteApp, make_job: MakeJob, tmp_path: Path
) -> None:
    note = tmp_path / "pid"
    body = f"""
        import os, signal, time
        open({str(note)!r}, "w").write(str(os.getpid()))
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        while True:
            time.sleep(1)
    """
    began = time.monotonic()
    result = await work(workers, make_job(write_app(native(body))), seconds=2)
    assert result.outcome.code == 8
    assert "time limit of 2 s" in result.outcome.reason
    assert time.monotonic() - began < 6
    await gone(pids_in(note)[0])


async def test_an_app_that_eats_memory_is_killed_and_the_figure_is_named(
    workers: Workers, write_app: WriteApp, make_job: MakeJob
) -> None:
    body = """
        import time
        eaten = []
        while True:
            eaten.append(bytearray(b"x" * 20_000_000))
            time.sleep(0.02)
    """
    result = await work(workers, make_job(write_app(native(body))), memory_mb=300)
    assert result.outcome.code == 8
    assert "MB of memory and was killed; the limit is 300 MB" in result.outcome.reason
    assert result.outcome.peak_rss_bytes > 300 * MB


async def test_an_app_that_takes_more_at_once_than_anyone_sees_is_told_no(
    workers: Workers, write_app: WriteApp, make_job: MakeJob
) -> None:
    result = await work(workers, make_job(write_app(native("bytearray(3 * 2**30)"))))
    assert result.outcome.code == 2
    assert "MemoryError" in result.outcome.reason


async def test_memory_eaten_by_children_counts(
    workers: Workers, write_app: WriteApp, make_job: MakeJob, tmp_path: Path
) -> None:
    note = tmp_path / "pid"
    body = f"""
        import os, time
        if os.fork() == 0:
            os.setsid()
            open({str(note)!r}, "w").write(str(os.getpid()))
            eaten = []
            while True:
                eaten.append(bytearray(b"x" * 20_000_000))
                time.sleep(0.02)
        time.sleep(60)
    """
    result = await work(workers, make_job(write_app(native(body))), memory_mb=300)
    assert "the limit is 300 MB" in result.outcome.reason
    await gone(pids_in(note)[0])


async def test_an_app_that_prints_a_gigabyte_is_cut_and_told(
    workers: Workers, write_app: WriteApp, make_job: MakeJob
) -> None:
    body = """
        import os
        block = b"y" * 1_000_000
        for _ in range(1024):
            os.write(1, block)
        print("the end")
        return {}
    """
    lines: list[str] = []
    bounds = workers.bounds(seconds=60, memory_bytes=0, output_bytes=10_000)
    before = psutil.Process().memory_info().rss
    result = await workers.run(
        make_job(write_app(native(body))),
        BUNDLE,
        bounds,
        on_line=lambda _when, text: lines.append(text),
    )
    assert not result.outcome.failed, result.outcome
    assert "bytes beyond the limit of 10000 were dropped" in result.log_tail
    assert result.log_tail.rstrip().endswith("the end")
    assert sum(map(len, lines)) < 12_000
    assert "dropped" in lines[-1]
    assert len(result.log_tail) < 10_000
    assert psutil.Process().memory_info().rss - before < 50 * MB


async def test_an_app_that_forks_without_end_is_killed_with_all_its_children(
    workers: Workers, write_app: WriteApp, make_job: MakeJob, tmp_path: Path
) -> None:
    note = tmp_path / "pids"
    note.touch()
    body = f"""
        import os, time
        for _ in range(60):
            if os.fork() == 0:
                os.setsid()
                if os.fork() == 0:  # an orphan, in a session of its own
                    open({str(note)!r}, "a").write(f"{{os.getpid()}}\\n")
                    time.sleep(600)
                os._exit(0)
            time.sleep(0.01)
        time.sleep(600)
    """
    result = await work(workers, make_job(write_app(native(body))))
    assert result.outcome.code == 8
    assert "processes; the limit is 8" in result.outcome.reason
    started = pids_in(note)  # of the nine and more, those that are no orphan's dead parent
    assert len(started) > 3
    await gone(*started)


async def test_children_of_an_app_that_dies_do_not_outlive_it(
    workers: Workers, write_app: WriteApp, make_job: MakeJob, tmp_path: Path
) -> None:
    note = tmp_path / "pid"
    body = f"""
        import os, signal, time
        if os.fork() == 0:
            os.setsid()
            time.sleep(600)
        if os.fork() == 0:
            open({str(note)!r}, "w").write(str(os.getpid()))
            time.sleep(600)
        while not os.path.exists({str(note)!r}):
            time.sleep(0.01)
        time.sleep(0.2)
        os.kill(os.getpid(), signal.SIGSEGV)
    """
    result = await work(workers, make_job(write_app(native(body))))
    assert (result.outcome.code, result.outcome.reason) == (8, "the worker died by SIGSEGV")
    await gone(pids_in(note)[0])


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("import os; os._exit(7)", "ended by itself with exit status 7"),
        ("import os; os.closerange(3, 100); import time; time.sleep(60)", "killed"),
        (
            "import os, socket; s = socket.socket(fileno=FD); s.sendall(b'\\xff' * 100); 1 / 0",
            "an answer, not",
        ),
    ],
)
async def test_an_app_that_breaks_its_worker_is_reported(
    workers: Workers, write_app: WriteApp, make_job: MakeJob, body: str, reason: str
) -> None:
    find = "import os\nFD = next(int(f) for f in sorted(os.listdir('/proc/self/fd'), key=int) " + (
        "if int(f) > 2 and os.path.exists(f'/proc/self/fd/{f}') "
        "and os.readlink(f'/proc/self/fd/{f}').startswith('socket'))\n"
    )
    result = await work(workers, make_job(write_app(native(find + body))), seconds=8)
    assert result.outcome.code == 8
    if reason != "an answer, not":
        assert reason in result.outcome.reason
    sane = await work(workers, make_job(write_app(native("return {}")), "t2"))
    assert not sane.outcome.failed


async def test_sys_exit_in_training_is_a_failure_and_not_an_end(
    workers: Workers, write_app: WriteApp, make_job: MakeJob
) -> None:
    result = await work(workers, make_job(write_app(native("import sys; sys.exit(0)"))))
    assert (result.outcome.code, result.outcome.failed) == (2, True)
    assert result.outcome.reason.startswith("SystemExit: 0")


async def test_a_full_file_is_an_error_the_app_sees(
    tmp_path: Path, write_app: WriteApp, make_job: MakeJob
) -> None:
    async with Workers(tmp_path / "small", Limits(reply_mb=1)) as small:
        app = write_app(native("open('big', 'wb').write(b'x' * 5_000_000)"))
        result = await work(small, make_job(app))
        assert result.outcome.code == 2
        assert "File too large" in result.outcome.reason


async def test_a_cancelled_job_leaves_no_worker(
    workers: Workers, write_app: WriteApp, make_job: MakeJob, tmp_path: Path
) -> None:
    note = tmp_path / "pid"
    body = f"import os, time; open({str(note)!r}, 'w').write(str(os.getpid())); time.sleep(600)"
    running = asyncio.create_task(work(workers, make_job(write_app(native(body)))))
    await until(lambda: note.exists() and note.read_text())
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    await gone(pids_in(note)[0])
    assert workers.idle == 0


async def test_an_app_sees_none_of_the_agents_environment(
    workers: Workers, write_app: WriteApp, make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AGENT_SECRET", "hunter2")
    body = """
        import os
        return {"secret": int("AGENT_SECRET" in os.environ), "nice": os.nice(0),
                "home": int("work/home" in os.environ["HOME"])}
    """
    job = make_job(write_app(native(body)))
    await work(workers, job)
    found = reply_of(job).metrics["metrics"]
    assert (found["secret"], found["nice"], found["home"]) == (0, min(19, os.nice(0) + 10), 1)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give up root")
@pytest.mark.skipif(not readable_by_all(), reason="this Python lies where only root may read")
async def test_started_by_root_an_app_is_nobody(
    tmp_path: Path, write_app: WriteApp, make_job: MakeJob
) -> None:
    home = Path("/var/tmp") / f"skerry-test-{os.getpid()}"
    home.mkdir(mode=0o711)
    secret = home / "key.pem"
    secret.write_text("key")
    secret.chmod(0o600)
    body = f"""
        import os
        try:
            open({str(secret)!r}).read()
            read = 1
        except PermissionError:
            read = 0
        return {{"uid": os.getuid(), "read": read}}
    """
    try:
        async with Workers(home / "work", Limits(user="nobody")) as workers:
            (home / "app").mkdir()
            (home / "app" / "app.py").write_text(textwrap.dedent(native(body)))
            job = make_job(home / "app")
            folder = workers.folder("t9")
            content = home / "content"
            shutil.copyfile(job.content, content)
            job = replace(job, reply=str(folder / "reply"), content=str(content), state_out="")
            result = await work(workers, job)
            assert not result.outcome.failed, result
            found = reply_of(job).metrics["metrics"]
            assert (found["uid"], found["read"]) == (65534, 0)
    finally:
        shutil.rmtree(home)


async def test_an_unknown_user_is_a_config_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"limits\.user"):
        Workers(tmp_path, Limits(user="no-such-user"))


async def test_a_worker_dies_with_its_agent(
    write_app: WriteApp, make_job: MakeJob, tmp_path: Path
) -> None:
    """A real agent-like process is killed by SIGKILL in the middle of a job."""
    note = tmp_path / "pid"
    body = f"import os, time; open({str(note)!r}, 'w').write(str(os.getpid())); time.sleep(600)"
    job = make_job(write_app(native(body)))
    script = f"""
        import asyncio
        from pathlib import Path
        from skerry_edge.config import Limits
        from skerry_edge.worker.messages import Job
        from skerry_edge.worker.pool import Workers
        async def main():
            async with Workers(Path({str(tmp_path / "other")!r}), Limits()) as workers:
                bounds = workers.bounds(seconds=60, memory_bytes=0, output_bytes=0)
                await workers.run(Job(**{asdict(job)!r}), "x", bounds)
        asyncio.run(main())
    """
    parent = await asyncio.create_subprocess_exec(sys.executable, "-c", textwrap.dedent(script))
    try:
        await until(lambda: note.exists() and note.read_text())
    finally:
        parent.send_signal(signal.SIGKILL)
        await parent.wait()
    await gone(pids_in(note)[0])


@pytest.mark.parametrize(
    "said", [b"", b"[]", b"{}", b'{"id": 3}', b"\xff", b"[" * 100_000, b'{"id": "x", "code": 1e9}']
)
def test_nonsense_from_a_worker_is_a_peer_error(said: bytes) -> None:
    with pytest.raises(PeerError):
        Outcome.parse(said)


def test_a_sweep_without_a_worker_is_refused() -> None:
    """Session 0 is everybody whose leader lies outside a container."""
    for token, session in (("", 5000), ("x", 0), ("x", 1)):
        with pytest.raises(ValueError, match="not a worker's"):
            processes.sweep(token, session)
