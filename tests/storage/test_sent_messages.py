"""Messages that programs send: stored once for each key, in order with the replies, and no turn's business."""

import asyncio
from typing import Any

import pytest

from chat_bridge.model import Address, Attachment, Session, SessionId
from chat_bridge.storage import attachments, outbox, sessions
from chat_bridge.storage.attachments import Facts
from chat_bridge.storage.outbox import SentMessage
from chat_bridge.storage.store import Store
from tests.storage.dialogue import (
    CHAT,
    HERE,
    assert_consistent,
    chat,
    claimed,
    ending,
    holding_sessions,
    looking,
    opened,
    opened_often,
    replied,
    said,
    texts,
    waiters,
)

# What a message of a program may change about its session.
CHANGED = {"next_seq", "message_count", "last_activity", "error_told_at"}


async def session_of(store: Store, to: Address = CHAT) -> Session:
    receipt = await store.receive(said(to=to))
    return await found(store, receipt.session_id)


async def found(store: Store, session: SessionId) -> Session:
    there = await sessions.get_session(store.database, session)
    assert there is not None
    return there


async def sent(
    store: Store, session: Session, key: str = "1", text: str = "news", *uploads: Attachment, parts: int = 1
) -> Any:
    return await outbox.store_message(store.database, session, key, text, uploads, {}, parts)


async def upload(store: Store, to: Address = CHAT) -> Attachment:
    told = Attachment("file", "text/plain", "", "a.txt", 1)
    id_ = await attachments.add_upload(store.database, to.id, told)
    content = await attachments.begin_content(store.database, Facts(b"a hash", 1, "text/plain"))
    assert await attachments.stored(store.database, to.id, id_, content)
    return Attachment("file", "text/plain", attachments.upload_ref(id_), "a.txt", 1)


@pytest.mark.parametrize("before", ["nothing", "a notice", "a message"])
@pytest.mark.parametrize("message_first", [False, True])
async def test_a_message_and_a_reply_at_once_are_sent_in_order(
    any_database: str, *, message_first: bool, before: str
) -> None:
    async with opened_often(any_database, 2) as (one, other):
        session = await session_of(one)
        if before == "a notice":
            await sessions.say(one.database, CHAT.id, session.id, "busy", {}, 0)
        elif before == "a message":
            await sent(one, session, "before", parts=0)
        turn = await claimed(one)
        works = [one.complete(ending(turn, parts=2)), sent(other, session, parts=2)]
        tasks: list[asyncio.Task[object]] = []
        async with holding_sessions(any_database) as connection:
            for number, work in enumerate(reversed(works) if message_first else works, 1):
                tasks.append(asyncio.ensure_future(work))
                await waiters(connection, number)
        await asyncio.gather(*tasks)
        async with looking(any_database) as connection:
            status = await connection.fetch("select status from deliveries order by seq, part")
        # What is due at once is the first, and nobody has been given the reply before it.
        assert [row["status"] for row in status] == ["pending" if message_first else "sending", *["pending"] * 3]
        (*_, first, second) = await one.history(CHAT.id)
        assert (first.text == "news") is message_first
        due = await outbox.due_deliveries(one.database, HERE, [])
        assert [(each.seq, each.part) for each in due] == ([(first.seq, 1)] if message_first else [])
        assert second.direction == "outbound"
    await assert_consistent(any_database)


async def test_a_turn_goes_on_as_if_nothing_had_been_sent(any_database: str) -> None:
    async with opened(any_database) as store, looking(any_database) as connection:
        session = await session_of(store)
        turn = await claimed(store)
        await store.receive(said("waits"))
        look = "select * from sessions s, turns t, waiting w"
        before = dict((await connection.fetch(look))[0])
        assert (await sent(store, session)).seq == 3
        after = dict((await connection.fetch(look))[0])
        assert {name for name in before if before[name] != after[name]} == CHANGED
        done = await store.complete(ending(turn))
        assert done is not None
        assert (done.seq, done.more) == (4, True)
        assert texts(await claimed(store)) == ["waits"]
    await assert_consistent(any_database)


async def test_a_failure_is_told_though_a_message_was_sent(any_database: str) -> None:
    async with opened(any_database) as store:
        session = await session_of(store)
        assert (await sent(store, session)).status == "stored"
        assert await sessions.say(store.database, CHAT.id, session.id, "busy", {}, 1) is not None
        assert (await sent(store, session, "2")).status == "stored"
        assert await sessions.say(store.database, CHAT.id, session.id, "busy", {}, 1) is None, "once a minute"


async def test_one_key_is_one_message(any_database: str) -> None:
    async with opened_often(any_database, 3) as stores:
        session = await session_of(stores[0])
        results = await asyncio.gather(*(sent(stores[number % 3], session, "same") for number in range(12)))
        assert sorted(result.status for result in results) == ["duplicate"] * 11 + ["stored"]
        assert len({result[1:] for result in results}) == 1
        results = await asyncio.gather(*(sent(stores[number % 3], session, "k", f"{number}") for number in range(6)))
        assert sorted(result.status for result in results) == ["conflict"] * 5 + ["stored"]
        other = await sent(stores[0], await session_of(stores[0], chat("other")), "same")
        assert other.status == "stored", "each conversation has its own keys"
    await assert_consistent(any_database)


async def test_no_message_that_comes_in_has_the_key_of_one_that_is_sent(any_database: str) -> None:
    async with opened(any_database) as store:
        session = await session_of(store)
        await store.receive(said("from outside", key="sent:1"))
        first = await sent(store, session)
        assert first.status == "stored"
        again = await store.receive(said("from outside", key="sent:1"))
        assert (again.status, again.seq) == ("duplicate", 2)
        assert (await sent(store, session)) == SentMessage("duplicate", *first[1:])


async def test_a_session_that_has_ended_takes_none_but_knows_its_own(any_database: str) -> None:
    async with opened(any_database) as store:
        session = await session_of(store)
        first = await sent(store, session)
        await sessions.close_session(store.database, session.id)
        assert await sent(store, session, "2") == "not_active"
        again = await sent(store, session)
        assert again == SentMessage("duplicate", *first[1:])
        follower = await session_of(store)
        assert await sent(store, follower) == again, "the conversation's"
        # It ends while the message waits for it.
        async with holding_sessions(any_database) as connection:
            closing = asyncio.ensure_future(sessions.close_session(store.database, follower.id))
            await waiters(connection, 1)
            sending = asyncio.ensure_future(sent(store, follower, "3"))
            await waiters(connection, 2)
        assert await closing
        assert await sending == "not_active"
    await assert_consistent(any_database)


async def test_an_upload_goes_to_one_message(any_database: str) -> None:
    async with opened_often(any_database, 2) as (store, other), looking(any_database) as connection:
        session = await session_of(store)
        one, two = await upload(store), await upload(store)
        results = await asyncio.gather(
            sent(store, session, "1", "", one, two, parts=2), sent(other, session, "2", "", two, one, parts=2)
        )
        (first,) = [result for result in results if isinstance(result, SentMessage)]
        assert "upload_gone" in results
        assert [row["seq"] for row in await connection.fetch("select seq from attachments")] == [first.seq] * 2
        assert await connection.fetchval("select count(*) from deliveries") == 2, "nothing of the other is stored"
        assert (await store.history(CHAT.id))[-1].attachments == (
            (one, two) if results[1] == "upload_gone" else (two, one)
        )
    await assert_consistent(any_database)


async def test_an_upload_that_has_expired_meanwhile_is_in_no_message(any_database: str) -> None:
    async with opened(any_database) as store, looking(any_database) as connection:
        session = await session_of(store)
        file = await upload(store)
        await connection.execute("update attachments set created_at = created_at - interval '25 hours'")
        assert await attachments.expire_uploads(store.database, 100) == 1
        assert await sent(store, session, "1", "look", file, parts=2) == "upload_gone"
        assert len(await store.history(CHAT.id)) == 1
    await assert_consistent(any_database)


async def test_a_message_waits_for_a_reply_that_is_on_its_way(any_database: str) -> None:
    async with opened(any_database) as store:
        delivery = await replied(store)
        assert delivery is not None
        session = await found(store, (await store.history(CHAT.id))[-1].session_id)
        message = await sent(store, session)
        assert await outbox.due_deliveries(store.database, HERE, []) == []
        following = await store.finish_delivery(outbox.DeliveryResult(delivery, "sent"))
        assert following is not None
        assert (following.seq, following.part) == (message.seq, 1)
