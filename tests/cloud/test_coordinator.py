"""The whole coordinator as a process: starts, says what is wrong, stops, and comes back."""

import asyncio
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiomqtt
import psutil
import pytest
from skerry_edge.enrolment import join
from skerry_edge.identity import Identity
from skerry_edge.links import LinkConfig, open_link
from skerry_protos.blobs import LocalBlobs
from skerry_protos.errors import RefusedError, RejectedError
from skerry_protos.messages import DeviceId, Parcel, ParcelId, ParcelKind, new_id
from skerry_protos.seams import Stream
from skerry_protos.v1.work_pb2 import Heartbeat

pytestmark = [pytest.mark.network, pytest.mark.broker]

START_S = 40.0
FREE = ["--http-port", "0", "--grpc-port", "0", "--mqtt-port", "0"]


class Coordinator:
    """A coordinator process and its API."""

    def __init__(self, home: Path, *arguments: str) -> None:
        self.home = home
        self.log = home.parent / f"{home.name}.log"
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "skerry_cloud", "--home", str(home), *arguments],
                stdout=log,
                stderr=log,
            )

    def ready(self) -> dict[str, Any]:
        """Wait until it is up; return what it announces."""
        until = time.monotonic() + START_S
        while time.monotonic() < until:
            assert self.process.poll() is None, self.log.read_text()
            try:
                made: dict[str, Any] = json.loads((self.home / "coordinator.json").read_text())
            except (OSError, ValueError):
                made = {}
            if made.get("pid") == self.process.pid:
                self.made = made
                return made
            time.sleep(0.02)
        raise AssertionError(f"not ready: {self.log.read_text()}")

    def call(self, method: str, path: str, body: object = None) -> tuple[int, dict[str, Any]]:
        """Call the API as the first admin."""
        token = Path(self.made["admin_token_file"]).read_text().strip()
        request = urllib.request.Request(
            self.made["http_url"] + path,
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": f"Bearer {token}", "Content-Type": "application/json"},
        )
        context = ssl.create_default_context(cafile=self.made["ca"])
        try:
            with urllib.request.urlopen(request, timeout=20, context=context) as got:
                return got.status, json.loads(got.read() or b"{}")
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.loads(error.read())

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send a signal and return the exit status."""
        self.process.send_signal(number)
        return self.process.wait(timeout=30)


@contextmanager
def coordinator(home: Path, *arguments: str) -> Iterator[Coordinator]:
    """Run a coordinator; at the end it and its children are gone."""
    running = Coordinator(home, *FREE, *arguments)
    try:
        yield running
    finally:
        if running.process.poll() is None:
            children = psutil.Process(running.process.pid).children(recursive=True)
            running.process.kill()
            running.process.wait(timeout=10)
            for child in children:
                with suppress(psutil.NoSuchProcess):  # it ends by itself with its parent
                    child.kill()


def refused(home: Path, *arguments: str) -> str:
    """Return the one line with which a coordinator refuses to start."""
    done = subprocess.run(
        [sys.executable, "-m", "skerry_cloud", "--home", str(home), *arguments],
        capture_output=True,
        text=True,
        timeout=START_S,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("skerry-coordinator:")]
    assert len(lines) == 1, done.stderr
    assert "Traceback" not in done.stderr
    return lines[0]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Coordinator]:
    """Return a coordinator that tests share which leave it as it is."""
    with coordinator(tmp_path_factory.mktemp("shared") / "home") as running:
        running.ready()
        yield running


def invited(running: Coordinator, home: Path, name: str) -> Identity:
    """Return the identity of a device that has joined."""
    status, made = running.call("POST", "/v1/invites", {})
    assert status == 200, made
    return join(made["token"], home, name)


def test_it_starts_announces_itself_and_stops_in_order(tmp_path: Path) -> None:
    with coordinator(tmp_path / "home") as running:
        made = running.ready()
        assert set(made) == {"pid", "http_url", "grpc_url", "mqtt_url", "ca", "admin_token_file"}
        assert made["grpc_url"].startswith("grpcs://127.0.0.1:")
        assert made["mqtt_url"].startswith("mqtts://127.0.0.1:")
        assert Path(made["admin_token_file"]).stat().st_mode & 0o777 == 0o600
        assert running.home.stat().st_mode & 0o777 == 0o700
        assert running.call("GET", "/v1/whoami")[1]["role"] == "admin"
        children = psutil.Process(running.process.pid).children(recursive=True)
        assert running.stop() == 0
        assert not (running.home / "coordinator.json").exists()
        assert not [child for child in children if child.is_running()]
        assert "Traceback" not in running.log.read_text()


def test_ctrl_c_stops_it_too_and_a_waiting_reader_does_not_hold_it(tmp_path: Path) -> None:
    with coordinator(tmp_path / "home") as running:
        running.ready()
        began = time.monotonic()
        assert running.stop(signal.SIGINT) == 0
        assert time.monotonic() - began < 10


def test_a_killed_coordinator_comes_back_with_all_it_said_was_kept(tmp_path: Path) -> None:
    with coordinator(tmp_path / "home") as running:
        running.ready()
        identity = invited(running, tmp_path / "device", "pi-1")
        running.call("PATCH", "/v1/devices/pi-1", {"labels": {"site": "north"}})
        token = Path(running.made["admin_token_file"]).read_text()
        ca = Path(running.made["ca"]).read_bytes()
        os.kill(running.process.pid, signal.SIGKILL)
        running.process.wait(timeout=10)
    with coordinator(tmp_path / "home") as again:
        again.ready()
        assert Path(again.made["admin_token_file"]).read_text() == token
        assert Path(again.made["ca"]).read_bytes() == ca
        status, device = again.call("GET", f"/v1/devices/{identity.device}")
        assert (status, device["labels"]) == (200, {"site": "north"})
        assert again.stop() == 0


def test_a_second_coordinator_on_the_same_home_is_refused(shared: Coordinator) -> None:
    said = refused(shared.home, *FREE)
    assert f"another coordinator (process {shared.process.pid}) runs in" in said
    assert shared.call("GET", "/v1/health")[1]["status"] == "ok"


@pytest.mark.parametrize("port", ["http", "grpc", "mqtt"])
def test_a_port_in_use_is_one_clear_line(tmp_path: Path, port: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as held:
        number = str(held.getsockname()[1])
        said = refused(tmp_path / "home", *FREE, f"--{port}-port", number)
    assert number in said
    assert "in use" in said


def test_settings_that_cannot_be_are_refused_before_anything_is_made(tmp_path: Path) -> None:
    assert "loopback only" in refused(tmp_path / "home", "--insecure", "--host", "0.0.0.0")
    assert "mysql" in refused(tmp_path / "home", *FREE, "--database", "mysql://host/x")
    assert "no broker 'carrier'" in refused(tmp_path / "home", *FREE, "--broker", "carrier")


def test_a_home_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    done = subprocess.run(
        [sys.executable, "-m", "skerry_cloud", "--home", str(tmp_path / "file" / "home"), *FREE],
        capture_output=True,
        text=True,
        timeout=START_S,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert f"{tmp_path}/file" in done.stderr


def test_the_version_is_said_without_loading_the_program() -> None:
    code = (
        "import sys; from skerry_cloud.__main__ import main; main(['--version']); "
        "assert not {'sqlalchemy', 'fastapi', 'grpc'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=20, check=True
    )
    assert done.stdout.startswith("skerry-coordinator 0.")


def test_the_operator_api_and_alembic_are_not_read_before_runs_go_on() -> None:
    code = (
        "import sys; import skerry_cloud.coordinator; "
        "assert not {'fastapi', 'pydantic', 'uvicorn', 'alembic'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], timeout=20, check=True)


def test_an_admin_who_lost_the_token_gets_another(tmp_path: Path) -> None:
    home = tmp_path / "home"
    with coordinator(home) as running:
        running.ready()
        before = (home / "admin.token").read_text()
        command = [sys.executable, "-m", "skerry_cloud", "admin-token", "--home", str(home)]
        held = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
        assert held.returncode == 2
        assert "another coordinator" in held.stderr
        assert running.stop() == 0
        subprocess.run(command, capture_output=True, timeout=20, check=True)
    assert (home / "admin.token").read_text() != before
    with coordinator(home) as again:
        again.ready()
        assert again.call("GET", "/v1/whoami")[1]["name"] == "admin"


@pytest.mark.skipif(not shutil.which("faketime"), reason="apt install faketime")
@pytest.mark.parametrize("wrong", ["366 days ago", "+400 days"])
def test_an_agent_whose_clock_is_a_year_off_is_told_so(
    shared: Coordinator, tmp_path: Path, wrong: str
) -> None:
    token = shared.call("POST", "/v1/invites", {})[1]["token"]
    code = (
        "import sys, pathlib; from skerry_edge.enrolment import join\n"
        "try: join(sys.argv[1], pathlib.Path(sys.argv[2]))\n"
        "except Exception as error: print(type(error).__name__, error)"
    )
    done = subprocess.run(
        ["faketime", wrong, sys.executable, "-c", code, token, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.stdout.startswith("TrustError this device's clock says 20"), done
    assert time.strftime("the coordinator's %Y-%m-%d", time.gmtime()) in done.stdout
    assert "set the clock" in done.stdout


class Quiet:
    """A device that accepts nothing."""

    async def accept(self, parcel: Parcel) -> None:
        raise RejectedError("unexpected", "this device only listens")

    async def serve(self, stream: Stream) -> None:
        await stream.abort("unexpected", "this device only listens")


@pytest.mark.parametrize("kind", ["grpc", "mqtt"])
async def test_a_device_connects_and_revocation_cuts_it_within_five_seconds_for_good(
    shared: Coordinator, tmp_path: Path, kind: str
) -> None:
    identity = await asyncio.to_thread(invited, shared, tmp_path, f"dev-{kind}")
    url = {link.kind: link.url for link in identity.links}[kind]
    refusals: asyncio.Queue[RefusedError] = asyncio.Queue()
    config = LinkConfig(
        kind=kind,
        url=url,
        device=DeviceId(identity.device),
        agent_version="0.1.0",
        credentials=identity.credentials,
        blobs=LocalBlobs(tmp_path / "blobs"),
        receiver=Quiet(),
        on_refused=refusals.put_nowait,
    )
    async with open_link(config) as link:
        body = Heartbeat(load1=0.25, capabilities=["cpu"]).SerializeToString()
        beat = Parcel(id=ParcelId(new_id("hb-")), kind=ParcelKind.HEARTBEAT, body=body)
        await asyncio.wait_for(link.deliver(beat), 15)
        _, device = await asyncio.to_thread(shared.call, "GET", f"/v1/devices/{identity.device}")
        assert (device["state"], device["transport"]) == ("online", kind)
        assert device["heartbeat"]["load1"] == 0.25
        began = time.monotonic()
        status, _ = await asyncio.to_thread(
            shared.call, "POST", f"/v1/devices/{identity.device}/revoke", {"why": "lost"}
        )
        assert status == 200
        refusal = await asyncio.wait_for(refusals.get(), 5)
        assert refusal.code == "revoked"
        assert time.monotonic() - began < 5
        assert not link.connected
    while not refusals.empty():
        refusals.get_nowait()
    async with open_link(config) as link:
        with pytest.raises((asyncio.TimeoutError, RefusedError)):
            await asyncio.wait_for(link.deliver(beat), 3)
        assert not link.connected


@pytest.mark.parametrize("broker", ["auto", "embedded"])
def test_a_revoked_device_has_no_rights_at_a_broker_that_forgot_it(
    tmp_path: Path, broker: str
) -> None:
    home = tmp_path / "home"
    with coordinator(home, "--broker", broker) as running:
        running.ready()
        invited(running, tmp_path / "device", "pi-1")
        assert running.call("POST", "/v1/devices/pi-1/revoke", {})[0] == 200
        assert running.stop() == 0
    (home / "broker" / "denied").unlink(missing_ok=True)
    with coordinator(home, "--broker", broker) as again:
        made = again.ready()
        keys = tmp_path / "device" / "identity"
        context = ssl.create_default_context(cafile=made["ca"])
        context.load_cert_chain(keys / "certificate.pem", keys / "key.pem")
        address = urlsplit(made["mqtt_url"])
        assert not asyncio.run(served(str(address.hostname), int(address.port or 0), context))


async def served(host: str, port: int, context: ssl.SSLContext) -> bool:
    """Return whether the broker lets this certificate read the broadcast topic."""
    try:
        async with aiomqtt.Client(
            host, port, identifier="pi-1", tls_context=context, timeout=5
        ) as client:
            await client.subscribe("skerry/v1/coordinator", qos=1)  # retained: comes at once
            async with asyncio.timeout(2):
                await anext(aiter(client.messages))
                return True
    except (aiomqtt.MqttError, TimeoutError):
        return False


def test_a_device_in_good_standing_is_served_by_the_broker(
    shared: Coordinator, tmp_path: Path
) -> None:
    identity = invited(shared, tmp_path, "pi-1")
    address = urlsplit(shared.made["mqtt_url"])
    context = identity.credentials.context()
    assert asyncio.run(served(str(address.hostname), int(address.port or 0), context))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Return a folder on a file system of 8 MB."""
    folder = tmp_path / "small"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)]
    if subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("only root may mount a small file system")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_refuses_changes_clearly_and_goes_on_when_there_is_space(
    small_disk: Path,
) -> None:
    with coordinator(small_disk / "home") as running:
        running.ready()
        assert running.call("POST", "/v1/invites", {})[0] == 200
        ballast = small_disk / "ballast"
        with ballast.open("wb", buffering=0) as file:
            for size in (65536, 512):
                try:
                    while True:
                        file.write(bytes(size))
                except OSError:
                    pass
        labels = {"labels": {f"key{n}": "v" * 255 for n in range(60)}}
        for _ in range(200):  # until the last free page of the database is used
            status, said = running.call("POST", "/v1/invites", labels)
            if status != 200:
                break
        assert (status, said["error"]["code"]) == (507, "disk-full"), said
        assert "no space left" in said["error"]["message"]
        assert running.call("GET", "/v1/health")[1]["status"] == "degraded"
        ballast.unlink()
        until = time.monotonic() + 10
        while running.call("POST", "/v1/invites", labels)[0] != 200:
            assert time.monotonic() < until
            time.sleep(0.1)
        assert running.call("GET", "/v1/health")[1]["status"] == "ok"
        assert running.stop() == 0


def test_it_runs_on_postgresql_and_an_object_store(postgres_url: str, tmp_path: Path) -> None:
    far = f"file://{tmp_path}/far"
    arguments = ["--database", postgres_url, "--objects", far, "--broker", "embedded"]
    with coordinator(tmp_path / "home", *arguments) as running:
        running.ready()
        invited(running, tmp_path / "device", "pi-1")
        assert running.call("GET", "/v1/devices")[1]["items"][0]["id"] == "pi-1"
        assert not (tmp_path / "home" / "skerry.db").exists()
        assert running.stop() == 0
