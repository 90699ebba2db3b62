"""Several processes on one PostgreSQL and one Redis, and what becomes of the work of one that dies."""

import asyncio
import signal
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import aiohttp

from chat_bridge.storage.redis import RESYNC, Event, Hot
from chat_bridge.storage.turns import MOST_LOST_TURNS
from tests.bridge import SECRET, BridgeProcess, Chat, running_bridge, visiting
from tests.observe import begun, call, messages_in, outcomes, replies, rows, run_command, statuses
from tests.storage.dialogue import CHAT

ENDLESS = "word " * 1000  # half a minute


@asynccontextmanager
async def replicas(
    database: str, redis_url: str, count: int = 2, **settings: str
) -> AsyncGenerator[list[BridgeProcess]]:
    async with AsyncExitStack() as stack:
        starting = [running_bridge(database, REDIS_URL=redis_url, **settings) for _ in range(count)]
        yield [await stack.enter_async_context(bridge) for bridge in starting]


@asynccontextmanager
async def same_visitor(chat: Chat, bridge: BridgeProcess) -> AsyncGenerator[Chat]:
    """The same visitor, by another replica."""
    async with aiohttp.ClientSession() as http:
        yield Chat(http, bridge.url, chat.conversation, chat.token)


async def dlq(database: str, *words: str) -> tuple[int, str, str]:
    return await run_command("dlq", *words, DATABASE_URL=database, CHAT_BRIDGE_SECRET=SECRET)


async def sweeper(database: str, names: int = 1) -> str:
    """The process that sweeps, once there is one."""
    while True:
        found = await rows(database, "select owner from leases where name like 'sweep:%' and lease_until > now()")
        if len(found) == names:
            return found[0]["owner"]
        await asyncio.sleep(0.05)


async def test_a_page_at_one_replica_sees_what_another_writes(database: str, redis_url: str) -> None:
    async with (
        replicas(database, redis_url) as (here, there),
        visiting(here.url) as chat,
        same_visitor(chat, there) as elsewhere,
        chat.events() as events,
    ):
        await elsewhere.send("one two three")
        seen = [message["text"] async for message in messages_in(events, 2)]
    assert seen == ["one two three", "one two three"]


async def test_messages_by_all_replicas_are_answered_in_order(database: str, redis_url: str) -> None:
    async with replicas(database, redis_url, 3, BUSY_POLICY="followup") as bridges, AsyncExitStack() as stack:
        chat = await stack.enter_async_context(visiting(bridges[0].url))
        doors = [await stack.enter_async_context(same_visitor(chat, bridge)) for bridge in bridges]
        for number in range(15):
            await doors[number % 3].send(f"number {number}")
        assert replies(await chat.answered()) == [f"number {number}" for number in range(15)]
        assert all(not bridge.events("worker.crashed") for bridge in bridges)


async def test_more_conversations_than_places_are_all_answered(database: str, redis_url: str) -> None:
    async with replicas(database, redis_url, 1, MAX_TURNS="1") as (bridge,), AsyncExitStack() as stack:
        chats = [await stack.enter_async_context(visiting(bridge.url)) for _ in range(8)]
        await asyncio.gather(*(chat.send("one two") for chat in chats))
        for chat in chats:
            assert replies(await chat.answered()) == ["one two"]


async def test_who_came_first_is_answered_before_those_who_go_on_talking(database: str, redis_url: str) -> None:
    said = 0

    async def talk(chat: Chat) -> None:
        nonlocal said
        while True:
            await chat.send("and another thing")
            await chat.answered()
            said += 1

    async with replicas(database, redis_url, 1, MAX_TURNS="1") as (bridge,), AsyncExitStack() as stack:
        talkers = [await stack.enter_async_context(visiting(bridge.url)) for _ in range(4)]
        quiet = [await stack.enter_async_context(visiting(bridge.url)) for _ in range(4)]
        talking = [asyncio.create_task(talk(chat)) for chat in talkers]
        try:
            while said < 10:
                await asyncio.sleep(0.01)
            await asyncio.gather(*(chat.send("one two") for chat in quiet))
            before = said
            for chat in quiet:
                assert replies(await chat.answered()) == ["one two"]
            assert said - before < 40
        finally:
            for task in talking:
                task.cancel()
            await asyncio.wait(talking)


async def test_a_full_replica_lets_another_one_answer(database: str, redis_url: str) -> None:
    async with (
        replicas(database, redis_url, 2, MAX_TURNS="1", CHAT_BRIDGE_DRAIN_SECONDS="0") as (full, free),
        AsyncExitStack() as stack,
    ):
        busy = [await stack.enter_async_context(visiting(full.url)) for _ in range(2)]
        for chat in busy:
            await chat.send(ENDLESS)
        await begun(busy[0])
        chat = await stack.enter_async_context(visiting(full.url))
        await chat.send("quick")
        assert replies(await chat.answered()) == ["quick"]
        (owner,) = await rows(
            database,
            "select owner from turns join sessions on sessions.id = session_id where platform_conversation_id = $1",
            chat.conversation,
        )
        assert owner["owner"].endswith(f":{free.pid}")


async def test_a_replica_that_stops_passes_its_conversations_on(database: str, redis_url: str) -> None:
    told: asyncio.Queue[Event] = asyncio.Queue()
    async with Hot.open(redis_url) as other, other.watch(CHAT.id) as events:
        other.handle_control(told.put)
        assert await anext(events) == RESYNC  # from now on it hears
        async with (
            replicas(database, redis_url, 1, CHAT_BRIDGE_DRAIN_SECONDS="0") as (bridge,),
            visiting(bridge.url) as chat,
        ):
            await chat.send(ENDLESS)
            await begun(chat)
            assert await bridge.stop(signal.SIGTERM) == 0
        (turn,) = await rows(database, "select conversation_id from turns")
        end = {"type": "end"}
        await other.control(end)
        heard = [await told.get()]
        while heard[-1] != end:
            heard.append(await told.get())
    assert {"type": "wake", "conversation": str(turn["conversation_id"]), "platform": "webchat"} in heard


async def test_one_replica_sweeps_and_another_takes_over(database: str, redis_url: str) -> None:
    async with replicas(database, redis_url, 2, LEASE_SECONDS="3") as bridges:
        first = await sweeper(database)
        pids = {f":{bridge.pid}:": bridge for bridge in bridges}
        (dying,) = [bridge for pid, bridge in pids.items() if pid in first]
        await dying.kill()
        while (second := await sweeper(database)) == first:
            await asyncio.sleep(0.05)
        (living,) = [bridge for bridge in bridges if bridge is not dying]
        assert f":{living.pid}:" in second
        # One that stops in order does not make the next wait.
        await living.stop()
        assert await rows(database, "select from leases where name like 'sweep:%' and lease_until > now()") == []


async def test_a_message_that_kills_its_process_is_set_aside_and_can_be_replayed(database: str, redis_url: str) -> None:
    async with replicas(database, redis_url, 1, LEASE_SECONDS="3") as (bridge,), visiting(bridge.url) as chat:
        poison = await chat.send(ENDLESS)
        for number in range(MOST_LOST_TURNS):
            while await outcomes(database, chat) != ["superseded"] * number + [None]:
                await asyncio.sleep(0.05)
            await bridge.kill()
            await bridge.start()
        messages = await chat.answered()
        while len(messages) < 2:
            messages = await chat.answered()
        assert statuses(messages) == [(ENDLESS, "failed", "lost_turns")]
        assert len(replies(messages)) == 1, "the user is told"
        await chat.send("harmless")
        assert replies(await chat.answered())[-1] == "harmless"

        code, told, errors = await dlq(database, "list")
        assert (code, errors) == (0, "")
        assert poison["id"] in told
        assert "message failed: lost_turns" in told
        code, story, _ = await dlq(database, "show", poison["id"])
        assert code == 0
        assert "inbound text, failed (lost_turns)" in story
        assert story.count(": superseded") == MOST_LOST_TURNS
        assert await dlq(database, "retry", poison["id"]) == (
            0,
            "1 will be tried again within seconds, if the bridge runs\n",
            "",
        )
        assert (await begun(chat)).startswith("word")
        assert (await dlq(database, "list"))[1] == "there are no dead letters\n"


# Dead letters by command and by API.


async def failed(database: str) -> list[str]:
    """Three messages of three visitors that their agent could not answer; their ids, newest first."""
    away = {"MASTRA_ENDPOINT": "http://127.0.0.1:1/api", "MASTRA_AGENT_ID": "x", "TURN_TIMEOUT_SECONDS": "1"}
    ids: list[str] = []
    async with running_bridge(database, **away) as bridge:
        for _ in range(3):
            async with visiting(bridge.url) as chat:
                ids.insert(0, (await chat.send("hello"))["id"])
                await chat.answered()
    return ids


async def test_dead_letters_on_the_command_line(database: str) -> None:
    assert await dlq(database, "list") == (0, "there are no dead letters\n", "")
    newest, middle, oldest = await failed(database)
    _, told, _ = await dlq(database, "list")
    assert [line.split()[0] for line in told.splitlines()] == [newest, middle, oldest]
    assert len((await dlq(database, "list", "--limit", "2"))[1].splitlines()) == 2
    assert (await dlq(database, "list", "--platform", "slack"))[1] == "there are no dead letters\n"
    assert '"reason": "unreachable"' in (await dlq(database, "list", "--json"))[1].splitlines()[0]
    assert "hello" in (await dlq(database, "show", middle))[1]
    assert await dlq(database, "purge", oldest) == (0, "1 laid aside\n", "")
    code, told, errors = await dlq(database, "retry", middle, oldest)
    assert (code, told) == (1, "1 will be tried again within seconds, if the bridge runs\n")
    assert errors == f"chat-bridge: no dead letters: {oldest}\n"
    for wrong in (["retry"], ["purge", newest, "--all"], ["retry", newest, "--platform", "slack"]):
        code, told, errors = await dlq(database, *wrong)
        assert (code, told) == (1, "")
        assert errors.startswith("chat-bridge: ")
    assert await dlq(database, "purge", "--all", "--platform", "webchat") == (0, "1 laid aside\n", "")
    assert (await dlq(database, "show", "01a20863-0000-7000-8000-000000000000"))[0] == 1


async def test_dead_letters_by_the_api(database: str) -> None:
    newest, middle, oldest = await failed(database)
    async with running_bridge(database) as bridge:

        async def page(**query: Any) -> tuple[list[str], str | None]:
            status, found = await call(bridge.url, "GET", "/api/v1/dead-letters", params=query)
            assert status == 200, found
            return [letter["id"] for letter in found["dead_letters"]], found["next"]

        assert await page() == ([newest, middle, oldest], None)
        first, after = await page(limit=2)
        assert first == [newest, middle]
        assert await page(limit=2, after=after) == ([oldest], None)
        async with aiohttp.ClientSession(
            bridge.url, headers={"Authorization": "Bearer the-api-key-of-the-tests"}
        ) as http:
            for path, expected in (
                (f"{newest}/retry", 202),
                (f"{newest}/retry", 404),
                (f"{oldest}/purge", 204),
                (f"{oldest}/purge", 404),
                (f"{oldest}/retry", 404),
            ):
                async with http.post(f"/api/v1/dead-letters/{path}") as response:
                    assert response.status == expected
            for cursor in ("nonsense", "2026-01-01~x~1", "2026-01-01T00:00:00~" + newest + "~1"):
                async with http.get("/api/v1/dead-letters", params={"after": cursor}) as response:
                    assert response.status == 422
        assert await page() == ([middle], None)
        while [row["n"] for row in await rows(database, "select count(*) n from turns where status = 'done'")] != [1]:
            await asyncio.sleep(0.05)
        async with aiohttp.ClientSession(bridge.url) as http, http.get("/api/v1/dead-letters") as response:
            assert response.status == 401
