"""The sessions that Redis keeps: found without PostgreSQL, never trusted, forgotten when they end."""

import asyncio
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
import redis.asyncio

from chat_bridge.model import Session, new_session_id
from chat_bridge.storage import sessions
from chat_bridge.storage.redis import Hot
from tests.storage.dialogue import CHAT, chat, opened, said

KEY = f"chat-bridge:{{{CHAT.id}}}:session"
CHANGED = f"chat-bridge:{{{CHAT.id}}}:changed"
SESSION = Session(
    id=new_session_id(),
    conversation_id=CHAT.id,
    address=CHAT,
    user_id="ada",
    status="active",
    mode="agent",
    created_at=datetime(2030, 1, 2, 3, 4, 5, 678901, UTC),
    last_activity=datetime(2030, 1, 2, 3, 4, 6, tzinfo=UTC),
    parent_session_id=None,
    message_count=7,
    pending_since=None,
    metadata={"busy_policy": "collect", "preview": {"id": "😀", "shown": 3}},
)


@pytest.mark.parametrize(
    "session", [SESSION, replace(SESSION, parent_session_id=new_session_id(), pending_since=datetime.now(UTC))]
)
async def test_a_session_comes_back_as_it_was(any_redis_url: str | None, session: Session) -> None:
    async with Hot.open(any_redis_url) as hot:
        assert await hot.session(CHAT.id) is None
        await hot.keep_session(session)
        assert await hot.session(CHAT.id) == session
        assert await hot.session(chat("another").id) is None
        await hot.forget_session(CHAT.id)
        assert await hot.session(CHAT.id) is None


async def test_one_that_was_read_just_before_its_end_is_not_kept(any_redis_url: str | None) -> None:
    async with Hot.open(any_redis_url) as hot:
        await hot.forget_session(CHAT.id)
        await hot.keep_session(SESSION)
        assert await hot.session(CHAT.id) is None
        assert 0 < await hot._client.ttl(CHANGED) <= 10
        await hot._client.delete(CHANGED)  # as if that time had passed
        await hot.keep_session(SESSION)
        assert await hot.session(CHAT.id) == SESSION


@pytest.mark.parametrize("text", ["", "{", "{}", "[1]", '{"id": "no uuid"}', b"\xff"])
async def test_what_another_version_wrote_counts_as_absent(any_redis_url: str | None, text: Any) -> None:
    async with Hot.open(any_redis_url) as hot:
        await hot._client.set(KEY, text)
        assert await hot.session(CHAT.id) is None
        await hot.keep_session(SESSION)
        assert await hot.session(CHAT.id) == SESSION


async def test_a_session_is_kept_as_long_as_messages_come(redis_url: str) -> None:
    async with Hot.open(redis_url, session_ttl_seconds=100) as hot, redis.asyncio.from_url(redis_url) as admin:
        await hot.keep_session(SESSION)
        assert 90 < await admin.ttl(KEY) <= 100
        await admin.expire(KEY, 50)
        await hot.touch(CHAT.id, SESSION.id, {"type": "message"})
        assert 90 < await admin.ttl(KEY) <= 100


async def test_one_whose_end_redis_did_not_hear_of_goes_with_the_next_message(any_redis_url: str | None) -> None:
    async with Hot.open(any_redis_url) as hot:
        await hot.keep_session(SESSION)
        await hot.touch(CHAT.id, new_session_id(), {"type": "message"})
        assert await hot.session(CHAT.id) is None


async def test_a_session_is_forgotten_when_no_message_comes(any_redis_url: str | None) -> None:
    async with Hot.open(any_redis_url, session_ttl_seconds=1) as hot:
        await hot.keep_session(SESSION)
        while await hot._client.get(KEY) is not None:
            await asyncio.sleep(0.05)
        assert await hot.session(CHAT.id) is None


async def test_a_session_is_looked_up_in_postgresql_once(database: str, redis_url: str) -> None:
    async with opened(database) as store, Hot.open(redis_url) as hot, Hot.open(redis_url) as other:
        assert await sessions.look_up(store.database, hot, CHAT) is None
        receipt = await store.receive(said())
        await store.receive(said(to=chat("another")))
        found = await sessions.look_up(store.database, hot, CHAT)
        assert found == await sessions.get_session(store.database, receipt.session_id)
        assert found == await other.session(CHAT.id)
        await sessions.close_session(store.database, receipt.session_id)
        assert await sessions.look_up(store.database, other, CHAT) == found, "from Redis"
        await hot.forget_session(CHAT.id)
        assert await sessions.look_up(store.database, other, CHAT) is None


async def test_without_redis_a_session_is_looked_up_in_postgresql(database: str) -> None:
    async with opened(database) as store, Hot.open("redis://127.0.0.1:1/0") as hot:
        receipt = await store.receive(said())
        for _ in range(2):
            found = await sessions.look_up(store.database, hot, CHAT)
            assert found is not None
            assert found.id == receipt.session_id
        await sessions.close_session(store.database, receipt.session_id)
        assert await sessions.look_up(store.database, hot, CHAT) is None
