"""Micro-batches: in order per key, twins apart, and everyone hears what became of his own item."""

import asyncio
from collections.abc import Sequence

import pytest

from chat_bridge.errors import OverloadedError, StatementRefusedError, StorageError, UnresponsiveError
from chat_bridge.storage.batch import Batch

# What items with these marks make of their statement.
ERRORS = {"!": ValueError, "%": StatementRefusedError, "?": UnresponsiveError}


class Statements:
    """Runs batches of (key, twin) texts such as "a1"; each waits until the test lets it go."""

    def __init__(self) -> None:
        self.seen: list[list[str]] = []
        self.gate = asyncio.Semaphore(0)
        self.under_way = 0
        self.most_under_way = 0
        self.running_keys: list[str] = []
        self.batch = Batch[str, str](
            self._run, key=lambda item: item[0], twin=lambda item: item[:2], most=4, lanes=2, queue=12
        )

    async def _run(self, items: Sequence[str]) -> Sequence[str]:
        keys = sorted({item[0] for item in items})
        assert not set(keys) & set(self.running_keys), "one key in two statements at once"
        self.running_keys += keys
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        self.seen.append(list(items))
        try:
            await self.gate.acquire()
            for mark, error in ERRORS.items():
                if any(mark in item for item in items):
                    raise error(f"refused {items}")
            return [item.upper() for item in items]
        finally:
            self.under_way -= 1
            self.running_keys = [key for key in self.running_keys if key not in keys]

    def let_go(self, batches: int = 1000) -> None:
        for _ in range(batches):
            self.gate.release()

    def submit(self, *items: str) -> list[asyncio.Task[str]]:
        return [asyncio.create_task(self.batch.submit(item)) for item in items]

    async def until_seen(self, count: int) -> None:
        while len(self.seen) < count:
            await asyncio.sleep(0)

    async def submit_apart(self, *items: str) -> list[asyncio.Task[str]]:
        """Submit items one after the other, each when the one before is under way."""
        tasks: list[asyncio.Task[str]] = []
        for item in items:
            seen = len(self.seen)
            tasks += self.submit(item)
            await self.until_seen(seen + 1)
        return tasks


async def test_alone_an_item_runs_at_once() -> None:
    statements = Statements()
    statements.let_go()
    assert await statements.batch.submit("a1") == "A1"
    assert statements.seen == [["a1"]]


async def test_what_comes_together_shares_a_statement() -> None:
    statements = Statements()
    statements.let_go()
    assert await asyncio.gather(*statements.submit("a1", "b1", "a2")) == ["A1", "B1", "A2"]
    assert statements.seen == [["a1", "b1", "a2"]]


async def test_those_who_were_answered_together_come_again_together() -> None:
    statements = Statements()
    statements.let_go()

    async def call(name: str) -> None:
        for number in range(5):
            await statements.batch.submit(f"a{name}{number}")

    await asyncio.gather(*(call(name) for name in "pqrs"))
    assert statements.seen == [[f"a{name}{number}" for name in "pqrs"] for number in range(5)]


async def test_what_waits_shares_a_statement_in_the_order_it_came() -> None:
    statements = Statements()
    tasks = await statements.submit_apart("a1", "b1")
    tasks += statements.submit("c1", "d1", "a2", "e1")
    statements.let_go()
    assert await asyncio.gather(*tasks) == ["A1", "B1", "C1", "D1", "A2", "E1"]
    assert statements.seen == [["a1"], ["b1"], ["c1", "d1", "a2", "e1"]]
    assert statements.most_under_way == 2


async def test_a_key_under_way_holds_its_items_back_and_no_others() -> None:
    statements = Statements()
    tasks = await statements.submit_apart("a1")
    tasks += statements.submit("a2", "b1", "a3")
    await statements.until_seen(2)
    assert statements.seen == [["a1"], ["b1"]]
    statements.let_go()
    await asyncio.gather(*tasks)
    assert statements.seen[2:] == [["a2", "a3"]]


async def test_twins_never_share_and_keep_their_order() -> None:
    statements = Statements()
    tasks = await statements.submit_apart("x1", "y1")
    tasks += statements.submit("a1", "a1-again", "a2")
    statements.let_go()
    await asyncio.gather(*tasks)
    assert [[item for item in batch if item[0] == "a"] for batch in statements.seen[2:]] == [["a1"], ["a1-again", "a2"]]


async def test_a_full_batch_leaves_the_rest_for_the_next() -> None:
    statements = Statements()
    tasks = await statements.submit_apart("x1", "y1")
    tasks += statements.submit(*(f"a{n}" for n in range(9)))
    statements.let_go()
    await asyncio.gather(*tasks)
    assert [item for batch in statements.seen[2:] for item in batch] == [f"a{n}" for n in range(9)]
    assert max(map(len, statements.seen)) == 4


async def test_a_failure_is_told_to_the_callers_of_that_batch_only() -> None:
    statements = Statements()
    tasks = await statements.submit_apart("x1", "y1")
    tasks += statements.submit("a!", "b1", "c1", "d1", "e1")
    statements.let_go()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert statements.seen[2:] == [["a!", "b1", "c1", "d1"], ["e1"]]
    assert [isinstance(result, ValueError) for result in results] == [False, False, True, True, True, True, False]
    assert await statements.batch.submit("a1") == "A1", "the key is free again"


async def test_a_refused_statement_fails_its_culprit_only() -> None:
    statements = Statements()
    tasks = await statements.submit_apart("x1", "y1")
    tasks += statements.submit("a1", "b%", "b2", "c1")
    statements.let_go()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(results[3], StatementRefusedError)
    assert [*results[:3], *results[4:]] == ["X1", "Y1", "A1", "B2", "C1"]
    assert statements.seen[2] == ["a1", "b%", "b2", "c1"]
    assert sorted(statements.seen[3:]) == [["a1"], ["b%"], ["b2"], ["c1"]]
    assert statements.seen.index(["b%"]) < statements.seen.index(["b2"]), "one key keeps its order"


async def test_a_culprit_that_takes_long_keeps_none_of_its_batch_waiting() -> None:
    statements = Statements()
    tasks = await statements.submit_apart("x1", "y1")
    tasks += statements.submit("a%", "b1")
    statements.let_go(3)
    await statements.until_seen(5)
    assert statements.seen[3:] == [["a%"], ["b1"]], "both at once"
    statements.let_go()
    assert isinstance((await asyncio.gather(*tasks, return_exceptions=True))[2], StatementRefusedError)


async def test_alone_a_refused_item_is_not_tried_again() -> None:
    statements = Statements()
    statements.let_go()
    with pytest.raises(StatementRefusedError):
        await statements.batch.submit("a%")
    assert statements.seen == [["a%"]]


async def test_an_unresponsive_server_is_told_to_all_who_wait() -> None:
    statements = Statements()
    tasks = await statements.submit_apart("x?", "y1")
    tasks += statements.submit("a1", "x2")
    statements.let_go(1)
    for waiting in (tasks[0], tasks[2], tasks[3]):
        with pytest.raises(UnresponsiveError):
            await waiting
    statements.let_go()
    assert await tasks[1] == "Y1"
    assert statements.seen == [["x?"], ["y1"]]
    assert await statements.batch.submit("x3") == "X3"


async def test_a_full_queue_takes_no_more_until_it_has_room() -> None:
    statements = Statements()
    tasks = await statements.submit_apart("x1", "y1")
    tasks += statements.submit(*(f"a{n}" for n in range(13)))
    with pytest.raises(OverloadedError):
        await tasks.pop()
    assert issubclass(OverloadedError, StorageError)
    statements.let_go()
    await asyncio.gather(*tasks)
    assert await statements.batch.submit("a1") == "A1"


async def test_a_cancelled_caller_who_waits_is_left_out_and_harms_nobody() -> None:
    statements = Statements()
    tasks = await statements.submit_apart("x1", "y1")
    tasks += statements.submit("a1", "b1")
    await asyncio.sleep(0)
    tasks[2].cancel()
    await asyncio.wait([tasks[2]])
    statements.let_go()
    assert await asyncio.gather(tasks[0], tasks[1], tasks[3]) == ["X1", "Y1", "B1"]
    assert statements.seen[2:] == [["b1"]]


async def test_a_cancelled_caller_does_not_stop_a_statement_under_way() -> None:
    statements = Statements()
    (first,) = await statements.submit_apart("a1")
    (second,) = statements.submit("a2")
    first.cancel()
    await asyncio.wait([first])
    statements.let_go()
    assert await second == "A2"
    assert statements.seen == [["a1"], ["a2"]]


async def test_an_item_without_a_key_fails_alone() -> None:
    statements = Statements()
    statements.batch = Batch[str, str](
        statements._run, key=lambda item: item.encode(), twin=lambda item: item, most=4, lanes=1
    )
    tasks = statements.submit("a1", "b1", "\ud800", "c1")
    await statements.until_seen(1)
    statements.let_go()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [results[0], results[1], results[3]] == ["A1", "B1", "C1"]
    assert isinstance(results[2], UnicodeEncodeError)


async def test_drain_waits_for_all_that_was_submitted() -> None:
    statements = Statements()
    tasks = await statements.submit_apart("a1", "b1")
    tasks += statements.submit("a2", "a3")
    draining = asyncio.create_task(statements.batch.drain())
    statements.let_go(1)
    while len(statements.seen) < 3:
        await asyncio.sleep(0)
    assert not draining.done()
    statements.let_go()
    await draining
    assert sorted(item for batch in statements.seen for item in batch) == ["a1", "a2", "a3", "b1"]
    await asyncio.wait(tasks)
    assert all(task.done() for task in tasks)


async def test_drain_waits_for_what_has_not_started_yet() -> None:
    statements = Statements()
    statements.let_go()
    (task,) = statements.submit("a1")
    await asyncio.sleep(0)
    assert statements.seen == []
    await statements.batch.drain()
    assert statements.seen == [["a1"]]
    assert await task == "A1"


async def test_drain_of_nothing_returns() -> None:
    async with asyncio.timeout(5):
        await Statements().batch.drain()
