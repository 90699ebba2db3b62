"""Redis: it makes things fresh, it may go away at any moment, and nobody waits for it or fails by it."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest
import redis.asyncio

from chat_bridge.model import ConversationId, new_session_id, new_turn_id
from chat_bridge.storage import redis_connect
from chat_bridge.storage.redis import CONTROL, RESYNC, Event, Hot, SlowReaderError
from tests.redis_servers import RedisServer, own_server
from tests.storage.dialogue import CHAT, chat

FOREVER = 10**9  # seconds: a window that no test sees the end of


@asynccontextmanager
async def watching(hot: Hot, conversation: ConversationId = CHAT.id) -> AsyncGenerator[AsyncIterator[Event]]:
    """The events of a conversation, from when they come through; calls to look at PostgreSQL are left out."""
    async with hot.watch(conversation) as events:
        await heard(hot, conversation, events)
        yield (event async for event in events if event and event["type"] not in ("hello", "resync"))


async def heard(hot: Hot, conversation: ConversationId, events: AsyncIterator[Event | None]) -> list[str]:
    """Publish until it arrives; the types of what came before."""

    async def publish() -> None:
        while True:
            await hot.publish(conversation, {"type": "hello"})
            await asyncio.sleep(0.01)

    publishing, before = asyncio.create_task(publish()), list[str]()
    try:
        async for event in events:
            if event is not None and event["type"] == "hello":
                return before
            before.append(event["type"] if event else "silence")
    finally:
        publishing.cancel()
        await asyncio.wait([publishing])
    raise AssertionError("the events ended")


async def test_every_reader_hears_the_events_of_its_conversation_in_order(any_redis_url: str | None) -> None:
    async with Hot.open(any_redis_url) as hot:
        async with watching(hot) as one, watching(hot) as two, watching(hot, chat(2).id) as other:
            for number in range(20):
                await hot.publish(CHAT.id, {"type": "message", "seq": number})
            await hot.touch(chat(2).id, new_session_id(), {"type": "message", "seq": 99})
            for reader in (one, two):
                assert [(await anext(reader))["seq"] for _ in range(20)] == list(range(20))
            assert (await anext(other))["seq"] == 99
        async with watching(hot) as again:
            await hot.publish(CHAT.id, {"type": "message", "seq": 1})
            assert (await anext(again))["seq"] == 1


async def test_two_processes_hear_each_other(redis_url: str) -> None:
    async with Hot.open(redis_url) as one, Hot.open(redis_url) as other, watching(one) as events:
        await other.publish(CHAT.id, {"type": "message", "seq": 1})
        assert await anext(events) == {"type": "message", "seq": 1}


async def test_an_answer_so_far_is_told_in_pieces_and_kept_whole_for_latecomers(any_redis_url: str | None) -> None:
    turn = new_turn_id()
    async with Hot.open(any_redis_url) as hot, watching(hot) as events:
        assert await hot.partial(CHAT.id) is None
        await hot.publish_partial(CHAT.id, turn, "Good", 0)
        await hot.publish_partial(CHAT.id, turn, "Good morning 😀", 4)
        assert await hot.partial(CHAT.id) == {"turn_id": str(turn), "text": "Good morning 😀"}
        await hot.end_partial(CHAT.id, {"type": "message", "seq": 2}, {"type": "end_of_turn"})
        assert await hot.partial(CHAT.id) is None
        assert [await anext(events) for _ in range(4)] == [
            {"type": "delta", "turn_id": str(turn), "offset": 0, "text": "Good"},
            {"type": "delta", "turn_id": str(turn), "offset": 4, "text": " morning 😀"},
            {"type": "message", "seq": 2},
            {"type": "end_of_turn"},
        ]


async def test_a_limit_counts_each_name_by_itself(any_redis_url: str | None) -> None:
    async with Hot.open(any_redis_url) as hot:
        assert [await hot.allow("ada", 3, FOREVER) for _ in range(3)] == [0, 0, 0]
        assert await hot.allow("ada", 3, FOREVER) > 0
        assert await hot.allow("bob", 3, FOREVER) == 0


async def test_the_index_of_active_conversations_forgets_the_old_ones(any_redis_url: str | None) -> None:
    async with Hot.open(any_redis_url) as hot:
        for number in (1, 2, 3, 1):
            await hot.touch(chat(number).id, new_session_id(), {"type": "message"})
        assert await hot.active_conversations() == 3
        hot._ttl = -60  # as if a minute more than the time had passed
        assert await hot.active_conversations() == 0


async def test_control_reaches_every_process(any_redis_url: str | None) -> None:
    heard_by: list[asyncio.Queue[Event]] = [asyncio.Queue(), asyncio.Queue()]
    async with Hot.open(any_redis_url) as one, Hot.open(any_redis_url) as other:
        for hot, queue in zip((one, other), heard_by, strict=True):
            hot.handle_control(queue.put)
            async with watching(hot):  # connected
                pass
        await one.control({"type": "stop", "conversation": "c"})
        for queue in heard_by if any_redis_url else heard_by[:1]:
            assert await queue.get() == {"type": "stop", "conversation": "c"}


async def test_an_event_that_can_not_be_read_or_handled_stops_nothing(any_redis_url: str | None) -> None:
    async def fail(event: Event) -> None:
        raise ValueError(event)

    async with Hot.open(any_redis_url) as hot, watching(hot) as events:
        hot.handle_control(fail)
        await hot.control({"type": "stop"})
        await hot._client.publish(CONTROL, "{")
        await hot._client.publish(f"chat-bridge:{{{CHAT.id}}}:events", "{")
        await hot.publish(CHAT.id, {"type": "message", "seq": 1})
        assert await anext(events) == {"type": "message", "seq": 1}


async def test_a_slow_reader_is_cut_off_and_no_other(any_redis_url: str | None) -> None:
    async with Hot.open(any_redis_url) as hot, watching(hot) as quick, watching(hot) as slow:
        for number in range(600):
            await hot.publish(CHAT.id, {"type": "message", "seq": number})
            assert (await anext(quick))["seq"] == number
        with pytest.raises(SlowReaderError):
            await anext(slow)


async def test_dismissed_watchers_read_what_came_and_end(any_redis_url: str | None) -> None:
    async with Hot.open(any_redis_url) as hot, watching(hot) as events:
        await hot.publish(CHAT.id, {"type": "message"})
        assert await anext(events) == {"type": "message"}
        hot.dismiss_watchers()
        assert [event async for event in events] == []


# Away.


@pytest.fixture
async def server() -> AsyncGenerator[RedisServer]:
    async with own_server() as server:
        yield server


async def everything_is_soft(hot: Hot) -> None:
    """No operation fails for want of Redis."""
    assert not await hot.ping()
    await hot.touch(CHAT.id, new_session_id(), {"type": "message"})
    await hot.publish(CHAT.id, {"type": "message"})
    await hot.control({"type": "stop"})
    await hot.publish_partial(CHAT.id, new_turn_id(), "text", 0)
    await hot.end_partial(CHAT.id)
    assert await hot.partial(CHAT.id) is None
    assert [await hot.allow("ada", 1) for _ in range(3)] == [0, 0, 0]
    assert await hot.active_conversations() == 0
    assert await hot.acquire(CHAT.id), "PostgreSQL decides"
    assert not await hot.release(CHAT.id)
    assert await hot.session(CHAT.id) is None
    await hot.forget_session(CHAT.id)
    async with hot.watch(chat("another").id):
        pass
    assert not hot.reachable


async def test_nothing_fails_while_redis_was_never_there_and_it_is_found_later(server: RedisServer) -> None:
    async with Hot.open(server.url) as hot:
        await everything_is_soft(hot)
        async with hot.watch(CHAT.id) as events:
            await server.start()
            before = await heard(hot, CHAT.id, events)
        assert before == ["resync"], "what was missed is to be read from PostgreSQL"
        assert hot.reachable


async def test_nothing_fails_when_redis_is_killed_and_readers_are_told_when_it_is_back(server: RedisServer) -> None:
    await server.start()
    async with Hot.open(server.url) as hot, hot.watch(CHAT.id) as events:
        assert hot.reachable
        await heard(hot, CHAT.id, events)
        for _ in range(3):
            server.kill()
            await everything_is_soft(hot)
            await server.start()
            before = await heard(hot, CHAT.id, events)
            assert set(before) == {"resync"}, "what was missed is to be read from PostgreSQL"
            assert await hot.ping()
            assert hot.reachable


async def test_readers_are_told_even_if_redis_was_away_for_a_moment_only(server: RedisServer) -> None:
    await server.start()
    async with Hot.open(server.url) as hot, hot.watch(CHAT.id) as events:
        await heard(hot, CHAT.id, events)
        async with redis.asyncio.from_url(server.url) as admin:
            await admin.client_kill_filter(_type="pubsub")
        assert "resync" in await heard(hot, CHAT.id, events)


async def test_a_server_that_freezes_is_noticed_and_readers_are_told_when_it_goes_on(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_connect, "SILENT_SECONDS", 0.1)
    await server.start()
    async with Hot.open(server.url) as hot, hot.watch(CHAT.id) as events:
        await heard(hot, CHAT.id, events)
        server.pause()
        while hot.reachable:  # though nobody asks it anything
            await asyncio.sleep(0.01)
        server.go_on()
        while await anext(events) != RESYNC:
            pass
        assert hot.reachable


async def test_a_new_connection_that_nobody_answers_is_given_up(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_connect, "SILENT_SECONDS", 0.1)
    await server.start()
    through: list[asyncio.StreamWriter] = []
    silent = asyncio.Event()  # from now on connections are taken, and nothing is said

    async def pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
        writer.close()

    async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        through.append(writer)
        if not silent.is_set():
            to_reader, to_writer = await asyncio.open_unix_connection(server.folder / "redis.sock")
            through.append(to_writer)
            with suppress(OSError):
                await asyncio.gather(pipe(reader, to_writer), pipe(to_reader, writer))

    door = await asyncio.start_server(take, "127.0.0.1")
    try:
        url = f"redis://127.0.0.1:{door.sockets[0].getsockname()[1]}"
        async with Hot.open(url) as hot, hot.watch(CHAT.id) as events:
            await heard(hot, CHAT.id, events)
            silent.set()
            known = through.copy()
            for writer in known:
                writer.transport.abort()
            while len(through) == len(known):
                await asyncio.sleep(0.01)
            silent.clear()
            while await anext(events) != RESYNC:
                pass
    finally:
        door.close()
        for writer in through:
            writer.transport.abort()


async def test_a_wrong_address_is_no_error() -> None:
    async with Hot.open("redis://127.0.0.1:1/0") as hot:
        await everything_is_soft(hot)


async def test_whoever_is_stopped_while_redis_is_asked_ends(redis_url: str) -> None:
    async def talk(hot: Hot) -> None:
        while True:
            await hot.publish(CHAT.id, {"type": "x"})

    async with Hot.open(redis_url) as hot:
        await hot.publish(CHAT.id, {"type": "x"})
        for steps in range(60):
            talking = asyncio.create_task(talk(hot))
            for _ in range(steps):
                await asyncio.sleep(0)
            talking.cancel()
            _, running = await asyncio.wait([talking], timeout=10)
            assert not running, f"the cancellation after {steps} steps was lost"
