"""Every caller gets its own answers, whoever else asks at the same moment."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from vlm.serving.batching import Batcher


def test_concurrent_callers_share_batches_and_get_their_own_answers():
    sizes: list[int] = []

    def square(items: list[int]) -> list[int]:
        sizes.append(len(items))
        return [item * item for item in items]

    async def ask_all() -> list[list[int]]:
        with ThreadPoolExecutor(1) as executor:
            batcher = Batcher(square, executor, size=16)
            return await asyncio.gather(*(batcher([n, n + 1000]) for n in range(50)))

    assert asyncio.run(ask_all()) == [[n * n, (n + 1000) ** 2] for n in range(50)]
    assert sum(sizes) == 100
    assert max(sizes) == 16
    assert len(sizes) == 7  # 100 items in batches of 16


def test_an_error_reaches_only_the_caller_whose_item_it_was():
    def invert(items: list[float]) -> list[float]:
        return [1 / item for item in items]

    async def ask_all() -> list[list[float] | BaseException]:
        with ThreadPoolExecutor(1) as executor:
            batcher = Batcher(invert, executor)
            return await asyncio.gather(*(batcher([n]) for n in (1.0, 0.0, 4.0)), return_exceptions=True)

    first, second, third = asyncio.run(ask_all())
    assert (first, third) == ([1.0], [0.25])
    assert isinstance(second, ZeroDivisionError)


def test_one_batch_is_computed_at_a_time():
    running = threading.Lock()

    def alone(items: list[int]) -> list[int]:
        assert running.acquire(blocking=False)
        running.release()
        return items

    async def ask_all() -> list[list[int]]:
        with ThreadPoolExecutor(8) as executor:
            batcher = Batcher(alone, executor, size=2)
            return await asyncio.gather(*(batcher([n]) for n in range(40)))

    assert asyncio.run(ask_all()) == [[n] for n in range(40)]


def test_a_caller_who_leaves_disturbs_nobody_and_is_not_computed():
    seen: list[int] = []

    def note(items: list[int]) -> list[int]:
        seen.extend(items)
        return items

    async def ask() -> list[int]:
        with ThreadPoolExecutor(1) as executor:
            batcher = Batcher(note, executor, window=0.05)
            first = asyncio.create_task(batcher([1]))
            leaving = asyncio.create_task(batcher([2]))
            last = asyncio.create_task(batcher([3]))
            await asyncio.sleep(0)
            leaving.cancel()
            with pytest.raises(asyncio.CancelledError):
                await leaving
            return await first + await last

    assert asyncio.run(ask()) == [1, 3]
    assert seen == [1, 3]


def test_after_the_executor_has_ended_callers_are_told_so():
    async def ask() -> list[list[int] | BaseException]:
        executor = ThreadPoolExecutor(1)
        batcher = Batcher(list[int], executor)
        executor.shutdown()
        return await asyncio.wait_for(asyncio.gather(*(batcher([n]) for n in range(3)), return_exceptions=True), 5)

    told = asyncio.run(ask())
    assert [type(error) for error in told] == [RuntimeError] * 3
    assert all("shutdown" in str(error) for error in told)


def test_callers_who_leave_while_it_is_computed_take_nobody_along():
    started, go_on = threading.Event(), threading.Event()

    def double(items: list[int]) -> list[int]:
        started.set()
        go_on.wait(5)
        return [2 * item for item in items]

    async def ask() -> list[list[int] | BaseException]:
        with ThreadPoolExecutor(1) as executor:
            batcher = Batcher(double, executor)
            callers = [asyncio.create_task(batcher([n])) for n in range(3)]
            await asyncio.to_thread(started.wait, 5)
            callers[1].cancel()
            go_on.set()
            return await asyncio.wait_for(asyncio.gather(*callers, return_exceptions=True), 5)

    first, second, third = asyncio.run(ask())
    assert (first, third) == ([0], [4])
    assert isinstance(second, asyncio.CancelledError)


def test_a_batch_that_is_full_does_not_wait_and_nobody_waits_long():
    async def ask(count: int, batcher: Batcher[int, int], patience: float = 0.9) -> list[list[int]]:
        return await asyncio.wait_for(asyncio.gather(*(batcher([n]) for n in range(count))), patience)

    with ThreadPoolExecutor(1) as executor:
        assert asyncio.run(ask(2, Batcher(list[int], executor, size=2, window=5))) == [[0], [1]]
        assert asyncio.run(ask(1, Batcher(list[int], executor))) == [[0]]
        with pytest.raises(TimeoutError):
            asyncio.run(ask(1, Batcher(list[int], executor, size=2, window=5), 0.1))
