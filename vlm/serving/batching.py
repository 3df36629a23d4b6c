"""Batches of items from concurrent callers: `Batcher`."""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class Batcher(Generic[Item, Result]):
    """Computes items of concurrent callers together, one batch at a time.

    A batch that fails is computed again item by item, so that an error reaches only the caller whose item it was.

    Args:
        compute: items -> as many results, in order.
        executor: runs `compute`.
        size: items of a batch at most.
        window: seconds; items that come within it, or while a batch is being computed, share the next batch.
    """

    def __init__(
        self,
        compute: Callable[[list[Item]], Sequence[Result]],
        executor: Executor,
        *,
        size: int = 32,
        window: float = 0.002,
    ) -> None:
        self._compute = compute
        self._executor = executor
        self._size = size
        self._window = window
        self._waiting: deque[tuple[Item, asyncio.Future[Result]]] = deque()
        self._working: asyncio.Task[None] | None = None  # asyncio itself keeps only a weak reference

    async def __call__(self, items: Sequence[Item]) -> list[Result]:
        """Results in the order of `items`, or the first error of one of them."""
        loop = asyncio.get_running_loop()
        futures: list[asyncio.Future[Result]] = [loop.create_future() for _ in items]
        self._waiting.extend(zip(items, futures, strict=True))
        if self._working is None or self._working.done():
            self._working = loop.create_task(self._work())
        return await asyncio.gather(*futures)

    async def _work(self) -> None:
        if len(self._waiting) < self._size:
            await asyncio.sleep(self._window)
        while batch := self._next_batch():
            items = [item for item, _ in batch]
            try:
                outcomes = await asyncio.get_running_loop().run_in_executor(self._executor, self._outcomes, items)
            except RuntimeError as error:  # the executor has been shut down
                outcomes = [error] * len(batch)
            for (_, future), outcome in zip(batch, outcomes, strict=True):
                if future.done():  # its caller has gone
                    continue
                if isinstance(outcome, Exception):
                    future.set_exception(outcome)
                else:
                    future.set_result(outcome)

    def _next_batch(self) -> list[tuple[Item, "asyncio.Future[Result]"]]:
        batch: list[tuple[Item, asyncio.Future[Result]]] = []
        while self._waiting and len(batch) < self._size:
            item, future = self._waiting.popleft()
            if not future.done():
                batch.append((item, future))
        return batch

    def _outcomes(self, items: list[Item]) -> Sequence[Result | Exception]:
        try:
            return self._compute(items)
        except Exception as error:
            if len(items) == 1:
                return [error]
        return [self._outcomes([item])[0] for item in items]
