"""Sessions that end by themselves."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import pytest

from chat_bridge.bridge.rotation import session_end
from chat_bridge.settings import load_settings
from chat_bridge.storage import sessions
from chat_bridge.storage.sessions import SessionFilter
from chat_bridge.storage.store import Store
from tests.bridge import running_bridge, visiting
from tests.observe import rows
from tests.storage.dialogue import (
    CHAT,
    answer_all,
    assert_consistent,
    chat,
    claimed,
    command,
    ending,
    looking,
    opened,
    opened_often,
    said,
    texts,
)


def ended(now: str, **settings: str) -> str:
    """Since when nothing must have happened in a session."""
    tells = session_end(load_settings({name.upper(): text for name, text in settings.items()}, dotenv=None))
    assert tells is not None
    return tells(datetime.fromisoformat(now)).astimezone(UTC).isoformat()


def an_hour(now: datetime) -> datetime:
    return now - timedelta(hours=1)


async def age(connection: asyncpg.Connection, **since: float) -> None:
    """Have so much time pass since the last activity of all sessions."""
    await connection.execute("update sessions set last_activity = last_activity - $1::interval", timedelta(**since))


async def all_sessions(store: Store) -> list[tuple[str, int]]:
    """Of the test's conversation, oldest first: (status, messages)."""
    found = await sessions.list_sessions(store.database, SessionFilter(conversation_id=CHAT.id), 100)
    assert [each.parent_session_id for each in found] == [*[each.id for each in found[1:]], None]
    return [(each.status, each.message_count) for each in reversed(found)]


def test_as_it_was_set() -> None:
    assert session_end(load_settings({}, dotenv=None)) is None
    now = "2026-03-10T12:00:00+00:00"
    assert ended(now, session_rotation="idle") == "2026-03-09T12:00:00+00:00"
    assert ended(now, session_rotation="idle", session_idle_minutes="90") == "2026-03-10T10:30:00+00:00"
    assert ended(now, session_rotation="daily") == "2026-03-10T04:00:00+00:00"
    assert ended("2026-03-10T03:59:59+00:00", session_rotation="daily") == "2026-03-09T04:00:00+00:00"
    assert ended("2026-03-10T04:00:00+00:00", session_rotation="daily") == "2026-03-10T04:00:00+00:00"


@pytest.mark.parametrize(
    ("now", "began"),
    [
        ("2026-03-29T03:30:00+02:00", "2026-03-29T01:30:00+00:00"),  # 02:30 is left out: it counts as an hour later
        ("2026-03-29T03:29:00+02:00", "2026-03-28T01:30:00+00:00"),
        ("2026-10-25T02:30:00+02:00", "2026-10-25T00:30:00+00:00"),  # 02:30 comes twice: the first one counts
        ("2026-10-25T02:30:00+01:00", "2026-10-25T00:30:00+00:00"),
    ],
)
def test_a_day_of_23_or_25_hours_begins_once(now: str, began: str) -> None:
    zone = {"session_timezone": "Europe/Berlin", "session_daily_at": "02:30"}
    assert ended(now, session_rotation="daily", **zone) == began


async def test_the_next_message_opens_a_new_session(any_database: str) -> None:
    async with opened(any_database, session_end=an_hour) as store, looking(any_database) as connection:
        first = await store.receive(said("one"))
        await answer_all(store)
        await connection.execute(
            """update sessions set metadata = '{"busy_policy": "latest", "approval": {"id": 1}}'"""
        )
        await age(connection, minutes=59)
        assert (await store.receive(said("two"))).session_id == first.session_id
        await answer_all(store)
        await age(connection, minutes=61)
        assert await all_sessions(store) == [("active", 4)], "nothing happens before the next message"
        third = await store.receive(said("three"))
        assert third.session_id != first.session_id
        assert third.seq == 5
        assert await all_sessions(store) == [("closed", 4), ("active", 1)]
        session = await sessions.get_session(store.database, third.session_id)
        assert session is not None
        assert session.metadata == {"busy_policy": "latest"}
        assert texts(await claimed(store)) == ["three"]
    await assert_consistent(any_database)


async def test_what_waits_or_is_being_answered_keeps_its_session(any_database: str) -> None:
    async with opened(any_database, session_end=an_hour) as store, looking(any_database) as connection:
        await store.receive(said("one"))
        await age(connection, days=1)
        await store.receive(said("two"))
        turn = await claimed(store)
        assert texts(turn) == ["one", "two"]
        await age(connection, days=1)
        await store.receive(said("three"))
        assert await store.complete(ending(turn)) is not None
        assert await all_sessions(store) == [("active", 4)]
        await answer_all(store)
        await store.receive(command("/help"))
        turn = await claimed(store)
        await age(connection, days=1)
        await store.receive(said("four"))
        assert await all_sessions(store) == [("active", 7)]
        assert await store.complete(ending(turn)) is not None
        await answer_all(store)
    await assert_consistent(any_database)


async def test_only_its_own_conversation_is_looked_at(database: str) -> None:
    async with opened(database, session_end=an_hour) as store, looking(database) as connection:
        for number in range(3):
            await store.receive(said(to=chat(number)))
            await answer_all(store, chat(number))
        await age(connection, days=1)
        receipts = await asyncio.gather(*(store.receive(said(to=chat(number))) for number in (2, 0)))
        active = {
            each.id
            for number in range(3)
            for each in await sessions.list_sessions(
                store.database, SessionFilter(conversation_id=chat(number).id, status="active"), 10
            )
        }
        assert len(active) == 3
        assert active > {receipt.session_id for receipt in receipts}
        assert len(await rows(database, "select from sessions where status = 'closed'")) == 2


async def test_many_processes_open_one(database: str) -> None:
    async with opened_often(database, 4, session_end=an_hour) as stores, looking(database) as connection:
        for _ in range(20):
            await stores[0].receive(said())
            await answer_all(stores[0])
            await age(connection, days=1)
            receipts = await asyncio.gather(*(store.receive(said()) for store in stores))
            assert len({receipt.session_id for receipt in receipts}) == 1
            await answer_all(stores[0])
        statuses: list[Any] = await all_sessions(stores[0])
        assert [status for status, _ in statuses] == ["closed"] * 20 + ["active"]
    await assert_consistent(database)


async def test_a_visitor_comes_back_the_next_day(database: str) -> None:
    settings = {"SESSION_ROTATION": "daily", "SESSION_DAILY_AT": "23:59", "SESSION_TIMEZONE": "Asia/Ho_Chi_Minh"}
    async with running_bridge(database, **settings) as bridge, visiting(bridge.url) as visitor:
        await visitor.send("one")
        await visitor.answered()
        async with looking(database) as connection:
            await age(connection, days=1)
        await visitor.send("two")
        assert await visitor.until(4) == ["> one", "one", "> two", "two"]
        messages = await visitor.answered()
    first, second = await rows(database, "select id, status, parent_session_id from sessions order by id")
    assert (first["status"], second["status"], second["parent_session_id"]) == ("closed", "active", first["id"])
    assert [message["seq"] for message in messages] == [1, 2, 3, 4]


async def test_a_redelivery_opens_nothing(database: str) -> None:
    async with opened(database, session_end=an_hour) as store, looking(database) as connection:
        first = await store.receive(said("one", key="a"))
        await answer_all(store)
        await age(connection, days=1)
        assert (await store.receive(said("one", key="a"))).session_id == first.session_id
        assert await all_sessions(store) == [("active", 2)]
        new, known = await asyncio.gather(*(store.receive(said("x" if key == "b" else "one", key=key)) for key in "ba"))
        assert new.session_id != known.session_id == first.session_id
        assert await all_sessions(store) == [("closed", 2), ("active", 1)]
