"""The agent over the memory link: what it does with tasks, good and bad."""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from skerry_cloud.fleets.memory import MemoryFleet
from skerry_edge.agent import Agent
from skerry_edge.conditions import Readings
from skerry_edge.config import read_config
from skerry_edge.identity import Identity
from skerry_edge.outbox import Ledger
from skerry_protos.errors import RefusalCode, RefusedError, RejectedError
from skerry_protos.hiding import available
from skerry_protos.messages import DeviceId, Parcel, ParcelId, ParcelKind
from skerry_protos.v1 import work_pb2

from tests.edge.conftest import WriteApp, content_of, native, until
from tests.edge.sea import Cloud

DEVICE = DeviceId("dev-1")
SMALL = content_of(np.array([1, 2, 3], np.float32))
RunAgent = Callable[..., contextlib.AbstractAsyncContextManager[Agent]]


@pytest.fixture
async def cloud(tmp_path: Path) -> AsyncIterator[Cloud]:
    made = Cloud(tmp_path)
    async with MemoryFleet(str(tmp_path.name), made, made.blobs, heartbeat_s=0.3) as fleet:
        made.fleet = fleet
        yield made
        await made.close()


@pytest.fixture
def run_agent(tmp_path: Path, cloud: Cloud) -> RunAgent:
    """Return a context manager that runs an agent with some settings."""

    @asynccontextmanager
    async def run(**tables: dict[str, object]) -> AsyncIterator[Agent]:
        home = tmp_path / "home"
        if not home.exists():
            cloud.enrol(home, DEVICE, kind="memory", url=f"memory://{tmp_path.name}")
        tables = {"limits": {"worker_idle_s": 60, "seconds": 20, "niceness": 0}, **tables}
        config = read_config(home, tables)
        agent = Agent(config, Identity.load(home))
        running = asyncio.create_task(agent.run())
        try:
            await until(lambda: DEVICE in cloud.present_now or running.done())
            if running.done():
                running.result()
            yield agent
        finally:
            running.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await running

    return run


async def test_a_task_is_worked_on_and_its_reply_arrives(
    cloud: Cloud, run_agent: RunAgent, write_app: WriteApp
) -> None:
    bundle = cloud.bundle(write_app(native("print('hello')\nmodel['w'] += config['lr']")))
    async with run_agent():
        task = cloud.ask(DEVICE, cloud.task(bundle, SMALL))
        (reply,) = await cloud.answered(task)
        assert not reply.HasField("failure"), reply
        arrays = cloud.contents[task].arrays["arrays"]
        assert arrays["w"].numpy().tolist() == [1.5, 2.5, 3.5]
        assert reply.report.compute_s > 0
        assert not reply.report.warm
        again = cloud.ask(DEVICE, cloud.task(bundle, SMALL))
        (reply,) = await cloud.answered(again)
        assert reply.report.warm
        await until(lambda: "hello" in cloud.lines["app"])
        await until(lambda: any(beat.state == "idle" for beat in cloud.beats))


async def test_large_content_goes_both_ways_as_blobs_and_nothing_is_left(
    cloud: Cloud, run_agent: RunAgent, write_app: WriteApp, tmp_path: Path
) -> None:
    bundle = cloud.bundle(write_app(native("model['w'] *= 2")))
    big = content_of(np.arange(1_000_000, dtype=np.float32))
    async with run_agent(limits={"blobs_mb": 0, "seconds": 20}):
        task = cloud.ask(DEVICE, cloud.task(bundle, big))
        await cloud.answered(task)
        found = cloud.contents[task].arrays["arrays"]["w"].numpy()
        assert found[-1] == 2 * 999_999
        blobs = tmp_path / "home" / "blobs"
        await until(lambda: not [each for each in blobs.rglob("*") if each.is_file()])
        assert not list((tmp_path / "home" / "work" / "tasks").iterdir())


async def test_a_task_seen_again_is_worked_on_once(
    cloud: Cloud, run_agent: RunAgent, write_app: WriteApp, tmp_path: Path, notes: Path
) -> None:
    note = notes / "runs"
    body = f"open({str(note)!r}, 'a').write('x'); import time; time.sleep(0.5)"
    bundle = cloud.bundle(write_app(native(body)))
    parcel = cloud.task(bundle, SMALL)
    async with run_agent() as agent:
        await agent.accept(parcel)
        await until(note.exists)
        await agent.accept(parcel)  # while it is worked on
        await cloud.answered(parcel.id)
        await until(lambda: not list((tmp_path / "home" / "outbox").iterdir()))
        await agent.accept(parcel)  # when its reply was acknowledged
    async with run_agent() as agent:
        await agent.accept(parcel)  # after a restart
        other = cloud.task(bundle, SMALL)
        await agent.accept(other)
        await cloud.answered(other.id)
    assert note.read_text() == "xx"
    assert cloud.accepted[f"{parcel.id}/reply"] == 1


async def test_a_task_whose_reply_waits_is_answered_from_the_outbox(
    cloud: Cloud, run_agent: RunAgent, write_app: WriteApp, tmp_path: Path, notes: Path
) -> None:
    note = notes / "runs"
    bundle = cloud.bundle(write_app(native(f"open({str(note)!r}, 'a').write('x')")))
    parcel = cloud.task(bundle, SMALL)
    cloud.open_gate.clear()
    async with run_agent() as agent:
        await agent.accept(parcel)
        await until(lambda: cloud.accepted[f"{parcel.id}/reply"])
    async with run_agent() as agent:
        await agent.accept(parcel)
        cloud.open_gate.set()
        await cloud.answered(parcel.id)
    assert note.read_text() == "x"


async def test_what_cannot_be_a_task_is_rejected(
    cloud: Cloud, run_agent: RunAgent, write_app: WriteApp
) -> None:
    bundle = cloud.bundle(write_app(native("pass")))
    good = cloud.task(bundle, SMALL)
    bad = {
        "its body": replace(good, body=b"\xff\xff\xff"),
        "no bundle": replace(good, blobs=()),
        "no content": cloud.task(bundle, SMALL, content=b""),
        "no message type": cloud.task(bundle, SMALL, message_type=""),
        "not a table": cloud.task(bundle, SMALL, run_config_json="[1]"),
        "after its deadline": cloud.task(bundle, SMALL, deadline_s=-1),
        "parcels of kind": replace(good, kind="surprise"),
    }
    async with run_agent() as agent:
        for says, parcel in bad.items():
            with pytest.raises(RejectedError, match=says):
                await agent.accept(replace(parcel, id=ParcelId(f"bad-{hash(says)}")))


async def test_code_that_is_not_signed_is_not_run(
    cloud: Cloud, run_agent: RunAgent, write_app: WriteApp, tmp_path: Path, notes: Path
) -> None:
    note = notes / "ran"
    app = write_app(native(f"open({str(note)!r}, 'w')"))
    stranger = Cloud(tmp_path / "stranger")
    signed = stranger.bundle(app)
    content = stranger.blobs.path(signed.digest)
    assert content is not None
    foreign = cloud.blobs.put(content, role="bundle")
    async with run_agent():
        task = cloud.ask(DEVICE, cloud.task(foreign, SMALL))
        (reply,) = await cloud.answered(task)
    assert reply.failure.code == 7
    assert "signature is not the coordinator's" in reply.failure.reason
    assert not note.exists()


async def test_a_failure_is_answered_with_its_reason_and_log(
    cloud: Cloud, run_agent: RunAgent, write_app: WriteApp
) -> None:
    bundle = cloud.bundle(write_app(native("print('about to')\n1 / 0")))
    async with run_agent():
        task = cloud.ask(DEVICE, cloud.task(bundle, SMALL))
        (reply,) = await cloud.answered(task)
    assert reply.failure.code == 2
    assert reply.failure.reason.startswith("ZeroDivisionError: division by zero, in train()")
    assert "about to" in reply.failure.log_tail


async def test_a_reply_that_is_a_link_to_a_secret_is_not_sent(
    cloud: Cloud, run_agent: RunAgent, write_app: WriteApp, tmp_path: Path
) -> None:
    secret = tmp_path / "home" / "identity" / "identity.json"
    body = f"""
        import os, sys
        sys.modules["__main__"].write = lambda records, path: os.symlink({str(secret)!r}, path)
    """
    bundle = cloud.bundle(write_app(native(body)))
    async with run_agent():
        task = cloud.ask(DEVICE, cloud.task(bundle, SMALL))
        (reply,) = await cloud.answered(task)
    assert reply.failure.reason == "the app's reply is not a plain file"
    assert not reply.content


@pytest.mark.skipif(not available(), reason="this kernel has no Landlock")
async def test_an_app_cannot_read_the_devices_keys_or_change_its_outbox(
    cloud: Cloud, run_agent: RunAgent, write_app: WriteApp, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    body = f"""
        import os, subprocess
        def denied(act):
            try:
                act()
            except PermissionError:
                return 1
            return 0
        key = {str(home / "identity" / "identity.json")!r}
        return {{
            "read": denied(lambda: open(key).read()),
            "write": denied(lambda: open(key, "a")),
            "remove": denied(lambda: os.remove(key)),
            "replace": denied(lambda: os.rename({str(home / "identity")!r}, "/tmp/x-{home.name}")),
            "forge": denied(lambda: open({str(home / "outbox" / "x.parcel")!r}, "w")),
            "by a child": subprocess.run(["cat", key], capture_output=True).returncode,
            "by proc": denied(lambda: open(f"/proc/{{os.getppid()}}/root" + key)),
            "own": denied(lambda: open("mine", "w").write("x")),
        }}
    """
    bundle = cloud.bundle(write_app(native(body)))
    async with run_agent():
        task = cloud.ask(DEVICE, cloud.task(bundle, SMALL))
        (reply,) = await cloud.answered(task)
        assert not reply.HasField("failure"), reply
    found = cloud.contents[task].metrics["metrics"]
    assert found.pop("own") == 0
    found.pop("num-examples")
    assert found == dict.fromkeys(found, 1)
    assert (home / "identity" / "identity.json").exists()


async def test_a_cancelled_task_is_stopped_and_not_answered(
    cloud: Cloud, run_agent: RunAgent, write_app: WriteApp, tmp_path: Path, notes: Path
) -> None:
    note = notes / "began"
    bundle = cloud.bundle(
        write_app(native(f"open({str(note)!r}, 'w'); import time; time.sleep(60)"))
    )
    quick = cloud.bundle(write_app(native("pass")))
    slow, queued, other = (
        cloud.task(bundle, SMALL),
        cloud.task(quick, SMALL),
        cloud.task(quick, SMALL),
    )
    async with run_agent() as agent:
        for parcel in (slow, queued, other):
            await agent.accept(parcel)
        await until(note.exists)
        await agent.accept(
            Parcel(
                id=ParcelId("c1"),
                kind=ParcelKind.CANCEL,
                body=work_pb2.Cancel(tasks=[slow.id, queued.id, "unknown"]).SerializeToString(),
            )
        )
        await cloud.answered(other.id)
        await agent.accept(slow)  # cancelled is over, also when it comes again
    assert set(cloud.replies) == {other.id}


async def test_a_task_past_its_deadline_is_dropped_and_named(
    cloud: Cloud, run_agent: RunAgent, write_app: WriteApp
) -> None:
    bundle = cloud.bundle(write_app(native("import time; time.sleep(60)")))
    async with run_agent() as agent:
        late, waits = (
            cloud.task(bundle, SMALL, deadline_s=1.5),
            cloud.task(bundle, SMALL, deadline_s=1),
        )
        await agent.accept(late)
        await agent.accept(waits)
        await until(lambda: len([x for x in cloud.lines["agent"] if "dropped" in x]) == 2)
    assert any("deadline passed while it was worked on" in line for line in cloud.lines["agent"])
    assert any("deadline passed while it waited" in line for line in cloud.lines["agent"])
    assert not cloud.replies


async def test_a_task_that_comes_again_with_more_time_is_worked_on_for_longer(
    cloud: Cloud, run_agent: RunAgent, write_app: WriteApp, notes: Path
) -> None:
    began, go_on = notes / "began", notes / "go-on"
    body = f"""
        import os, time
        open({str(began)!r}, "w").close()
        while not os.path.exists({str(go_on)!r}):
            time.sleep(0.02)
    """
    parcel = cloud.task(cloud.bundle(write_app(native(body))), SMALL, deadline_s=1.5)
    async with run_agent() as agent:
        await agent.accept(parcel)
        await until(began.exists)
        await agent.accept(replace(parcel, deadline_unix_s=parcel.deadline_unix_s + 60))
        await asyncio.sleep(max(0.0, parcel.deadline_unix_s + 0.2 - time.time()))  # it has passed
        go_on.touch()
        await cloud.answered(parcel.id)


async def test_work_that_began_before_the_cloud_told_the_time_has_its_deadline_too(
    cloud: Cloud, run_agent: RunAgent, write_app: WriteApp, tmp_path: Path, notes: Path
) -> None:
    """As after a restart: found by the simulator (seed 683)."""
    began = notes / "began"
    slow = native(f"open({str(began)!r}, 'w').close(); import time; time.sleep(60)")
    bundle = cloud.bundle(write_app(slow))
    parcel = cloud.task(bundle, SMALL, deadline_s=60)
    async with run_agent() as agent:
        await agent.accept(parcel)
        await until(began.exists)
    began.unlink()
    Ledger(tmp_path / "home").inbox.put(replace(parcel, deadline_unix_s=time.time() - 1))
    cloud.refusal = RefusedError(RefusalCode.BUSY, "later", retry_after_s=0.2)

    async def tell() -> None:
        await until(began.exists)
        cloud.refusal = None

    telling = asyncio.create_task(tell())
    async with run_agent():
        await telling
        await until(lambda: any("while it was worked on" in x for x in cloud.lines["agent"]))
    assert not cloud.replies


async def test_deadlines_are_by_the_clouds_clock(
    cloud: Cloud, run_agent: RunAgent, write_app: WriteApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = cloud.bundle(write_app(native("pass")))
    parcel = cloud.task(bundle, SMALL)
    async with run_agent() as agent:
        monkeypatch.setattr("skerry_edge.agent.time.time", lambda: 4e9)  # the device is in 2096
        await agent.accept(parcel)
        monkeypatch.undo()
        await cloud.answered(parcel.id)


async def test_a_condition_keeps_tasks_and_the_heartbeat_says_so(
    cloud: Cloud, run_agent: RunAgent, write_app: WriteApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    look = Readings(charging=False)
    monkeypatch.setattr("skerry_edge.telemetry.read_machine", lambda *_, **__: look)
    monkeypatch.setattr("skerry_edge.agent.RECHECK_S", 0.05)
    bundle = cloud.bundle(write_app(native("pass")))
    parcel = cloud.task(bundle, SMALL)
    async with run_agent(conditions={"charging": True}) as agent:
        await agent.accept(parcel)
        await until(lambda: any(beat.waiting_for for beat in cloud.beats))
        beat = next(beat for beat in cloud.beats if beat.waiting_for)
        assert beat.state == "waiting"
        assert beat.waiting_for.startswith("charging: the device runs on battery; until")
        assert list(beat.tasks) == [parcel.id]
        assert not cloud.replies
        look = Readings(charging=True)
        await cloud.answered(parcel.id)


async def test_an_interrupted_task_begins_again_when_it_may(
    cloud: Cloud,
    run_agent: RunAgent,
    write_app: WriteApp,
    notes: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    look = Readings(charging=True)
    monkeypatch.setattr("skerry_edge.telemetry.read_machine", lambda *_, **__: look)
    monkeypatch.setattr("skerry_edge.agent.RECHECK_S", 0.05)
    note = notes / "runs"
    body = f"""
        import time
        with open({str(note)!r}, "a+") as file:
            file.write("x")
            file.seek(0)
            first = file.read() == "x"
        if first:
            time.sleep(60)
    """
    parcel = cloud.task(cloud.bundle(write_app(native(body))), SMALL)
    async with run_agent(conditions={"charging": True, "interrupt": True}) as agent:
        await agent.accept(parcel)
        await until(lambda: note.exists() and note.read_text() == "x")
        look = Readings(charging=False)
        await until(lambda: any(beat.state == "waiting" for beat in cloud.beats))
        assert not cloud.replies
        look = Readings(charging=True)
        await cloud.answered(parcel.id)
        await until(lambda: "interrupted: charging" in " ".join(cloud.lines["agent"]))
    assert note.read_text() == "xx"


async def test_a_revoked_device_ends_with_the_reason(cloud: Cloud, run_agent: RunAgent) -> None:
    async with run_agent() as agent:
        pass
    cloud.refusal = RefusedError(RefusalCode.REVOKED, "dev-1 was revoked by ann")
    cloud.present_now.clear()
    with pytest.raises(RefusedError, match="revoked by ann"):
        async with run_agent():
            pass
    assert agent is not None


async def test_a_rejected_reply_is_given_up(
    cloud: Cloud, run_agent: RunAgent, write_app: WriteApp, tmp_path: Path
) -> None:
    bundle = cloud.bundle(write_app(native("pass")))
    cloud.reject = RejectedError("expired", "the round is over")
    async with run_agent() as agent:
        parcel = cloud.task(bundle, SMALL)
        await agent.accept(parcel)
        await until(lambda: any("the round is over" in line for line in cloud.lines["agent"]))
        await until(lambda: not list((tmp_path / "home" / "outbox").iterdir()))
        assert json.loads((tmp_path / "home" / "status.json").read_text())["connected"]


async def test_a_lost_session_costs_no_task(
    cloud: Cloud, run_agent: RunAgent, write_app: WriteApp, tmp_path: Path, notes: Path
) -> None:
    """The cloud forgets every session while the device works; the reply comes all the same."""
    note = notes / "runs"
    body = f"open({str(note)!r}, 'a').write('x'); import time; time.sleep(0.5)"
    bundle = cloud.bundle(write_app(native(body)))
    parcel = cloud.task(bundle, SMALL)
    async with run_agent() as agent:
        await agent.accept(parcel)
        await until(note.exists)
        assert isinstance(cloud.fleet, MemoryFleet)
        await cloud.fleet.__aexit__(None, None, None)
        cloud.present_now.clear()
        async with MemoryFleet(tmp_path.name, cloud, cloud.blobs) as fleet:
            cloud.fleet = fleet
            await cloud.answered(parcel.id)
    assert note.read_text() == "x"


async def test_an_agent_that_stops_leaves_its_task_for_the_next(
    cloud: Cloud, run_agent: RunAgent, write_app: WriteApp, tmp_path: Path, notes: Path
) -> None:
    note = notes / "runs"
    body = f"""
        import os, time
        first = not os.path.exists({str(note)!r})
        open({str(note)!r}, 'a').write('x')
        if first:
            time.sleep(60)
    """
    bundle = cloud.bundle(write_app(native(body)))
    parcel = cloud.task(bundle, SMALL)
    async with run_agent() as agent:
        await agent.accept(parcel)
        await until(note.exists)
    async with run_agent():
        await cloud.answered(parcel.id)
    assert note.read_text() == "xx"
