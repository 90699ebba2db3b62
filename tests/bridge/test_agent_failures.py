"""What can go wrong with an agent, here a real Mastra server: each has its own text for the user and its own record."""

import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import pytest
import pytest_asyncio

from tests.bridge import BridgeProcess, Chat, running_bridge, visiting
from tests.mastra import MastraServer, running_mastra
from tests.observe import begun, ended, replies, rows, statuses

pytestmark = pytest.mark.timeout(120, func_only=True)  # the first fixture may install the server's packages

SETUP = "The assistant is not set up correctly. Its operator has been told."
TOO_LONG = "The answer took too long, so I stopped waiting. Please try again."
AWAY = "I can't reach the assistant at the moment. Please try again in a little while."
ASKS = """I would like to use the tool delete, which you have to allow first.

```
{"what": "delete everything"}
```

Write /approve to allow it, or /decline to refuse."""
NOTHING = "Nothing waits for your decision any more."


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def mastra() -> AsyncGenerator[MastraServer]:
    async with running_mastra() as server:
        yield server


@asynccontextmanager
async def asking(
    database: str, mastra: MastraServer, agent: str, **settings: str
) -> AsyncGenerator[tuple[BridgeProcess, Chat]]:
    """A visitor of a bridge in front of this agent."""
    settings = {"MASTRA_ENDPOINT": mastra.endpoint, "MASTRA_AGENT_ID": agent, **settings}
    async with running_bridge(database, **settings) as bridge, visiting(bridge.url) as chat:
        yield bridge, chat


@pytest.mark.parametrize(
    ("agent", "settings", "question", "outcome", "text"),
    [
        ("failing", {}, "hi", "error", "Something went wrong while I was answering. Please try again."),
        ("nobody", {}, "hi", "not_found", SETUP),
        ("slow", {"TURN_TIMEOUT_SECONDS": "1"}, "wait 60000", "timeout", TOO_LONG),
        ("slow", {"MASTRA_TIMEOUT": "300"}, "prepare 60000", "timeout", TOO_LONG),
        ("echo", {"MASTRA_ENDPOINT": "http://127.0.0.1:1/api", "TURN_TIMEOUT_SECONDS": "2"}, "hi", "unreachable", AWAY),
        ("empty", {}, "hi", "empty", "I have no answer to that. Please try to say it in another way."),
        ("blocked", {}, "hi", "blocked", "I may not answer that."),
        ("length", {}, "hi", "truncated", "Once upon a\n\n(The answer was too long and ends here.)"),
    ],
    ids=["failing", "unknown", "never-ends", "never-begins", "unreachable", "empty", "blocked", "too-long"],
)
async def test_how_a_turn_may_end(
    database: str, mastra: MastraServer, agent: str, settings: dict[str, str], question: str, outcome: str, text: str
) -> None:
    async with asking(database, mastra, agent, **settings) as (_, chat):
        await chat.send(question)
        asked, reply = await chat.answered()
        (turn,) = await rows(
            database,
            """select turns.status, outcome, agent, error from turns join sessions on sessions.id = session_id
            where platform_conversation_id = $1""",
            chat.conversation,
        )
    failed = outcome not in ("empty", "blocked", "truncated")
    assert reply["text"] == text
    assert reply["notice"] == (None if outcome == "truncated" else outcome)
    assert (asked["status"], asked["reason"]) == (("failed", outcome) if failed else ("answered", None))
    assert (turn["status"], turn["outcome"]) == ("failed" if failed else "done", outcome)
    assert turn["agent"] == f"mastra:{agent}"
    assert bool(turn["error"]) == (failed or outcome == "blocked")


async def test_a_refused_key(database: str) -> None:
    async with running_mastra(token="right") as guarded:
        async with asking(database, guarded, "echo", MASTRA_API_KEY="wrong-key-of-the-operator") as (bridge, chat):
            await chat.send("hi")
            assert replies(await chat.answered()) == [SETUP]
            assert await ended(database, chat, 1) == ["unauthorized"]
            assert "wrong-key-of-the-operator" not in bridge.log.read_text()
        async with asking(database, guarded, "echo", MASTRA_HEADERS='{"Authorization": "Bearer right"}') as (_, chat):
            await chat.send("hi")
            assert replies(await chat.answered()) == ["I remember 1 of your messages. The last one: hi"]


async def test_an_error_is_told_once_a_minute(database: str, mastra: MastraServer) -> None:
    async with asking(database, mastra, "failing") as (_, chat):
        async with chat.events() as events:
            for number in range(3):
                await chat.send(f"try {number}")
                await chat.answered()
            errors: list[str] = []
            async for name, data in events:
                if name == "error":
                    errors.append(data["code"])
                if len(errors) == 2:
                    break
        messages = await chat.messages()
        # The first one is told as a message; pages that are open also hear of the later ones.
        assert len(replies(messages)) == 1
        assert [(status, reason) for _, status, reason in statuses(messages)] == [("failed", "error")] * 3
        assert await ended(database, chat, 3) == ["error"] * 3
        assert errors == ["error"] * 2


async def test_an_approval_is_declined_by_the_next_message(database: str, mastra: MastraServer) -> None:
    async with asking(database, mastra, "approval") as (_, chat):
        await chat.send("delete everything")
        asks = replies(await chat.answered())
        assert asks == [ASKS]
        await chat.send("never mind")
        answer = replies(await chat.answered())[-1]
        assert answer.endswith("The last one: never mind")
        await chat.send("and now")
        await chat.answered()
        assert await ended(database, chat, 3) == ["approval", "answered", "answered"]
        (session,) = await rows(
            database, "select metadata from sessions where platform_conversation_id = $1", chat.conversation
        )
        assert json.loads(session["metadata"])["approval"] is None


@pytest.mark.parametrize(
    ("decision", "answer"), [("/approve", "All of it is deleted."), ("/decline", "Nothing was deleted.")]
)
async def test_a_decision_lets_the_agent_go_on(database: str, mastra: MastraServer, decision: str, answer: str) -> None:
    async with asking(database, mastra, "approval") as (_, chat):
        await chat.send(decision)
        assert replies(await chat.answered()) == [NOTHING]
        await chat.send("delete everything")
        await chat.answered()
        await chat.send(f"{decision} 0123456789ab")  # a button of some earlier call
        await chat.answered()
        await chat.send(decision)
        assert replies(await chat.answered()) == [NOTHING, ASKS, NOTHING, answer]
        await chat.send(decision)
        assert replies(await chat.answered())[-1] == NOTHING
        assert await ended(database, chat, 5) == ["answered", "approval", "answered", "answered", "answered"]


async def test_a_decision_waits_while_the_agent_is_away(database: str) -> None:
    async with running_mastra() as server, asking(database, server, "approval") as (_, chat):
        await chat.send("delete everything")
        await chat.answered()
        await server.kill()
        await chat.send("/approve")
        await chat.answered()
        await server.start()
        await chat.send("/approve")
        assert replies(await chat.answered())[-1] == "All of it is deleted."


async def test_stop_reaches_the_agent(database: str, mastra: MastraServer) -> None:
    async with asking(database, mastra, "slow") as (_, chat):
        await chat.send("1000 words, 20 apart")
        await begun(chat)
        await chat.send("/stop")
        messages = await chat.answered()
        assert statuses(messages)[0] == ("1000 words, 20 apart", "cancelled", "cancelled")
        assert replies(messages)[0].startswith("1 ")
        await mastra.event("abort", agent="slow", last="1000 words, 20 apart")
        await chat.send("3 words, 1 apart")
        assert replies(await chat.answered())[1:] == ["Stopped.", "1 2 3 "]


async def test_memory_lasts_until_new(database: str, mastra: MastraServer) -> None:
    async with asking(database, mastra, "echo") as (bridge, chat):
        for number in (1, 2):
            await chat.send(f"{number}")
            assert replies(await chat.answered())[-1].startswith(f"I remember {number} of your messages.")
        await bridge.stop()
        await bridge.start()
        await chat.send("3")
        assert replies(await chat.answered())[-1].startswith("I remember 3 of your messages.")
        await chat.send("/new")
        await chat.send("4")
        assert replies(await chat.answered())[-1].startswith("I remember 1 of your messages.")


async def test_mastra_is_killed_in_the_middle_of_an_answer(database: str) -> None:
    async with running_mastra() as server, asking(database, server, "slow") as (_, chat):
        await chat.send("1000 words, 20 apart")
        await begun(chat)
        await server.kill()
        messages = await chat.answered()
        assert statuses(messages)[0][1] == "failed"
        assert len(replies(messages)) == 1
        await server.start()
        await chat.send("2 words, 1 apart")
        assert replies(await chat.answered())[-1] == "1 2 "


async def test_mastra_keeps_a_message_once_though_it_was_asked_twice(database: str, mastra: MastraServer) -> None:
    async with asking(database, mastra, "slow", LEASE_SECONDS="3") as (bridge, chat):
        await chat.send("100 words, 20 apart")
        await begun(chat)
        await bridge.kill()
        await bridge.start()
        assert replies(await chat.answered()) == ["".join(f"{word} " for word in range(1, 101))]
        await chat.send("1 words, 1 apart")
        await chat.answered()
    first = await mastra.event("call", agent="slow", users=["100 words, 20 apart"])
    assert first["context"]["channel"] == "webchat"
    # The model sees the memory: the question is there once.
    await mastra.event("call", agent="slow", users=["100 words, 20 apart", "1 words, 1 apart"])
