"""Moves: a platform gives a conversation a new id, and everything of it goes on there."""

import asyncio
import random
from dataclasses import replace

import pytest

from chat_bridge.model import Address, BusyPolicy, ReceiveStatus
from chat_bridge.storage import messages, outbox, sessions, turns
from chat_bridge.storage.outbox import DeliveryResult
from chat_bridge.storage.sessions import SessionFilter
from chat_bridge.storage.store import Store
from tests.storage.dialogue import (
    HERE,
    answer_all,
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
    statuses,
    tell_deadlocks_soon,
    texts,
    waiters,
    wish,
)

OLD = Address("webchat", "main", "group")
NEW = Address("webchat", "main", "supergroup")


async def test_everything_moves_to_the_new_id(any_database: str) -> None:
    async with opened(any_database) as store, looking(any_database) as connection:
        first = await store.receive(said("one", to=OLD, key="k"))
        await sessions.set_busy_policy(store.database, first.session_id, BusyPolicy.COLLECT)
        await store.complete(ending(await claimed(store, OLD), parts=2), follow_with_new_session=True)
        await store.receive(said("two", to=OLD))
        await replied(store, chat("bystander"))
        assert await sessions.move(store.database, OLD, NEW)
        assert await store.history(OLD.id) == []
        assert [message.text for message in await store.history(NEW.id)] == ["one", "the answer", "two"]
        found = await sessions.list_sessions(store.database, SessionFilter(conversation_id=NEW.id), 10)
        assert [(session.status, session.address) for session in found] == [("active", NEW), ("closed", NEW)]
        for session in found:
            assert session.metadata == {"busy_policy": "collect", "resource": "webchat:main:group"}
        assert await turns.find_pending(store.database, HERE) == [(NEW.id, "webchat")]
        left = await connection.fetchval(
            """select count(*) from (
              select conversation_id from sessions union all select conversation_id from messages union all
              select conversation_id from turns union all select conversation_id from deliveries union all
              select conversation_id from waiting) x where conversation_id = $1""",
            OLD.id,
        )
        assert left == 0
        again = await store.receive(said("one", to=NEW, key="k"))
        assert (again.status, again.session_id) == (ReceiveStatus.DUPLICATE, first.session_id)
        following = await store.receive(said("three", to=NEW))
        assert (following.seq, following.session_id) == (4, found[0].id)
        turn = await claimed(store, NEW)
        assert (texts(turn), turn.address) == (["two", "three"], NEW)
        assert turn.metadata["resource"] == "webchat:main:group"
        assert await store.claim(wish(chat("bystander"))) is None
    await assert_consistent(any_database)


async def test_a_turn_that_runs_is_taken_away_and_its_messages_wait_at_the_new_id(any_database: str) -> None:
    async with opened(any_database) as store:
        await store.receive(said("one", to=OLD))
        turn = await claimed(store, OLD)
        assert await sessions.move(store.database, OLD, NEW)
        assert await turns.renew(store.database, [turn], 30) == set()
        await turns.note(store.database, turn, {"preview": "stale"})
        for new_session in (False, True):
            assert await store.complete(ending(turn, "stale"), follow_with_new_session=new_session) is None
        following = await claimed(store, NEW)
        assert (texts(following), "preview" in following.metadata) == (["one"], False)
        assert await store.complete(ending(following)) is not None
        assert await statuses(store, NEW) == {"one": "answered"}
    await assert_consistent(any_database)


async def test_what_was_not_sent_is_sent_to_the_new_id(any_database: str) -> None:
    async with opened(any_database) as store, looking(any_database) as connection:
        first = await replied(store, OLD, parts=2)
        assert first is not None
        await store.finish_delivery(DeliveryResult(first, "pending", error="it has a new id"))
        assert await sessions.move(store.database, OLD, NEW)
        await make_due(connection)
        (again,) = await outbox.due_deliveries(store.database, HERE, [], conversation=NEW.id)
        assert again == replace(first, conversation_id=NEW.id, address=NEW, attempt=2)
        second = await store.finish_delivery(DeliveryResult(again, "sent"))
        assert second is not None
        assert (second.part, second.address) == (2, NEW)
        assert await store.finish_delivery(DeliveryResult(first, "sent")) is None
    await assert_consistent(any_database)


@pytest.mark.parametrize("used", [False, True])
async def test_the_platforms_ids_of_messages_do_not_move(any_database: str, used: bool) -> None:
    async with opened(any_database) as store, looking(any_database) as connection:
        if used:
            await answered(store, NEW, "elsewhere")
        await answered(store, OLD, "sent")
        delivery = await replied(store, OLD, preview="shown", metadata={"reply_to": "5", "kept": True})
        assert delivery is not None
        await store.finish_delivery(DeliveryResult(delivery, "pending"))
        await store.receive(said("next", to=OLD, platform_message_id="7"))
        lost = await claimed(store, OLD)
        await turns.note(store.database, lost, {"preview": "grows"})
        assert await sessions.move(store.database, OLD, NEW)
        place = OLD if used else NEW
        assert await store.complete(ending(lost, preview="grows")) is None, "the turn was taken away"
        turn = await claimed(store, place)
        assert (texts(turn), turn.address, turn.messages[0].platform_message_id) == (["next"], NEW, None)
        assert turn.metadata == {"resource": "webchat:main:group"}
        await make_due(connection)
        (again,) = await outbox.due_deliveries(store.database, HERE, [], conversation=place.id)
        assert (again.replaces, again.metadata, again.address) == (None, {"kept": True}, NEW)
        ids = await connection.fetch("select platform_message_id from deliveries where status = 'sent'")
        assert sorted(row[0] for row in ids) == (["elsewhere", "sent"] if used else ["sent"]), "it is a record"
        if used:
            assert await sessions.move(store.database, OLD, NEW)
            assert await turns.renew(store.database, [turn], 30) == {turn.id}, "it knows the new id"
    await assert_consistent(any_database)


async def answered(store: Store, to: Address, platform_message_id: str) -> None:
    delivery = await replied(store, to)
    assert delivery is not None
    await store.finish_delivery(DeliveryResult(delivery, "sent", platform_message_id))


async def test_where_a_conversation_lives_now(any_database: str) -> None:
    old, new = replace(OLD, thread="t"), replace(NEW, thread="t")
    async with opened(any_database) as store:
        await store.receive(said(to=old))
        assert await sessions.moved_to(store.database, old) is None
        assert await sessions.move(store.database, old, new)
        assert await sessions.moved_to(store.database, old) == new
        assert await sessions.moved_to(store.database, new) is None
        assert await sessions.moved_to(store.database, OLD) is None, "another thread"


async def test_what_lives_on_under_its_old_id_has_not_moved(database: str) -> None:
    async with opened(database) as store:
        for place in (OLD, NEW):
            await store.receive(said(to=place, key="k"))
        assert await sessions.move(store.database, OLD, NEW)
        assert await sessions.moved_to(store.database, OLD) is None
        assert (await store.receive(said(to=OLD, key="k"))).status is ReceiveStatus.DUPLICATE


async def test_there_is_nothing_to_move(any_database: str) -> None:
    async with opened(any_database) as store:
        assert not await sessions.move(store.database, OLD, NEW)
        await store.receive(said("one", to=OLD))
        assert await sessions.move(store.database, OLD, NEW)
        assert not await sessions.move(store.database, OLD, NEW), "it has moved"
        await answer_all(store, NEW)
    await assert_consistent(any_database)


async def test_a_conversation_that_moves_twice_keeps_its_first_owner(any_database: str) -> None:
    third = Address("webchat", "main", "third")
    async with opened(any_database) as store:
        receipt = await store.receive(said("one", to=OLD))
        assert await sessions.move(store.database, OLD, NEW)
        assert await sessions.move(store.database, NEW, third)
        session = await sessions.get_session(store.database, receipt.session_id)
        assert session is not None
        assert (session.address, session.metadata) == (third, {"resource": "webchat:main:group"})
    await assert_consistent(any_database)


async def test_a_new_id_that_is_in_use_gets_the_old_sessions_as_its_past(any_database: str) -> None:
    async with opened(any_database) as store:
        old = await store.receive(said("old", to=OLD))
        first = await store.receive(said("new", to=NEW))
        await store.complete(ending(await claimed(store, NEW)), follow_with_new_session=True)
        for _ in range(2):
            assert await sessions.move(store.database, OLD, NEW)
            turn = await store.claim(wish(OLD))
            if turn is not None:
                assert turn.address == NEW, "its answer goes where people are now"
                assert turn.metadata["resource"] == "webchat:main:group"
                await store.complete(ending(turn))
        found = await sessions.list_sessions(store.database, SessionFilter(conversation="supergroup"), 10)
        assert {session.id: session.parent_session_id for session in found} == {
            found[0].id: first.session_id,
            first.session_id: old.session_id,
            old.session_id: None,
        }
        assert "resource" not in found[0].metadata
        assert await statuses(store, OLD) == {"old": "answered"}
        assert await statuses(store, NEW) == {"new": "answered"}
    await assert_consistent(any_database)


async def test_what_comes_under_the_old_id_after_a_move_is_no_ancestor_of_itself(any_database: str) -> None:
    async with opened_often(any_database, 2) as (one, other):
        await one.receive(said("one", to=OLD))
        # It asks for the session while that moves, and so opens one that follows it.
        async with holding_sessions(any_database, OLD) as connection:
            moving = asyncio.ensure_future(sessions.move(one.database, OLD, NEW))
            await waiters(connection, 1)
            receiving = asyncio.ensure_future(other.receive(said("late", to=OLD)))
            await waiters(connection, 2)
        assert await moving
        assert (await receiving).status is ReceiveStatus.ACCEPTED
        assert await sessions.move(one.database, OLD, NEW)
        await assert_consistent(any_database)
        for place in (OLD, NEW):
            await answer_all(one, place)
        assert (await statuses(one, OLD), await statuses(one, NEW)) == ({"late": "answered"}, {"one": "answered"})
    await assert_consistent(any_database)


async def test_moves_at_once_move_once(any_database: str) -> None:
    async with opened_often(any_database, 4) as stores:
        await stores[0].receive(said("one", to=OLD))
        moved = await asyncio.gather(*(sessions.move(store.database, OLD, NEW) for store in stores for _ in range(3)))
        assert sorted(moved) == [False] * 11 + [True]
        assert texts(await claimed(stores[0], NEW)) == ["one"]
    await assert_consistent(any_database)


async def test_a_message_that_comes_under_the_new_id_during_the_move(any_database: str) -> None:
    async with opened_often(any_database, 2) as (one, other):
        for number in range(10):
            old, new = chat(f"old-{number}"), chat(f"new-{number}")
            receipt = await one.receive(said("old", to=old))
            if number % 2:
                await answer_all(one, old)
                await sessions.close_session(one.database, receipt.session_id)
            async with holding_sessions(any_database, old) as connection:
                moving = asyncio.ensure_future(sessions.move(one.database, old, new))
                await waiters(connection, 1)
                # The move has not seen the new id in use.
                assert (await other.receive(said("new", to=new))).status is ReceiveStatus.ACCEPTED
            assert await moving
            for place in (old, new):
                await answer_all(one, place)
            assert {**await statuses(one, old), **await statuses(one, new)} == {"old": "answered", "new": "answered"}
    await assert_consistent(any_database)


async def test_moves_while_everything_happens_lose_nothing(database: str) -> None:
    await tell_deadlocks_soon(database)
    async with opened_often(database, 3) as stores:
        for number in range(12):
            old, new = chat(f"old-{number}"), chat(f"new-{number}")
            chance = random.Random(number)
            chance_place = chance.choice([old, new])
            edits = [said("edited", to=place, key="edit", about="before 0").event for place in (old, new)]
            for n in range(6):
                await stores[0].receive(said("before", to=old, key=f"before {n}"))
                await replied(stores[0], old, parts=3)
            async with looking(database) as connection:
                await connection.execute("update deliveries set next_attempt_at = now() where status <> 'sent'")

            async def send(store: int, place: Address) -> None:
                for delivery in await outbox.due_deliveries(
                    stores[store].database, HERE, ["webchat"], conversation=place.id
                ):
                    following = delivery
                    while following is not None:
                        following = await stores[store].finish_delivery(DeliveryResult(following, "sent"))

            work = [
                sessions.move(stores[1].database, old, new),
                send(2, old),
                send(0, new),
                *(messages.edit(stores[1].database, event) for event in edits),
                # Not both ids to one store: they would share a statement, as in the test after this one.
                *(stores[n % 3].receive(said(f"{n}", to=(old, new, chance_place)[n % 3])) for n in range(20)),
                *(stores[n].claim(wish(old)) for n in range(3)),
                turns.recover(stores[0].database, HERE, all_owners=True),
            ]
            chance.shuffle(work)
            await asyncio.gather(*work)
            await turns.recover(stores[0].database, HERE, all_owners=True)
            await sessions.move(stores[0].database, old, new)
            for place in (old, new):
                await answer_all(stores[0], place)
            kept = [
                message.text
                for place in (old, new)
                for message in await stores[0].history(place.id, limit=1000)
                if message.direction == "inbound"
            ]
            assert sorted(kept) == sorted(["before"] * 6 + ["hello"] * 6 + [f"{n}" for n in range(20)])
    assert await deadlocks(database) == 0
    await assert_consistent(database)


async def test_a_batch_for_both_ids_and_a_move_get_out_of_their_ring(any_database: str) -> None:
    await tell_deadlocks_soon(any_database)
    old, new = sorted((OLD, NEW), key=lambda place: place.id, reverse=True)  # a batch locks the new one first
    async with opened_often(any_database, 2) as (one, other):
        await one.receive(said("before", to=old))
        async with holding_sessions(any_database, old) as connection:
            moving = asyncio.ensure_future(sessions.move(one.database, old, new))
            await waiters(connection, 1)
            receiving = asyncio.gather(*(other.receive(said(place.conversation, to=place)) for place in (old, new)))
            await waiters(connection, 2)
        assert await moving
        assert [receipt.status for receipt in await receiving] == [ReceiveStatus.ACCEPTED] * 2
        answered = {}
        for place in (old, new):
            await answer_all(one, place)
            answered |= await statuses(one, place)
        assert answered == dict.fromkeys(("before", old.conversation, new.conversation), "answered")
    assert await deadlocks(any_database) >= 1  # one that begins again may meet the other once more
    await assert_consistent(any_database)


async def test_moving_while_parts_are_being_sent_never_deadlocks(database: str) -> None:
    await tell_deadlocks_soon(database)
    async with opened_often(database, 2) as (one, other):
        for number in range(60):
            old, new = chat(f"old-{number}"), chat(f"new-{number}")
            delivery = await replied(one, old, parts=20)
            moving = asyncio.ensure_future(sessions.move(other.database, old, new))
            while delivery is not None:
                delivery = await one.finish_delivery(DeliveryResult(delivery, "sent"))
            await moving
    assert await deadlocks(database) == 0
    await assert_consistent(database)


async def test_the_active_sessions_of_a_chat_in_all_its_threads(any_database: str) -> None:
    threads = [replace(OLD, thread=thread) for thread in ("", "a", "b")]
    async with opened(any_database) as store:
        receipts = [await store.receive(said(to=place)) for place in threads]
        for other in (replace(OLD, platform="slack"), replace(OLD, account="other"), NEW):
            await store.receive(said(to=other))
        await sessions.close_session(store.database, receipts[1].session_id)
        expected = {(receipts[n].session_id, threads[n].id) for n in (0, 2)}
        for place in threads:
            assert set(await sessions.active_in(store.database, place)) == expected
        assert await sessions.active_in(store.database, replace(OLD, conversation="none\x00")) == []
        odd = replace(OLD, conversation="odd\x00")
        await store.receive(said(to=odd))
        assert [conversation for _, conversation in await sessions.active_in(store.database, odd)] == [odd.id]
