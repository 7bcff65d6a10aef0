"""The doctor's single checks: what each finds, and what it says to do."""

import asyncio
import json
import os
import socket
import ssl
import time
from pathlib import Path

import pytest
from skerry_edge import doctor
from skerry_edge.config import AgentConfig, Limits, read_config
from skerry_edge.doctor import Verdict, clock, disk, examine, line, memory, unreachable, worker
from skerry_protos.errors import SkerryError

from tests.edge.sea import Cloud


def test_a_clock_is_judged_by_how_far_it_is_off() -> None:
    assert clock(0.4).verdict is Verdict.OK
    assert clock(100).verdict is Verdict.WARN
    found = clock(-31_536_000)
    assert found.verdict is Verdict.FAIL
    assert found.says == "31536000 s ahead of the coordinator's"
    assert "timedatectl" in found.hint


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (ConnectionRefusedError(), "nothing listens at mqtts://far:1"),
        (TimeoutError(), "does not answer within"),
        (socket.gaierror(-2, "x"), "far has no address"),
        (ssl.SSLError(1, "handshake failure"), "TLS failed"),
        (OSError("no route to host"), "no route to host"),
        (SkerryError("odd"), "odd"),
    ],
)
def test_a_connection_that_fails_says_what_to_do(error: Exception, says: str) -> None:
    found = unreachable("mqtt link", "mqtts://far:1", error)
    assert (found.verdict, says in found.says, bool(found.hint)) == (Verdict.FAIL, True, True)
    assert line(found).count("\n") == 1


def test_a_disk_that_cannot_be_written_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert disk(tmp_path / "not" / "yet").verdict is Verdict.OK

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.NamedTemporaryFile", refuse)
    found = disk(tmp_path)
    assert (found.verdict, found.says) == (
        Verdict.FAIL,
        f"cannot write in {tmp_path}: Permission denied",
    )


def test_a_memory_limit_above_the_machines_fails(tmp_path: Path) -> None:
    config = AgentConfig(home=tmp_path, limits=Limits(memory_mb=10**9))
    assert memory(config).verdict is Verdict.FAIL
    assert memory(AgentConfig(home=tmp_path)).verdict is not Verdict.FAIL


def test_a_worker_is_tried(tmp_path: Path) -> None:
    assert worker(AgentConfig(home=tmp_path)).verdict is Verdict.OK
    found = worker(AgentConfig(home=tmp_path, limits=Limits(user="no-such-user")))
    assert (found.verdict, "no-such-user" in found.says) == (Verdict.FAIL, True)
    assert not list(tmp_path.iterdir())


def test_an_expired_certificate_and_a_link_not_offered_fail(tmp_path: Path) -> None:
    async def enrolled() -> None:
        Cloud(tmp_path).enrol(tmp_path / "home", "d", kind="grpc", url="grpc://127.0.0.1:1")

    asyncio.run(enrolled())
    file = tmp_path / "home" / "identity" / "identity.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"valid_until": time.time() - 9}))
    (tmp_path / "home" / "identity" / "ca.pem").write_text("")
    (tmp_path / "home" / "agent.toml").write_text('[agent]\nlink = "mqtt"\n')
    found = {each.check: each for each in examine(tmp_path / "home")}
    assert found["identity"].says.endswith(": expired")
    assert "ca.pem is damaged" in found["coordinator"].says
    assert found["link"].says == "the coordinator offers no 'mqtt' link; it offers grpc"
    assert found["agent"].verdict is Verdict.WARN
    assert read_config(tmp_path, {}).agent.link == "auto"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may change users")
def test_without_root_there_is_no_other_user(tmp_path: Path) -> None:
    assert worker(AgentConfig(home=tmp_path, limits=Limits(user="root"))).verdict is Verdict.FAIL
    assert doctor.TIMEOUT_S > 0
