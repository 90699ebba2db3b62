"""Micro-batches: concurrent calls share one statement. Nobody waits when idle; many rows a commit when busy."""

import asyncio
from collections import defaultdict, deque
from collections.abc import Awaitable, Callable, Hashable, Iterable, Sequence
from typing import Generic, NamedTuple, TypeVar

from chat_bridge.errors import OverloadedError, StatementRefusedError, UnresponsiveError

Item = TypeVar("Item")
Result = TypeVar("Result")


class _Entry(NamedTuple, Generic[Item, Result]):
    item: Item
    key: Hashable
    twin: Hashable
    future: asyncio.Future[Result]


class Batch(Generic[Item, Result]):
    """Gathers items while statements are under way and runs them together.

    `run` takes items and gives a result for each, in the same order. Items of one `key` never run in two statements
    at once, so they take effect in the order they came; two of one `twin` never share a statement.

    When `run` raises StatementRefusedError, its items are run again one by one, so that only the culprit fails. When
    it raises UnresponsiveError, all who wait hear it: each would only find out for itself, one batch after another.
    """

    def __init__(
        self,
        run: Callable[[Sequence[Item]], Awaitable[Sequence[Result]]],
        *,
        key: Callable[[Item], Hashable],
        twin: Callable[[Item], Hashable],
        most: int = 64,
        lanes: int = 2,
        queue: int = 5000,  # some seconds of work, and more than the HTTP side lets in
    ) -> None:
        self._run = run
        self._key = key
        self._twin = twin
        self._most = most
        self._lanes = lanes
        self._queue = queue
        self._waiting: deque[_Entry[Item, Result]] = deque()
        self._busy_keys: set[Hashable] = set()
        self._running: set[asyncio.Task[None]] = set()
        self._starting = False

    async def submit(self, item: Item) -> Result:
        """Run one item with whatever else is waiting. If the caller is cancelled, the item may still take effect.

        Raises OverloadedError when `queue` items wait already."""
        if len(self._waiting) >= self._queue:
            raise OverloadedError(f"{self._queue} wait to be stored already")
        # The keys are asked for here, so that an item that has none fails alone.
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Result] = loop.create_future()
        self._waiting.append(_Entry(item, self._key(item), self._twin(item), future))
        if not self._starting:
            # Not at once: those who were answered together come again together.
            self._starting = True
            loop.call_soon(self._start)
        return await future

    async def drain(self) -> None:
        """Wait until nothing is under way."""
        while self._waiting or self._running:
            if self._running:
                await asyncio.wait(self._running)
            else:
                await asyncio.sleep(0)  # what was submitted just now starts

    def _start(self) -> None:
        self._starting = False
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
            await self._settle(batch)
        finally:
            self._busy_keys.difference_update(entry.key for entry in batch)

    async def _settle(self, batch: "list[_Entry[Item, Result]]") -> None:
        """Run a batch and tell everyone what became of his item."""
        try:
            answered = list(zip(batch, await self._run([entry.item for entry in batch]), strict=True))
        except StatementRefusedError as error:
            if len(batch) > 1:
                await self._settle_apart(batch)
            else:
                _fail(batch, error)
        except UnresponsiveError as error:
            _fail([*batch, *self._waiting], error)
            self._waiting.clear()
        except Exception as error:  # noqa: BLE001 - each caller gets it
            _fail(batch, error)
        else:
            for entry, result in answered:
                if not entry.future.done():
                    entry.future.set_result(result)

    async def _settle_apart(self, batch: "list[_Entry[Item, Result]]") -> None:
        # Side by side, so that a row whose lock is held keeps nobody else waiting; but those of one key in their order.
        by_key: dict[Hashable, list[_Entry[Item, Result]]] = defaultdict(list)
        for entry in batch:
            by_key[entry.key].append(entry)

        async def settle_each(entries: "list[_Entry[Item, Result]]") -> None:
            for entry in entries:
                await self._settle([entry])

        await asyncio.gather(*(settle_each(entries) for entries in by_key.values()))

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        self._start()


def _fail(entries: "Iterable[_Entry[Item, Result]]", error: Exception) -> None:
    for entry in entries:
        if not entry.future.done():
            entry.future.set_exception(error)
