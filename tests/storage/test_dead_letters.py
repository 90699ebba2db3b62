"""Dead letters: what was given up can be found, tried again and laid aside; so can messages that kill their workers."""

from dataclasses import replace
from uuid import UUID

import asyncpg

from chat_bridge.model import Address, BusyPolicy, MessageId, TurnOutcome, new_message_id
from chat_bridge.storage import dead_letters, outbox, sessions, turns
from chat_bridge.storage.dead_letters import NEWEST, DeadLetter
from chat_bridge.storage.outbox import MOST_FAILURES, Delivery, DeliveryResult
from chat_bridge.storage.store import Store
from chat_bridge.storage.turns import SetAside
from tests.storage.dialogue import (
    CHAT,
    HERE,
    answer_all,
    assert_consistent,
    chat,
    claimed,
    command,
    ending,
    looking,
    make_due,
    opened,
    replied,
    said,
    statuses,
    texts,
    wish,
)


async def dead_reply(store: Store, to: Address = CHAT, parts: int = 1) -> Delivery:
    """A reply whose first part is refused."""
    delivery = await replied(store, to, parts=parts)
    assert delivery is not None
    await store.finish_delivery(DeliveryResult(delivery, "failed", error="refused"))
    return delivery


async def failed_message(store: Store, text: str = "hello", to: Address = CHAT) -> MessageId:
    """A message whose turn fails."""
    await store.receive(said(text, to=to))
    turn = await claimed(store, to)
    assert await store.complete(ending(turn, "sorry", TurnOutcome.UNREACHABLE, parts=0)) is not None
    return turn.messages[-1].id


async def letters(store: Store) -> list[tuple[str, MessageId, int, str]]:
    found = await dead_letters.list_dead_letters(store.database)
    return [(letter.kind, letter.message_id, letter.part, letter.status) for letter in found]


async def lose_turn(store: Store, connection: asyncpg.Connection) -> list[SetAside]:
    """The worker of every running turn dies; what the sweep makes of it."""
    await connection.execute("update turns set lease_until = now() - interval '1 s' where status = 'running'")
    lost = await turns.recover(store.database, HERE)
    assert lost
    return list(await turns.set_aside(store.database, lost))


# What the list shows.


async def test_replies_and_messages_are_listed_newest_first(any_database: str) -> None:
    async with opened(any_database) as store:
        assert await letters(store) == []
        reply = await dead_reply(store, chat(1))
        message = await failed_message(store, to=chat(2))
        lost = await dead_reply(store, Address("slack", "main", "C1"), parts=2)
        found = await dead_letters.list_dead_letters(store.database)
        assert [(letter.kind, letter.message_id, letter.part) for letter in found] == [
            ("reply", lost.message_id, 1),
            ("message", message, 0),
            ("reply", reply.message_id, 1),
        ]
        assert found[0].address == Address("slack", "main", "C1")
        assert (found[0].reason, found[1].reason, found[1].attempts) == ("refused", "unreachable", 0)
        of_slack = await dead_letters.list_dead_letters(store.database, platform="slack")
        assert [letter.message_id for letter in of_slack] == [lost.message_id]
    await assert_consistent(any_database)


async def test_pages_hold_each_dead_letter_once(any_database: str) -> None:
    async with opened(any_database) as store, looking(any_database) as connection:
        for number in range(7):
            await dead_reply(store, chat(number))
            await failed_message(store, to=chat(f"m{number}"))
        # Many may die in one moment.
        await connection.execute("update deliveries set next_attempt_at = '2026-01-01' where part = 1")
        await connection.execute("update messages set created_at = '2026-01-01' where status = 'failed'")
        seen: list[DeadLetter] = []
        after = NEWEST
        while page := await dead_letters.list_dead_letters(store.database, after=after, limit=3):
            seen += page
            after = page[-1].place
        assert len({letter.message_id for letter in seen}) == len(seen) == 14


# Trying again.


async def test_a_dead_reply_is_sent_again_with_its_key(any_database: str) -> None:
    async with opened(any_database) as store:
        dead = await dead_reply(store)
        assert await dead_letters.retry(store, dead.message_id)
        assert await letters(store) == []
        (again,) = await outbox.due_deliveries(store.database, HERE, [])
        assert again == replace(dead, attempt=2)
        await store.finish_delivery(DeliveryResult(again, "sent", "p"))
        assert not await dead_letters.retry(store, dead.message_id)
        assert await outbox.due_deliveries(store.database, HERE, []) == []
    await assert_consistent(any_database)


async def test_dead_replies_of_one_conversation_go_one_after_another(any_database: str) -> None:
    async with opened(any_database) as store, looking(any_database) as connection:
        dead = [await dead_reply(store) for _ in range(2)]
        between = await replied(store)
        assert between is not None
        await store.finish_delivery(DeliveryResult(between, "sent", "p"))
        dead.append(await dead_reply(store))
        for each in reversed(dead):
            assert await dead_letters.retry(store, each.message_id)
        order: list[MessageId] = []
        while len(order) < len(dead):
            await make_due(connection)
            (one,) = await outbox.due_deliveries(store.database, HERE, [])
            await connection.execute("update deliveries set next_attempt_at = now() where status = 'pending'")
            assert await outbox.due_deliveries(store.database, HERE, []) == [], "while one is on its way"
            following: Delivery | None = one
            while following is not None:
                order.append(following.message_id)
                following = await store.finish_delivery(DeliveryResult(following, "sent", "p"))
        assert order == [each.message_id for each in dead]
    await assert_consistent(any_database)


async def test_a_retried_reply_has_all_its_tries_again(any_database: str) -> None:
    async with opened(any_database) as store, looking(any_database) as connection:
        dead = await dead_reply(store)
        await connection.execute("update deliveries set failures = 8, give_up_at = now() - interval '1 day'")
        assert await dead_letters.retry(store, dead.message_id)
        (again,) = await outbox.due_deliveries(store.database, HERE, [])
        assert (again.failures, again.last_try) == (0, False)


async def test_a_failed_message_is_answered_after_all_at_the_end_of_its_conversation(any_database: str) -> None:
    async with opened(any_database) as store:
        failed = await failed_message(store, "what is it?")
        await store.receive(said("another"))
        await answer_all(store)
        assert await dead_letters.retry(store, failed)
        assert await letters(store) == []
        turn = await claimed(store)
        assert texts(turn) == ["what is it?"]
        assert turn.messages[0].metadata["replay_of"] == str(failed)
        assert await store.complete(ending(turn)) is not None
        assert not await dead_letters.retry(store, failed), "it was tried again already"
    await assert_consistent(any_database)


async def test_a_replay_is_never_too_much(any_database: str) -> None:
    async with opened(any_database) as store:
        failed = await failed_message(store)
        waiting = await store.receive(said("another"))
        await sessions.set_busy_policy(store.database, waiting.session_id, BusyPolicy.REJECT)
        await store.receive(said("too much"))
        assert (await statuses(store))["too much"] == "skipped"
        assert await dead_letters.retry(store, failed)
        assert texts(await claimed(store)) == ["another", "hello"]
    await assert_consistent(any_database)


async def test_a_replay_that_died_half_way_is_not_doubled(any_database: str) -> None:
    async with opened(any_database) as store, looking(any_database) as connection:
        failed = await failed_message(store)
        assert await dead_letters.retry(store, failed)
        await connection.execute("update messages set metadata = metadata - 'replayed_as' where status = 'failed'")
        assert await dead_letters.retry(store, failed)
        assert texts(await claimed(store)) == ["hello"]
        assert await connection.fetchval("select count(*) from messages where direction = 'inbound'") == 2


# Laying aside.


async def test_what_is_purged_is_gone_from_the_list_alone(any_database: str) -> None:
    async with opened(any_database) as store, looking(any_database) as connection:
        reply, message = await dead_reply(store, chat(1)), await failed_message(store, to=chat(2))
        for each in (reply.message_id, message):
            assert await dead_letters.purge(store.database, each)
            assert not await dead_letters.purge(store.database, each)
            assert not await dead_letters.retry(store, each)
        assert await letters(store) == []
        assert await connection.fetchval("select status || ' ' || error from deliveries") == "purged refused"
        await answer_all(store, chat(1))
    await assert_consistent(any_database)


async def test_other_messages_are_no_dead_letters(any_database: str) -> None:
    async with opened(any_database) as store:
        await store.receive(said("fine"))
        await answer_all(store)
        for message in [*(stored.id for stored in await store.history(CHAT.id)), MessageId(UUID(int=1))]:
            assert not await dead_letters.retry(store, message)
            assert not await dead_letters.purge(store.database, message)


# Limits of trying.


async def test_a_sender_that_dies_each_time_is_not_asked_for_ever(any_database: str) -> None:
    async with opened(any_database) as store, looking(any_database) as connection:
        assert await replied(store) is not None
        for _ in range(MOST_FAILURES - 1):
            await make_due(connection)
            assert len(await outbox.due_deliveries(store.database, HERE, ["webchat"])) == 1
        await make_due(connection)
        assert await outbox.due_deliveries(store.database, HERE, ["webchat"]) == []
        ((kind, _, _, status),) = await letters(store)
        assert (kind, status) == ("reply", "failed")


# Messages that kill their workers.


async def test_a_message_that_loses_three_turns_is_set_aside(any_database: str) -> None:
    async with opened(any_database) as store, looking(any_database) as connection:
        await store.receive(said("poison"))
        for _ in range(2):
            poison = (await claimed(store)).messages[0].id
            assert await lose_turn(store, connection) == []
        turn = await claimed(store)
        aside = await lose_turn(store, connection)
        assert aside == [SetAside(poison, turn.session_id, CHAT)]
        assert await store.claim(wish()) is None
        assert await turns.find_pending(store.database, HERE) == []
        assert await statuses(store) == {"poison": "failed"}
        assert [(kind, message) for kind, message, _, _ in await letters(store)] == [("message", poison)]
        await store.receive(said("next"))
        assert texts(await claimed(store)) == ["next"]
    await assert_consistent(any_database)


async def test_only_the_message_to_blame_is_set_aside(any_database: str) -> None:
    async with opened(any_database) as store, looking(any_database) as connection:
        for text in ("one", "poison", "three"):
            await store.receive(said(text))
        for _ in range(2):
            assert texts(await claimed(store)) == ["one", "poison", "three"]
            assert await lose_turn(store, connection) == []
        await store.receive(said("four"))
        answered: list[str] = []
        while (turn := await store.claim(wish())) is not None:
            if "poison" in texts(turn):
                assert texts(turn) == ["poison"], "alone, so that it is known which it is"
                assert len(await lose_turn(store, connection)) == 1
            else:
                answered += texts(turn)
                assert await store.complete(ending(turn)) is not None
        assert answered == ["one", "three", "four"]
        assert await statuses(store) == {"one": "answered", "poison": "failed", "three": "answered", "four": "answered"}
    await assert_consistent(any_database)


async def test_what_came_while_a_message_was_set_aside_waits_on(any_database: str) -> None:
    async with opened(any_database) as store, looking(any_database) as connection:
        await store.receive(said("poison"))
        for _ in range(2):
            await claimed(store)
            await lose_turn(store, connection)
        await claimed(store)
        await store.receive(said("next"))
        assert len(await lose_turn(store, connection)) == 1
        assert [found for found, _ in await turns.find_pending(store.database, HERE)] == [CHAT.id]
        assert texts(await claimed(store)) == ["next"]
    await assert_consistent(any_database)


async def test_turns_that_were_handed_back_do_not_count(any_database: str) -> None:
    async with opened(any_database) as store, looking(any_database) as connection:
        await store.receive(said("hello"))
        for _ in range(5):
            turn = await claimed(store)
            await turns.supersede(store.database, CHAT.id, "handed_back", turn.id)
        await claimed(store)
        assert await lose_turn(store, connection) == []
        assert texts(await claimed(store)) == ["hello"]


async def test_a_stop_still_takes_suspects_along(any_database: str) -> None:
    async with opened(any_database) as store, looking(any_database) as connection:
        for text in ("one", "two"):
            await store.receive(said(text))
        for _ in range(2):
            await claimed(store)
            await lose_turn(store, connection)
        await store.receive(command("/stop"))
        turn = await claimed(store)
        assert texts(turn) == ["/stop"]
        assert await store.complete(ending(turn, "stopped", content_type="notice")) is not None
        assert set((await statuses(store)).values()) == {"cancelled", "answered"}
    await assert_consistent(any_database)


async def test_the_policy_latest_answers_the_newest_after_all(any_database: str) -> None:
    async with opened(any_database) as store, looking(any_database) as connection:
        await store.receive(said("one"))
        for _ in range(2):
            await claimed(store, policy=BusyPolicy.LATEST)
            await lose_turn(store, connection)
        await store.receive(said("two"))
        assert texts(await claimed(store, policy=BusyPolicy.LATEST)) == ["one"]
        await lose_turn(store, connection)
        assert texts(await claimed(store, policy=BusyPolicy.LATEST)) == ["two"]
    await assert_consistent(any_database)


async def test_a_process_that_dies_before_it_sets_aside_costs_one_more_turn(any_database: str) -> None:
    async with opened(any_database) as store, looking(any_database) as connection:
        await store.receive(said("poison"))
        for _ in range(3):
            await claimed(store)
            await connection.execute("update turns set lease_until = now() - interval '1 s' where status = 'running'")
            await turns.recover(store.database, HERE)
        assert texts(await claimed(store)) == ["poison"]
        assert len(await lose_turn(store, connection)) == 1
    await assert_consistent(any_database)


async def test_in_a_closed_session_nothing_is_set_aside(any_database: str) -> None:
    async with opened(any_database) as store, looking(any_database) as connection:
        await store.receive(said("poison"))
        for _ in range(2):
            await claimed(store)
            await lose_turn(store, connection)
        turn = await claimed(store)
        await connection.execute("update turns set lease_until = now() - interval '1 s' where status = 'running'")
        lost = await turns.recover(store.database, HERE)
        await connection.execute(
            "update sessions set status = 'closed', pending_since = null, answered_seq = last_inbound_seq"
        )
        await connection.execute("delete from waiting")
        assert await turns.set_aside(store.database, lost) == []
        assert await store.complete(replace(ending(turn), message_id=new_message_id())) is None
