"""Every state is reached, every open state ends, and nothing leaves an end."""

from itertools import product

from skerry_cloud.runs.lifecycle import (
    OPEN_RUNS,
    OPEN_TASKS,
    RUN_NEXT,
    TASK_NEXT,
    RunEvent,
    RunState,
    TaskEvent,
    TaskState,
    advance_run,
    advance_task,
)

RUN_ENDS = {RunState.COMPLETED, RunState.FAILED, RunState.STOPPED, RunState.INTERRUPTED}


def reached(begin: object, table: dict[tuple[object, object], object]) -> set[object]:
    seen, edge = {begin}, {begin}
    while edge:
        edge = {to for (at, _), to in table.items() if at in edge} - seen
        seen |= edge
    return seen


def test_every_run_state_is_reached_and_ends() -> None:
    table = dict(RUN_NEXT)
    assert reached(RunState.CREATED, table) == set(RunState)  # type: ignore[arg-type]
    assert set(RunState) - RUN_ENDS == OPEN_RUNS
    for state in OPEN_RUNS:
        assert reached(state, table) & RUN_ENDS  # type: ignore[arg-type]


def test_every_task_state_is_reached() -> None:
    assert reached(TaskState.QUEUED, dict(TASK_NEXT)) == set(TaskState)  # type: ignore[arg-type]


def test_an_event_out_of_place_changes_nothing() -> None:
    for state, event in product(RunState, RunEvent):
        after = advance_run(state, event)
        assert after == RUN_NEXT.get((state, event), state)
        if state in RUN_ENDS:
            assert after == state
    for task, what in product(TaskState, TaskEvent):
        assert advance_task(task, what) == TASK_NEXT.get((task, what), task)


def test_an_open_run_or_task_ends_whatever_the_moment() -> None:
    for state in OPEN_RUNS:
        assert advance_run(state, RunEvent.LOST) in RUN_ENDS
    for task in OPEN_TASKS:
        assert advance_task(task, TaskEvent.CLOSE) is TaskState.LATE
        assert advance_task(task, TaskEvent.CANCEL) is TaskState.CANCELLED
        assert advance_task(task, TaskEvent.REPLY) is TaskState.REPLIED


def test_a_second_reply_changes_nothing() -> None:
    assert advance_task(TaskState.REFUSED, TaskEvent.REPLY) is TaskState.REFUSED
    assert advance_task(TaskState.LATE, TaskEvent.REPLY) is TaskState.LATE
