"""The outbox: every delivery ends as sent, failed or unknown, in order, and only who tries it says what came of it."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import asyncpg

from chat_bridge.model import Address
from chat_bridge.storage import outbox, sessions
from chat_bridge.storage.outbox import Delivery, DeliveryResult
from chat_bridge.storage.postgres import QUERIES
from chat_bridge.storage.store import Store
from tests.storage.dialogue import (
    ACCOUNTS,
    CHAT,
    HERE,
    assert_consistent,
    chat,
    claimed,
    deadlocks,
    ending,
    holding_sessions,
    looking,
    make_due,
    opened,
    opened_often,
    replied,
    said,
    tell_deadlocks_soon,
    waiters,
)

KEYED, UNKEYED = ["webchat"], ["slack"]


async def first_part(store: Store, to: Address = CHAT, text: str = "the answer", parts: int = 1) -> Delivery:
    """Answer a message; the delivery to be sent now."""
    delivery = await replied(store, to, text, parts)
    assert delivery is not None
    return delivery


async def rows(connection: asyncpg.Connection) -> list[tuple[int, str, int]]:
    found = await connection.fetch("select part, status, attempts from deliveries order by conversation_id, seq, part")
    return [tuple(row) for row in found]


def places(deliveries: Sequence[Delivery]) -> list[tuple[int, int]]:
    return [(delivery.seq, delivery.part) for delivery in deliveries]


async def send_all(store: Store, delivery: Delivery | None) -> list[tuple[int, int]]:
    """Send a delivery and all that follow; which they were."""
    sent: list[tuple[int, int]] = []
    while delivery is not None:
        sent.append((delivery.seq, delivery.part))
        delivery = await store.finish_delivery(DeliveryResult(delivery, "sent", f"platform-{len(sent)}"))
    return sent


# What came of it.


async def test_what_the_platform_answered_is_recorded(any_database: str) -> None:
    async with opened(any_database) as store, looking(any_database) as connection:
        one = await first_part(store, parts=3)
        two = await store.finish_delivery(DeliveryResult(one, "sent", "platform-1\x00"))
        assert two is not None
        three = await store.finish_delivery(DeliveryResult(two, "failed", error="too \x00 long"))
        assert three is not None
        assert await store.finish_delivery(DeliveryResult(three, "unknown", error="no answer")) is None
        found = await connection.fetch("select * from deliveries order by part")
        assert [row["status"] for row in found] == ["sent", "failed", "unknown"]
        assert [row["platform_message_id"] for row in found] == ["platform-1\ufffd", None, None]
        assert [row["error"] for row in found] == [None, "too \ufffd long", "no answer"]
        assert [row["sent_at"] is not None for row in found] == [True, False, False]
        assert [row["attempts"] for row in found] == [1, 1, 1]
        await make_due(connection)
        assert await outbox.due_deliveries(store.database, HERE, KEYED) == []
    await assert_consistent(any_database)


async def test_the_next_delivery_has_all_that_its_sender_needs(any_database: str) -> None:
    async with opened(any_database) as store, looking(any_database) as connection:
        place = Address("webchat", "main", "a-room", "a-thread")
        first = await first_part(store, place, "one", parts=2)
        assert await replied(store, place, "two", metadata={"buttons": [{"text": "yes"}]}, preview="shown") is None
        second = await store.finish_delivery(DeliveryResult(first, "sent", "p"))
        assert second is not None
        keys = [row[0] for row in await connection.fetch("select idempotency_key from deliveries order by seq, part")]
        assert second == replace(first, part=2, idempotency_key=keys[1])
        third = await store.finish_delivery(DeliveryResult(second, "sent", "q"))
        assert third is not None
        assert third == Delivery(
            place.id, 4, 1, 1, keys[2], third.message_id, place, "two", {"buttons": [{"text": "yes"}]}, "shown"
        )
        assert third.message_id not in (first.message_id, None)
        assert len(set(keys)) == 3
    await assert_consistent(any_database)


async def test_a_retry_comes_back_when_it_is_due(any_database: str) -> None:
    async with opened(any_database) as store, looking(any_database) as connection:
        first = await first_part(store)
        assert await store.finish_delivery(DeliveryResult(first, "pending", error="busy", retry_seconds=60)) is None
        assert await outbox.due_deliveries(store.database, HERE, KEYED) == []
        await make_due(connection)
        (again,) = await outbox.due_deliveries(store.database, HERE, UNKEYED)
        assert again == replace(first, attempt=2), "the same key, however often"
        await store.finish_delivery(DeliveryResult(again, "sent", "p"))
        assert await rows(connection) == [(1, "sent", 2)]


async def test_any_number_of_attempts_can_be_counted(any_database: str) -> None:
    async with opened(any_database) as store, looking(any_database) as connection:
        first = await first_part(store)
        await store.finish_delivery(DeliveryResult(first, "pending"))
        await connection.execute("update deliveries set attempts = 32767")
        await make_due(connection)
        (again,) = await outbox.due_deliveries(store.database, HERE, KEYED)
        assert again.attempt == 32768
        await store.finish_delivery(DeliveryResult(again, "sent", "p"))
        assert await rows(connection) == [(1, "sent", 32768)]


async def test_the_result_of_an_older_attempt_changes_nothing_and_takes_nothing(any_database: str) -> None:
    async with opened(any_database) as store, looking(any_database) as connection:
        slow = await first_part(store, parts=2)
        await make_due(connection)
        (quick,) = await outbox.due_deliveries(store.database, HERE, KEYED)
        for status, ends in (("failed", False), ("sent", False), ("failed", True)):
            assert await store.finish_delivery(DeliveryResult(slow, status, error="too late", ends=ends)) is None
        assert await rows(connection) == [(1, "sending", 2), (2, "pending", 0)]
        following = await store.finish_delivery(DeliveryResult(quick, "sent", "p"))
        assert following is not None
        for late in (slow, quick):
            assert await store.finish_delivery(DeliveryResult(late, "failed", ends=True)) is None
        assert await rows(connection) == [(1, "sent", 2), (2, "sending", 1)]
    await assert_consistent(any_database)


# Order.


async def test_only_the_first_part_is_sent_at_once(any_database: str) -> None:
    async with opened(any_database) as store, looking(any_database) as connection:
        first = await first_part(store, parts=3)
        assert await rows(connection) == [(1, "sending", 1), (2, "pending", 0), (3, "pending", 0)]
        await assert_consistent(any_database)
        assert await send_all(store, first) == [(2, 1), (2, 2), (2, 3)]
        assert await rows(connection) == [(part, "sent", 1) for part in (1, 2, 3)]
        assert (await first_part(store)).part == 1, "nothing is ahead of it any more"
    await assert_consistent(any_database)


async def test_a_reply_waits_for_the_replies_before_it(any_database: str) -> None:
    async with opened(any_database) as store, looking(any_database) as connection:
        first = await first_part(store, parts=2)
        assert await replied(store, parts=2) is None
        receipt = await store.receive(said())
        notice = await sessions.say(store.database, CHAT.id, receipt.session_id, "busy", {}, 1)
        assert notice is not None
        assert notice[2] is None, "it has to wait, too"
        assert await send_all(store, first) == [(2, 1), (2, 2), (4, 1), (4, 2), (6, 1)]
        await connection.execute("update sessions set error_told_at = null")
        notice = await sessions.say(store.database, CHAT.id, receipt.session_id, "busy", {}, 2)
        assert notice is not None
        key = await connection.fetchval("select idempotency_key from deliveries where status = 'sending'")
        assert notice[2] == key is not None
    await assert_consistent(any_database)


async def test_replies_of_other_conversations_do_not_wait(database: str) -> None:
    async with opened(database) as store:
        for number in range(3):
            assert (await first_part(store, chat(number), parts=2)).address == chat(number)
    await assert_consistent(database)


async def test_what_follows_waits_while_one_is_tried_again(any_database: str) -> None:
    async with opened(any_database) as store, looking(any_database) as connection:
        first = await first_part(store, parts=2)
        await store.finish_delivery(DeliveryResult(first, "pending", retry_seconds=600))
        assert await replied(store) is None
        await connection.execute(
            "update deliveries set next_attempt_at = now() - interval '1 s' where status <> 'pending' or attempts = 0"
        )
        assert await outbox.due_deliveries(store.database, HERE, KEYED) == []
        off = await connection.fetch("select next_attempt_at > now() as off from deliveries")
        assert [row["off"] for row in off] == [True, True, True], "put off, so that the sweep need not look each time"
        assert [row[1:] for row in await rows(connection)] == [("pending", 1), ("pending", 0), ("pending", 0)]
        await make_due(connection)
        (again,) = await outbox.due_deliveries(store.database, HERE, KEYED)
        assert await send_all(store, again) == [(2, 1), (2, 2), (4, 1)]
    await assert_consistent(any_database)


async def test_after_one_that_ends_the_conversation_all_that_follow_fail(any_database: str) -> None:
    async with opened(any_database) as store, looking(any_database) as connection:
        first = await first_part(store, parts=3)
        assert await replied(store) is None
        other = await first_part(store, chat("other"), parts=2)
        second = await store.finish_delivery(DeliveryResult(first, "sent", "p"))
        assert second is not None
        assert await store.finish_delivery(DeliveryResult(second, "failed", error="blocked", ends=True)) is None
        found = await connection.fetch(
            "select status, error from deliveries where conversation_id = $1 order by seq, part", CHAT.id
        )
        assert [tuple(row) for row in found] == [("sent", None), *[("failed", "blocked")] * 3]
        await make_due(connection)
        (again,) = await outbox.due_deliveries(store.database, HERE, KEYED)
        assert again.address == other.address
        assert (await first_part(store)).part == 1, "a later reply is tried"
    await assert_consistent(any_database)


async def test_many_conversations_at_once_each_get_their_own_next_delivery(database: str) -> None:
    async with opened(database) as store:
        firsts = await asyncio.gather(*(first_part(store, chat(n), f"{n}", parts=1 + n % 3) for n in range(30)))
        nexts = await asyncio.gather(*(store.finish_delivery(DeliveryResult(each, "sent")) for each in firsts))
        for number, following in enumerate(nexts):
            if number % 3 == 0:
                assert following is None
            else:
                assert following is not None
                assert (following.address, following.text, following.part) == (chat(number), f"{number}", 2)
    await assert_consistent(database)


async def test_a_notice_and_a_reply_at_once_are_not_sent_at_once(database: str) -> None:
    async with opened_often(database, 2) as (one, other):
        for notice_first in (False, True):
            place = chat(f"notice first: {notice_first}")
            receipt = await one.receive(said(to=place))
            turn = await claimed(one, place)
            completing, saying = (
                one.complete(ending(turn, parts=2)),
                sessions.say(other.database, place.id, receipt.session_id, "busy", {}, 2),
            )
            tasks: list[asyncio.Task[object]] = []
            async with holding_sessions(database, place) as connection:
                for number, work in enumerate((saying, completing) if notice_first else (completing, saying), 1):
                    tasks.append(asyncio.ensure_future(work))
                    await waiters(connection, number)
            await asyncio.gather(*tasks)
            async with looking(database) as connection:
                found = await connection.fetch(
                    "select status from deliveries where conversation_id = $1 order by seq, part", place.id
                )
            assert [row["status"] for row in found] == ["sending", "pending", "pending", "pending"]
    await assert_consistent(database)


async def test_a_reply_that_is_stored_while_the_one_before_it_ends_is_soon_found(any_database: str) -> None:
    async with opened(any_database) as store, looking(any_database) as sender:
        first = await first_part(store)
        transaction = sender.transaction()
        await transaction.start()
        # The sender sees nothing that follows, and who answers still sees it at work.
        taken = await sender.fetch(
            QUERIES["finish_deliveries"],
            [first.conversation_id],
            [first.seq],
            [1],
            ["sent"],
            ["p"],
            [None],
            [0.0],
            [1],
            [False],
            [False],
        )
        assert taken == []
        assert await replied(store) is None
        await transaction.commit()
        soon = "next_attempt_at <= clock_timestamp() + interval '10 s'"
        assert await sender.fetchval(f"select {soon} from deliveries where status = 'pending'")
        await make_due(sender)
        assert places(await outbox.due_deliveries(store.database, HERE, UNKEYED)) == [(4, 1)]
    await assert_consistent(any_database)


# Senders that died.


async def test_what_a_dead_sender_left_is_sent_again_where_the_platform_takes_a_key(any_database: str) -> None:
    async with opened(any_database) as store, looking(any_database) as connection:
        lost = await first_part(store, parts=2)
        assert await outbox.due_deliveries(store.database, HERE, KEYED) == [], "its sender may still be at it"
        await make_due(connection)
        assert await outbox.due_deliveries(store.database, HERE, KEYED) == [replace(lost, attempt=2, failures=1)]
        assert await outbox.due_deliveries(store.database, HERE, KEYED) == []
        await make_due(connection)
        (again,) = await outbox.due_deliveries(store.database, HERE, KEYED)
        assert again == replace(lost, attempt=3, failures=2)
        assert await send_all(store, again) == [(2, 1), (2, 2)]
    await assert_consistent(any_database)


async def test_what_a_dead_sender_left_is_unknown_where_the_platform_takes_no_key(any_database: str) -> None:
    async with opened(any_database) as store, looking(any_database) as connection:
        await first_part(store, parts=2)
        await make_due(connection)
        assert await outbox.due_deliveries(store.database, HERE, UNKEYED) == []
        assert (await rows(connection))[0] == (1, "unknown", 2)
        assert "before it heard" in await connection.fetchval("select error from deliveries where part = 1")
        await make_due(connection)
        (second,) = await outbox.due_deliveries(store.database, HERE, UNKEYED)
        assert (second.part, second.attempt) == (2, 1), "what follows was never sent"
        assert await send_all(store, second) == [(2, 2)]
        assert await rows(connection) == [(1, "unknown", 2), (2, "sent", 1)]
    await assert_consistent(any_database)


async def test_a_sender_that_dies_after_it_was_given_the_next_part(any_database: str) -> None:
    async with opened(any_database) as store, looking(any_database) as connection:
        first = await first_part(store, parts=3)
        assert await store.finish_delivery(DeliveryResult(first, "sent", "p")) is not None
        await make_due(connection)
        (again,) = await outbox.due_deliveries(store.database, HERE, KEYED)
        assert (again.part, again.attempt) == (2, 2)
        assert await send_all(store, again) == [(2, 2), (2, 3)]
        assert await rows(connection) == [(1, "sent", 1), (2, "sent", 2), (3, "sent", 1)]
    await assert_consistent(any_database)


async def test_a_reply_that_was_shown_as_it_grew_is_changed_again(any_database: str) -> None:
    async with opened(any_database) as store, looking(any_database) as connection:
        first = await replied(store, parts=2, preview="shown\x00")
        assert first is not None
        found = await connection.fetch("select platform_message_id from deliveries order by part")
        assert [row[0] for row in found] == ["shown\ufffd", None]
        await make_due(connection)
        (again,) = await outbox.due_deliveries(store.database, HERE, UNKEYED)
        assert again == replace(first, attempt=2, failures=1, replaces="shown\ufffd")
        second = await store.finish_delivery(DeliveryResult(again, "sent"))
        assert second is not None
        assert second.replaces is None
        assert await connection.fetchval("select platform_message_id from deliveries where part = 1") == "shown\ufffd"
        await make_due(connection)
        assert await outbox.due_deliveries(store.database, HERE, UNKEYED) == []
        assert await rows(connection) == [(1, "sent", 2), (2, "unknown", 2)], "only the first replaces what was shown"
    await assert_consistent(any_database)


async def test_a_preview_that_was_lost_can_be_followed_by_a_new_message(any_database: str) -> None:
    async with opened(any_database) as store, looking(any_database) as connection:
        first = await replied(store, preview="deleted by the user")
        assert first is not None
        await store.finish_delivery(DeliveryResult(first, "sent", "a new one"))
        assert await connection.fetchval("select platform_message_id from deliveries") == "a new one"


# Who takes what.


async def test_due_deliveries_come_longest_due_first(database: str) -> None:
    async with opened(database) as store, looking(database) as connection:
        for number in range(4):
            await first_part(store, chat(number), parts=2)
        for number, minutes in ((2, 9), (0, 8), (1, 2), (3, 2)):
            await connection.execute(
                "update deliveries set next_attempt_at = now() - $2 * interval '1 minute' where conversation_id = $1 "
                "and part = 1",
                chat(number).id,
                minutes,
            )
        taken = await outbox.due_deliveries(store.database, HERE, KEYED, 2)
        assert {delivery.address for delivery in taken} == {chat(2), chat(0)}
        assert taken == sorted(taken, key=lambda each: (each.conversation_id, each.seq, each.part))
        rest = await outbox.due_deliveries(store.database, HERE, KEYED, 100)
        assert {delivery.address for delivery in rest} == {chat(1), chat(3)}


async def test_the_due_deliveries_of_one_conversation(any_database: str) -> None:
    async with opened(any_database) as store, looking(any_database) as connection:
        for number in range(3):
            await first_part(store, chat(number), parts=2)
        await make_due(connection)
        (taken,) = await outbox.due_deliveries(store.database, HERE, KEYED, conversation=chat(1).id)
        assert taken.address == chat(1)
        assert await outbox.due_deliveries(store.database, HERE, KEYED, conversation=chat("none").id) == []
        rest = await outbox.due_deliveries(store.database, HERE, KEYED)
        assert {delivery.address for delivery in rest} == {chat(0), chat(2)}


async def test_the_due_deliveries_of_the_given_accounts(any_database: str) -> None:
    places = [replace(CHAT, platform=platform, account=account) for platform, account in ACCOUNTS]
    async with opened(any_database) as store, looking(any_database) as connection:
        for place in places:
            await first_part(store, place)
        await make_due(connection)
        for served in ([], [("slack", "none")]):
            assert await outbox.due_deliveries(store.database, served, UNKEYED) == []
        assert await rows(connection) == [(1, "sending", 1)] * 4, "those of others are not even lost"
        taken = await outbox.due_deliveries(store.database, [ACCOUNTS[1], ACCOUNTS[2]], [*KEYED, "slack"])
        assert {delivery.address for delivery in taken} == {places[1], places[2]}


async def test_two_processes_never_take_the_same_delivery(any_database: str) -> None:
    async with opened_often(any_database, 4) as stores, looking(any_database) as connection:
        for number in range(30):
            await first_part(stores[0], chat(number), parts=2)
        await make_due(connection)
        taken = await asyncio.gather(
            *(outbox.due_deliveries(store.database, HERE, KEYED, 3) for store in stores for _ in range(5))
        )
        all_taken = [(each.conversation_id, each.part) for batch in taken for each in batch]
        while more := await outbox.due_deliveries(stores[0].database, HERE, KEYED, 7):
            all_taken += [(each.conversation_id, each.part) for each in more]
        # A small batch may have been full of second parts, which are put off.
        await connection.execute("update deliveries set next_attempt_at = now() where status = 'pending'")
        assert await outbox.due_deliveries(stores[0].database, HERE, KEYED) == []
        assert sorted(all_taken) == sorted((chat(number).id, 1) for number in range(30))
        assert set(await rows(connection)) == {(1, "sending", 2), (2, "pending", 0)}
    await assert_consistent(any_database)


async def test_a_delivery_that_another_process_is_taking_is_left_to_it(database: str) -> None:
    async with opened(database) as store, looking(database) as connection, looking(database) as other:
        await first_part(store, chat(1))
        await first_part(store, chat(2))
        await make_due(connection)
        async with other.transaction():
            await other.execute("select from deliveries where conversation_id = $1 for update", chat(1).id)
            assert [each.address for each in await outbox.due_deliveries(store.database, HERE, KEYED)] == [chat(2)]
        assert [each.address for each in await outbox.due_deliveries(store.database, HERE, KEYED)] == [chat(1)]
    await assert_consistent(database)


async def test_many_senders_that_say_the_same_result_get_one_next_delivery(any_database: str) -> None:
    await tell_deadlocks_soon(any_database)
    async with opened_often(any_database, 4) as stores:
        firsts = [await first_part(stores[0], chat(number), parts=2) for number in range(10)]
        told = await asyncio.gather(
            *(store.finish_delivery(DeliveryResult(each, "sent")) for each in firsts for store in stores),
            *(outbox.due_deliveries(store.database, HERE, KEYED) for store in stores),
        )
        following = [each for each in told if isinstance(each, Delivery)]
        assert sorted(each.address.conversation for each in following) == [f"chat-{n}" for n in range(10)]
    assert await deadlocks(any_database) == 0
    await assert_consistent(any_database)
