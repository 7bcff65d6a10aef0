"""A run's story from its events."""

from typing import Any

from skerry_devices.journal import Answer, Story, shown_metrics
from skerry_devices.watch import line_of, phase_row


def event(number: int, kind: str, round_: int = 1, device: str = "", **data: Any) -> dict[str, Any]:
    return {
        "id": number,
        "at": 100.0 + number,
        "kind": kind,
        "round": round_,
        "device": device,
        "data": data,
    }


EVENTS = [
    event(1, "created", 0, by="admin"),
    event(2, "state", 0, state="running", why=""),
    event(3, "round", rounds=2),
    event(4, "asked", phase="train", devices=["a", "b", "c", "d"], until_unix_s=500.0, needed=4),
    event(5, "reply", device="a", phase="train", bytes=100, compute_s=0.5),
    event(6, "failure", device="b", phase="train", code=2, why="it raised"),
    event(7, "late", device="c", phase="train", why="no reply"),
    event(8, "reply", device="d", phase="train", bytes=50, compute_s=0.25),
    event(9, "refused", device="d", phase="train", why="its weights are not finite"),
    event(10, "closed", phase="train", asked=4, replied=2, failed=1, late=1),
    event(11, "metrics", phase="train", values={"loss": 0.5, "num-examples": 10.0}),
    event(12, "state", state="completed", why=""),
]


def told(*events: dict[str, Any]) -> Story:
    story = Story()
    story.tell(events)
    return story


def test_the_story_says_what_came_of_each_device() -> None:
    story = told(*EVENTS)
    [(round_, phase)] = story.phases
    assert {part.device: part.answer for part in phase.parts.values()} == {
        "a": Answer.REPLIED,
        "b": Answer.FAILED,
        "c": Answer.LATE,
        "d": Answer.REFUSED,
    }
    assert phase.parts["b"].why == "it raised"
    assert phase.parts["a"].took_s == 1.0
    assert round_.metrics["train"]["loss"] == 0.5
    assert (story.state, story.rounds, story.ended, story.last) == ("completed", 2, True, 12)


def test_a_row_counts_answers_bytes_and_time() -> None:
    [(round_, phase)] = told(*EVENTS).phases
    assert phase_row(round_, phase) == [
        *("1", "train", "4", "2", "1", "1", "1", "150 B", "6.0 s", "loss 0.5")
    ]


def test_devices_are_added_up_over_phases() -> None:
    again = [
        event(13, "asked", 2, phase="train", devices=["a"], until_unix_s=1.0, needed=1),
        event(14, "reply", 2, device="a", phase="train", bytes=1, compute_s=0.5),
    ]
    rows = {row["device"]: row for row in told(*EVENTS, *again).devices}
    assert (rows["a"]["asked"], rows["a"]["replied"], rows["a"]["compute_s"]) == (2, 2, 1.0)
    assert rows["b"]["last_why"] == "it raised"


def test_telling_in_parts_is_telling_at_once() -> None:
    parts = Story()
    for each in EVENTS:
        parts.tell([each])
    assert parts == told(*EVENTS)


def test_an_unknown_event_changes_nothing() -> None:
    assert told(event(1, "from-the-future", anything=1)) == Story(last=1)


def test_metrics_are_shown_accuracy_first_and_counts_left_out() -> None:
    values = {"num-examples": 10.0, "f1": 0.25, "loss": 1.23456, "test_accuracy": 0.9371}
    assert shown_metrics(values) == "test_accuracy 93.7%  loss 1.235  f1 0.25"


def test_each_event_that_matters_is_one_line() -> None:
    story = told(*EVENTS)
    lines = [line for each in EVENTS if (line := line_of(each, story))]
    assert "round 1/2 train: b failed: it raised" in lines
    assert "round 1/2 train: closed, 2 replied, 1 failed, 1 late" in lines
    assert lines[-1] == "run completed"


def test_a_coded_reply_shows_its_codec_and_what_it_saves() -> None:
    coded = event(5, "reply", device="a", phase="train", bytes=27, plain_bytes=100, codec="int8")
    story = told(*EVENTS[:4], coded, *EVENTS[5:])
    [(round_, phase)] = story.phases
    assert phase_row(round_, phase)[7] == "77 B (0.513x)"
    [row, *_] = story.devices
    assert (row["codec"], row["bytes_up"], row["plain_bytes"]) == ("int8", 27, 100)
