"""Micro-batches: concurrent calls share one statement. Nobody waits when idle; many rows a commit when busy."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class _Entry(Generic[Item, Result]):
    item: Item
    key: Hashable
    twin: Hashable
    future: asyncio.Future[Result]


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
        self._waiting: deque[_Entry[Item, Result]] = deque()
        self._busy_keys: set[Hashable] = set()
        self._running: set[asyncio.Task[None]] = set()

    async def submit(self, item: Item) -> Result:
        """Run one item with whatever else is waiting. If the caller is cancelled, the item may still take effect."""
        # The keys are asked for here, so that an item that has none fails alone.
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        entry = _Entry(item, self._key(item), self._twin(item), future)
        self._waiting.append(entry)
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

    def _take(self) -> "list[_Entry[Item, Result]]":
        batch: list[_Entry[Item, Result]] = []
        passed: list[_Entry[Item, Result]] = []
        twins: set[Hashable] = set()
        held: set[Hashable] = set()
        while self._waiting and len(batch) < self._most:
            entry = self._waiting.popleft()
            if entry.future.cancelled():
                continue
            if entry.key in self._busy_keys or entry.key in held or entry.twin in twins:
                held.add(entry.key)
                passed.append(entry)
                continue
            twins.add(entry.twin)
            batch.append(entry)
        self._waiting.extendleft(reversed(passed))
        self._busy_keys.update(entry.key for entry in batch)
        return batch

    async def _execute(self, batch: "list[_Entry[Item, Result]]") -> None:
        try:
            answered = list(zip(batch, await self._run([entry.item for entry in batch]), strict=True))
        except Exception as error:  # noqa: BLE001 - each caller gets it
            for entry in batch:
                if not entry.future.done():
                    entry.future.set_exception(error)
        else:
            for entry, result in answered:
                if not entry.future.done():
                    entry.future.set_result(result)
        finally:
            self._busy_keys.difference_update(entry.key for entry in batch)

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        self._start()
