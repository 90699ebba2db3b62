"""The flow from a stored message to its reply: commands, busy conversations, the queue, texts.

The echo agent says back what its turn was made of, so that a reply shows which messages were answered together.
"""

import asyncio
import json
from collections.abc import AsyncGenerator

import pytest
import pytest_asyncio

from tests.bridge import BridgeProcess, Chat, running_bridge, visiting
from tests.conftest import fresh_database
from tests.observe import begun, ended, give_policy, outcomes, replies, rows, statuses

LONG = "word " * 25 + "end"  # keeps the echo agent busy for most of a second
NEW = "A new conversation has begun. I have forgotten what we talked about before."


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def bridge(database: str) -> AsyncGenerator[BridgeProcess]:
    async with running_bridge(database, QUEUE_CAP="3") as process:
        yield process


@pytest.fixture
async def chat(bridge: BridgeProcess) -> AsyncGenerator[Chat]:
    async with visiting(bridge.url) as visitor:
        yield visitor


@pytest.fixture
async def busy_chat(chat: Chat) -> Chat:
    """A chat in which LONG is being answered."""
    await chat.send(LONG)
    await begun(chat)
    return chat


# Commands


@pytest.mark.parametrize("text", ["/help", "/HELP", "  /Help\n"])
async def test_help(chat: Chat, text: str) -> None:
    await chat.send(text)
    command, reply = await chat.answered()
    assert command["text"] == text
    assert reply["text"].startswith("Just write to me.")
    assert reply["notice"] == "/help"


async def test_start_may_carry_a_parameter(chat: Chat) -> None:
    await chat.send("/start campaign_42")
    command, reply = await chat.answered()
    assert command["text"] == "/start campaign_42"
    assert (reply["notice"], reply["text"][:6]) == ("/start", "Hello!")


@pytest.mark.parametrize("text", ["/unknown", "/help me", "/newsletter", "help", "/", "/stop it"])
async def test_what_is_no_command_goes_to_the_agent(chat: Chat, text: str) -> None:
    await chat.send(text)
    _, reply = await chat.answered()
    assert (reply["text"], reply["notice"]) == (text, None)


async def test_status_tells_about_the_session(chat: Chat) -> None:
    await chat.send("one")
    await chat.answered()
    await chat.send("/status")
    status = replies(await chat.answered())[-1]
    assert status.startswith("This conversation began 20")
    assert status.endswith(" UTC and has 3 messages. I am echo.")


async def test_stop_without_an_answer_to_stop(chat: Chat) -> None:
    await chat.send("/stop")
    assert await chat.until(2) == ["> /stop", "Stopped."]


async def test_stop_does_not_stop_what_comes_after_it(chat: Chat, database: str) -> None:
    for _ in range(5):
        await chat.send("/stop")
        await chat.send("one two three four")
        assert replies(await chat.answered())[-2:] == ["Stopped.", "one two three four"]
    assert await ended(database, chat, 10) == ["answered"] * 10


async def test_stop_midway_keeps_what_was_written(busy_chat: Chat, database: str) -> None:
    await busy_chat.send("/stop")
    messages = await busy_chat.answered()
    assert statuses(messages) == [(LONG, "cancelled", "cancelled"), ("/stop", "answered", None)]
    partial, stopped = replies(messages)
    assert partial != LONG
    assert LONG.startswith(partial)
    assert stopped == "Stopped."
    assert await outcomes(database, busy_chat) == ["cancelled", "answered"]


async def test_stop_takes_what_waits_along(busy_chat: Chat) -> None:
    await busy_chat.send("two")
    await busy_chat.send("/stop")
    await busy_chat.send("three")
    messages = await busy_chat.answered()
    assert replies(messages)[1:] == ["Stopped.", "three"]
    assert [(message["status"], message["reason"]) for message in messages if message["text"] == "two"] == [
        ("cancelled", "stopped")
    ]


async def test_new_waits_for_the_running_answer(busy_chat: Chat, database: str) -> None:
    await busy_chat.send("/new")
    await busy_chat.send("after")
    messages = await busy_chat.answered()
    assert replies(messages) == [LONG, NEW, "after"]
    where = await rows(
        database,
        """select content_text, session_id = first_value(session_id) over (order by seq) as first from messages
        where conversation_id = (select conversation_id from messages where id = $1) order by seq""",
        messages[0]["id"],
    )
    # The session ends with the reply to /new; what came meanwhile moved into the next one.
    assert [row["content_text"] for row in where if not row["first"]] == ["after", "after"]


async def test_a_new_session_has_its_parent(chat: Chat, database: str) -> None:
    for text in ("one", "/new", "/new", "two"):
        await chat.send(text)
        await chat.answered()
    sessions = await rows(
        database,
        "select id, parent_session_id, status from sessions where platform_conversation_id = $1 order by id",
        chat.conversation,
    )
    assert [session["status"] for session in sessions] == ["closed", "closed", "active"]
    assert [session["parent_session_id"] for session in sessions] == [None, sessions[0]["id"], sessions[1]["id"]]


# Messages while an answer is being written (each policy by itself: tests/fundamentals)


async def test_a_redelivery_while_its_answer_is_written(chat: Chat, database: str) -> None:
    await chat.send(LONG, "once")
    await begun(chat)
    assert (await chat.post(LONG, "once"))[0] == 200
    assert replies(await chat.answered()) == [LONG]
    assert await outcomes(database, chat) == ["answered"]


async def test_an_interrupt_costs_one_call_more(busy_chat: Chat, bridge: BridgeProcess, database: str) -> None:
    await give_policy(bridge.url, busy_chat, "interrupt")
    await busy_chat.send("two")
    assert replies(await busy_chat.answered()) == [f"{LONG}\n\ntwo"]
    assert await ended(database, busy_chat, 2) == ["superseded", "answered"]


async def test_a_command_interrupts_nothing(busy_chat: Chat, bridge: BridgeProcess, database: str) -> None:
    await give_policy(bridge.url, busy_chat, "interrupt")
    await busy_chat.send("/help")
    assert replies(await busy_chat.answered())[0] == LONG
    assert await ended(database, busy_chat, 2) == ["answered", "answered"]


async def test_a_policy_can_be_taken_back(busy_chat: Chat, bridge: BridgeProcess) -> None:
    await give_policy(bridge.url, busy_chat, "reject")
    await busy_chat.send("rejected")
    await give_policy(bridge.url, busy_chat, None)
    await busy_chat.send("taken")
    messages = await busy_chat.answered()
    assert statuses(messages)[1:] == [("rejected", "skipped", "busy"), ("taken", "answered", None)]
    assert replies(messages)[-1] == "taken"


async def test_a_rejection_is_told_once_a_minute(busy_chat: Chat, bridge: BridgeProcess) -> None:
    await give_policy(bridge.url, busy_chat, "reject")
    for text in ("two", "three"):
        await busy_chat.send(text)
        await busy_chat.until(3)
    messages = await busy_chat.answered()
    assert [status for _, status, _ in statuses(messages)] == ["answered", "skipped", "skipped"]
    assert [message["notice"] for message in messages if message["direction"] == "outbound"] == ["busy", None]


async def test_a_full_queue_skips_and_says_so_once(busy_chat: Chat) -> None:
    for number in range(2, 6):
        await busy_chat.send(str(number))
    await busy_chat.send("/status")
    messages = await busy_chat.answered()
    assert statuses(messages) == [
        (LONG, "answered", None),
        ("2", "answered", None),
        ("3", "answered", None),
        ("4", "skipped", "queue_full"),
        ("5", "skipped", "queue_full"),
        ("/status", "answered", None),  # commands have no limit
    ]
    told = [message["notice"] for message in messages if message["direction"] == "outbound"]
    assert sorted(map(str, told)) == ["/status", "None", "None", "queue_full"]
    assert "2\n\n3" in replies(messages)


async def test_pages_see_that_an_answer_is_being_written(chat: Chat) -> None:
    async with chat.events() as events:
        await chat.send("one two three")
        seen = [await anext(events)]
        while seen[-1] != ("typing", {"on": False}):
            seen.append(await anext(events))
    assert seen.count(("typing", {"on": True})) == 1
    kinds = [name for name, _ in seen]
    # The first words may come a moment before.
    assert kinds.index("typing") < kinds.index("message", kinds.index("delta"))
    assert [data["text"] for name, data in seen if name == "message"] == ["one two three"] * 2


# Settings. With a database of their own: the module's bridge would take turns of any conversation in its database.


async def test_vietnamese_with_own_words() -> None:
    own = json.dumps({"start": "Chào! Đây là quán Phở.", "status": "{agent}!"})
    async with (
        fresh_database("18", template=True) as database,
        running_bridge(database, CHAT_BRIDGE_LANGUAGE="vi", CHAT_BRIDGE_TEXTS=own) as bridge,
        visiting(bridge.url) as chat,
    ):
        for text in ("/start", "/status", "/stop", "/new"):
            await chat.send(text)
            await chat.answered()
        assert replies(await chat.messages()) == [
            "Chào! Đây là quán Phở.",
            "echo!",
            "Đã dừng.",
            "Cuộc trò chuyện mới đã bắt đầu. Tôi đã quên những gì chúng ta nói trước đó.",
        ]


async def test_a_first_message_waits_for_more_of_them() -> None:
    async with (
        fresh_database("18", template=True) as database,
        running_bridge(database, COALESCE_SECONDS="1", MAX_TURNS="1") as bridge,
        visiting(bridge.url) as ann,
        visiting(bridge.url) as bob,
    ):
        for text in ("xin", "chào"):
            await ann.send(text)
            await bob.send(text)
        for chat in (ann, bob):
            assert replies(await chat.answered()) == ["xin\n\nchào"]
        # MAX_TURNS=1: the second conversation's turn began when the first one's had ended.
        query = (
            "select started_at, finished_at, outcome, error, turns.conversation_id, owner from turns "
            "join sessions on sessions.id = session_id where platform_conversation_id = any($1) order by started_at"
        )
        while (first := await rows(database, query, [ann.conversation, bob.conversation]))[-1]["finished_at"] is None:
            await asyncio.sleep(0.02)
        assert first[0]["finished_at"] <= first[1]["started_at"], "\n".join(map(str, first))
