"""The wide tables on narrow terminals: nothing is cut, short things are never folded."""

import io
import re
import time
from collections.abc import Sequence
from typing import Any

import pytest
from rich.console import Console
from skerry_devices import one_device
from skerry_devices.commands import devices, model_registry, rollout, runs
from skerry_devices.journal import Story
from skerry_devices.output import EMPTY, Column, Format, beginnings, fit, show_one, table
from skerry_devices.watch import rounds_table

RUN = "run-019aafb71ad29f3c1a7be2"
DEVICE = "plant-b-line-07-camera-3f9c"
NOW = time.time()

VERSION = {
    "model": "assembly-defects-mobilenetv2",
    "version": 12,
    "labels": ["canary", "stable"],
    "artefacts": [
        {"file": f"assembly-defects-{each}-int8.zip", "size": 3_412_007, "signed": ["canary"]}
        for each in ("onnx", "litert")
    ],
    "lineage": {"run": RUN},
    "devices": {"live": 188, "trial": 9, "rolled-back": 3},
    "created_at": NOW - 9000,
    "retired_at": None,
    "quarantined_at": NOW,
    "quarantined_why": "latency_p95_s 0.213 is above 0.05 on plant-b-line-07-camera-3f9c",
}
RUNNING = {
    "id": RUN,
    "name": "assembly-defects-mobilenetv2",
    "state": "running",
    "round": 17,
    "rounds": 200,
    "started_at": NOW - 90_000,
    "created_by": "marisol.fuentes@plant-b",
    "waiting": {"why": f"3 of 200 devices have not answered: {DEVICE} and 2 more"},
}
HERE = {
    "id": DEVICE,
    "state": "online",
    "transport": "mqtt",
    "connected": True,
    "profile": "jetson-orin",
    "heartbeat": {"state": "waiting", "waiting_for": "the battery to be above 40 %"},
    "labels": {"site": "north", "line": "07", "role": "camera", "floor": "2"},
    "agent_version": "0.4.0.dev1",
}
ROLLOUT = {
    "id": "rollout-019aafb71ad251d09cc2ab",
    "model": "assembly-defects-mobilenetv2",
    "version": 12,
    "channel": "stable",
    "state": "running",
    "wave": 1,
    "waves": 3,
    "counts": {"asked": 9, "healthy": 188, "failed": 3},
    "created_at": NOW - 4000,
    "why": "",
    "waiting": {"why": "wave 2 soaks until 14:05; 9 devices are on trial"},
}
ON_DEVICE = {
    "device": DEVICE,
    "wave": 1,
    "state": "failed",
    "readings": {"now": {"accuracy": 0.9312, "latency_p95_s": 0.213, "memory_bytes": 81.25e6}},
    "changed_at": NOW - 400,
    "why": "latency_p95_s 0.213 is above 0.05",
}
IN_RUN = {
    "device": DEVICE,
    "asked": 17,
    "replied": 16,
    "refused": 1,
    "failed": 0,
    "late": 2,
    "compute_s": 1231.25,
    "bytes_down": 231_000_000,
    "bytes_up": 23_100_000,
    "plain_bytes": 231_000_000,
    "codec": "int8",
    "task": "sent",
    "connected": True,
    "metrics": "accuracy 0.9312, loss 0.2177",
    "last_why": "it came after the round had closed",
}
TABLES = {
    "models list": (model_registry.COLUMNS, VERSION),
    "runs list": (runs.COLUMNS, RUNNING),
    "runs show": (runs.DEVICE_COLUMNS, IN_RUN),
    "devices list": (devices.COLUMNS, HERE),
    "rollout history": (rollout.COLUMNS, ROLLOUT),
    "rollout status": (rollout.DEVICE_COLUMNS, ON_DEVICE),
}


def printed(columns: Sequence[Column], items: Sequence[Any], width: int) -> list[str]:
    file = io.StringIO()
    Console(file=file, width=width).print(table(columns, items, width=width))
    return file.getvalue().splitlines()


@pytest.mark.parametrize("width", [80, 100])
@pytest.mark.parametrize("name", TABLES)
def test_a_wide_table_is_readable_on_a_narrow_terminal(name: str, width: int) -> None:
    columns, item = TABLES[name]
    lines = printed(columns, [item, item], width)
    assert max(map(len, lines)) <= width
    assert len(lines) <= 18, "one thing takes a few lines, not a column of single words"
    whole = "\n".join(lines)
    title = lines[0].split()
    for column in columns:
        if column.title.upper().split()[0] not in title and column.says(item) in EMPTY:
            continue
        if column.title.upper().split()[0] not in title:
            assert column.spare, f"{column.title} is never left out"
            assert column.title in whole.rpartition("no room for:")[2]
        elif column.cut:
            assert column.says(item)[: column.cut] in whole
        elif not column.least:
            assert column.says(item) in whole, f"{column.title} is not folded"
        else:
            parts = column.says(item).replace(",", ", ").replace("-", "- ").split()
            assert parts[0][:4] in whole


def test_a_wide_terminal_gets_everything_on_one_line_each() -> None:
    for columns, item in TABLES.values():
        lines = printed(columns, [item], 400)
        assert len(lines) == 2
        assert all(column.says(item) in lines[1] for column in columns)


def test_columns_that_say_nothing_make_room_without_a_word() -> None:
    columns = [Column("id", lambda d: d["id"]), Column("late", lambda d: d["late"])]
    columns.append(Column("why", lambda d: d["why"], least=8))
    rows = [{"id": "a" * 10, "late": "-", "why": "it is still here"}] * 2
    assert "LATE" in printed(columns, rows, 40)[0]
    lines = printed(columns, rows, 28)
    assert lines[0].split() == ["ID", "WHY"]
    assert "no room" not in "".join(lines)
    assert lines[1].split(None, 1)[1].strip() == "it is still here"


def test_rounds_fit_a_narrow_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("skerry_devices.output.console", lambda: Console(width=80))
    story = Story()
    data = {"phase": "evaluate", "devices": ["d1", "d2"], "until_unix_s": NOW}
    event = {"id": 1, "at": NOW, "round": 117, "device": "", "kind": "asked", "data": data}
    values = {"accuracy": 0.99721, "loss": 0.019291}
    measured = {**event, "id": 2, "kind": "metrics", "data": {"phase": "evaluate"}}
    measured["data"] = {"phase": "evaluate", "values": values}
    story.tell([event, measured])
    file = io.StringIO()
    console = Console(file=file, width=80)
    console.print(rounds_table([story.by_round[117]], {(117, "evaluate"): 231_000_000}))
    said = file.getvalue()
    assert "…" not in said.replace("  …  ", "")
    assert {"ROUND", "PHASE", "ASKED", "DOWN", "METRICS"} <= set(said.split())
    assert {"117", "evaluate", "99.7%", "0.01929"} <= set(said.split())


def test_long_values_of_one_thing_are_folded_at_words_on_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [("id", "d1"), ("versions", "numpy 2.4.6, torch 2.13.0+cpu, python 3.11.7")]
    show_one({}, rows, Format.TABLE)
    assert capsys.readouterr().out.splitlines()[1].endswith("torch 2.13.0+cpu, python 3.11.7")
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    show_one({}, rows, Format.TABLE)
    assert capsys.readouterr().out.splitlines() == [
        "id        d1",
        "versions  numpy 2.4.6, torch 2.13.0+cpu,",
        "          python 3.11.7",
    ]


def test_ids_are_cut_to_what_tells_them_apart() -> None:
    assert beginnings(["run-1234", "run-1299", "run-5"], 5) == ["run-123", "run-129", "run-5"]
    assert beginnings(["run-1234", "run-1234"], 5) == ["run-1", "run-1"]


def test_texts_are_folded_and_nothing_below_its_least() -> None:
    columns = [
        Column("id", str),
        Column("why", str, least=10),
        Column("made", str, spare=1),
        Column("by", str, spare=2),
    ]
    assert fit(columns, [8, 40, 6, 6], 66) == {0: 8, 1: 40, 2: 6, 3: 6}
    assert fit(columns, [8, 40, 6, 6], 42) == {0: 8, 1: 16, 2: 6, 3: 6}
    assert fit(columns, [8, 40, 6, 6], 30) == {0: 8, 1: 12, 2: 6}
    assert fit(columns, [8, 40, 6, 6], 20) == {0: 8, 1: 10}
    narrow = fit(columns, [8, 40, 6, 6], 12)
    assert sum(narrow.values()) + 2 * (len(narrow) - 1) <= 12


@pytest.mark.parametrize(
    ("device", "why"),
    [
        ({"asked_at": None, "connected": False}, "not told yet: away, last seen 1h ago"),
        ({"asked_at": None, "connected": True}, "not told yet: it is here"),
        ({"asked_at": -180, "connected": True}, "told 3m ago, no answer: it is here"),
        (
            {"asked_at": -180, "connected": False},
            "told 3m ago, no answer: away, last seen 1h ago",
        ),
        ({"asked_at": -180, "connected": True, "phase": "fetching"}, "told 3m ago, fetching"),
    ],
)
def test_a_rollout_says_what_it_waits_for_from_a_device(device: dict[str, Any], why: str) -> None:
    now = time.time()
    waits = {**ON_DEVICE, "state": "asked", "why": "", "phase": "", "last_seen_at": now - 3600}
    if asked := device.get("asked_at"):  # so many seconds ago
        device = {**device, "asked_at": now + asked}
    column = next(each for each in rollout.DEVICE_COLUMNS if each.title == "why")
    said = column.says({**waits, **device})
    assert re.sub(r"(\d[hm])\d+s", r"\1", said) == why
    assert column.says({**ON_DEVICE, **device}) == ON_DEVICE["why"]


def test_what_a_device_chose_and_why_is_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        {"target": "stable/tiny/3/int8.zip", "accuracy": 0.971, "latency_s": 0.0021}
        | {"energy_j": 0.0123, "energy_source": "estimated", "memory_bytes": 81e6}
        | {"bad": "", "pareto": True},
        {"target": "stable/tiny/3/fp32.zip", "bad": "its output is not finite", "pareto": False},
    ]
    choice = {"serves": "stable/tiny/3/int8.zip", "why": "least latency of 1", "rows": rows}
    report = {"model": "tiny", "phase": "live", "serving": "stable/tiny/3/fp32.zip", "why": ""}
    one_device.show_models([{**report, "at": NOW, "choice": choice}])
    said = capsys.readouterr().out
    assert "tiny: serves int8.zip: least latency of 1\n" in said
    assert "*  int8.zip   0.9710    2.1 ms  0.0123 J (estimated)  81.0 MB  on the Pareto" in said
    assert "fp32.zip   -         -       -                     -        its output is not" in said
    column = next(each for each in rollout.DEVICE_COLUMNS if each.title == "serves")
    assert column.says({**ON_DEVICE, "choice": choice}) == "int8.zip: least latency of 1"


def test_a_device_shows_which_labels_are_its_own_word_and_which_were_left_out() -> None:
    said = {"room": "attic", "rack": "7"}
    beat = {"labels": said, "labels_refused": "'a b' cannot be a label's key"}
    here = {**HERE, "labels": {"device/room": "cellar", "device/rack": "7"}, "stated": said}
    shown = [value for _, value in one_device.rows_of({**here, "heartbeat": beat})]
    assert "device/rack=7,device/room=cellar" in shown
    assert "an operator has the word, not the device, on: room" in shown
    assert "some that the device states were left out: 'a b' cannot be a label's key" in shown
