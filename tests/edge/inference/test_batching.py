"""Requests that wait together are answered together, and none takes another down."""

import asyncio
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest
from skerry_edge.inference.batching import Batcher, BusyError
from skerry_protos.errors import DeadlineError


class Model:
    """Doubles numbers, holds on until it is let go, and remembers its batches."""

    def __init__(self) -> None:
        self.go, self.begun = threading.Event(), threading.Event()
        self.seen: list[list[int]] = []

    def __call__(self, items: Sequence[int]) -> Sequence[int]:
        self.seen.append(list(items))
        self.begun.set()
        assert self.go.wait(10)
        if 13 in items:
            raise ValueError("13")
        return [2 * item for item in items]


def batcher(model: Model, **options: float) -> Batcher[int, int]:
    return Batcher(
        model,
        max_rows=int(options.get("max_rows", 4)),
        wait_s=options.get("wait_s", 0.0),
        queue=int(options.get("queue", 100)),
        executor=ThreadPoolExecutor(int(options.get("at_once", 1))),
        at_once=int(options.get("at_once", 1)),
    )


async def begun(model: Model) -> None:
    assert await asyncio.to_thread(model.begun.wait, 5)


async def test_what_comes_meanwhile_is_answered_together() -> None:
    model = Model()
    async with batcher(model) as asked:
        first = asyncio.create_task(asked.ask(1, timeout_s=10))
        await begun(model)
        rest = [asyncio.create_task(asked.ask(n, timeout_s=10)) for n in range(2, 8)]
        await asyncio.sleep(0)
        model.go.set()
        assert await first == 2
        assert await asyncio.gather(*rest) == [4, 6, 8, 10, 12, 14]
    assert model.seen == [[1], [2, 3, 4, 5], [6, 7]]


async def test_a_bad_request_fails_alone() -> None:
    model = Model()
    async with batcher(model) as asked:
        first = asyncio.create_task(asked.ask(1, timeout_s=10))
        await begun(model)
        rest = [asyncio.create_task(asked.ask(n, timeout_s=10)) for n in (12, 13, 14)]
        await asyncio.sleep(0)
        model.go.set()
        assert await first == 2
        answers = await asyncio.gather(*rest, return_exceptions=True)
        assert answers[0] == 24 and isinstance(answers[1], ValueError) and answers[2] == 28


async def test_large_requests_go_alone_and_keep_their_turn() -> None:
    model = Model()
    model.go.set()
    async with batcher(model, wait_s=0.2) as asked:
        every = [
            asyncio.create_task(asked.ask(n, rows=rows, timeout_s=10))
            for n, rows in ((1, 3), (2, 9), (3, 1))
        ]
        assert await asyncio.gather(*every) == [2, 4, 6]
    assert model.seen == [[1], [2], [3]]


async def test_too_many_are_told_to_come_back_and_the_late_give_up() -> None:
    model = Model()
    async with batcher(model, queue=1) as asked:
        first = asyncio.create_task(asked.ask(1, timeout_s=10))
        await begun(model)
        with pytest.raises(DeadlineError, match="no answer within"):
            await asked.ask(2, timeout_s=0.01)
        with pytest.raises(BusyError, match="1 requests wait"):
            await asked.ask(3, timeout_s=10)
        model.go.set()
        assert await first == 2
    assert model.seen == [[1]]  # nobody waits for 2 any more


async def test_leaving_answers_what_was_asked() -> None:
    model = Model()
    async with batcher(model, max_rows=1) as asked:
        every = [asyncio.create_task(asked.ask(n, timeout_s=10)) for n in range(3)]
        await begun(model)
        asyncio.get_running_loop().call_later(0.05, model.go.set)
    assert await asyncio.gather(*every) == [0, 2, 4]


async def test_free_calls_share_what_waits_and_take_the_rest_by_themselves() -> None:
    inside = threading.Barrier(2, timeout=10)
    seen: list[list[int]] = []

    def work(items: Sequence[int]) -> Sequence[int]:
        seen.append(list(items))
        if len(seen) <= 2:
            inside.wait()  # only passed by two calls at once
        return [2 * item for item in items]

    asked = Batcher(
        work, max_rows=8, wait_s=0, queue=100, executor=ThreadPoolExecutor(2), at_once=2
    )
    async with asked:
        every = [asyncio.create_task(asked.ask(n, timeout_s=10)) for n in range(6)]
        assert await asyncio.gather(*every) == [0, 2, 4, 6, 8, 10]
    assert sorted(seen) == [[0, 1, 2], [3, 4], [5]]


async def test_a_thread_goes_on_while_the_loop_is_busy() -> None:
    model = Model()
    second = threading.Event()

    def work(items: Sequence[int]) -> Sequence[int]:
        answers = model(items)
        if len(model.seen) == 2:
            second.set()
        return answers

    async with Batcher(
        work, max_rows=1, wait_s=0, queue=9, executor=ThreadPoolExecutor(1), at_once=1
    ) as asked:
        every = [asyncio.create_task(asked.ask(n, timeout_s=10)) for n in (1, 2)]
        await begun(model)
        model.go.set()
        assert second.wait(10)  # the loop stands still here
        assert await asyncio.gather(*every) == [2, 4]


async def test_every_request_is_answered_once_by_several_threads() -> None:
    def work(items: Sequence[int]) -> Sequence[int]:
        return [2 * item for item in items]

    async with Batcher(
        work, max_rows=3, wait_s=0, queue=5000, executor=ThreadPoolExecutor(3), at_once=3
    ) as asked:
        for _ in range(20):
            answers = await asyncio.gather(*(asked.ask(n, timeout_s=10) for n in range(200)))
            assert answers == [2 * n for n in range(200)]
    assert asked.rows == 4000


async def test_nothing_is_at_work_after_leaving() -> None:
    model = Model()
    over = threading.Event()

    def work(items: Sequence[int]) -> Sequence[int]:
        answers = model(items)
        over.set()
        return answers

    pool = ThreadPoolExecutor(2)
    asked = Batcher(work, max_rows=1, wait_s=0, queue=9, executor=pool, at_once=2)
    async with asked:
        with pytest.raises(DeadlineError):
            await asked.ask(1, timeout_s=0.01)  # its call goes on
        assert not over.is_set()
        asyncio.get_running_loop().call_later(0.05, model.go.set)
    assert over.is_set()
