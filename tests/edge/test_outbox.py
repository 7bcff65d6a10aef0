"""The ledger: after a crash at any step, every task is either worked on again or answered."""

from dataclasses import replace
from pathlib import Path

import pytest
from skerry_edge.outbox import REMEMBERED, Done, Ledger, ParcelFolder, Seen, reply_id
from skerry_edge.states import RUNS_KEPT
from skerry_protos.messages import BlobRef, Digest, Parcel, ParcelId, ParcelKind, RunId


class PowerCutError(BaseException):
    """The process ends here."""


def task(name: str = "t/1", run: str = "r 1") -> Parcel:
    ref = BlobRef(digest=Digest("ab" * 32), size=3, role="bundle")
    return Parcel(id=ParcelId(name), kind=ParcelKind.TASK, run=RunId(run), body=b"x", blobs=(ref,))


def reply(to: Parcel) -> Parcel:
    return Parcel(id=reply_id(to.id), kind=ParcelKind.REPLY, run=to.run, body=b"y")


def state(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "worker-state"
    path.write_text(text)
    return path


def test_a_task_goes_from_new_to_done(tmp_path: Path) -> None:
    ledger, one = Ledger(tmp_path), task()
    assert ledger.take(one) is Seen.NEW
    assert ledger.take(one) is Seen.HELD
    assert ledger.wanted() == {"ab" * 32}
    ledger.answer(one, reply(one), {})
    assert ledger.take(one) is Seen.ANSWERED
    ledger.close(one.id)
    assert ledger.take(one) is Seen.DONE
    assert ledger.wanted() == set()


def test_a_reply_to_a_task_that_was_cancelled_meanwhile_is_not_kept(tmp_path: Path) -> None:
    """The worker's result is stored in a thread, which a cancellation does not stop."""
    ledger, one = Ledger(tmp_path), task()
    ledger.take(one)
    ledger.close(one.id)
    assert not ledger.answer(one, reply(one), {"state": state(tmp_path, "new")})
    assert len(ledger.outbox) == 0
    assert ledger.states.current(one.run) is None
    assert Ledger(tmp_path).seen(one.id) is Seen.DONE


def test_a_task_that_comes_again_with_more_time_has_it(tmp_path: Path) -> None:
    ledger, one = Ledger(tmp_path), task()
    ledger.take(one)
    assert ledger.take(replace(one, deadline_unix_s=5e9)) is Seen.HELD
    (again,) = Ledger(tmp_path).inbox
    assert (again.id, again.deadline_unix_s, again.body) == (one.id, 5e9, one.body)


def test_everything_survives_a_restart(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    held, answered, done = task("a"), task("b"), task("c")
    for each in (held, answered, done):
        ledger.take(each)
    ledger.answer(answered, reply(answered), {})
    ledger.close(done.id)
    again = Ledger(tmp_path)
    assert [each.id for each in again.inbox] == ["a"]
    assert next(iter(again.inbox)) == held
    assert list(again.outbox) == [reply(answered)]
    assert [again.seen(name) for name in "abcd"] == [
        Seen.HELD,
        Seen.ANSWERED,
        Seen.DONE,
        Seen.NEW,
    ]


STEPS: list[tuple[str, str, Seen, str]] = [
    # where the power is cut, what is known of the task afterwards, which state the app finds
    ("skerry_edge.states.States", "prepare", Seen.HELD, "old"),
    ("skerry_edge.outbox.ParcelFolder", "put", Seen.HELD, "old"),
    ("skerry_edge.states.States", "apply", Seen.ANSWERED, "new"),
    ("skerry_edge.outbox.ParcelFolder", "remove", Seen.ANSWERED, "new"),
]


@pytest.mark.parametrize(("where", "step", "seen", "finds"), STEPS)
def test_a_crash_while_answering_is_all_or_nothing(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    where: str,
    step: str,
    seen: Seen,
    finds: str,
) -> None:
    ledger, first, second = Ledger(tmp_path), task("t1"), task("t2")
    ledger.take(first)
    ledger.answer(first, reply(first), {"state": state(tmp_path, "old")})
    ledger.close(first.id)
    ledger.take(second)
    with monkeypatch.context() as patch:
        patch.setattr(f"{where}.{step}", cut)
        with pytest.raises(PowerCutError):
            ledger.answer(second, reply(second), {"state": state(tmp_path, "new")})
    again = Ledger(tmp_path)
    assert again.seen("t2") is seen
    assert (second.id in again.inbox) == (seen is Seen.HELD)
    current = again.states.current(second.run)
    assert current is not None
    assert current.read_text() == finds
    assert not list(tmp_path.glob("state/*/*.next"))


def cut(*_: object) -> None:
    raise PowerCutError


@pytest.mark.parametrize("step", ["replace", "fsync"])
def test_a_crash_while_noting_leaves_the_task_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    ledger, one = Ledger(tmp_path), task()
    target = "pathlib.Path.replace" if step == "replace" else "os.fsync"
    with monkeypatch.context() as patch:
        patch.setattr(target, cut)
        with pytest.raises(PowerCutError):
            ledger.take(one)
    again = Ledger(tmp_path)
    assert again.take(one) is Seen.NEW
    assert not list(tmp_path.glob("inbox/*.new"))


def test_a_crash_between_remembering_and_forgetting_is_completed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger, one = Ledger(tmp_path), task()
    ledger.take(one)
    with monkeypatch.context() as patch:
        patch.setattr("skerry_edge.outbox.ParcelFolder.remove", cut)
        with pytest.raises(PowerCutError):
            ledger.close(one.id)
    again = Ledger(tmp_path)
    assert (again.seen(one.id), len(again.inbox)) == (Seen.DONE, 0)


def test_a_damaged_file_is_set_aside(tmp_path: Path) -> None:
    folder = ParcelFolder(tmp_path)
    folder.put(task("a"))
    folder.put(task("b"))
    (damaged,) = [each for each in tmp_path.iterdir() if b"a" in each.read_bytes()[:4]]
    damaged.write_bytes(b"\xff" * 20)
    assert [each.id for each in ParcelFolder(tmp_path)] == ["b"]
    assert len(list(tmp_path.glob("*.damaged"))) == 1


def test_done_tasks_are_remembered_up_to_a_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.fsync", lambda _: None)  # thousands of them take a minute
    done = Done(tmp_path / "done")
    for number in range(2 * REMEMBERED + 1):
        done.add(f"t{number}")
    again = Done(tmp_path / "done")
    assert f"t{2 * REMEMBERED}" in again
    assert f"t{REMEMBERED + 1}" in again
    assert "t0" not in again
    assert (tmp_path / "done").stat().st_size < 10 * REMEMBERED


def test_states_of_old_runs_make_room(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    for number in range(RUNS_KEPT + 5):
        one = task(f"t{number}", run=f"run-{number}")
        ledger.take(one)
        ledger.answer(one, reply(one), {"state": state(tmp_path, "kept")})
    assert len(list((tmp_path / "state").iterdir())) == RUNS_KEPT
    assert ledger.states.current(f"run-{RUNS_KEPT + 4}") is not None
    assert ledger.states.current("run-0") is None


def test_states_that_take_too_much_disk_make_room(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, states_limit=30)
    for number in range(5):
        one = task(f"t{number}", run=f"run-{number}")
        ledger.take(one)
        files = {"state": state(tmp_path, "1234567890")}
        (tmp_path / "worker-feedback").write_text("1234")
        ledger.answer(one, reply(one), files | {"feedback": tmp_path / "worker-feedback"})
    kept = [number for number in range(5) if ledger.states.current(f"run-{number}", "feedback")]
    assert kept == [3, 4]


def test_a_state_alone_leaves_the_feedback_as_it_was(tmp_path: Path) -> None:
    ledger, first, second = Ledger(tmp_path), task("t1"), task("t2")
    for each in (first, second):
        ledger.take(each)
    ledger.answer(first, reply(first), {"feedback": state(tmp_path, "kept")})
    ledger.answer(second, reply(second), {"state": state(tmp_path, "new")})
    for name, text in (("feedback", "kept"), ("state", "new")):
        current = ledger.states.current(first.run, name)
        assert current is not None
        assert current.read_text() == text


def test_a_run_that_is_over_is_forgotten(tmp_path: Path) -> None:
    ledger, one = Ledger(tmp_path), task()
    ledger.take(one)
    ledger.answer(one, reply(one), {"feedback": state(tmp_path, "kept")})
    ledger.forget(one.run)
    assert ledger.states.current(one.run, "feedback") is None
    assert list((tmp_path / "state").iterdir()) == []


def test_what_an_attempt_without_room_prepared_is_never_applied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger, one = Ledger(tmp_path), task()
    ledger.take(one)
    with monkeypatch.context() as patch:
        patch.setattr("skerry_edge.outbox.ParcelFolder.put", cut)
        with pytest.raises(PowerCutError):
            ledger.answer(one, reply(one), {"state": state(tmp_path, "too much")})
    ledger.answer(one, reply(one), {})
    assert Ledger(tmp_path).states.current(one.run) is None
