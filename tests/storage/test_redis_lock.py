"""The lock of a conversation: one process at a time, nobody waits, and no knock is lost. It only saves work: when Redis
is gone, everybody may go on, and PostgreSQL decides."""

import asyncio
import random
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AsyncExitStack

import pytest
import redis.asyncio

from chat_bridge.model import ConversationId
from chat_bridge.storage.redis import Hot
from tests.redis_servers import RedisServer, own_server
from tests.storage.dialogue import CHAT, chat

LOCK = f"chat-bridge:{{{CHAT.id}}}:lock"
KNOCK = f"chat-bridge:{{{CHAT.id}}}:knock"


@pytest.fixture
async def server() -> AsyncGenerator[RedisServer]:
    async with own_server() as server:
        await server.start()
        yield server


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Locks are renewed all the time."""
    monkeypatch.setattr("chat_bridge.storage.redis.RENEW_SECONDS", 0.01)


async def until(check: Callable[[], bool]) -> None:
    while not check():
        await asyncio.sleep(0.01)


async def until_lasts(server: RedisServer, milliseconds: int) -> None:
    while await server.ask("PTTL", LOCK) <= milliseconds:
        await asyncio.sleep(0.01)


async def test_one_process_has_the_lock_and_hears_who_knocked(redis_url: str) -> None:
    async with Hot.open(redis_url) as one, Hot.open(redis_url) as other:
        assert await one.acquire(CHAT.id)
        assert await other.acquire(chat("another").id), "each conversation has its own"
        assert not await other.acquire(CHAT.id)
        assert not await other.acquire(CHAT.id)
        assert await one.release(CHAT.id), "somebody knocked"
        assert not await other.acquire(CHAT.id), "it is still held while its holder looks again"
        assert await one.release(CHAT.id)
        assert not await one.release(CHAT.id)
        assert await other.acquire(CHAT.id)
        assert not await other.release(CHAT.id)


async def test_inside_the_process_it_works_the_same(any_redis_url: str | None) -> None:
    async with Hot.open(any_redis_url) as hot:
        await hot._client.set(LOCK, "another process")
        assert not await hot.acquire(CHAT.id)
        assert await hot._client.get(KNOCK) == b"1"
        await hot._client.delete(LOCK)
        assert await hot.acquire(CHAT.id)
        assert await hot._client.get(KNOCK) is None, "who comes in looks anyway"
        await hot._client.set(KNOCK, "1")
        assert await hot.release(CHAT.id)
        assert not await hot.release(CHAT.id)
        assert await hot._client.get(LOCK) is None


async def test_a_lock_and_a_knock_end_by_themselves(redis_url: str) -> None:
    async with Hot.open(redis_url) as one, Hot.open(redis_url) as other, redis.asyncio.from_url(redis_url) as admin:
        await one.acquire(CHAT.id)
        await other.acquire(CHAT.id)
        assert 20_000 < await admin.pttl(LOCK) <= 30_000
        assert 20_000 < await admin.pttl(KNOCK) <= 30_000


async def test_the_lock_of_another_is_left_alone(redis_url: str) -> None:
    async with Hot.open(redis_url) as one, Hot.open(redis_url) as other:
        assert await one.acquire(CHAT.id)
        assert not await other.release(CHAT.id)
        assert not await other.acquire(CHAT.id)
        assert not await other.release(CHAT.id), "the knock is not its own to hear"
        assert await one.release(CHAT.id)


@pytest.mark.parametrize("seed", range(20))
async def test_whatever_comes_is_looked_at_and_by_one_at_a_time(redis_url: str, seed: int) -> None:
    """Messages come to three processes at once. Who may not come in leaves its message to the holder."""
    chance = random.Random(seed)
    waiting, inside, answered = 0, 0, 0

    async def a_moment() -> None:
        for _ in range(chance.randrange(4)):
            await asyncio.sleep(0)

    async def look() -> None:
        nonlocal waiting, inside, answered
        inside += 1
        assert inside == 1
        await a_moment()
        answered, waiting = answered + waiting, 0
        await a_moment()
        inside -= 1

    async def receive(hot: Hot) -> None:
        nonlocal waiting
        for _ in range(20):
            await a_moment()
            waiting += 1
            if await hot.acquire(CHAT.id):
                await look()
                while await hot.release(CHAT.id):
                    await look()

    async with AsyncExitStack() as stack:
        processes = [await stack.enter_async_context(Hot.open(redis_url)) for _ in range(3)]
        await asyncio.gather(*(receive(hot) for hot in processes))
        assert all(hot.reachable for hot in processes)
    assert (waiting, answered) == (0, 60)


@pytest.mark.usefixtures("often")
async def test_a_held_lock_and_its_knock_are_renewed(server: RedisServer) -> None:
    async with Hot.open(server.url) as one, Hot.open(server.url) as other:
        for number in range(50):
            assert await one.acquire(chat(number).id)
        assert await one.acquire(CHAT.id)
        assert not await other.acquire(CHAT.id)
        for key in (KNOCK, LOCK):  # the lock last: a renewal of both may come between
            await server.ask("PEXPIRE", key, 10_000)
        await until_lasts(server, 20_000)
        assert await server.ask("PTTL", KNOCK) > 20_000
        assert await one.release(CHAT.id)


@pytest.mark.usefixtures("often")
async def test_a_renewal_does_not_take_a_lock_that_is_let_go_meanwhile(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on = asyncio.Event(), asyncio.Event()
    async with Hot.open(server.url) as hot:
        renew_all = hot._renew_all

        async def slowly(held: Sequence[ConversationId]) -> Sequence[object]:
            begun.set()
            await go_on.wait()
            return await renew_all(held)

        monkeypatch.setattr(hot, "_renew_all", slowly)
        assert await hot.acquire(CHAT.id)
        await begun.wait()
        releasing = asyncio.create_task(hot.release(CHAT.id))
        for _ in range(10):
            await server.ask("PING")  # time enough for it, if it did not wait
        go_on.set()
        assert not await releasing
        await until(hot._renewed.is_set)
        assert not await server.ask("EXISTS", LOCK)


@pytest.mark.usefixtures("often")
async def test_a_lock_that_redis_lost_is_taken_again(server: RedisServer) -> None:
    async with Hot.open(server.url) as one, Hot.open(server.url) as other:
        assert await one.acquire(CHAT.id)
        await server.ask("FLUSHALL")
        await until_lasts(server, 0)
        assert not await other.acquire(CHAT.id)
        server.kill()
        await until(lambda: not one.reachable)
        await server.start()
        await until_lasts(server, 0)
        while not await other.ping():
            await asyncio.sleep(0.01)
        assert not await other.acquire(CHAT.id)
        assert await one.release(CHAT.id)
        assert not await one.release(CHAT.id)


@pytest.mark.usefixtures("often")
async def test_a_lock_that_another_has_by_now_is_forgotten(server: RedisServer) -> None:
    async with Hot.open(server.url) as hot:
        assert await hot.acquire(CHAT.id)
        await server.ask("SET", LOCK, "another process")
        await until(lambda: not hot._held)
        assert not await hot.release(CHAT.id)
        assert await server.ask("GET", LOCK) == b"another process"


async def test_nobody_waits_for_a_redis_that_stands_still(server: RedisServer) -> None:
    async with Hot.open(server.url) as one, Hot.open(server.url) as other:
        assert await one.acquire(CHAT.id)
        assert await other.ping()
        server.pause()
        try:
            async with asyncio.timeout(30):
                assert await other.acquire(CHAT.id), "PostgreSQL decides"
                assert not await other.release(CHAT.id)
                assert not await one.release(CHAT.id)
            assert not one.reachable or not other.reachable
        finally:
            server.go_on()
        for hot in (one, other):
            while not await hot.ping():
                await asyncio.sleep(0.01)
        assert await one.acquire(CHAT.id), "what it could not give back is still its own"
        assert not await other.acquire(CHAT.id)
        assert await one.release(CHAT.id)
