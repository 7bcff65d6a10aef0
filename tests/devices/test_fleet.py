"""The command line against a real coordinator and two real devices, one on each link."""

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from skerry_devices import contexts
from skerry_devices.children import Children
from skerry_devices.contexts import Context
from skerry_devices.local import LocalFleet
from skerry_devices.waiting import until

from tests.devices.conftest import Skerry

pytestmark = [
    pytest.mark.network,
    pytest.mark.timeout(240),
    pytest.mark.usefixtures("fleet"),
    pytest.mark.xdist_group("the local fleet"),
]


def started(skerry: Skerry, *words: object) -> str:
    said = skerry("run", *words, "--detach", "-o", "json")
    assert said.status == 0, said.err
    return str(said.json["id"])


def write_app(app: Path, body: str) -> None:
    """Replace what the app's train() does."""
    text = (app / "tiny.py").read_text()
    head, _, tail = text.partition("def train(model, data, config):\n")
    _, _, evaluate = tail.partition("def evaluate")
    train = f"def train(model, data, config):\n    {body}\n"
    (app / "tiny.py").write_text(f"{head}{train}def evaluate{evaluate}")


# Devices.


def test_devices_are_listed_in_three_formats(skerry: Skerry) -> None:
    table = skerry("devices", "list", "--wait", "2")
    assert table.status == 0
    lines = table.out.splitlines()
    assert lines[0].split()[:3] == ["ID", "STATE", "LINK"]
    assert [line.split()[:3] for line in lines[1:3]] == [
        ["device-1", "online", "grpc"],
        ["device-2", "online", "mqtt"],
    ]
    as_json = skerry("devices", "list", "-o", "json").json
    assert [device["id"] for device in as_json][:2] == ["device-1", "device-2"]
    assert [each["id"] for each in skerry("devices", "list", "-o", "jsonl").lines] == [
        each["id"] for each in as_json
    ]


def test_a_device_is_shown_by_a_unique_beginning_of_its_id(skerry: Skerry) -> None:
    said = skerry("devices", "show", "device-1")
    assert said.status == 0
    assert "capabilities" in said.out
    ambiguous = skerry("devices", "show", "device-")
    assert (ambiguous.status, ambiguous.err.startswith("error[ambiguous]")) == (2, True)
    absent = skerry("devices", "show", "nobody")
    assert (absent.status, absent.err.startswith("error[not-found]")) == (3, True)


def test_labels_are_set_selected_by_and_removed(skerry: Skerry) -> None:
    assert skerry("devices", "label", "device-1", "site=north", "old=x").status == 0
    assert skerry("devices", "label", "device-1", "old-").status == 0
    [only] = skerry("devices", "list", "-l", "site=north", "-o", "json").json
    assert (only["id"], only["labels"]) == ("device-1", {"site": "north"})
    none = skerry("devices", "list", "-l", "site=nort")
    assert none.out == ""
    assert "label 'site' is one of: north" in none.err
    assert skerry("devices", "list", "-l", "site=(").status == 2
    assert skerry("devices", "label", "device-1", "site-").status == 0


def test_a_device_is_held_back_and_let_go(skerry: Skerry) -> None:
    def state() -> str:
        return str(skerry("devices", "show", "device-2", "-o", "json").json["state"])

    assert skerry("devices", "cordon", "device-2").status == 0
    assert state() == "cordoned"
    assert skerry("devices", "drain", "device-2", "--wait").status == 0
    assert state() == "drained"
    assert skerry("devices", "uncordon", "device-2").status == 0
    assert state() == "online"


def test_a_wait_for_more_devices_than_there_are_ends_at_its_timeout(skerry: Skerry) -> None:
    said = skerry("devices", "list", "--wait", "99", "--timeout", "1s")
    assert said.status == 5
    assert said.err.startswith("error[deadline]: 99 devices online did not happen within 1 s")


def test_an_invite_is_printed_alone_listed_and_withdrawn(skerry: Skerry) -> None:
    said = skerry("devices", "invite", "--uses", "2", "--expires", "30m", "--label", "a=b")
    assert said.out.startswith("skj1.")
    assert len(said.out.splitlines()) == 1
    assert "skerry-agent join" in said.err
    newest = skerry("devices", "invite", "--list", "-o", "json").json[0]
    assert (newest["uses_left"], newest["labels"], newest["state"]) == (2, {"a": "b"}, "open")
    assert skerry("devices", "invite", "--withdraw", newest["id"]).status == 0
    states = {i["id"]: i["state"] for i in skerry("devices", "invite", "--list", "-o", "json").json}
    assert states[newest["id"]] == "revoked"


def test_a_revocation_without_a_terminal_wants_a_yes(skerry: Skerry) -> None:
    said = skerry("devices", "revoke", "device-1")
    assert said.status == 2
    assert "--yes" in said.err


@pytest.mark.parametrize(
    ("typed", "expected"),
    [("devices show d", ["device-1", "device-2"]), ("devices show device-2", ["device-2"])],
)
def test_the_shell_completes_ids(
    config: Path, typed: str, expected: list[str], fleet: LocalFleet
) -> None:
    words = {"COMP_WORDS": f"skerry {typed}", "COMP_CWORD": str(len(typed.split()))}
    said = subprocess.run(
        [sys.executable, "-m", "skerry_devices"],
        capture_output=True,
        text=True,
        check=False,
        env={"_SKERRY_COMPLETE": "complete_bash", "SKERRY_CONFIG": str(config), **words},
    )
    found = [line.split(",")[-1] for line in said.stdout.split()]
    assert [name for name in found if "simulated" not in name] == expected, said


# Operators.


def test_a_viewer_reads_and_changes_nothing(skerry: Skerry, fleet: LocalFleet) -> None:
    token = skerry("operators", "add", "eve", "--role", "viewer").out.strip()
    context = Context(url=fleet.context.url, ca=fleet.context.ca, token=token)
    contexts.keep("eve", context, use=False)
    assert skerry("--context", "eve", "devices", "list").status == 0
    refused = skerry("--context", "eve", "devices", "cordon", "device-1")
    assert (refused.status, refused.err.startswith("error[forbidden]")) == (7, True)
    assert skerry("operators", "remove", "eve").status == 0
    gone = skerry("--context", "eve", "devices", "list")
    assert (gone.status, gone.err.startswith("error[unauthorized]")) == (7, True)
    actions = [row["action"] for row in skerry("audit", "-o", "json").json if row["operator"]]
    assert "create_operator" in actions


def test_another_authority_is_not_trusted(
    skerry: Skerry, fleet: LocalFleet, tmp_path: Path
) -> None:
    import trustme

    other = tmp_path / "other.pem"
    trustme.CA().cert_pem.write_to_path(str(other))
    contexts.keep("wrong", Context(url=fleet.context.url, ca=str(other)), use=False)
    said = skerry("--context", "wrong", "devices", "list")
    assert (said.status, said.err.startswith("error[trust]")) == (7, True)


def test_the_doctor_finds_nothing_wrong(skerry: Skerry) -> None:
    said = skerry("doctor", "-o", "json")
    assert said.status == 0
    verdicts = {finding["check"]: finding["verdict"] for finding in said.json}
    assert {verdicts[check] for check in ("context", "ca", "coordinator", "clock", "operator")} == {
        "ok"
    }


def test_the_doctor_says_what_is_wrong(skerry: Skerry, fleet: LocalFleet) -> None:
    context = Context(url="https://127.0.0.1:1", ca=fleet.context.ca)
    contexts.keep("away", context, use=False)
    said = skerry("--context", "away", "doctor")
    assert said.status == 1
    assert "fail  coordinator" in said.out


def test_a_context_is_made_from_a_coordinators_home(skerry: Skerry, fleet: LocalFleet) -> None:
    home = fleet.home / "coordinator"
    assert skerry("config", "set-context", "copy", "--home", home).status == 0
    assert skerry("--context", "copy", "devices", "list").status == 0
    assert skerry("config", "set-context", "no", "--home", "/nonexistent").status == 2


# Runs.


def test_a_run_is_watched_shown_and_its_model_fetched(
    skerry: Skerry, app: Path, tmp_path: Path
) -> None:
    said = skerry("run", app, "-c", "step=2.5", "--rounds", "3")
    assert said.status == 0, said.err
    run = said.out.split()[0]
    assert "round 3/3 evaluate: accuracy 75.0%" in said.out
    assert "run completed" in said.out

    shown = skerry("runs", "show", run)
    assert "state     completed" in shown.out
    assert "ROUND  PHASE" in shown.out
    assert "device-2" in shown.out
    whole = skerry("runs", "show", run, "-o", "json").json
    assert (whole["state"], whole["round"], whole["rounds"]) == ("completed", 3, 3)
    assert run in {each["id"] for each in skerry("runs", "list", "-o", "json").json}

    accuracies = [
        metric["value"]
        for metric in skerry("runs", "metrics", run, "--name", "accuracy", "-o", "json").json
    ]
    assert accuracies == pytest.approx([0.25, 0.5, 0.75])
    of_devices = skerry("runs", "metrics", run, "--devices", "-o", "jsonl").lines
    assert {"device-1", "device-2"} <= {metric["device"] for metric in of_devices}

    file = tmp_path / "out" / "model.npz"
    saved = skerry("runs", "model", run, "--save", file)
    assert saved.status == 0
    assert "load_state_dict" in saved.out
    with np.load(file, allow_pickle=False) as arrays:
        assert arrays["w"].tolist() == [7.5, 7.5, 7.5]
    again = skerry("runs", "watch", run)
    assert again.status == 0
    assert skerry("runs", "logs", run).status == 0


def test_a_run_can_be_followed_as_events(skerry: Skerry, app: Path) -> None:
    said = skerry("run", app, "--rounds", "1", "-o", "jsonl")
    assert said.status == 0
    kinds = [event["kind"] for event in said.lines]
    assert {"asked", "reply", "closed", "metrics", "model"} <= set(kinds)
    assert said.lines[-1]["data"]["state"] == "completed"


def test_an_app_that_raises_is_named_on_each_device(skerry: Skerry, app: Path) -> None:
    write_app(app, "raise ValueError('no such sensor')")
    said = skerry("run", app, "--rounds", "1")
    run = said.out.split()[0]
    assert "device-1 failed: " in said.out
    assert "no such sensor" in said.out
    shown = skerry("runs", "show", run)
    assert "no such sensor" in shown.out


def test_a_run_that_fails_ends_with_status_8(skerry: Skerry, app: Path) -> None:
    (app / "tiny.py").write_text("def model():\n    raise RuntimeError('no model today')\n")
    said = skerry("run", app)
    assert said.status == 8
    assert said.err.startswith("error[run-failed]: ")
    assert "no model today" in said.err
    run = said.out.split()[0]
    assert f"skerry runs logs {run}" in said.err
    assert skerry("runs", "watch", run).status == 8
    model = skerry("runs", "model", run)
    assert model.status == 3
    assert "has no model" in model.err


def test_a_waiting_run_says_why_and_until_when_and_is_stopped(skerry: Skerry, app: Path) -> None:
    assert skerry("devices", "cordon", "device-2").status == 0
    try:
        run = started(skerry, app, "--min-devices", "2", "--wait-devices", "10m")

        def waiting() -> dict[str, Any] | None:
            found = skerry("runs", "show", run, "-o", "json").json
            why: dict[str, Any] | None = found["waiting"]
            return why if why and "device-2" in why["why"] else None

        why = until(waiting, timeout_s=60, what="the run's wait for devices")
        assert why["until_unix_s"] > 0
        shown = skerry("runs", "show", run).out
        assert "device-2 is cordoned" in shown
        assert "until     " in shown
        late = skerry("runs", "watch", run, "--timeout", "1s")
        assert (late.status, "it goes on" in late.err) == (5, True)
        assert skerry("runs", "pause", run).out.strip() == f"{run} paused"
        assert f"skerry runs resume {run}" in skerry("runs", "show", run).out
        assert skerry("runs", "pause", run).status == 0
        assert skerry("runs", "resume", run, "-o", "json").json["state"] == "starting"
        again = skerry("runs", "resume", run)
        assert (again.status, again.err.startswith("error[run-state]")) == (8, True)
        assert skerry("runs", "stop", run, "--wait").status == 0
        ended = skerry("runs", "watch", run)
        assert (ended.status, ended.err.startswith("error[run-stopped]")) == (8, True)
    finally:
        skerry("devices", "uncordon", "device-2")


def test_ctrl_c_ends_the_watching_and_not_the_run(
    skerry: Skerry, app: Path, tmp_path: Path
) -> None:
    write_app(app, "import time; time.sleep(60)")
    output = tmp_path / "out"
    command = [sys.executable, "-m", "skerry_devices", "run", str(app)]
    with output.open("w") as file, subprocess.Popen(command, stdout=file, stderr=file) as watching:

        def asked() -> bool | None:
            return "train: asked 2" in output.read_text() or None

        until(asked, timeout_s=60, what="the first round")
        watching.send_signal(signal.SIGINT)
        assert watching.wait(timeout=30) == 130
    said = output.read_text()
    run = said.split()[0]
    assert f"error[interrupted]: no longer watching; {run} goes on" in said
    assert skerry("runs", "show", run, "-o", "json").json["state"] == "running"
    assert skerry("runs", "stop", run, "--wait").status == 0


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--select", "site=mars"], "no device matches 'site=mars'"),
        (["--min-devices", "9"], "min_devices is 9"),
        (["--capability", "quantum"], "quantum"),
        (["-c", "stepp=1"], "did you mean 'step'?"),
        (["--strategy", "fedavgg"], "fedavg"),
    ],
)
def test_a_run_that_cannot_be_is_refused_with_the_reason(
    skerry: Skerry, app: Path, words: list[str], expected: str
) -> None:
    said = skerry("run", app, *words)
    assert said.status in {2, 8}
    assert expected.lower() in said.err.lower()


def test_an_unknown_run_is_status_3(skerry: Skerry) -> None:
    every = ("show", "watch", "logs", "stop", "pause", "resume", "metrics", "model")
    for command in every:
        said = skerry("runs", command, "run-nowhere")
        assert (command, said.status) == (command, 3)


def test_simulated_devices_are_real_ones(
    skerry: Skerry, app: Path, fleet: LocalFleet, tmp_path: Path
) -> None:
    log = tmp_path / "simulate.log"
    command = [sys.executable, "-m", "skerry_devices", "devices", "simulate", "10"]
    with Children() as children:
        child = children.start(
            "the simulation",
            [*command, "--link", "both", "--label", "sim=yes", "--processes", "2"],
            log=log,
        )

        def online() -> bool | None:
            children.check()
            return "10 devices are online" in log.read_text() or None

        until(online, timeout_s=120, what="10 simulated devices online")
        listed = skerry("devices", "list", "-l", "sim", "-o", "json").json
        assert [device["profile"] for device in listed] == ["pi4"] * 10
        assert {device["transport"] for device in listed} == {"grpc", "mqtt"}
        said = skerry(
            "run", app, "-l", "sim", "--min-devices", "10", "--rounds", "1", "-o", "jsonl"
        )
        assert said.status == 0, said.err
        closed = [event["data"] for event in said.lines if event["kind"] == "closed"]
        assert [(each["asked"], each["replied"]) for each in closed] == [(10, 10), (10, 10)]
        child.terminate()
        assert child.wait(60) == 0, log.read_text()
        children.forget(child)
    left = skerry("devices", "list", "-l", "sim", "--all", "-o", "json").json
    assert {device["state"] for device in left} == {"revoked"}
    assert json.loads(skerry("devices", "list", "-l", "sim", "-o", "json").out) == []
