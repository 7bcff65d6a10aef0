"""A device and a real coordinator, as processes: join, run, doctor, status, renewal, revocation."""

import asyncio
import json
import os
import ssl
import sys
import time
import urllib.request
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from skerry_edge.identity import Identity
from skerry_edge.status import read_status

from tests.edge.conftest import until

pytestmark = [pytest.mark.network, pytest.mark.broker]

FREE = ("--http-port", "0", "--grpc-port", "0", "--mqtt-port", "0")


@dataclass
class Mainland:
    """A coordinator process, its API, and the devices' homes."""

    home: Path
    process: asyncio.subprocess.Process

    @property
    def announced(self) -> dict[str, Any]:
        made: dict[str, Any] = json.loads((self.home / "coordinator.json").read_text())
        return made

    def call(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        """Call the operator API as admin."""
        there = self.announced
        request = urllib.request.Request(
            there["http_url"] + path,
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={
                "Authorization": f"Bearer {Path(there['admin_token_file']).read_text().strip()}",
                "Content-Type": "application/json",
            },
        )
        context = ssl.create_default_context(cafile=there["ca"])
        with urllib.request.urlopen(request, timeout=20, context=context) as answer:
            return json.loads(answer.read() or b"null")

    async def stop(self) -> None:
        """End the process, if it has not ended."""
        if self.process.returncode is None:
            self.process.terminate()
        await asyncio.wait_for(self.process.wait(), 20)

    async def token(self) -> str:
        made = await asyncio.to_thread(self.call, "POST", "/v1/invites", {"uses": 9})
        return str(made["token"])

    async def device(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = await asyncio.to_thread(self.call, "GET", f"/v1/devices/{name}")
        return found


async def start_coordinator(home: Path, *arguments: str) -> Mainland:
    """Start a coordinator and wait until it is ready."""
    await asyncio.to_thread(home.mkdir, exist_ok=True)
    with (home / "log").open("ab") as log:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "skerry_cloud", "--home", str(home), *arguments),
            stdout=log,
            stderr=log,
        )
    made = Mainland(home, process)

    def ready() -> bool:
        assert process.returncode is None, (home / "log").read_text()
        try:
            return bool(made.announced["pid"] == process.pid)
        except (OSError, ValueError):
            return False

    await until(ready, 40)
    return made


@pytest.fixture
async def mainland(tmp_path: Path) -> AsyncIterator[Mainland]:
    made = await start_coordinator(tmp_path / "coordinator", *FREE)
    yield made
    await made.stop()


@dataclass
class Agent:
    """skerry-agent, as a person calls it."""

    home: Path
    process: asyncio.subprocess.Process | None = None

    async def call(self, *arguments: str) -> tuple[int, str]:
        """Run a command to its end; return its status and what it printed."""
        done = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "skerry_edge", *arguments, "--home", str(self.home)),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        said, _ = await asyncio.wait_for(done.communicate(), 40)
        return await done.wait(), said.decode()

    async def start(self) -> None:
        self.home.mkdir(exist_ok=True)
        with (self.home / "log").open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "skerry_edge", "run", "--home", str(self.home)),
                stdout=log,
                stderr=log,
            )

    async def stop(self) -> int:
        if self.process is None:
            return 0
        if self.process.returncode is None:
            self.process.terminate()
        return await asyncio.wait_for(self.process.wait(), 20)

    def connected(self) -> bool:
        assert self.process is not None
        assert self.process.returncode is None, (self.home / "log").read_text()
        status = read_status(self.home)
        return status is not None and status.connected


@pytest.fixture
async def agent(tmp_path: Path) -> AsyncIterator[Agent]:
    made = Agent(tmp_path / "device")
    yield made
    await made.stop()


@pytest.mark.parametrize("link", ["grpc", "mqtt"])
async def test_a_device_joins_runs_and_is_well(mainland: Mainland, agent: Agent, link: str) -> None:
    code, said = await agent.call(
        *("join", await mainland.token(), "--name", "box-1", "--profile", "pi5", "--link", link)
    )
    assert (code, said) == (0, "joined as box-1; start the agent: skerry-agent run\n")
    code, said = await agent.call("join", await mainland.token())
    assert code == 2
    assert "already joined" in said

    code, said = await agent.call("status")
    assert code == 3
    assert said.startswith("no agent runs in")
    with (agent.home / "agent.toml").open("a") as settings:
        settings.write('\n[labels]\nroom = "kitchen"\n')
    await agent.start()
    await until(agent.connected, 30)
    code, said = await agent.call("status", "--json")
    status = json.loads(said)
    assert (code, status["device"], status["state"]) == (0, "box-1", "idle"), said
    assert status["link"].startswith(f"{link}s://")

    found = await mainland.device("box-1")
    assert (found["transport"], found["profile"]) == (link, "pi5")
    assert {"cpu", "torch", "flower"} <= set(found["capabilities"])
    assert (found["labels"], found["stated"]) == ({"device/room": "kitchen"}, {"room": "kitchen"})

    code, said = await agent.call("doctor", "--json")
    findings = {each["check"]: each for each in json.loads(said)["findings"]}
    assert code == 0, said
    assert findings[f"{link} link"]["verdict"] == "ok"
    assert findings["agent"]["says"].startswith("idle, connected to")
    assert {
        "config",
        "disk",
        "memory",
        "runtimes",
        "worker",
        "identity",
        "coordinator",
        "clock",
    } < set(findings)
    assert agent.connected()  # the doctor did not take the session over


async def test_without_an_agent_the_doctor_knocks_at_the_broker(
    mainland: Mainland, agent: Agent
) -> None:
    await agent.call("join", await mainland.token(), "--name", "box-6", "--link", "mqtt")
    code, said = await agent.call("doctor")
    assert code == 0
    assert "the broker lets us in" in said
    assert "warn  agent       it does not run" in said


async def test_the_doctor_names_what_is_wrong(mainland: Mainland, agent: Agent) -> None:
    code, said = await agent.call("doctor")
    assert code == 1
    assert "fail  identity" in said
    assert "skerry-agent join TOKEN" in said
    await agent.call("join", await mainland.token(), "--name", "box-2")
    (agent.home / "agent.toml").write_text("[limits]\nmemory_mbs = 3\n")
    code, said = await agent.call("doctor")
    assert code == 1
    assert "unknown key 'limits.memory_mbs'" in said
    assert "did you mean 'memory_mb'?" in said
    (agent.home / "agent.toml").unlink()
    await mainland.stop()
    code, said = await agent.call("doctor")
    assert code == 1
    assert "nothing listens at https://" in said
    assert "nothing listens at grpcs://" in said
    assert "fail  mqtt link" in said


async def test_auto_falls_over_to_mqtt_and_says_so(mainland: Mainland, agent: Agent) -> None:
    await agent.call("join", await mainland.token(), "--name", "box-3")
    file = agent.home / "identity" / "identity.json"
    fields = json.loads(file.read_text())
    for link in fields["links"]:
        if link["kind"] == "grpc":
            link["url"] = "grpcs://127.0.0.1:1"  # a port that a firewall closes
    file.write_text(json.dumps(fields))
    await agent.start()
    await until(agent.connected, 40)
    status = read_status(agent.home)
    assert status is not None
    assert status.link.startswith("mqtts://")
    assert "trying another" in (agent.home / "log").read_text()


async def test_a_revoked_device_stops_with_the_reason(mainland: Mainland, agent: Agent) -> None:
    await agent.call("join", await mainland.token(), "--name", "box-4", "--link", "grpc")
    await agent.start()
    await until(agent.connected, 30)
    began = time.monotonic()
    await asyncio.to_thread(mainland.call, "POST", "/v1/devices/box-4/revoke", {"why": "stolen"})
    assert agent.process is not None
    assert await asyncio.wait_for(agent.process.wait(), 10) == 7
    assert time.monotonic() - began < 5
    assert "revoked" in (agent.home / "log").read_text()


async def test_certificates_are_renewed_while_it_runs_and_after_a_long_sleep(
    tmp_path: Path, agent: Agent
) -> None:
    """With certificates of 12 s the device renews at 8 s, and by its key after 12 s without."""
    home = tmp_path / "brief"
    home.mkdir()
    (home / "coordinator.toml").write_text(f"certificate_days = {12 / 86400}\n")
    mainland = await start_coordinator(home, *FREE)
    try:
        await agent.call("join", await mainland.token(), "--name", "box-5", "--link", "grpc")
        first = Identity.load(agent.home)
        await agent.start()
        await until(agent.connected, 30)
        await until(lambda: Identity.load(agent.home).valid_until > first.valid_until, 30)
        assert agent.connected()
        await agent.stop()
        slept = Identity.load(agent.home)
        await until(lambda: time.time() > slept.valid_until + 1, 20)
        await agent.start()
        await until(agent.connected, 30)
        assert Identity.load(agent.home).valid_until > slept.valid_until
        assert "expired; renewing it over HTTPS" in (agent.home / "log").read_text()
    finally:
        await mainland.stop()


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("run",), 2, "has not joined a coordinator"),
        (("join", "skj1.nonsense"), 2, "token"),
        (("join", "x", "--profile", "pi6"), 2, "no profile 'pi6'"),
    ],
)
async def test_a_mistake_is_one_line_and_a_status(
    agent: Agent, arguments: tuple[str, ...], code: int, says: str
) -> None:
    found, said = await agent.call(*arguments)
    assert (found, len(said.splitlines())) == (code, 1), said
    assert says in said
    assert said.startswith("skerry-agent: ")


async def test_the_version_costs_little() -> None:
    before = os.times()
    done = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "skerry_edge", "--version"), stdout=asyncio.subprocess.PIPE
    )
    said, _ = await done.communicate()
    after = os.times()
    used = after.children_user + after.children_system
    used -= before.children_user + before.children_system
    assert said.startswith(b"skerry-agent 0.1.0 (protocol ")
    assert used < 0.3
