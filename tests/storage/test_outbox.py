"""The outbox: every delivery ends as sent, failed or unknown, and only who tries it says what came of it."""

import asyncio
from dataclasses import replace

import asyncpg

from chat_bridge.model import Address
from chat_bridge.storage import outbox
from chat_bridge.storage.outbox import Delivery, DeliveryResult
from chat_bridge.storage.store import Store
from tests.storage.dialogue import CHAT, assert_consistent, chat, claimed, ending, looking, opened, opened_often, said

KEYED, UNKEYED = ["webchat"], ["slack"]


async def reply(store: Store, to: Address = CHAT, parts: int = 1) -> list[Delivery]:
    """Answer a message; the deliveries, as the process that answered has them."""
    await store.receive(said(to=to))
    completion = ending(await claimed(store, to), "the answer", parts=parts)
    done = await store.complete(completion)
    assert done is not None
    assert done.seq is not None
    assert completion.message_id is not None
    return [
        Delivery(to.id, done.seq, part, 1, key, completion.message_id, to, "the answer")
        for part, key in enumerate(done.idempotency_keys, 1)
    ]


async def make_due(connection: asyncpg.Connection) -> None:
    await connection.execute("update deliveries set next_attempt_at = next_attempt_at - interval '2 minutes'")


async def rows(connection: asyncpg.Connection) -> list[tuple[int, str, int]]:
    found = await connection.fetch("select part, status, attempts from deliveries order by conversation_id, seq, part")
    return [tuple(row) for row in found]


async def test_what_the_platform_answered_is_recorded(any_database: str) -> None:
    async with opened(any_database) as store, looking(any_database) as connection:
        one, two, three = await reply(store, parts=3)
        await asyncio.gather(
            store.finish_delivery(DeliveryResult(one, "sent", "platform-1\x00")),
            store.finish_delivery(DeliveryResult(two, "failed", error="blocked by the user")),
            store.finish_delivery(DeliveryResult(three, "unknown", error="no answer")),
        )
        found = await connection.fetch("select * from deliveries order by part")
        assert [row["status"] for row in found] == ["sent", "failed", "unknown"]
        assert [row["platform_message_id"] for row in found] == ["platform-1\ufffd", None, None]
        assert [row["error"] for row in found] == [None, "blocked by the user", "no answer"]
        assert [row["sent_at"] is not None for row in found] == [True, False, False]
        await make_due(connection)
        assert await outbox.due_deliveries(store.database, KEYED) == []


async def test_a_retry_comes_back_when_it_is_due(any_database: str) -> None:
    async with opened(any_database) as store, looking(any_database) as connection:
        (first,) = await reply(store)
        await store.finish_delivery(DeliveryResult(first, "pending", error="busy", retry_seconds=60))
        assert await outbox.due_deliveries(store.database, KEYED) == []
        await make_due(connection)
        (again,) = await outbox.due_deliveries(store.database, UNKEYED)
        assert again == replace(first, attempt=2), "the same key, however often"
        await store.finish_delivery(DeliveryResult(again, "sent", "p"))
        assert await rows(connection) == [(1, "sent", 2)]


async def test_what_a_dead_sender_left_is_sent_again_where_the_platform_takes_a_key(any_database: str) -> None:
    async with opened(any_database) as store, looking(any_database) as connection:
        (lost,) = await reply(store)
        assert await outbox.due_deliveries(store.database, KEYED) == [], "its sender may still be at it"
        await make_due(connection)
        assert await outbox.due_deliveries(store.database, KEYED) == [replace(lost, attempt=2)]
        assert await outbox.due_deliveries(store.database, KEYED) == []
        await make_due(connection)
        assert await outbox.due_deliveries(store.database, KEYED) == [replace(lost, attempt=3)]


async def test_what_a_dead_sender_left_is_unknown_where_the_platform_takes_no_key(any_database: str) -> None:
    async with opened(any_database) as store, looking(any_database) as connection:
        await reply(store)
        await make_due(connection)
        assert await outbox.due_deliveries(store.database, UNKEYED) == []
        assert await rows(connection) == [(1, "unknown", 2)]
        assert "before it heard" in await connection.fetchval("select error from deliveries")
        await make_due(connection)
        assert await outbox.due_deliveries(store.database, KEYED) == []


async def test_the_result_of_an_older_attempt_changes_nothing(any_database: str) -> None:
    async with opened(any_database) as store, looking(any_database) as connection:
        (slow,) = await reply(store)
        await make_due(connection)
        (quick,) = await outbox.due_deliveries(store.database, KEYED)
        await store.finish_delivery(DeliveryResult(slow, "failed", error="too late"))
        assert await rows(connection) == [(1, "sending", 2)]
        await store.finish_delivery(DeliveryResult(quick, "sent", "p"))
        for late in (slow, quick):
            await store.finish_delivery(DeliveryResult(late, "failed"))
        assert await rows(connection) == [(1, "sent", 2)]


async def test_due_deliveries_come_longest_due_first_and_whole_conversations_in_order(database: str) -> None:
    async with opened(database) as store, looking(database) as connection:
        for number in range(4):
            await reply(store, chat(number), parts=2)
        for number, minutes in ((2, 9), (0, 8), (1, 2), (3, 2)):
            await connection.execute(
                "update deliveries set next_attempt_at = now() - $2 * interval '1 minute' where conversation_id = $1",
                chat(number).id,
                minutes,
            )
        taken = await outbox.due_deliveries(store.database, KEYED, 4)
        assert {delivery.address for delivery in taken} == {chat(2), chat(0)}
        assert taken == sorted(taken, key=lambda each: (each.conversation_id, each.seq, each.part))
        rest = await outbox.due_deliveries(store.database, KEYED, 100)
        assert {delivery.address for delivery in rest} == {chat(1), chat(3)}


async def test_two_processes_never_take_the_same_delivery(any_database: str) -> None:
    async with opened_often(any_database, 4) as stores, looking(any_database) as connection:
        for number in range(10):
            await reply(stores[0], chat(number), parts=3)
        await make_due(connection)
        taken = await asyncio.gather(
            *(outbox.due_deliveries(store.database, KEYED, 3) for store in stores for _ in range(5))
        )
        all_taken = [(each.conversation_id, each.seq, each.part) for batch in taken for each in batch]
        assert len(set(all_taken)) == len(all_taken)
        while more := await outbox.due_deliveries(stores[0].database, KEYED, 7):
            all_taken += [(each.conversation_id, each.seq, each.part) for each in more]
        assert len(set(all_taken)) == len(all_taken) == 30
        assert {attempts for _, _, attempts in await rows(connection)} == {2}


async def test_a_delivery_that_another_process_is_taking_is_left_to_it(database: str) -> None:
    async with opened(database) as store, looking(database) as connection, looking(database) as other:
        await reply(store, chat(1))
        await reply(store, chat(2))
        await make_due(connection)
        async with other.transaction():
            await other.execute("select from deliveries where conversation_id = $1 for update", chat(1).id)
            assert [each.address for each in await outbox.due_deliveries(store.database, KEYED)] == [chat(2)]
        assert [each.address for each in await outbox.due_deliveries(store.database, KEYED)] == [chat(1)]
    await assert_consistent(database)
