"""The command line without a coordinator: help, errors, statuses, and how little it loads."""

import contextlib
import datetime
import json
import socket
import ssl
import subprocess
import sys
import threading
from importlib import import_module
from pathlib import Path

import pytest
import trustme
from skerry_devices import cli, contexts
from skerry_devices.contexts import Context
from skerry_devices.manual import commands

from tests.devices.conftest import Skerry


def test_the_version_costs_little_and_loads_no_library() -> None:
    code = (
        "import sys, resource; sys.argv = ['skerry', '--version'];"
        "from skerry_devices.__main__ import main; main();"
        "used = resource.getrusage(resource.RUSAGE_SELF);"
        "print(used.ru_utime + used.ru_stime, 'typer' in sys.modules, 'rich' in sys.modules)"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    version, measured = said.stdout.splitlines()
    seconds, *loaded = measured.split()
    assert version.startswith("skerry ")
    assert loaded == ["False", "False"]
    assert float(seconds) < 0.3


def test_listing_devices_loads_no_torch_no_flower_and_no_server() -> None:
    code = (
        "import sys; from skerry_devices.cli import run; run(['devices', 'list']);"
        "heavy = {'torch', 'flwr', 'fastapi', 'sqlalchemy', 'numpy', 'grpc'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    said = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={"SKERRY_CONFIG": "/nonexistent/config.toml"},
    )
    assert said.stdout.strip() == "[]"


@pytest.mark.parametrize("command", commands())
def test_every_command_has_help(skerry: Skerry, command: str) -> None:
    said = skerry(*command.split(), "--help")
    assert said.status == 0
    assert "Usage: skerry" in said.out
    assert "--help" in said.out


@pytest.mark.parametrize(
    ("words", "meant"), [(["devics"], "devices"), (["runs", "sho"], "show"), (["ru"], "run")]
)
def test_a_mistyped_command_says_which_was_meant(
    skerry: Skerry, words: list[str], meant: str
) -> None:
    said = skerry(*words)
    assert said.status == 2
    assert f"did you mean {meant!r}?" in said.err
    assert said.err.startswith("error[usage]: ")
    assert "\nhint: " in said.err


@pytest.mark.parametrize(
    "words",
    [
        ["devices", "list", "--timeout", "5x"],
        ["devices", "list", "--output", "yaml"],
        ["devices", "label"],
        ["devices", "label", "d", "no-equals"],
        ["run", ".", "-c", "novalue"],
        ["run", ".", "--fraction", "2"],
        ["--nonsense"],
    ],
)
def test_a_wrong_command_line_is_one_line_a_hint_and_status_2(
    skerry: Skerry, words: list[str], app: Path
) -> None:
    said = skerry(*(str(app) if word == "." else word for word in words))
    assert said.status == 2
    assert said.err.startswith("error[")
    assert len(said.err.splitlines()) == 2


def test_without_a_context_it_says_how_to_get_one(skerry: Skerry) -> None:
    said = skerry("devices", "list")
    assert said.status == 2
    assert "no coordinator is chosen" in said.err
    assert "skerry up" in said.err


def test_a_coordinator_that_is_not_there_is_status_4(skerry: Skerry) -> None:
    skerry("config", "set-context", "away", "--url", "https://127.0.0.1:1")
    said = skerry("devices", "list")
    assert said.status == 4
    assert "cannot reach the coordinator at https://127.0.0.1:1" in said.err


def test_an_unforeseen_error_is_one_line_and_a_file(
    skerry: Skerry, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> None:
        raise ZeroDivisionError("odd")

    monkeypatch.setattr("skerry_devices.contexts.load", broken)
    said = skerry("config", "get-contexts")
    assert said.status == 1
    assert said.err.splitlines()[0] == "error[internal]: ZeroDivisionError: odd"
    log = config.with_name("skerry-error.log")
    assert str(log) in said.err
    assert "ZeroDivisionError" in log.read_text()


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_the_shells_script(skerry: Skerry, shell: str) -> None:
    said = skerry("completion", shell)
    assert said.status == 0
    assert "_SKERRY_COMPLETE" in said.out


def test_completion_completes_commands() -> None:
    said = subprocess.run(
        [sys.executable, "-m", "skerry_devices"],
        capture_output=True,
        text=True,
        check=False,
        env={"_SKERRY_COMPLETE": "complete_bash", "COMP_WORDS": "skerry dev", "COMP_CWORD": "1"},
    )
    assert "devices" in said.stdout


@pytest.mark.parametrize("words", [("-o", "json"), ("--output=jsonl",), ("-ojson",)])
def test_an_error_is_json_where_the_output_is(skerry: Skerry, words: tuple[str, ...]) -> None:
    said = skerry("devices", "list", *words)
    assert said.out == ""
    error = json.loads(said.err)["error"]
    assert (error["code"], error["exit_status"], said.status) == ("config", 2, 2)
    assert error["message"] == "no coordinator is chosen"
    assert "skerry up" in error["hint"]


def test_a_certificate_that_does_not_hold_now_makes_one_look_at_the_clock(
    skerry: Skerry, tmp_path: Path
) -> None:
    authority = trustme.CA()
    past = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
    issued = authority.issue_cert("127.0.0.1", not_before=past, not_after=past.replace(year=2021))
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    issued.configure_cert(tls)
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            with contextlib.suppress(OSError):
                tls.wrap_socket(listener.accept()[0], server_side=True)

        thread = threading.Thread(target=answer)
        thread.start()
        url = f"https://127.0.0.1:{listener.getsockname()[1]}"
        contexts.keep("old", Context(url=url, ca=str(tmp_path / "ca.pem")), use=True)
        said = skerry("devices", "list")
        thread.join(10)
    assert (said.status, said.err.startswith("error[trust]")) == (7, True)
    assert "has expired" in said.err
    assert "is the clock right?" in said.err


def test_completing_ids_without_a_coordinator_says_nothing(config: Path) -> None:
    words = {"COMP_WORDS": "skerry devices show d", "COMP_CWORD": "3"}
    said = subprocess.run(
        [sys.executable, "-m", "skerry_devices"],
        capture_output=True,
        text=True,
        check=False,
        env={"_SKERRY_COMPLETE": "complete_bash", "SKERRY_CONFIG": str(config), **words},
    )
    assert (said.stdout.strip(), said.stderr) == ("", "")


def test_every_listed_command_has_a_module() -> None:
    folder = Path(cli.__file__).parent / "commands"
    assert set(cli.COMMANDS) <= {path.stem for path in folder.glob("*.py")}
    for name in cli.COMMANDS:
        assert hasattr(import_module(f"skerry_devices.commands.{name}"), "app")


def test_a_reader_that_goes_away_is_no_error() -> None:
    line = f"{sys.executable} -m skerry_devices run --help | head -1 > /dev/null"
    said = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {line}"], capture_output=True, text=True, check=False
    )
    assert said.stderr == ""


def test_codecs_are_for_all_devices_or_for_those_that_a_selector_means() -> None:
    from skerry_devices.commands.run import codecs_of

    assert codecs_of([]) == (None, {})
    assert codecs_of(["int8"]) == ("int8", {})
    assert codecs_of(["topk,ratio=0.02", "profile=pi4: int8", "k in (a,b):powersgd, rank=2"]) == (
        {"name": "topk", "ratio": 0.02},
        {"profile=pi4": "int8", "k in (a,b)": {"name": "powersgd", "rank": 2}},
    )
