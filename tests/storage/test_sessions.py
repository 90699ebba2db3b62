"""Sessions: listing, closing, and following one by the next."""

import asyncio
from datetime import timedelta

from chat_bridge.model import Address, ReceiveStatus, User
from chat_bridge.storage import messages, sessions
from chat_bridge.storage.sessions import SessionFilter
from chat_bridge.storage.store import Store
from tests.storage.dialogue import (
    CHAT,
    answer_all,
    assert_consistent,
    chat,
    claimed,
    ending,
    looking,
    opened,
    opened_often,
    said,
    statuses,
    texts,
    wish,
)


async def listed(store: Store, limit: int = 100, **wanted: object) -> list[str]:
    """The platform's conversation ids of the sessions found."""
    found = await sessions.list_sessions(store.database, SessionFilter(**wanted), limit)
    return [session.address.conversation for session in found]


async def test_sessions_are_listed_newest_first_by_any_filter(any_database: str) -> None:
    addresses = [Address("webchat", "main", "a"), Address("webchat", "main", "b"), Address("slack", "main", "a")]
    async with opened(any_database) as store, looking(any_database) as connection:
        receipts = [
            await store.receive(said(to=address, user=User(user)))
            for address, user in zip(addresses, ("ada", "bob", "ada"), strict=True)
        ]
        await sessions.close_session(store.database, receipts[1].session_id)
        assert await listed(store) == ["a", "b", "a"]
        assert await listed(store, platform="webchat") == ["b", "a"]
        assert await listed(store, conversation="a") == ["a", "a"]
        assert await listed(store, conversation_id=addresses[1].id) == ["b"]
        assert await listed(store, user_id="bob") == ["b"]
        assert await listed(store, status="closed") == ["b"]
        assert await listed(store, status="archived") == []
        assert await listed(store, platform="slack", user_id="bob") == []
        assert await listed(store, platform="half \ud800") == []
        newest = await sessions.get_session(store.database, receipts[2].session_id)
        assert newest is not None
        assert await listed(store, active_since=newest.last_activity) == ["a"]
        assert await listed(store, active_since=newest.last_activity + timedelta(hours=1)) == []
        await connection.execute(
            "update sessions set last_activity = now() - interval '1 day' where platform = 'slack'"
        )
        assert await listed(store, active_since=newest.last_activity - timedelta(hours=1)) == ["b", "a"]


async def test_pages_of_sessions_miss_none_and_repeat_none(database: str) -> None:
    async with opened(database) as store:
        for number in range(23):
            await store.receive(said(to=chat(number)))
        pages, before = [], None
        while page := await sessions.list_sessions(store.database, SessionFilter(before=before), 5):
            pages.append([session.address for session in page])
            before = page[-1].id
            await store.receive(said(to=chat(f"new-{len(pages)}")))
        assert [address for page in pages for address in page] == [chat(number) for number in reversed(range(23))]
        assert [len(page) for page in pages] == [5, 5, 5, 5, 3]


async def test_a_session_is_closed_once(any_database: str) -> None:
    async with opened(any_database) as store:
        receipt = await store.receive(said())
        closed = await asyncio.gather(*(sessions.close_session(store.database, receipt.session_id) for _ in range(4)))
        assert sorted(closed) == [False, False, False, True]
        assert await sessions.active_session(store.database, CHAT.id) is None
        session = await sessions.get_session(store.database, receipt.session_id)
        assert session is not None
        assert session.status == "closed"
        await answer_all(store)
        assert await statuses(store) == {"hello": "cancelled"}
    await assert_consistent(any_database)


async def test_what_arrives_while_a_session_is_followed_by_a_new_one_moves_along(any_database: str) -> None:
    async with opened(any_database) as store:
        first = await store.receive(said("/new"))
        turn = await claimed(store)
        await store.receive(said("meanwhile"))
        await store.receive(said("not for us", skip_reason="not_addressed"))
        done = await store.complete(ending(turn, "a new session"), follow_with_new_session=True)
        assert done is not None
        assert (done.seq, done.more) == (4, True)

        new, old = await sessions.list_sessions(store.database, SessionFilter(), 10)
        assert (old.id, old.status, old.message_count, old.pending_since) == (first.session_id, "closed", 2, None)
        assert (new.status, new.message_count, new.parent_session_id) == ("active", 2, old.id)
        assert new.pending_since is not None
        for session, expected in ((old, ["/new", "a new session"]), (new, ["meanwhile", "not for us"])):
            history = await messages.history(store.database, CHAT.id, limit=10, session=session.id)
            assert [message.text for message in history] == expected
        following = await claimed(store)
        assert (texts(following), following.session_id) == (["meanwhile"], new.id)
        await store.complete(ending(following))
        assert await store.claim(wish()) is None
        assert (await store.receive(said("later"))).session_id == new.id
        seqs = [message.seq for message in await store.history(CHAT.id)]
        assert seqs == list(range(1, 7))
    await assert_consistent(any_database)


async def test_receiving_while_sessions_follow_each_other_loses_nothing(database: str) -> None:
    async with opened_often(database, 2) as (one, other):

        async def rotate() -> None:
            for _ in range(15):
                if turn := await one.claim(wish()):
                    await one.complete(ending(turn), follow_with_new_session=True)

        receiving = (other.receive(said(f"{number}", queue_cap=1000)) for number in range(150))
        receipts, _ = await asyncio.gather(asyncio.gather(*receiving), rotate())
        assert {receipt.status for receipt in receipts} == {ReceiveStatus.ACCEPTED}
        await answer_all(one)
        history = [message for message in await one.history(CHAT.id, limit=1000) if message.direction == "inbound"]
        assert [message.text for message in history] == [f"{number}" for number in range(150)]
        assert {message.status for message in history} == {"answered"}
    await assert_consistent(database)


# Notices.


async def test_a_notice_is_said_at_most_once_a_minute(any_database: str) -> None:
    async with opened(any_database) as store, looking(any_database) as connection:
        receipt = await store.receive(said())

        async def say(text: str) -> bool:
            return (
                await sessions.say(store.database, CHAT.id, receipt.session_id, text, {"notice": "busy"}, 2) is not None
            )

        assert await say("first\x00")
        assert not await say("second")
        await connection.execute("update sessions set error_told_at = error_told_at - interval '61 seconds'")
        assert await say("third")
        notices = [message for message in await store.history(CHAT.id) if message.content_type == "notice"]
        assert [(notice.text, notice.seq, notice.metadata) for notice in notices] == [
            ("first\ufffd", 2, {"notice": "busy"}),
            ("third", 3, {"notice": "busy"}),
        ]
        found = await connection.fetch("select seq, part, status from deliveries order by seq, part")
        assert [tuple(row) for row in found] == [
            (2, 1, "sending"),
            (2, 2, "pending"),
            (3, 1, "pending"),
            (3, 2, "pending"),
        ]
    await assert_consistent(any_database)


async def test_a_notice_that_comes_after_a_rotation_is_not_said_and_stops_nothing(any_database: str) -> None:
    async with opened(any_database) as store:
        first = await store.receive(said("one"))
        await store.complete(ending(await claimed(store)), follow_with_new_session=True)
        assert await sessions.say(store.database, CHAT.id, first.session_id, "busy", {"notice": "busy"}, 1) is None
        assert (await store.receive(said("two"))).seq == 3
        assert texts(await claimed(store)) == ["two"]
    await assert_consistent(any_database)


async def test_a_notice_that_comes_after_a_close_is_not_said_and_stops_nothing(database: str) -> None:
    async with opened(database) as store:
        first = await store.receive(said("one"))
        await sessions.close_session(store.database, first.session_id)
        assert await sessions.say(store.database, CHAT.id, first.session_id, "busy", {"notice": "busy"}, 1) is None
        assert (await store.receive(said("two"))).seq == 2
        await answer_all(store)
    await assert_consistent(database)


async def test_notices_and_rotations_at_once_leave_seq_whole(database: str) -> None:
    async with opened_often(database, 2) as (one, other), looking(database) as connection:
        for number in range(12):
            receipt = await one.receive(said(f"{number}"))
            turn = await claimed(one)
            await connection.execute("update sessions set error_told_at = null")
            await asyncio.gather(
                one.complete(ending(turn), follow_with_new_session=True),
                sessions.say(other.database, CHAT.id, receipt.session_id, "busy", {"notice": "busy"}, 1),
                other.receive(said(f"{number} meanwhile")),
            )
            await answer_all(other)
        inbound = [message for message in await one.history(CHAT.id, limit=1000) if message.direction == "inbound"]
        assert len(inbound) == 24
    await assert_consistent(database)
