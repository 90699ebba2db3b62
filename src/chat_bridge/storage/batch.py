"""Micro-batches: concurrent calls share one statement. Nobody waits when idle; many rows a commit when busy."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Hashable, Sequence
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class Batch(Generic[Item, Result]):
    """Gathers items while statements are under way and runs them together.

    `run` takes items and gives a result for each, in the same order. Items of one `key` never run in two statements
    at once, so they take effect in the order they came; two of one `twin` never share a statement.
    """

    def __init__(
        self,
        run: Callable[[Sequence[Item]], Awaitable[Sequence[Result]]],
        *,
        key: Callable[[Item], Hashable],
        twin: Callable[[Item], Hashable],
        most: int = 64,
        lanes: int = 2,
    ) -> None:
        self._run = run
        self._key = key
        self._twin = twin
        self._most = most
        self._lanes = lanes
        self._waiting: deque[tuple[Item, asyncio.Future[Result]]] = deque()
        self._busy_keys: set[Hashable] = set()
        self._running: set[asyncio.Task[None]] = set()

    async def submit(self, item: Item) -> Result:
        """Run one item with whatever else is waiting. If the caller is cancelled, the item may still take effect."""
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, future))
        self._start()
        return await future

    async def drain(self) -> None:
        """Wait until nothing is under way."""
        while self._running:
            await asyncio.wait(self._running)

    def _start(self) -> None:
        while self._waiting and len(self._running) < self._lanes:
            batch = self._take()
            if not batch:
                return
            task = asyncio.create_task(self._execute(batch), name="storage.batch")
            self._running.add(task)
            task.add_done_callback(self._finished)

    def _take(self) -> list[tuple[Item, asyncio.Future[Result]]]:
        batch: list[tuple[Item, asyncio.Future[Result]]] = []
        passed: list[tuple[Item, asyncio.Future[Result]]] = []
        twins: set[Hashable] = set()
        held: set[Hashable] = set()
        while self._waiting and len(batch) < self._most:
            entry = self._waiting.popleft()
            item, future = entry
            key, twin = self._key(item), self._twin(item)
            if future.cancelled():
                continue
            if key in self._busy_keys or key in held or twin in twins:
                held.add(key)
                passed.append(entry)
                continue
            twins.add(twin)
            batch.append(entry)
        self._waiting.extendleft(reversed(passed))
        self._busy_keys.update(self._key(item) for item, _ in batch)
        return batch

    async def _execute(self, batch: list[tuple[Item, asyncio.Future[Result]]]) -> None:
        try:
            results = await self._run([item for item, _ in batch])
        except Exception as error:  # noqa: BLE001 - each caller gets it
            for _, future in batch:
                if not future.done():
                    future.set_exception(error)
        else:
            for (_, future), result in zip(batch, results, strict=True):
                if not future.done():
                    future.set_result(result)
        finally:
            self._busy_keys.difference_update(self._key(item) for item, _ in batch)

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        self._start()
