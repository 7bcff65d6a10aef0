"""When a question to many devices is over."""

import pytest
from skerry_cloud.runs.exchange import Exchange, Outcome, Part
from skerry_protos.messages import DeviceId, Parcel, ParcelId


def exchange(devices: int, quorum: float = 1.0) -> Exchange:
    made = Exchange(number=1, round=1, phase="train", deadline=10.0, quorum=quorum)
    for n in range(devices):
        task = ParcelId(f"t{n}")
        parcel = Parcel(id=task, kind="task")
        made.parts[task] = Part(task=task, device=DeviceId(f"d{n}"), node=n, parcel=parcel)
    return made


@pytest.mark.parametrize(
    ("devices", "quorum", "needed"),
    [(4, 1.0, 4), (4, 0.5, 2), (3, 0.5, 2), (10, 0.7, 7), (1, 0.1, 1)],
)
def test_the_quorum_is_rounded_up(devices: int, quorum: float, needed: int) -> None:
    assert exchange(devices, quorum).needed == needed


def test_all_settled_is_over_even_when_all_failed() -> None:
    made = exchange(2)
    assert made.settle(ParcelId("t0"), Outcome.FAILED)
    assert not made.settled
    assert made.settle(ParcelId("t1"), Outcome.FAILED)
    assert made.settled


def test_a_quorum_of_replies_is_over_and_failures_do_not_count() -> None:
    made = exchange(4, 0.5)
    made.settle(ParcelId("t0"), Outcome.FAILED)
    made.settle(ParcelId("t1"), Outcome.REPLIED)
    assert not made.settled
    made.settle(ParcelId("t2"), Outcome.REPLIED)
    assert made.settled
    assert [part.device for part in made.open] == ["d3"]


def test_a_task_settles_once() -> None:
    made = exchange(2)
    assert made.settle(ParcelId("t0"), Outcome.REPLIED)
    assert not made.settle(ParcelId("t0"), Outcome.FAILED)
    assert not made.settle(ParcelId("unknown"), Outcome.REPLIED)
    # What the database says came first is what counts, though the end was on its way.
    made.over = True
    assert made.settle(ParcelId("t1"), Outcome.REPLIED)


def test_what_is_open_of_a_device_follows_what_settles_and_what_is_added() -> None:
    made = exchange(2)
    assert [part.task for part in made.open_of(DeviceId("d1"))] == ["t1"]
    made.settle(ParcelId("t1"), Outcome.FAILED)
    assert made.open_of(DeviceId("d1")) == []
    assert made.open_of(DeviceId("unknown")) == []
    again = ParcelId("again")
    parcel = Parcel(id=again, kind="task")
    made.parts[again] = Part(task=again, device=DeviceId("d1"), node=1, parcel=parcel)
    assert [part.task for part in made.open_of(DeviceId("d1"))] == ["again"]
    assert [part.task for part in made.open] == ["t0", "again"]
    assert (made.count(Outcome.OPEN), made.count(Outcome.FAILED)) == (2, 1)
