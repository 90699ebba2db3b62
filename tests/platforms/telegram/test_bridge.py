"""A Telegram bot as its users meet it: the whole bridge, with the fake Telegram on one side and echo on the other."""

import asyncio
import socket
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import pytest_asyncio

from tests.bridge import BridgeProcess, running_bridge
from tests.conftest import fresh_database
from tests.fake_telegram.client import Chat, FakeTelegram, Message, Person, running_telegram
from tests.mastra import running_mastra
from tests.observe import call, rows


def settings_of(telegram: FakeTelegram, **more: str) -> dict[str, str]:
    return {
        "TELEGRAM_ENABLED": "true",
        "TELEGRAM_BOT_TOKEN": telegram.token,
        "TELEGRAM_API_BASE_URL": telegram.base_url,
        "COALESCE_SECONDS": "0",
        "LEASE_SECONDS": "3",
        **more,
    }


@asynccontextmanager
async def answering(database: str, telegram: FakeTelegram, **settings: str) -> AsyncGenerator[BridgeProcess]:
    """A bridge that is this bot."""
    async with running_bridge(database, **settings_of(telegram, **settings)) as bridge:
        yield bridge


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def telegram() -> AsyncGenerator[FakeTelegram]:
    async with running_telegram() as fake:
        yield fake


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def bridge(telegram: FakeTelegram) -> AsyncGenerator[BridgeProcess]:
    async with fresh_database("18", template=True) as database, answering(database, telegram) as process:
        yield process


pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(loop_scope="module")
async def linh(telegram: FakeTelegram) -> Person:
    return await telegram.user("Linh", username="linh_tr", language="vi")


@pytest_asyncio.fixture(loop_scope="module")
async def chat(telegram: FakeTelegram, bridge: BridgeProcess, linh: Person) -> Chat:
    """A private chat with the bot."""
    return await telegram.private(linh)


@pytest_asyncio.fixture(loop_scope="module")
async def minh(telegram: FakeTelegram) -> Person:
    return await telegram.user("Minh")


@pytest_asyncio.fixture(loop_scope="module")
async def group(telegram: FakeTelegram, bridge: BridgeProcess, linh: Person, minh: Person) -> Chat:
    """A group in which the bot sees everything."""
    await telegram.settings(sees_all=True)
    return await telegram.supergroup("Ops", linh, minh)


async def stored(bridge: BridgeProcess, chat: Chat) -> list[dict[str, Any]]:
    """The messages of a chat's newest session, as the REST API shows them."""
    status, found = await call(bridge.url, "GET", "/api/v1/sessions", params={"conversation": str(chat.id)})
    assert status == 200
    session = found["sessions"][0]
    status, page = await call(bridge.url, "GET", f"/api/v1/sessions/{session['id']}/messages?limit=200")
    assert status == 200
    return page["messages"]


async def until_stored(bridge: BridgeProcess, chat: Chat, count: int) -> list[dict[str, Any]]:
    """Wait until there are so many."""
    while True:
        _, found = await call(bridge.url, "GET", "/api/v1/sessions", params={"conversation": str(chat.id)})
        if found["sessions"] and len(messages := await stored(bridge, chat)) >= count:
            return messages
        await asyncio.sleep(0.02)


async def until_said(chat: Chat, *texts: str) -> list[Message]:
    """Wait until these are the bot's messages, and give them. In groups an answer grows before it is there."""

    async def said() -> list[Message] | None:
        replies = await chat.replies()
        return replies if [reply.text for reply in replies] == list(texts) else None

    return await chat.telegram.until(said)


# In


async def test_a_message_and_its_answer(chat: Chat, bridge: BridgeProcess) -> None:
    await chat.say("xin chào 👋")
    await chat.until_texts(["> xin chào 👋", "xin chào 👋"])
    question, answer = await until_stored(bridge, chat, 2)
    assert (question["status"], answer["status"]) == ("answered", "sent")
    assert question["sender"]["id"] == str(chat.id)


async def test_commands_of_the_bridge(chat: Chat) -> None:
    await chat.say("/start")
    (greeting,) = await chat.until_replies(1)
    assert greeting.text.startswith("Hello!")
    await chat.say("/new")
    assert (await chat.until_replies(2))[1].text.startswith("A new conversation has begun.")


async def test_duplicates_and_swapped_updates(telegram: FakeTelegram, chat: Chat, bridge: BridgeProcess) -> None:
    for oddity in ("duplicate", "twice_at_once", "swap"):
        await telegram.odd(oddity)
        await chat.say(f"first {oddity}")
        await chat.say(f"second {oddity}")
    await telegram.until_confirmed()
    messages = await until_stored(bridge, chat, 7)
    asked = [message["text"] for message in messages if message["direction"] == "inbound"]
    assert sorted(asked) == sorted(
        f"{nth} {odd}" for nth in ("first", "second") for odd in ("duplicate", "twice_at_once", "swap")
    )
    while any(message["status"] == "pending" for message in await stored(bridge, chat)):
        await asyncio.sleep(0.02)
    words = "\n\n".join(message.text for message in await chat.replies())
    assert sorted(words.split("\n\n")) == sorted(asked)


@pytest.mark.parametrize(
    ("media", "text", "answer"),
    [
        ("photo", "my invoice", "my invoice\n[image]"),
        ("document", "", "[file: report.pdf]"),
        ("voice", "", "[audio]"),
        ("sticker", "", "Sticker"),
        ("location", "", "Location: "),
        ("contact", "", "Contact: "),
        ("poll", "", "Poll"),
    ],
)
async def test_everything_that_people_send(
    chat: Chat, bridge: BridgeProcess, media: str, text: str, answer: str
) -> None:
    await chat.say(text, media=media, name="report.pdf" if media == "document" else None, content=b"x" * 10)
    (reply,) = await chat.until_said(1)
    assert reply.text.startswith(answer)
    (sent, _) = await until_stored(bridge, chat, 2)
    files = media in ("photo", "document", "voice", "sticker")
    assert len(sent["attachments"]) == files
    assert "ref" not in str(sent["attachments"]), "the reference is not for readers"


async def test_an_album_is_one_message(database: str) -> None:
    async with running_telegram() as telegram, answering(database, telegram, COALESCE_SECONDS="3") as bridge:
        chat = await telegram.private(await telegram.user("Lan"))
        for number in range(3):
            await chat.say("three pictures" if number == 0 else "", media="photo", album="77", content=b"jpeg")
        (reply,) = await chat.until_said(1)
        assert reply.text == "three pictures\n[image]\n[image]\n[image]"
        question, _ = await until_stored(bridge, chat, 2)
        assert len(question["attachments"]) == 3


async def test_an_edit_before_the_answer_changes_what_the_agent_gets(database: str) -> None:
    async with running_telegram() as telegram, answering(database, telegram, COALESCE_SECONDS="3") as bridge:
        chat = await telegram.private(await telegram.user("Lan"))
        message = await chat.say("two tickets")
        await telegram.until_confirmed()
        await message.edit("three tickets")
        await chat.until_texts(["> three tickets", "three tickets"])
        question, _ = await until_stored(bridge, chat, 2)
        assert question["text"] == "three tickets"
        assert [version["text"] for version in question["versions"]] == ["two tickets", "three tickets"]


LONG = "word " * 60 + "end"  # echo takes two seconds for it


async def test_an_edit_during_the_answer_begins_it_again(chat: Chat, bridge: BridgeProcess) -> None:
    message = await chat.say(LONG)
    await chat.until_typing()
    await message.edit("short")
    (reply,) = await chat.until_replies(1)
    assert reply.text == "short"


async def test_an_edit_after_the_answer_is_recorded(chat: Chat, bridge: BridgeProcess) -> None:
    message = await chat.say("one")
    await chat.until_replies(1)
    await message.edit("two")
    while not (await stored(bridge, chat))[0]["versions"]:
        await asyncio.sleep(0.02)
    await message.react("👍")
    await chat.say("three")
    await chat.until_replies(2)
    kinds = [(one["direction"], one["text"], one["reason"]) for one in await stored(bridge, chat)]
    assert kinds == [
        ("inbound", "two", None),
        ("outbound", "one", None),
        ("inbound", "👍", "kind:reaction"),
        ("inbound", "three", None),
        ("outbound", "three", None),
    ]


async def test_a_user_who_blocks_and_comes_back(telegram: FakeTelegram, chat: Chat, bridge: BridgeProcess) -> None:
    await chat.say("one")
    await chat.until_replies(1)
    await chat.block()
    params = {"conversation": str(chat.id)}
    while (await call(bridge.url, "GET", "/api/v1/sessions", params=params))[1]["sessions"][0]["status"] != "closed":
        await asyncio.sleep(0.02)
    await chat.unblock()
    await chat.say("two")
    await chat.until_replies(2)
    _, found = await call(bridge.url, "GET", "/api/v1/sessions", params=params)
    assert found["sessions"][0]["status"] == "active"


async def test_an_update_of_an_unknown_kind_blocks_nothing(
    telegram: FakeTelegram, chat: Chat, bridge: BridgeProcess
) -> None:
    await telegram.update({"something_new": {"of": "next year"}})
    await telegram.update({"message": "not even an object"})
    await chat.say("still there?")
    await chat.until_texts(["> still there?", "still there?"])
    _, found = await call(bridge.url, "GET", "/api/v1/sessions", params={"conversation": "-"})
    _, page = await call(bridge.url, "GET", f"/api/v1/sessions/{found['sessions'][0]['id']}/messages")
    assert {message["reason"] for message in page["messages"]} == {"kind:unknown"}


async def test_an_edit_of_a_command_or_into_one_changes_no_command(chat: Chat, bridge: BridgeProcess) -> None:
    message = await chat.say(LONG)
    await chat.until_typing()
    status = await chat.say("/status")
    await status.edit("what is your status?")
    await message.edit("/new")
    replies = await chat.until_replies(2)
    assert replies[0].text == "/new"
    assert replies[1].text.startswith("This conversation began")


# Groups


async def test_a_bare_mention_means_what_was_said_before(group: Chat, linh: Person, minh: Person) -> None:
    said = await group.say("is it down?", by=minh)
    await group.say("@bridge_bot", by=linh, reply_to=said)
    await until_said(group, "is it down?\n\nMinh: is it down?")  # echoed as a quote


async def test_what_was_overheard_outlasts_a_command(group: Chat, linh: Person) -> None:
    await group.say("the password is swordfish", by=linh)
    await group.say("/stop@bridge_bot", by=linh)
    await group.until_replies(1)
    await group.say("@bridge_bot what is it?", by=linh)
    await until_said(group, "Stopped.", "the password is swordfish\n\nwhat is it?")
    await group.say("@bridge_bot again", by=linh)
    assert (await group.until_replies(3))[2].text == "again"


async def test_a_command_for_another_bot_is_not_for_us(group: Chat, linh: Person, bridge: BridgeProcess) -> None:
    (answer,) = [await group.say("@bridge_bot hello", by=linh), *await until_said(group, "hello")][1:]
    await group.say("/weather@other_bot", by=linh, reply_to=answer)
    messages = await until_stored(bridge, group, 3)
    assert (messages[2]["text"], messages[2]["reason"]) == ("/weather@other_bot", "not_addressed")


async def test_in_a_group_it_answers_when_addressed_and_knows_what_was_said(
    group: Chat, linh: Person, minh: Person, bridge: BridgeProcess
) -> None:
    await group.say("the server is slow", by=linh)
    await group.say("since the deploy", by=minh)
    question = await group.say("@bridge_bot what do you think?", by=linh)
    # Echo says what it was given: what was overheard comes along.
    told = "the server is slow\n\nsince the deploy\n\nwhat do you think?"
    (answer,) = await until_said(group, told)
    assert answer.reply_to == question.id
    reply = await group.say("thanks", by=minh, reply_to=answer)
    assert [message.reply_to for message in await until_said(group, told, "thanks")] == [question.id, reply.id]
    assert [message["reason"] for message in await stored(bridge, group) if message["direction"] == "inbound"] == [
        "not_addressed",
        "not_addressed",
        None,
        None,
    ]


async def test_topics_are_conversations_of_their_own(
    telegram: FakeTelegram, linh: Person, bridge: BridgeProcess
) -> None:
    await telegram.settings(sees_all=True)
    forum = await telegram.supergroup("Forum", linh, forum=True)
    one, two = await forum.topic("One", by=linh), await forum.topic("Two", by=linh)
    await forum.say("secret of topic one", by=linh, topic=one)
    await forum.say("@bridge_bot hello", by=linh, topic=two)
    await forum.until_texts(["> @bridge_bot hello", "hello"], topic=two)
    await forum.say("@bridge_bot hello", by=linh, topic=one)
    await forum.until_texts(["> secret of topic one", "> @bridge_bot hello", "secret of topic one\n\nhello"], topic=one)


async def test_a_group_that_becomes_a_supergroup_keeps_its_conversation(
    telegram: FakeTelegram, linh: Person, bridge: BridgeProcess
) -> None:
    await telegram.settings(sees_all=True)
    group = await telegram.group("Small", linh)
    await group.say("/status@bridge_bot", by=linh)
    await group.until_replies(1)
    new = await group.upgrade(by=linh)
    await new.say("@bridge_bot hello", by=linh)
    (reply,) = await new.until_replies(1)
    assert reply.text == "hello"
    texts = [message["text"] for message in await stored(bridge, new)]
    assert texts[0] == "/status@bridge_bot"
    assert texts[-1] == "hello"
    _, found = await call(bridge.url, "GET", "/api/v1/sessions", params={"conversation": str(group.id)})
    assert found["sessions"] == []


@pytest.mark.parametrize(
    ("settings", "reasons"),
    [
        ({"TELEGRAM_GROUPS": "always"}, {"hello": None, "@bridge_bot hi": None, "private": None}),
        ({"TELEGRAM_GROUPS": "never"}, {"hello": "groups_off", "@bridge_bot hi": "groups_off", "private": None}),
        (
            {"TELEGRAM_DENY_USERS": "@Linh_TR"},
            {"hello": "user_not_allowed", "@bridge_bot hi": "user_not_allowed", "private": "user_not_allowed"},
        ),
        (
            {"TELEGRAM_ALLOW_GROUPS": "-1"},
            {"hello": "group_not_allowed", "@bridge_bot hi": "group_not_allowed", "private": None},
        ),
        (
            {"TELEGRAM_ALLOW_USERS": "1,2"},
            {"hello": "user_not_allowed", "@bridge_bot hi": "user_not_allowed", "private": "user_not_allowed"},
        ),
    ],
)
async def test_who_is_answered(settings: dict[str, str], reasons: dict[str, str | None]) -> None:
    async with running_telegram() as telegram, fresh_database("18", template=True) as database:
        await telegram.settings(sees_all=True)
        linh = await telegram.user("Linh", username="linh_tr")
        group, chat = await telegram.supergroup("Ops", linh), await telegram.private(linh)
        async with answering(database, telegram, **settings):
            await group.say("hello", by=linh)
            await group.say("@bridge_bot hi", by=linh)
            await chat.say("private")
            query = """select coalesce(metadata ->> 'raw_text', content_text) as text, metadata ->> 'reason' as reason
                from messages where direction = 'inbound'"""
            while len(found := await rows(database, query)) < 3:
                await asyncio.sleep(0.02)
            assert {row["text"]: row["reason"] for row in found} == reasons
            for where in (group, chat):
                wanted = sum(reasons[text] is None for text in reasons if (text == "private") == (where is chat))
                if wanted:
                    await telegram.until_calls("sendMessage", 1)


# Out


async def test_formatting_reaches_the_reader(chat: Chat) -> None:
    await chat.say("**bold** and `code`")
    (reply,) = await chat.until_replies(1)
    assert reply.text == "bold and code"
    assert [(one["type"], one["offset"], one["length"]) for one in reply.entities] == [("bold", 0, 4), ("code", 9, 4)]


async def test_formatting_that_telegram_refuses_is_sent_plain(telegram: FakeTelegram, chat: Chat) -> None:
    await telegram.fault("sendMessage", "entities", chat=chat)
    await chat.say("**bold**")
    (reply,) = await chat.until_replies(1)
    assert (reply.text, reply.entities) == ("bold", [])


async def test_a_long_answer_comes_in_parts_in_order(telegram: FakeTelegram, chat: Chat) -> None:
    question = "\n\n".join(f"{number} {'long' * 40}" for number in range(24))
    more = "\n\n".join("👋" * 500 for _ in range(4))
    await telegram.fault("sendMessage", "too_many_requests", chat=chat, retry_after=1)
    await chat.say(question)
    await chat.say(more)
    wanted = "".join((question + more).split())

    async def said() -> list[Message] | None:
        replies = await chat.replies()
        return replies if "".join("".join(reply.text.split()) for reply in replies) == wanted else None

    replies = await telegram.until(said)
    assert len(replies) >= 2
    assert max(len(message.text.encode("utf-16-le")) // 2 for message in replies) <= 4096


async def test_an_answer_grows_as_a_draft_in_private(chat: Chat) -> None:
    await chat.say(LONG)
    await chat.until_typing()
    (reply,) = await chat.until_replies(1)
    assert reply.text == LONG
    drafts = (await chat.show())["draft_texts"]
    assert drafts
    assert all(LONG.startswith(draft) for draft in drafts)
    assert drafts == sorted(drafts, key=len)


async def test_an_answer_grows_by_edits_in_a_group(telegram: FakeTelegram, group: Chat, linh: Person) -> None:
    long = "word " * 250 + "end"  # eight seconds
    question = await group.say(f"@bridge_bot {long}", by=linh)
    while not (replies := await group.replies()) or replies[0].text != long:
        await asyncio.sleep(0.05)
    (reply,) = replies
    assert reply.reply_to == question.id
    assert len(reply.former_texts) >= 2
    assert all(long.startswith(former) for former in reply.former_texts)


async def test_a_message_that_streams_and_is_deleted_is_sent_again(group: Chat, linh: Person) -> None:
    await group.say(f"@bridge_bot {LONG}", by=linh)
    (preview,) = await group.until_replies(1)
    await preview.delete()
    while not (replies := await group.replies()) or replies[-1].text != LONG:
        await asyncio.sleep(0.05)
    assert len(replies) == 1


async def test_lost_answers_double_nothing_and_are_visible(
    telegram: FakeTelegram, chat: Chat, bridge: BridgeProcess
) -> None:
    await telegram.fault("sendMessage", "lost_answer", chat=chat)
    await chat.say("once")
    await chat.until_replies(1)
    while not [event for event in bridge.events("reply.not_delivered") if event["status"] == "unknown"]:
        await asyncio.sleep(0.02)
    await chat.say("twice")
    replies = await chat.until_replies(2)
    assert [message.text for message in replies] == ["once", "twice"]


async def test_a_preview_that_is_gone_and_a_lost_answer_double_nothing(
    telegram: FakeTelegram, group: Chat, linh: Person, bridge: BridgeProcess
) -> None:
    before = len(bridge.events("reply.not_delivered"))
    await group.say(f"@bridge_bot {LONG}", by=linh)
    (preview,) = await group.until_replies(1)
    await telegram.fault("sendMessage", "lost_answer", chat=group, times=5)
    await preview.delete()
    while not (told := bridge.events("reply.not_delivered")[before:]):
        await asyncio.sleep(0.05)
    await telegram.mend()
    assert [event["status"] for event in told] == ["unknown"]
    await group.say("@bridge_bot next", by=linh)
    await until_said(group, LONG, "next")


async def test_a_lost_answer_to_an_edit_is_tried_again(telegram: FakeTelegram, group: Chat, linh: Person) -> None:
    await group.say(f"@bridge_bot {LONG}", by=linh)
    await group.until_replies(1)
    await telegram.fault("editMessageText", "lost_answer", chat=group, times=2)
    await until_said(group, LONG)


async def test_a_server_in_trouble_is_tried_again_in_order(telegram: FakeTelegram, chat: Chat) -> None:
    await telegram.fault("sendMessage", "too_many_requests", chat=chat, retry_after=1, times=2)
    for number in range(3):
        await chat.say(f"{number}")
        await telegram.until_confirmed()
    replies = await chat.until_replies(1)
    while "".join(message.text for message in replies).count("2") < 1:
        replies = await chat.replies()
        await asyncio.sleep(0.02)
    assert "\n\n".join(message.text for message in replies).split("\n\n") == ["0", "1", "2"]


async def test_a_stop_leaves_no_reply_half_sent(database: str) -> None:
    async with running_telegram() as telegram:
        chat = await telegram.private(await telegram.user("Linh"))
        async with answering(database, telegram) as bridge:
            await telegram.fault("sendMessage", "slow", chat=chat, times=4, seconds=1)
            await chat.say("👋" * 2040)
            await chat.say("👋" * 2040)
            await telegram.until_calls("sendMessage", 1)
            await bridge.stop()
            await bridge.start()
            while len(await chat.replies()) < 2:
                await asyncio.sleep(0.05)
        states = await rows(database, "select distinct status from deliveries")
        assert [row["status"] for row in states] == ["sent"]
        assert sum(message.text.count("👋") for message in await chat.replies()) == 4080


async def test_a_group_that_moves_in_one_batch_with_what_was_said_before(database: str) -> None:
    async with running_telegram() as telegram:
        await telegram.settings(sees_all=True)
        linh = await telegram.user("Linh")
        group = await telegram.group("Small", linh)
        for number in range(4):
            await group.say(f"@bridge_bot {number}", by=linh)
        new = await group.upgrade(by=linh)
        await new.say("@bridge_bot 4", by=linh)
        old = (await telegram.pending())[0]
        async with answering(database, telegram) as bridge:
            await telegram.until_confirmed()
            await telegram.update(old, lane=group.id)  # a late redelivery under the old id
            await telegram.until_confirmed()
            pending = "select from sessions where pending_since is not null"
            while await rows(database, pending) or not await new.replies():
                await asyncio.sleep(0.05)
            messages = await stored(bridge, new)
        asked = [message["text"] for message in messages if message["direction"] == "inbound"]
        assert [text for text in asked if text.startswith("@")] == [f"@bridge_bot {number}" for number in range(5)]
        assert len(await rows(database, "select distinct conversation_id from messages")) == 1


async def test_two_bots_share_a_database(database: str) -> None:
    other = "7000000002:another-token-of-the-fake"
    async with running_telegram() as one, running_telegram(token=other) as two:
        chats = [await fake.private(await fake.user("Linh")) for fake in (one, two)]
        async with answering(database, one) as bridge:
            await chats[0].say(LONG)
            await chats[0].until_typing()
            await bridge.kill()
            async with answering(database, two):
                await chats[1].say("hello")
                await chats[1].until_replies(1)
                await bridge.start()
                await until_said(chats[0], LONG)
                assert len(await chats[1].replies()) == 1


# Decisions


async def test_who_asked_decides_on_a_tool_call_by_a_button(database: str) -> None:
    async with running_mastra() as mastra, running_telegram() as telegram:
        linh, minh = await telegram.user("Linh"), await telegram.user("Minh")
        group = await telegram.supergroup("Ops", linh, minh)
        settings = {"MASTRA_ENDPOINT": mastra.endpoint, "MASTRA_AGENT_ID": "approval"}
        async with answering(database, telegram, **settings):
            not_yours = "Only who asked for it may decide this."
            await group.say("@bridge_bot delete it all", by=linh)
            (asked,) = await group.until_replies(1)
            assert asked.text.startswith("I would like to use the tool delete")
            assert asked.buttons == ["Approve", "Decline"]
            await (await asked.press("Approve", by=minh)).until_answered()
            assert (await group.until_replies(2))[1].text == not_yours
            await (await asked.press("Approve", by=linh)).until_answered()
            (_, _, done) = await until_said(group, asked.text, not_yours, "All of it is deleted.")
            await (await asked.press("Approve", by=linh)).until_answered()
            assert (await group.until_replies(4))[3].text == "Nothing waits for your decision any more."
            assert done.buttons == []


async def test_a_decision_takes_the_buttons_away_in_private(database: str) -> None:
    async with running_mastra() as mastra, running_telegram() as telegram:
        chat = await telegram.private(await telegram.user("Linh"))
        settings = {"MASTRA_ENDPOINT": mastra.endpoint, "MASTRA_AGENT_ID": "approval"}
        async with answering(database, telegram, **settings) as bridge:
            await chat.say("delete it all")
            (asked,) = await chat.until_replies(1)
            await asked.press("Decline", data="/approve 000000000000")  # of a button that was never there
            assert (await chat.until_replies(2))[1].text == "Nothing waits for your decision any more."
            await asked.press("Decline", data="something else")
            while not [event for event in bridge.events("message.received") if event.get("reason") == "kind:button"]:
                await asyncio.sleep(0.02)
            await (await asked.press("Decline", data=f"/decline {token_of(asked)}")).until_answered()
            assert (await chat.until_replies(3))[2].text == "Nothing was deleted."
            while (await chat.replies())[0].buttons:
                await asyncio.sleep(0.02)


def token_of(message: Message) -> str:
    """What the buttons of a message carry."""
    return message.body["reply_markup"]["inline_keyboard"][0][0]["callback_data"].split()[1]


# Ways in


async def test_by_webhook(database: str) -> None:
    port = free_port()
    async with running_telegram() as telegram:
        chat = await telegram.private(await telegram.user("Linh"))
        await telegram.settings(retry_scale=0.01)
        url = f"http://127.0.0.1:{port}"
        async with answering(database, telegram, TELEGRAM_WEBHOOK_URL=url, PORT=str(port)) as bridge:
            await telegram.odd("duplicate", "twice_at_once")
            await chat.say("one")
            await chat.say("two")
            await telegram.until_confirmed()
            await chat.until_replies(1)
            for fault in ("wrong_secret", "no_secret"):
                await telegram.fault("webhook", fault)
                await chat.say(fault)
            await telegram.until_confirmed()  # they come again, with the right one
            statuses = [one["status"] for one in await telegram.deliveries()]
            assert statuses.count(401) == 2
            assert set(statuses) == {200, 401}
            assert len(bridge.events("webhook.refused")) == 2
            info = (await telegram.call("getWebhookInfo"))["result"]
            assert info["url"] == f"{url}/webhooks/telegram"
            found = await rows(database, "select content_text from messages where direction = 'inbound' order by seq")
            assert [row["content_text"] for row in found] == ["one", "two", "wrong_secret", "no_secret"]
            while len(found := await rows(database, "select from turns where status = 'running'")):
                await asyncio.sleep(0.02)
            said = "\n\n".join(message.text for message in await chat.replies())
            assert said.split("\n\n") == ["one", "two", "wrong_secret", "no_secret"]
        # Nothing is lost while the bridge is away.
        await chat.say("are you there?")
        async with answering(database, telegram, TELEGRAM_WEBHOOK_URL=url, PORT=str(port)):
            await telegram.until_confirmed()
            while "are you there?" not in await chat.texts():
                await asyncio.sleep(0.02)


async def test_of_two_bridges_one_polls_and_the_other_takes_over(database: str) -> None:
    async with running_telegram() as telegram:
        chat = await telegram.private(await telegram.user("Linh"))
        async with answering(database, telegram) as one, answering(database, telegram) as two:
            await chat.say("one")
            await chat.until_replies(1)
            assert [bool(bridge.events("poll.began")) for bridge in (one, two)] == [True, False]
            while not one.events("reply.delivered"):
                await asyncio.sleep(0.02)
            await one.kill()
            await chat.say("two")
            assert [message.text for message in await chat.until_replies(2)] == ["one", "two"]
            assert two.events("poll.began")
            assert not one.events("telegram.conflict") + two.events("telegram.conflict")


async def test_nothing_is_lost_or_doubled_at_a_kill(database: str) -> None:
    async with running_telegram() as telegram:
        chat = await telegram.private(await telegram.user("Linh"))
        async with answering(database, telegram) as bridge:
            for number in range(6):
                await chat.say(f"{number} {LONG[:200]}")
                if number % 2:
                    await chat.until_typing()
                    await bridge.kill()
                    await bridge.start()
            query = "select from sessions where pending_since is not null"
            await telegram.until_confirmed()
            while await rows(database, query) or await rows(database, "select from turns where status = 'running'"):
                await asyncio.sleep(0.05)
            open_ = "select status from deliveries where status in ('pending', 'sending')"
            while await rows(database, open_):
                await asyncio.sleep(0.05)
        found = await rows(
            database, "select content_text, status from messages where direction = 'inbound' order by seq"
        )
        assert [(row["content_text"][0], row["status"]) for row in found] == [(str(n), "accepted") for n in range(6)]
        said = "\n\n".join(message.text for message in await chat.replies()).split("\n\n")
        unknown = await rows(database, "select from deliveries where status = 'unknown'")
        assert [text[0] for text in said] == sorted({text[0] for text in said})
        assert unknown or len(said) == 6


async def test_telegram_is_away_at_the_start(database: str) -> None:
    port = free_port()
    settings = {"TELEGRAM_API_BASE_URL": f"http://127.0.0.1:{port}"}
    async with running_telegram() as other, answering(database, other, **settings) as bridge:
        assert bridge.events("platform.not_connected")
        status, ready = await call(bridge.url, "GET", "/readyz")
        assert (status, ready["status"]) == (200, "degraded")
        async with running_telegram(port=port) as telegram:
            chat = await telegram.private(await telegram.user("Linh"))
            await chat.say("hello")
            await chat.until_replies(1)
            assert (await call(bridge.url, "GET", "/readyz"))[1]["status"] == "ok"
            assert telegram.token.partition(":")[2] not in bridge.log.read_text()
