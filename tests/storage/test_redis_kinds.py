"""Every kind of Redis that REDIS_URL can name: a cluster, Sentinels, TLS; each is lost and found again."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from chat_bridge.errors import SettingsError
from chat_bridge.model import Address, new_session_id, new_turn_id
from chat_bridge.storage.redis import Event, Hot
from tests.redis_servers import RedisServer, cluster, make_certificates, tls_server, watched_pair
from tests.storage.dialogue import CHAT, chat
from tests.storage.test_redis_session import SESSION


def url_of(nodes: Sequence[RedisServer]) -> str:
    return "redis+cluster://" + ",".join(f"127.0.0.1:{node.port}" for node in nodes)


@asynccontextmanager
async def heard_by_both(one: Hot, other: Hot) -> AsyncGenerator[AsyncIterator[Event | None]]:
    """What `one` hears of the conversation from when events of `other` come through."""
    async with one.watch(CHAT.id) as events:
        await until_heard(other, events, "hello")
        yield (event async for event in events if event is not None and event["type"] not in ("hello", "resync"))


async def until_heard(speaker: Hot, events: AsyncIterator[Event | None], word: str) -> list[str]:
    """Say a word until it is heard; the types of what came before."""

    async def say() -> None:
        while True:
            await speaker.publish(CHAT.id, {"type": word})
            await asyncio.sleep(0.02)

    saying, before = asyncio.create_task(say()), list[str]()
    try:
        async for event in events:
            if event is not None and event["type"] == word:
                return before
            before.append(event["type"] if event else "silence")
    finally:
        saying.cancel()
        await asyncio.wait([saying])
    raise AssertionError("the events ended")


async def until_answers(hot: Hot) -> None:
    while not await hot.ping():
        await asyncio.sleep(0.02)


async def test_everything_works_in_a_cluster() -> None:
    async with cluster() as nodes, Hot.open(url_of(nodes)) as one, Hot.open(url_of(nodes[1:2])) as other:
        for hot in (one, other):
            await until_answers(hot)
        heard: asyncio.Queue[Event] = asyncio.Queue()
        one.handle_control(heard.put)
        async with heard_by_both(one, other) as events:
            for number in range(50):
                await other.touch(CHAT.id, new_session_id(), {"type": "message", "seq": number})
                await other.touch(chat(number).id, new_session_id(), {"type": "message", "seq": 99})
            assert [(await anext(events))["seq"] for _ in range(50)] == list(range(50)), "in order"
            await other.control({"type": "stop"})
            assert await heard.get() == {"type": "stop"}
            turn = new_turn_id()
            await other.publish_partial(CHAT.id, turn, "Good morning", 4)
            assert await one.partial(CHAT.id) == {"turn_id": str(turn), "text": "Good morning"}
            await other.end_partial(CHAT.id, {"type": "message", "seq": 51})
            assert [(await anext(events))["type"] for _ in range(2)] == ["delta", "message"]
        assert await one.partial(CHAT.id) is None
        assert await one.active_conversations() == 51
        for number in range(20):
            assert [await hot.allow(f"ada {number}", 1, 10**9) > 0 for hot in (one, other)] == [False, True]
        await everything_is_locked_and_kept(one, other)
        assert one.reachable
        assert other.reachable


async def everything_is_locked_and_kept(one: Hot, other: Hot) -> None:
    for number in range(20):
        assert await one.acquire(chat(number).id)
        assert not await other.acquire(chat(number).id)
    assert set(await one._renew_all(list(one._held))) == {1}
    for number in range(20):
        assert await one.release(chat(number).id)
        assert not await one.release(chat(number).id)
        assert await other.acquire(chat(number).id)
    await one.keep_session(SESSION)
    assert await other.session(CHAT.id) == SESSION
    await other.forget_session(CHAT.id)
    assert await one.session(CHAT.id) is None


async def test_when_nodes_of_a_cluster_die_the_others_serve_on_and_events_come() -> None:
    async with (
        cluster() as nodes,
        Hot.open(url_of(nodes)) as one,
        Hot.open(url_of(nodes)) as other,
        one.watch(CHAT.id) as events,
    ):
        await until_heard(other, events, "before")
        for number, node in enumerate(nodes):
            for each in range(20):
                await until_kept(one, chat(each))
            node.kill()
            lost = [await one.session(chat(each).id) is None for each in range(20)]
            assert any(lost)
            assert not all(lost), "one dead node takes nobody else along"
            await node.start()
            await until_heard(other, events, f"after {number}")
            for hot in (one, other):
                await until_answers(hot)


async def until_kept(hot: Hot, to: Address) -> None:
    """Until the node that has the conversation is there."""
    while await hot.session(to.id) is None:
        await hot.keep_session(replace(SESSION, conversation_id=to.id))
        await asyncio.sleep(0.02)


async def test_sentinels_promote_the_replica_and_the_bridge_finds_it() -> None:
    async with watched_pair() as pair, Hot.open(pair.url) as one, Hot.open(pair.url) as other:
        async with one.watch(CHAT.id) as events:
            await until_heard(other, events, "before")
            assert await one.acquire(CHAT.id)
            pair.primary.kill()
            assert "resync" in await until_heard(other, events, "after")
            await until_answers(one)
            assert (await pair.replica.ask("ROLE"))[0] in (b"master", "master")
        await everything_is_locked_and_kept(one, other)
        one.dismiss_watchers()


async def test_tls_with_a_ca_of_ones_own(tmp_path: Path) -> None:
    async with tls_server(tmp_path / "right") as (url, authority):
        given = f"{url}?ssl_ca_certs={authority}"
        async with Hot.open(given) as one, Hot.open(given) as other, heard_by_both(one, other) as events:
            await other.touch(CHAT.id, new_session_id(), {"type": "message", "seq": 1})
            assert await anext(events) == {"type": "message", "seq": 1}
            assert one.reachable
        stranger, _, _ = make_certificates(tmp_path / "wrong")
        for refused in (f"{url}?ssl_ca_certs={stranger}", url, f"{url}?ssl_ca_certs={tmp_path}/nothing.pem"):
            async with Hot.open(refused) as hot:
                assert not await hot.ping()
                assert await hot.acquire(CHAT.id)
                assert not hot.reachable


@pytest.mark.parametrize(
    "url",
    [
        "redis://:hush@cache?hush=1",
        "redis://:hush@cache?db=hush",
        "redis+cluster://:hush@cache?hush=1",
        "redis+sentinel://:hush@cache/name?hush=1",
        "redis://hu℀sh@cache",
        "redis://:hush#@cache",
        "http://:hush@cache",
    ],
)
async def test_a_url_that_can_not_be_used_is_told_without_its_password(url: str) -> None:
    with pytest.raises(SettingsError, match=r"REDIS_URL") as error:
        async with Hot.open(url):
            pass
    assert "hush" not in str(error.value)
    assert error.value.__suppress_context__
