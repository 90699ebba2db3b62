"""The Telegram adapter against a fake Telegram, which is a process of its own and is spoken to over HTTP."""

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from structlog.testing import capture_logs

from chat_bridge.errors import StorageError
from chat_bridge.model import (
    Address,
    EventKind,
    InboundEvent,
    PendingMessage,
    Seq,
    Turn,
    TurnOutcome,
    User,
    new_message_id,
    new_session_id,
    new_turn_id,
)
from chat_bridge.platforms.contract import (
    Button,
    Finding,
    MisconfiguredError,
    Moved,
    NotAuthenticError,
    NotReadyError,
    OutboundPart,
    Refused,
    RefusedUs,
    RetryAfter,
    RetryLater,
    Sent,
    Shown,
    UnreachableError,
    WebhookRequest,
)
from chat_bridge.platforms.rich_text import Rendered, Span, rich_parts
from chat_bridge.platforms.telegram import adapter as module
from chat_bridge.platforms.telegram import checks
from chat_bridge.platforms.telegram import poll as poll_module
from chat_bridge.platforms.telegram.adapter import Telegram
from chat_bridge.platforms.telegram.files import form_of
from chat_bridge.platforms.telegram.parse import ALLOWED_UPDATES
from tests.fake_telegram.client import Chat, FakeTelegram, Message, running_telegram
from tests.fake_telegram.media import picture
from tests.platforms.contract import outbound
from tests.platforms.telegram.test_bot_api import http, refusal, serving, unused_port
from tests.telegram_clients import bot_api_schema

SECRET = "AAF-a_secret_of_thirty_five_letters"
TOKEN = f"7000000001:{SECRET}"
BOT = "7000000001"
USER = 5512340001
LOST = ["lost_answer", "reset_after", "html_after", "truncated"]


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("UNREACHABLE", "CONFLICT", "NOT_STORED", "REFUSED_TOKEN"):
        monkeypatch.setattr(poll_module, f"{name}_PAUSES", (0.01, 0.02))


class Clock:
    """The adapter's clock, which goes on only when a test says so."""

    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


class Fake(FakeTelegram):
    """The fake Telegram as one test sees it: its own calls only, and the private chat of a new person."""

    linh: Chat
    _before: int

    async def begin(self) -> None:
        """Look at what is there already."""
        self._before = len(await super().calls())
        self.linh = await self.private(await self.user("Linh"))

    async def calls(self, method: str = "") -> list[dict[str, Any]]:
        return [call for call in (await super().calls())[self._before :] if method in ("", call["method"])]

    async def end(self) -> None:
        """Leave nothing to the next test."""
        await self.mend()
        await self.call("deleteWebhook", drop_pending_updates=True)
        await self.call("setMyCommands", commands=[])


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def fake_url() -> AsyncGenerator[str]:
    """One process for all tests, as it takes half a second to start."""
    async with running_telegram(token=TOKEN) as fake:
        yield fake.base_url


@pytest.fixture
async def fake(fake_url: str) -> AsyncGenerator[Fake]:
    """A Telegram in which nothing has happened."""
    async with aiohttp.ClientSession() as session:
        fake = Fake(session, fake_url, TOKEN)
        await fake.begin()
        yield fake
        await fake.end()


def adapter(base_url: str, **options: Any) -> Telegram:
    wanted = {"webhook_url": None, "webhook_secret": None, "polling": None, **options}
    return Telegram(**{"token": TOKEN, "api_base_url": base_url, **wanted})


@asynccontextmanager
async def using(base_url: str, **options: Any) -> AsyncGenerator[Telegram]:
    telegram = adapter(base_url, **options)
    try:
        yield telegram
    finally:
        await telegram.aclose()


@asynccontextmanager
async def connected(fake: Fake, **options: Any) -> AsyncGenerator[Telegram]:
    async with using(fake.base_url, **options) as telegram:
        await telegram.connect()
        yield telegram


async def calls(fake: Fake, *methods: str) -> list[dict[str, Any]]:
    """The parameters of all calls of these methods, in order."""
    return [call["parameters"] for call in await fake.calls() if call["method"] in methods]


async def methods(fake: Fake, *but: str) -> list[str]:
    """The names of all calls, in order."""
    first = ("getMe", "getWebhookInfo", "getMyCommands", "setMyCommands", *but)
    return [call["method"] for call in await fake.calls() if call["method"] not in first]


def at(chat: int, thread: str = "") -> Address:
    return Address("telegram", BOT, str(chat), thread)


def part(chat: int, content: str | Rendered = "hello", *, thread: str = "", **more: Any) -> OutboundPart:
    address = at(chat, thread)
    rendered = Rendered(content) if isinstance(content, str) else content
    return OutboundPart(address.id, address, new_message_id(), Seq(2), 1, rendered, "key", **more)


def turn_in(chat: int, thread: str = "", asked: str | None = None) -> Turn:
    address = at(chat, thread)
    message = PendingMessage(
        id=new_message_id(),
        seq=Seq(1),
        sender_id=str(USER),
        sender_name="Linh",
        text="hello?",
        attachments=(),
        created_at=datetime.now(UTC),
        metadata={},
        platform_message_id=asked,
    )
    return Turn(new_turn_id(), address.id, new_session_id(), address, str(USER), [message], {})


async def ask_in_topic(fake: Fake) -> Message:
    """A question in a topic of a forum."""
    linh = await fake.user("Linh")
    forum = await fake.supergroup("Ops", linh, forum=True)
    return await forum.say("@bridge_bot hello?", topic=await forum.topic("Releases"))


# Connecting


async def test_it_learns_who_it_is_and_lists_its_commands(fake: Fake) -> None:
    async with using(fake.base_url) as telegram:
        assert telegram.polls
        assert telegram.account == BOT
        assert telegram.describe() is None
        await telegram.connect()
        assert telegram.describe() == "https://t.me/bridge_bot"
    lists = await calls(fake, "setMyCommands")
    assert sorted(each.get("language_code", "") for each in lists) == ["", "vi"]
    for each in lists:
        assert [command["command"] for command in each["commands"]] == ["new", "stop", "status", "help"]


async def test_the_operators_own_commands_stay(fake: Fake) -> None:
    await fake.call("setMyCommands", commands=[{"command": "menu", "description": "The menu"}])
    before = len(await calls(fake, "setMyCommands"))
    async with connected(fake):
        assert len(await calls(fake, "setMyCommands")) == before


async def test_it_connects_without_a_list_of_commands(fake: Fake) -> None:
    await fake.fault("setMyCommands", "too_many_requests", times=2, retry_after=60)
    async with connected(fake) as telegram:
        assert telegram.describe()


async def test_polling_does_not_take_a_webhook_away_unasked(fake: Fake) -> None:
    async with connected(fake, webhook_url="http://127.0.0.1:1/secret-path"):
        pass
    async with using(fake.base_url) as telegram:
        with pytest.raises(MisconfiguredError, match=r"TELEGRAM_POLLING=true .*TELEGRAM_WEBHOOK_URL") as caught:
            await telegram.connect()
    assert "127.0.0.1" in str(caught.value)
    assert "secret-path" not in str(caught.value)
    assert "deleteWebhook" not in await methods(fake)


async def test_polling_takes_a_webhook_away_when_asked_and_keeps_what_waits(fake: Fake) -> None:
    async with connected(fake, webhook_url="http://127.0.0.1:1"):
        pass
    async with connected(fake, polling=True):
        pass
    assert await calls(fake, "deleteWebhook") == [{"drop_pending_updates": False}]


async def test_a_webhook_is_set_with_a_secret_that_all_processes_share(fake: Fake) -> None:
    for _ in range(2):
        async with connected(fake, webhook_url="http://127.0.0.1:1") as telegram:
            assert not telegram.polls
    first, second = await calls(fake, "setWebhook")
    assert first == second
    assert first["url"] == "http://127.0.0.1:1/webhooks/telegram"
    assert set(first["allowed_updates"]) == set(ALLOWED_UPDATES)
    assert len(first["secret_token"]) == 64
    assert SECRET not in first["secret_token"]


async def test_own_words_for_the_webhook_are_kept(fake: Fake) -> None:
    async with connected(fake, webhook_url="http://127.0.0.1:1/own?a=b", webhook_secret="own-secret"):
        pass
    (call,) = await calls(fake, "setWebhook")
    assert (call["url"], call["secret_token"]) == ("http://127.0.0.1:1/own?a=b", "own-secret")


async def test_a_webhook_that_telegram_does_not_take_is_explained(fake: Fake) -> None:
    async with using(fake.base_url, webhook_url="http://bot.example.com") as telegram:
        with pytest.raises(MisconfiguredError, match="TELEGRAM_WEBHOOK_URL: Bad Request: bad webhook"):
            await telegram.connect()


async def test_without_any_way_to_get_updates_it_does_not_start(fake: Fake) -> None:
    async with using(fake.base_url, polling=False) as telegram:
        with pytest.raises(MisconfiguredError, match="TELEGRAM_WEBHOOK_URL"):
            await telegram.connect()


@pytest.mark.parametrize("token", ["7000000001:AAF-a_secret_of_somebody_else_xxxxx", "7000000001"])
async def test_a_wrong_token_is_a_mistake_in_the_settings(fake: Fake, token: str) -> None:
    async with using(fake.base_url, token=token) as telegram:
        with pytest.raises(MisconfiguredError, match="TELEGRAM_BOT_TOKEN"):
            await telegram.connect()


@pytest.mark.parametrize("kind", ["server_error", "too_many_requests", "reset", "html"])
async def test_a_telegram_in_trouble_is_tried_again(fake: Fake, kind: str) -> None:
    await fake.fault("getMe", kind)
    async with using(fake.base_url) as telegram:
        with pytest.raises(UnreachableError):
            await telegram.connect()
        await telegram.connect()


async def test_a_webhook_that_can_not_be_set_now_is_tried_again(fake: Fake) -> None:
    await fake.fault("setWebhook", "too_many_requests")
    async with using(fake.base_url, webhook_url="http://127.0.0.1:1") as telegram:
        with pytest.raises(UnreachableError, match="Too Many Requests"):
            await telegram.connect()
        await telegram.connect()


async def test_something_else_at_the_address_is_a_mistake_in_the_settings() -> None:
    async with serving(http(b'{"ok":true,"result":[]}')) as server, using(server.url) as telegram:
        with pytest.raises(MisconfiguredError, match="TELEGRAM_API_BASE_URL"):
            await telegram.connect()


# Events of a webhook


def request(body: bytes, **headers: str) -> WebhookRequest:
    return WebhookRequest({name.replace("_", "-"): value for name, value in headers.items()}, {}, body)


UPDATE = json.dumps(
    {
        "update_id": 1,
        "message": {
            "message_id": 7,
            "date": 1767225600,
            "chat": {"id": USER, "type": "private", "first_name": "Linh"},
            "from": {"id": USER, "is_bot": False, "first_name": "Linh"},
            "text": "xin chào",
        },
    }
).encode()


async def test_an_authentic_request_is_an_event(fake: Fake) -> None:
    async with connected(fake, webhook_url="http://127.0.0.1:1", webhook_secret="right") as telegram:
        (event,) = telegram.events(request(UPDATE, x_telegram_bot_api_secret_token="right"))
        assert (event.text, event.address) == ("xin chào", at(USER))
        (odd,) = telegram.events(request(b"\xff not JSON", x_telegram_bot_api_secret_token="right"))
        assert odd.kind is EventKind.UNKNOWN


@pytest.mark.parametrize("secret", [None, "", "wrong", "rig", "right ", "rìght", "\udcff"])
async def test_any_other_request_is_not_authentic(secret: str | None) -> None:
    telegram = adapter("http://127.0.0.1:1", webhook_url="http://127.0.0.1:1", webhook_secret="right")
    headers = {} if secret is None else {"x_telegram_bot_api_secret_token": secret}
    with pytest.raises(NotAuthenticError):
        telegram.events(request(UPDATE, **headers))


async def test_before_it_knows_itself_it_is_not_ready() -> None:
    telegram = adapter("http://127.0.0.1:1", webhook_url="http://127.0.0.1:1", webhook_secret="right")
    with pytest.raises(NotReadyError):
        telegram.events(request(UPDATE, x_telegram_bot_api_secret_token="right"))


# Polling


class Inbox:
    """Takes events, or fails as often as it is told to."""

    def __init__(self, failures: int = 0) -> None:
        self.failures = failures
        self.refused: list[list[str]] = []
        self.events: list[InboundEvent] = []
        self._arrived = asyncio.Event()

    async def deliver(self, events: Sequence[InboundEvent]) -> None:
        if self.failures:
            self.failures -= 1
            self.refused.append([event.text for event in events])
            raise StorageError("PostgreSQL is away")
        self.events += events
        self._arrived.set()

    async def texts(self, count: int) -> list[str]:
        """The texts of the events, once there are so many."""
        while len(self.events) < count:
            self._arrived.clear()
            await self._arrived.wait()
        return [event.text for event in self.events]


@asynccontextmanager
async def polling(telegram: Telegram, inbox: Inbox) -> AsyncGenerator[None]:
    task = asyncio.create_task(telegram.poll(inbox.deliver))
    try:
        yield
        assert not task.done()
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def until(fake: Fake, method: str, count: int = 1, **fields: Any) -> None:
    """Wait for so many calls of a method with these fields."""
    while len([call for call in await calls(fake, method) if fields.items() <= call.items()]) < count:
        await asyncio.sleep(0.02)


async def test_updates_are_forgotten_only_when_they_are_delivered(fake: Fake) -> None:
    inbox = Inbox()
    await fake.linh.say("one")
    async with connected(fake) as telegram, polling(telegram, inbox):
        assert await inbox.texts(1) == ["one"]
        await fake.linh.say("two")
        assert await inbox.texts(2) == ["one", "two"]
        last = (await calls(fake, "getUpdates"))[-1]
        await until(fake, "getUpdates", offset=last["offset"] + 1)
    first, *_ = await calls(fake, "getUpdates")
    assert "offset" not in first
    for call in await calls(fake, "getUpdates"):
        assert set(call["allowed_updates"]) == set(ALLOWED_UPDATES)
        assert call["timeout"] == 50


async def test_what_was_not_stored_comes_again(fake: Fake) -> None:
    inbox = Inbox(failures=3)
    await fake.linh.say("one")
    await fake.linh.say("two")
    async with connected(fake) as telegram, polling(telegram, inbox):
        assert await inbox.texts(2) == ["one", "two"]
    assert inbox.refused == [["one", "two"]] * 3
    assert not [call for call in (await calls(fake, "getUpdates"))[:4] if "offset" in call]


async def test_the_next_process_gets_what_was_not_confirmed(fake: Fake) -> None:
    inbox = Inbox(failures=1)
    await fake.linh.say("one")
    async with connected(fake) as telegram:
        async with polling(telegram, inbox):
            while not inbox.refused:
                await asyncio.sleep(0.02)
        async with polling(telegram, inbox):
            assert await inbox.texts(1) == ["one"]


@pytest.mark.parametrize("kind", ["server_error", "too_many_requests", "reset", "html", "truncated", "lost_answer"])
async def test_a_failed_poll_is_repeated(fake: Fake, kind: str) -> None:
    more = {"retry_after": 1} if kind == "too_many_requests" else {"times": 2}
    await fake.fault("getUpdates", kind, **more)
    await fake.linh.say("one")
    inbox = Inbox()
    with capture_logs() as lines:
        async with connected(fake) as telegram, polling(telegram, inbox):
            assert await inbox.texts(1) == ["one"]
    assert [line["event"] for line in lines if line["log_level"] != "debug"] == [
        "telegram.unreachable",
        "telegram.reached",
    ]
    assert SECRET not in str(lines)


async def test_an_offset_that_telegram_refuses_is_forgotten(fake: Fake) -> None:
    inbox = Inbox()
    await fake.linh.say("one")
    async with connected(fake) as telegram, polling(telegram, inbox):
        await inbox.texts(1)
        await until(fake, "getUpdates", count=2)
        await fake.fault("getUpdates", "bad_request", description="offset is in the future")
        await fake.linh.say("two")
        await inbox.texts(3)
        await fake.linh.say("three")
        assert await inbox.texts(4) == ["one", "two", "two", "three"]


async def test_a_webhook_that_appears_is_explained_once(fake: Fake) -> None:
    inbox = Inbox()
    with capture_logs() as lines:
        async with connected(fake) as telegram, polling(telegram, inbox), using(fake.base_url, polling=True) as other:
            await until(fake, "getUpdates")
            async with using(fake.base_url, webhook_url="http://127.0.0.1:1") as intruder:
                await intruder.connect()
            await until(fake, "getUpdates", count=5)
            await other.connect()
            await fake.linh.say("one")
            assert await inbox.texts(1) == ["one"]
    (conflict,) = [line for line in lines if line["event"] == "telegram.conflict"]
    assert conflict["log_level"] == "warning"
    assert "a webhook" in conflict["reason"]


async def test_a_second_program_is_explained(fake: Fake) -> None:
    with capture_logs() as lines:
        async with connected(fake) as one, connected(fake) as two, polling(one, Inbox()), polling(two, Inbox()):
            while not [line for line in lines if line["event"] == "telegram.conflict"]:
                await asyncio.sleep(0.02)
    assert "another program" in next(line["reason"] for line in lines if line["event"] == "telegram.conflict")


WHO = http(json.dumps({"ok": True, "result": {"id": int(BOT), "username": "bridge_bot"}}).encode())


@pytest.mark.parametrize("status", ["401 Unauthorized", "404 Not Found"])
async def test_a_token_that_was_taken_back_is_told_once(status: str) -> None:
    with capture_logs() as lines:
        async with serving(WHO, closes=False) as server, using(server.url) as telegram:
            await telegram.connect()
            server.answer = refusal(status, status[4:])
            asked = len(server.requests)
            async with polling(telegram, Inbox()):
                while len(server.requests) < asked + 4:
                    await asyncio.sleep(0.02)
    (line,) = [line for line in lines if line["event"] == "telegram.refused_token"]
    assert line["log_level"] == "error"
    assert "TELEGRAM_BOT_TOKEN" in line["reason"]


async def test_updates_without_an_id_do_not_stop_the_poll() -> None:
    update = json.loads(UPDATE)
    del update["update_id"]
    answer = http(json.dumps({"ok": True, "result": [update, "nothing at all"]}).encode())
    inbox = Inbox()
    async with serving(WHO, closes=False) as server, using(server.url) as telegram:
        await telegram.connect()
        server.answer = answer
        async with polling(telegram, inbox):
            await inbox.texts(4)
    assert {event.kind for event in inbox.events} == {EventKind.UNKNOWN}


@asynccontextmanager
async def polling_from(result: bytes) -> AsyncGenerator[None]:
    """A poll of something that always gives this result, at once."""
    async with serving(WHO, closes=False) as server, using(server.url) as telegram:
        await telegram.connect()
        server.answer = http(b'{"ok":true,"result":' + result + b"}")
        async with polling(telegram, Inbox()):
            yield


async def test_a_poll_that_is_not_held_waits_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: asyncio.Queue[float] = asyncio.Queue()

    async def sleep(seconds: float) -> None:
        slept.put_nowait(seconds)
        await asyncio.Event().wait()

    monkeypatch.setattr(poll_module, "asyncio", SimpleNamespace(sleep=sleep))
    async with polling_from(b"[]"):
        assert await slept.get() == 1.0


async def test_what_is_no_list_of_updates_is_a_failure() -> None:
    with capture_logs() as lines:
        async with polling_from(b'{"update_id":1}'):
            while not (told := [line for line in lines if line["event"] == "telegram.unreachable"]):
                await asyncio.sleep(0.02)
    assert "no list" in told[0]["reason"]


async def test_it_can_not_poll_before_it_knows_itself() -> None:
    with pytest.raises(NotReadyError):
        await adapter("http://127.0.0.1:1").poll(Inbox().deliver)


# Buttons


async def test_a_pressed_button_is_acknowledged(fake: Fake) -> None:
    inbox = Inbox()
    async with connected(fake) as telegram, polling(telegram, inbox):
        sent = await telegram.send(part(fake.linh.id, "Sure?", buttons=[Button("Yes", "/yes"), Button("No", "/no")]))
        assert isinstance(sent, Sent)
        (question,) = await fake.linh.replies()
        press = await question.press("Yes")
        await inbox.texts(1)
        (event,) = inbox.events
        assert (event.kind, event.text) == (EventKind.BUTTON, "/yes")
        await telegram.acknowledge(event)
        await press.until_answered()
    (question,) = await fake.linh.replies()
    assert (question.text, question.buttons) == ("Sure?", [])


async def test_in_a_group_the_buttons_stay_for_the_others(fake: Fake) -> None:
    pressed = InboundEvent(
        at(-1002234567890), "callback:1", User("1"), "/yes", EventKind.BUTTON, platform_message_id="7", reply_handle="1"
    )
    async with connected(fake) as telegram:
        await telegram.acknowledge(pressed)
        await telegram.acknowledge(replace(pressed, kind=EventKind.MESSAGE))
    assert await methods(fake) == ["answerCallbackQuery"]


async def test_acknowledging_never_fails() -> None:
    pressed = InboundEvent(
        at(USER), "callback:1", User("1"), "/yes", EventKind.BUTTON, platform_message_id="7", reply_handle="1"
    )
    async with using(f"http://127.0.0.1:{unused_port()}") as telegram:
        await telegram.acknowledge(pressed)


# Sending


async def test_a_formatted_answer_arrives_as_it_was_meant(fake: Fake) -> None:
    markdown = (
        "👋🏽 **bold** and *italic*, `code`, ~~no~~, [link](https://example.com/a)\n\n> quoted\n\n```python\nx\n```"
    )
    async with connected(fake) as telegram:
        (content,) = telegram.render(markdown)
        sent = await telegram.send(part(fake.linh.id, content))
    (message,) = await fake.linh.replies()
    assert sent == Sent(str(message.id))
    units = message.text.encode("utf-16-le")
    said = {
        each["type"]: units[2 * each["offset"] : 2 * (each["offset"] + each["length"])].decode("utf-16-le")
        for each in message.entities
    }
    assert said == {
        "bold": "bold",
        "italic": "italic",
        "code": "code",
        "strikethrough": "no",
        "text_link": "link",
        "blockquote": "quoted",
        "pre": "x",
    }
    by_type = {each["type"]: each for each in message.entities}
    assert by_type["text_link"]["url"] == "https://example.com/a"
    assert by_type["pre"]["language"] == "python"
    (call,) = await calls(fake, "sendMessage")
    assert call["link_preview_options"] == {"is_disabled": True}
    assert "parse_mode" not in call


async def test_a_long_answer_is_taken_in_parts(fake: Fake) -> None:
    async with connected(fake) as telegram:
        parts = telegram.render("**👋🏽** " * 3000)
        assert len(parts) > 2
        for content in parts:
            assert isinstance(await telegram.send(part(fake.linh.id, content)), Sent)


async def test_a_reply_quotes_and_stays_in_its_topic(fake: Fake) -> None:
    asked = await ask_in_topic(fake)
    chat, topic = asked.chat.id, asked.body["message_thread_id"]
    async with connected(fake) as telegram:
        await telegram.send(part(chat, thread=str(topic), reply_to=str(asked.id)))
        await telegram.send(part(chat, "gone", thread=str(topic), reply_to="999999"))
    answer, gone = await asked.chat.replies()
    assert (answer.body["message_thread_id"], answer.reply_to) == (topic, asked.id)
    assert (gone.body["message_thread_id"], gone.reply_to) == (topic, None)


async def test_a_file_quotes_and_stays_in_its_topic(fake: Fake) -> None:
    asked = await ask_in_topic(fake)
    chat, topic = asked.chat.id, asked.body["message_thread_id"]
    file = outbound("text/plain", b"a text", name="a.txt")
    async with connected(fake) as telegram:
        await telegram.send(part(chat, "", thread=str(topic), reply_to=str(asked.id), file=file))
    (answer,) = await asked.chat.replies()
    assert (answer.body["message_thread_id"], answer.reply_to) == (topic, asked.id)
    assert await answer.content() == b"a text"


async def test_a_file_beyond_the_limit_is_not_even_sent(fake: Fake) -> None:
    file = replace(outbound("text/plain", b""), size=50 * 2**20 + 1)
    async with connected(fake) as telegram:
        result = await telegram.send(part(fake.linh.id, "", file=file))
    assert result == Refused("the file has 52428801 bytes, and Telegram takes 52428800 from a bot")
    assert await methods(fake) == []


@pytest.mark.parametrize(
    ("mime_type", "more", "method"),
    [
        ("image/png", {"width": 5000, "height": 5000}, "sendPhoto"),
        ("image/png", {"width": 5001, "height": 5000}, "sendDocument"),
        ("image/png", {"width": 2000, "height": 100}, "sendPhoto"),
        ("image/png", {"width": 99, "height": 2000}, "sendDocument"),
        ("image/png", {"width": 99, "height": 99, "size": 10 * 2**20 + 1}, "sendDocument"),
        ("image/png", {}, "sendDocument"),  # nobody could look into it
        ("image/gif", {"width": 99, "height": 99}, "sendDocument"),
        ("audio/ogg", {}, "sendVoice"),
        ("audio/mpeg", {}, "sendAudio"),
        ("video/mp4", {}, "sendVideo"),
        ("video/webm", {}, "sendDocument"),
    ],
)
def test_a_file_is_sent_as_what_it_is(mime_type: str, more: dict[str, int], method: str) -> None:
    assert form_of(replace(outbound(mime_type, b"x"), **more)).method == method


@pytest.mark.parametrize("description", ["chat not found", "not enough rights to send documents to the chat"])
async def test_a_photo_that_is_refused_for_good_is_refused_as_a_document_too(fake: Fake, description: str) -> None:
    for method in ("sendPhoto", "sendDocument"):
        await fake.fault(method, "bad_request", description=description)
    file = outbound("image/png", picture(8, 8), width=8, height=8)
    async with connected(fake) as telegram:
        result = await telegram.send(part(fake.linh.id, "", file=file))
    assert isinstance(result, Refused)
    assert result.scope == ("conversation" if "not found" in description else "part")
    assert await methods(fake) == ["sendPhoto", "sendDocument"]


@pytest.mark.parametrize(("whole", "maybe_sent"), [(False, False), (True, True)])
async def test_an_upload_that_breaks_off_was_surely_not_sent(whole: bool, maybe_sent: bool) -> None:
    async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await (reader.readuntil(b"\r\n0\r\n\r\n") if whole else reader.readuntil(b"\r\n\r\n"))
        writer.transport.abort()

    server = await asyncio.start_server(take, "127.0.0.1", 0, limit=2**20)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    telegram = Telegram(token=TOKEN, api_base_url=url, webhook_url=None, webhook_secret=None, polling=True)
    async with server:
        file = outbound("text/plain", bytes(1000) if whole else bytes(20 * 2**20))
        result = await telegram.send(part(USER, "", file=file))
        await telegram.aclose()
    assert isinstance(result, RetryLater)
    assert result.maybe_sent is maybe_sent


async def test_a_button_that_telegram_would_refuse_is_left_out(fake: Fake) -> None:
    buttons = [Button("A", "ế" * 22), Button("B", "b" * 64), Button("C", "")]
    with capture_logs() as lines:
        async with connected(fake) as telegram:
            assert isinstance(await telegram.send(part(fake.linh.id, buttons=buttons)), Sent)
            assert isinstance(await telegram.send(part(fake.linh.id, buttons=buttons[:1])), Sent)
    some, none = await calls(fake, "sendMessage")
    assert some["reply_markup"] == {"inline_keyboard": [[{"text": "B", "callback_data": "b" * 64}]]}
    assert "reply_markup" not in none
    assert [line["event"] for line in lines].count("telegram.button_left_out") == 2


async def test_a_preview_becomes_the_reply(fake: Fake) -> None:
    async with connected(fake) as telegram:
        first = await telegram.send(part(fake.linh.id, "half"))
        assert isinstance(first, Sent)
        preview = first.platform_message_id
        whole = part(fake.linh.id, "the whole", replaces=preview, buttons=[Button("Yes", "/yes")])
        assert await telegram.send(whole) == Sent(preview)
        assert await telegram.send(whole) == Sent(preview, duplicate=True)
    assert await fake.linh.texts() == ["the whole"]


@pytest.mark.parametrize("description", ["message to edit not found", "message can't be edited", "MESSAGE_ID_INVALID"])
async def test_a_preview_that_is_gone_becomes_a_new_message(fake: Fake, description: str) -> None:
    asked = await ask_in_topic(fake)
    thread = str(asked.body["message_thread_id"])
    await fake.fault("editMessageText", "bad_request", description=description)
    async with connected(fake) as telegram:
        sent = await telegram.send(part(asked.chat.id, thread=thread, reply_to=str(asked.id), replaces="999999"))
    (message,) = await asked.chat.replies()
    assert sent == Sent(str(message.id))
    assert message.reply_to == asked.id
    assert str(message.body["message_thread_id"]) == thread


BOLD = Rendered("bold", [Span("bold", 0, 4)])


@pytest.mark.parametrize(
    "description",
    ["can't parse entities: Entity beginning at offset 0", "ENTITY_BOUNDS_INVALID", "ENTITIES_TOO_LONG"],
)
@pytest.mark.parametrize("replaces", [None, "1"])
async def test_text_that_can_not_be_formatted_goes_plain(fake: Fake, description: str, replaces: str | None) -> None:
    async with connected(fake) as telegram:
        await telegram.send(part(fake.linh.id, "half"))
        await fake.fault("editMessageText" if replaces else "sendMessage", "bad_request", description=description)
        assert isinstance(await telegram.send(part(fake.linh.id, BOLD, replaces=replaces)), Sent)
    formatted, plain = [call for call in await calls(fake, "editMessageText", "sendMessage") if call["text"] == "bold"]
    assert formatted["entities"] == [{"type": "bold", "offset": 0, "length": 4}]
    assert "entities" not in plain


async def test_a_form_is_given_up_step_by_step(fake: Fake) -> None:
    await fake.fault("editMessageText", "bad_request", description="message can't be edited")
    await fake.fault("sendMessage", "bad_request", description="can't parse entities")
    await fake.fault("sendMessage", "bad_request", description="message to be replied not found")
    async with connected(fake) as telegram:
        assert isinstance(await telegram.send(part(fake.linh.id, BOLD, replaces="7", reply_to="5")), Sent)
    assert await methods(fake) == ["editMessageText", "sendMessage", "sendMessage", "sendMessage"]
    assert "reply_parameters" not in (await calls(fake, "sendMessage"))[-1]


async def test_a_no_that_stays_a_no_ends_soon(fake: Fake) -> None:
    await fake.fault("sendMessage", "bad_request", times=99, description="can't parse entities")
    async with connected(fake) as telegram:
        result = await telegram.send(part(fake.linh.id, BOLD, reply_to="5"))
    assert isinstance(result, Refused)
    assert result.scope == "part"
    assert await methods(fake) == ["sendMessage"] * 2


@pytest.mark.parametrize(
    ("kind", "description", "scope"),
    [
        ("forbidden", "bot was blocked by the user", "conversation"),
        ("forbidden", "user is deactivated", "conversation"),
        ("forbidden", "bot was kicked from the supergroup chat", "conversation"),
        ("forbidden", "bot is not a member of the channel chat", "conversation"),
        ("forbidden", "the group chat was deleted", "conversation"),
        ("forbidden", "bot can't initiate conversation with a user", "conversation"),
        ("forbidden", "not enough rights to send text messages to the chat", "part"),
        ("bad_request", "CHAT NOT FOUND", "conversation"),
        ("bad_request", "private chat not found", "conversation"),
        ("bad_request", "message thread not found", "conversation"),
        ("bad_request", "group chat was deactivated", "conversation"),
        ("bad_request", "not enough rights to send text messages to the chat", "part"),
        ("bad_request", "TOPIC_CLOSED", "part"),
        ("bad_request", "message is too long", "part"),
        ("bad_request", "something new", "part"),
    ],
)
async def test_what_telegram_will_never_take(fake: Fake, kind: str, description: str, scope: str) -> None:
    await fake.fault("sendMessage", kind, description=description)
    async with connected(fake) as telegram:
        result = await telegram.send(part(fake.linh.id))
    assert isinstance(result, Refused)
    assert result.scope == scope
    assert description in result.error
    assert await methods(fake) == ["sendMessage"]


async def test_a_group_that_moved_is_told(fake: Fake) -> None:
    await fake.fault("sendMessage", "migrate", to=-1009999999999)
    async with connected(fake) as telegram:
        assert await telegram.send(part(-4123456)) == Moved("-1009999999999")


async def test_after_a_no_for_a_while_the_chat_is_left_alone(fake: Fake) -> None:
    await fake.fault("sendMessage", "too_many_requests", chat=fake.linh.id, retry_after=14)
    turn = turn_in(fake.linh.id)
    other = await fake.private(await fake.user("Sam"))
    async with connected(fake) as telegram:
        result = await telegram.send(part(fake.linh.id))
        assert isinstance(result, RetryAfter)
        assert (result.seconds, result.scope) == (14.0, "conversation")
        again = await telegram.send(part(fake.linh.id))
        assert isinstance(again, RetryAfter)
        assert 0 < again.seconds <= 14
        await telegram.show_typing(turn)
        shown = await telegram.show_partial(turn, "half", None)
        assert shown.preview is None
        assert 1 < shown.wait_seconds <= 14
        assert shown.again
        assert await methods(fake) == ["sendMessage"]
        assert isinstance(await telegram.send(part(other.id)), Sent)


async def test_after_the_wait_the_chat_is_served_again(fake: Fake, clock: Clock) -> None:
    await fake.fault("sendMessage", "too_many_requests", retry_after=14)
    async with connected(fake) as telegram:
        for passed in (0, 13):
            clock.now += passed
            assert isinstance(await telegram.send(part(fake.linh.id)), RetryAfter)
        clock.now += 1
        assert isinstance(await telegram.send(part(fake.linh.id)), Sent)
    assert await methods(fake) == ["sendMessage", "sendMessage"]


@pytest.mark.parametrize("status", ["401 Unauthorized", "404 Not Found"])
async def test_a_refused_token_keeps_the_reply(status: str) -> None:
    async with serving(refusal(status, status[4:])) as server, using(server.url) as telegram:
        result = await telegram.send(part(USER))
    assert isinstance(result, RefusedUs)
    assert "TELEGRAM_BOT_TOKEN" in result.error


@pytest.mark.parametrize("kind", [*LOST, "server_error", "reset", "html"])
@pytest.mark.parametrize("replaces", [None, "1"])
async def test_a_lost_answer_may_be_a_message_but_no_second_edit(fake: Fake, kind: str, replaces: str | None) -> None:
    async with connected(fake) as telegram:
        await telegram.send(part(fake.linh.id, "half"))
        await fake.fault("editMessageText" if replaces else "sendMessage", kind)
        result = await telegram.send(part(fake.linh.id, "whole", replaces=replaces))
        assert isinstance(result, RetryLater)
        assert result.maybe_sent is (replaces is None)
        assert SECRET not in result.error
        assert ("whole" in await fake.linh.texts()) is (kind in LOST)
        if replaces:
            again = await telegram.send(part(fake.linh.id, "whole", replaces=replaces))
            assert again == Sent(replaces, duplicate=kind in LOST)
            assert await fake.linh.texts() == ["whole"]


@pytest.mark.parametrize("kind", LOST)
async def test_a_lost_answer_in_place_of_an_edit_may_be_a_message(fake: Fake, kind: str) -> None:
    await fake.fault("editMessageText", "bad_request", description="message can't be edited")
    await fake.fault("sendMessage", kind)
    async with connected(fake) as telegram:
        result = await telegram.send(part(fake.linh.id, replaces="7"))
    assert isinstance(result, RetryLater)
    assert result.maybe_sent


async def test_silence_may_be_a_message(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TRY_SECONDS", (0.5,))
    await fake.fault("sendMessage", "hang_after")
    async with connected(fake) as telegram:
        result = await telegram.send(part(fake.linh.id))
    assert isinstance(result, RetryLater)
    assert result.maybe_sent


async def test_without_a_connection_it_is_surely_no_message() -> None:
    async with using(f"http://127.0.0.1:{unused_port()}") as telegram:
        result = await telegram.send(part(USER))
    assert isinstance(result, RetryLater)
    assert not result.maybe_sent
    assert SECRET not in result.error


async def test_a_message_without_a_name_may_be_a_message() -> None:
    async with serving(http(b'{"ok":true,"result":true}')) as server, using(server.url) as telegram:
        result = await telegram.send(part(USER))
    assert isinstance(result, RetryLater)
    assert result.maybe_sent


# Showing


async def test_typing_is_shown_in_the_topic(fake: Fake) -> None:
    asked = await ask_in_topic(fake)
    topic = asked.body["message_thread_id"]
    async with connected(fake) as telegram:
        await telegram.show_typing(turn_in(asked.chat.id, str(topic)))
    assert await asked.chat.until_typing(topic) == "typing"


async def test_typing_waits_as_long_as_it_must_and_holds_nothing_else_up(fake: Fake, clock: Clock) -> None:
    await fake.fault("sendChatAction", "too_many_requests", retry_after=7)
    turn = turn_in(fake.linh.id)
    async with connected(fake) as telegram:
        await telegram.show_typing(turn)
        clock.now += 6
        await telegram.show_typing(turn)
        assert isinstance(await telegram.send(part(fake.linh.id)), Sent)
        clock.now += 1
        await telegram.show_typing(turn)
    assert await methods(fake) == ["sendChatAction", "sendMessage", "sendChatAction"]


async def test_showing_never_fails() -> None:
    async with using(f"http://127.0.0.1:{unused_port()}") as telegram:
        for turn in (turn_in(USER), turn_in(-1002234567890)):
            await telegram.show_typing(turn)
            shown = await telegram.show_partial(turn, "half", None)
            assert (shown.preview, shown.wait_seconds > 1.1) == (None, True)
            await telegram.show_end(turn, TurnOutcome.ERROR, None, "7")


async def test_in_a_private_chat_a_draft_grows(fake: Fake, clock: Clock) -> None:
    turn = turn_in(fake.linh.id)
    async with connected(fake) as telegram:
        for text in ("", " \n", "**ha", "**half**", "**half**", "**half** and more"):
            assert await telegram.show_partial(turn, text, None) == Shown(None, 1.1, again=True)
            clock.now += 2
        await telegram.show_partial(turn_in(fake.linh.id), "another", None)
        await telegram.show_end(turn, TurnOutcome.ANSWERED, None, None)
    *drafts, another = await calls(fake, "sendMessageDraft")
    assert [draft["text"] for draft in drafts][-2:] == ["half", "half and more"]
    assert len({draft["draft_id"] for draft in drafts}) == 1
    assert 0 < drafts[0]["draft_id"] < 2**31
    assert another["draft_id"] != drafts[0]["draft_id"]
    assert set(await methods(fake)) == {"sendMessageDraft"}


async def test_a_draft_is_shown_again_before_telegram_forgets_it(fake: Fake, clock: Clock) -> None:
    turn = turn_in(fake.linh.id)
    async with connected(fake) as telegram:
        for passed in (0, 19, 2, 19):
            clock.now += passed
            assert (await telegram.show_partial(turn, "half", None)).again
    one, two = await calls(fake, "sendMessageDraft")
    assert one == two


@pytest.mark.parametrize(("in_group", "pause"), [(False, 1.1), (True, 3.1)])
async def test_all_answers_in_a_chat_share_its_pace(fake: Fake, clock: Clock, in_group: bool, pause: float) -> None:
    chat = (await fake.group("Ops")).id if in_group else fake.linh.id
    elsewhere = await fake.group("Elsewhere")
    one, two = turn_in(chat), turn_in(chat)
    async with connected(fake) as telegram:
        assert (await telegram.show_partial(one, "one", None)).wait_seconds == pause
        clock.now += 1
        waiting = await telegram.show_partial(two, "two", None)
        assert (waiting.wait_seconds, waiting.again) == (pytest.approx(pause - 1), True)
        await telegram.show_partial(turn_in(elsewhere.id), "elsewhere", None)
        assert isinstance(await telegram.send(part(chat, "one!")), Sent)
        clock.now += pause - 0.5
        assert (await telegram.show_partial(two, "two", None)).wait_seconds == pytest.approx(0.5)
        clock.now += 1
        await telegram.show_partial(two, "two", None)
    sent = await calls(fake, "sendMessage", "sendMessageDraft")
    assert [call["text"] for call in sent] == ["one", "elsewhere", "one!", "two"]


@pytest.mark.parametrize("refused", ["TEXTDRAFT_PEER_INVALID", "method is available only for some bots"])
async def test_without_drafts_a_message_grows(fake: Fake, clock: Clock, refused: str) -> None:
    await fake.fault("sendMessageDraft", "bad_request", description=refused)
    turn = turn_in(fake.linh.id, asked="7")
    async with connected(fake) as telegram:
        assert await telegram.show_partial(turn, "a", None) == Shown(None, 1.1, again=True)
        clock.now += 2
        shown = await telegram.show_partial(turn, "a", None)
        assert shown.preview is not None
        assert not shown.again
        clock.now += 30
        assert await telegram.show_partial(turn, "a", shown.preview) == shown
        assert await telegram.show_partial(turn, "a b", shown.preview) == shown
        clock.now += 2
        await telegram.show_partial(turn_in(fake.linh.id), "other", None)
    assert await methods(fake) == ["sendMessageDraft", "sendMessage", "editMessageText", "sendMessage"]
    assert "reply_parameters" not in (await calls(fake, "sendMessage"))[0]


async def test_a_server_that_knows_no_drafts_is_asked_once(clock: Clock) -> None:
    answer = refusal("404 Not Found", "Not Found: method not found")
    async with serving(answer, closes=False) as server, using(server.url) as telegram:
        for _ in range(2):
            await telegram.show_partial(turn_in(USER), "a", None)
            clock.now += 2
    assert [line.split()[1].rpartition("/")[2] for line, *_ in server.requests] == ["sendMessageDraft", "sendMessage"]


async def test_a_draft_that_fails_otherwise_is_tried_again(fake: Fake, clock: Clock) -> None:
    await fake.fault("sendMessageDraft", "server_error")
    turn = turn_in(fake.linh.id)
    async with connected(fake) as telegram:
        assert await telegram.show_partial(turn, "a", None) == Shown(None, 10.0, again=True)
        clock.now += 10
        assert await telegram.show_partial(turn, "a", None) == Shown(None, 1.1, again=True)
    assert await methods(fake) == ["sendMessageDraft"] * 2


async def test_in_a_group_a_message_grows(fake: Fake, clock: Clock) -> None:
    asked = await ask_in_topic(fake)
    topic = asked.body["message_thread_id"]
    turn = turn_in(asked.chat.id, str(topic), asked=str(asked.id))
    async with connected(fake) as telegram:
        assert await telegram.show_partial(turn, " ", None) == Shown(None, 3.1)
        first = await telegram.show_partial(turn, "**ha**", None)
        assert (first.wait_seconds, first.again) == (3.1, False)
        for text in ("**ha**", "**half**", "**half**"):
            clock.now += 30
            assert await telegram.show_partial(turn, text, first.preview) == first
        await telegram.show_end(turn, TurnOutcome.ANSWERED, None, None)
    assert await methods(fake) == ["sendMessage", "editMessageText"]
    (message,) = await asked.chat.replies()
    assert (message.former_texts, message.text) == (["ha"], "half")
    assert message.entities == [{"type": "bold", "offset": 0, "length": 4}]
    assert (message.reply_to, message.body["message_thread_id"]) == (asked.id, topic)


async def test_of_a_long_answer_a_draft_shows_the_end(fake: Fake, clock: Clock) -> None:
    turn = turn_in(fake.linh.id)
    paragraph = "word " * 2000
    async with connected(fake) as telegram:
        for text in ("".join(f"Line {number}.\n" for number in range(2000)), paragraph, f"{paragraph}\n\nThe end"):
            await telegram.show_partial(turn, text, None)
            clock.now += 2
    lines, words, end = [draft["text"] for draft in await calls(fake, "sendMessageDraft")]
    assert lines.startswith("Line 1")
    assert lines.endswith("\nLine 1999.")
    assert end.endswith("word\n\nThe end")
    for text in (lines, words, end):
        assert 2048 < len(text) <= 4096


async def test_of_a_long_answer_a_group_sees_the_first_part(fake: Fake) -> None:
    group = await fake.group("Ops")
    answer = "**👋🏽** " * 3000
    async with connected(fake) as telegram:
        await telegram.show_partial(turn_in(group.id), answer, None)
        assert await group.texts() == [telegram.render(answer)[0].text]


async def test_of_a_long_answer_little_is_rendered_to_show_it(
    fake: Fake, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked_at: list[int] = []

    def parts(text: str, *arguments: Any, **options: Any) -> Sequence[Rendered]:
        looked_at.append(len(text))
        return rich_parts(text, *arguments, **options)

    monkeypatch.setattr(module, "rich_parts", parts)
    group = await fake.group("Ops")
    async with connected(fake) as telegram:
        for chat in (fake.linh.id, group.id):
            await telegram.show_partial(turn_in(chat), "word " * 20_000, None)
    assert len(looked_at) == 2
    assert max(looked_at) <= 2 * 4096


@pytest.mark.parametrize("kind", [*LOST, "html", "reset"])
async def test_a_first_message_that_may_be_there_is_not_sent_twice(fake: Fake, clock: Clock, kind: str) -> None:
    group = await fake.group("Ops")
    await fake.fault("sendMessage", kind)
    turn = turn_in(group.id)
    async with connected(fake) as telegram:
        for text in ("a", "a b"):
            assert await telegram.show_partial(turn, text, None) == Shown(None, 3600.0)
            clock.now += 4
        assert (await telegram.show_partial(turn_in(group.id), "another", None)).preview is not None
    assert await methods(fake) == ["sendMessage"] * 2


async def test_a_preview_that_somebody_deleted_is_forgotten(fake: Fake, clock: Clock) -> None:
    group = await fake.group("Ops")
    turn = turn_in(group.id)
    async with connected(fake) as telegram:
        shown = await telegram.show_partial(turn, "a", "999999")
        assert shown == Shown(None, 3.1, again=True)
        clock.now += 4
        assert (await telegram.show_partial(turn, "a", None)).preview is not None


async def test_a_text_that_is_shown_already_is_shown(fake: Fake) -> None:
    group = await fake.group("Ops")
    turn = turn_in(group.id)
    async with connected(fake) as one, connected(fake) as two:
        shown = await one.show_partial(turn, "a", None)
        assert await two.show_partial(turn, "a", shown.preview) == shown


async def test_a_preview_that_is_refused_costs_a_longer_wait_only(fake: Fake, clock: Clock) -> None:
    group = await fake.group("Ops")
    turn = turn_in(group.id)
    await fake.fault("editMessageText", "too_many_requests", retry_after=7)
    async with connected(fake) as telegram:
        first = await telegram.show_partial(turn, "a", None)
        clock.now += 4
        assert await telegram.show_partial(turn, "a b", first.preview) == Shown(first.preview, 7.0, again=True)
        clock.now += 7
        assert await telegram.show_partial(turn, "a b", first.preview) == first
    other = turn_in(group.id)
    await fake.fault("sendMessage", "bad_request", description="not enough rights to send text messages to the chat")
    async with connected(fake) as telegram:
        assert await telegram.show_partial(other, "a", None) == Shown(None, 10.0)


async def test_a_preview_that_became_no_reply_is_deleted(fake: Fake) -> None:
    group = await fake.group("Ops")
    turn = turn_in(group.id)
    async with connected(fake) as telegram:
        shown = await telegram.show_partial(turn, "a", None)
        await telegram.show_end(turn, TurnOutcome.ERROR, "told before", shown.preview)
    assert await methods(fake) == ["sendMessage", "deleteMessage"]
    assert not await group.replies()


async def test_what_it_remembers_has_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_SHOWN", 3)
    answer = refusal("429 Too Many Requests", "Too Many Requests", retry_after=60)
    async with serving(answer, closes=False) as server, using(server.url) as telegram:
        for chat in range(1, 6):
            await telegram.show_partial(turn_in(chat), "a", None)
        # The oldest chat is forgotten and so is asked about again; the newest is left alone.
        await telegram.send(part(1))
        await telegram.send(part(5))
    assert len(server.requests) == 6


# The doctor


def texts(findings: Sequence[Finding], *statuses: str) -> str:
    return " ".join(finding.text for finding in findings if finding.status in statuses)


async def test_all_is_well_with_polling(fake: Fake) -> None:
    await fake.linh.say("waiting")
    async with using(fake.base_url) as telegram:
        findings = await telegram.check()
    assert not texts(findings, "warning", "problem")
    said = texts(findings, "ok")
    for words in ("@bridge_bot", "by polling", "1 wait", "/setprivacy", "agrees"):
        assert words in said
    assert {finding.subject.partition(" ")[0] for finding in findings} == {"telegram"}


async def test_all_is_well_with_a_webhook(fake: Fake) -> None:
    async with connected(fake, webhook_url="http://127.0.0.1:1") as telegram:
        findings = await telegram.check()
    assert not texts(findings, "warning", "problem")
    assert "our webhook at 127.0.0.1" in texts(findings, "ok")


async def test_a_webhook_that_fails_is_told_with_its_reason(fake: Fake) -> None:
    async with connected(fake, webhook_url=f"http://127.0.0.1:{unused_port()}") as telegram:
        await fake.linh.say("lost")
        while not (found := texts(await telegram.check(), "warning")):
            await asyncio.sleep(0.02)
    assert "Connection refused" in found


async def test_a_webhook_in_the_way_of_polling_is_a_problem(fake: Fake) -> None:
    async with connected(fake, webhook_url="http://127.0.0.1:1/secret"):
        pass
    async with using(fake.base_url) as unasked, using(fake.base_url, polling=True) as asked:
        assert "TELEGRAM_POLLING=true" in texts(await unasked.check(), "problem")
        assert "removes it" in texts(findings := await asked.check(), "warning")
    assert "secret" not in str(findings)


async def test_a_webhook_elsewhere_is_a_problem(fake: Fake) -> None:
    async with using(fake.base_url, webhook_url="http://127.0.0.1:1") as telegram:
        assert "No webhook is set" in texts(await telegram.check(), "problem")
        async with connected(fake, webhook_url="http://localhost:1"):
            pass
        assert "elsewhere (localhost)" in texts(await telegram.check(), "problem")


async def test_missing_kinds_of_updates_are_told(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    async with connected(fake, webhook_url="http://127.0.0.1:1") as telegram:
        monkeypatch.setattr(checks, "ALLOWED_UPDATES", [*ALLOWED_UPDATES, "poll"])
        assert "does not send poll" in texts(await telegram.check(), "warning")


@pytest.mark.parametrize(
    ("rights", "words"),
    [
        ({"can_join_groups": False}, "/setjoingroups"),
        ({"can_join_groups": True, "can_read_all_group_messages": True}, "sees every message"),
        ({"can_join_groups": True, "can_read_all_group_messages": False}, "add it again"),
    ],
)
async def test_what_it_sees_of_groups_is_told(rights: dict[str, bool], words: str) -> None:
    answer = http(json.dumps({"ok": True, "result": {"id": int(BOT), "username": "bridge_bot", **rights}}).encode())
    async with serving(answer, closes=False) as server, using(server.url) as telegram:
        findings = await telegram.check()
    assert words in texts(findings, "ok")


@pytest.mark.parametrize(("sees_all", "told"), [(False, True), (True, False)])
async def test_privacy_mode_is_told_if_everything_is_to_be_answered(sees_all: bool, told: bool) -> None:
    me = {"id": int(BOT), "username": "bridge_bot", "can_join_groups": True, "can_read_all_group_messages": sees_all}
    answer = http(json.dumps({"ok": True, "result": me}).encode())
    async with serving(answer, closes=False) as server, using(server.url, wants_all=True) as telegram:
        found = texts(await telegram.check(), "warning")
    assert ("TELEGRAM_GROUPS=always" in found, "/setprivacy" in found) == (told, told)


@pytest.mark.parametrize(("waiting", "status"), [(99, "ok"), (100, "warning")])
async def test_many_waiting_updates_are_told(waiting: int, status: str) -> None:
    info = {"id": int(BOT), "username": "bridge_bot", "url": "", "pending_update_count": waiting}
    answer = http(json.dumps({"ok": True, "result": info}).encode())
    async with serving(answer, closes=False) as server, using(server.url) as telegram:
        assert f"{waiting} wait at Telegram" in texts(await telegram.check(), status)


async def test_a_wrong_clock_is_told() -> None:
    answer = WHO.replace(b"\r\n\r\n", b"\r\nDate: Thu, 01 Jan 2026 00:00:00 GMT\r\n\r\n")
    async with serving(answer, closes=False) as server, using(server.url) as telegram:
        assert "NTP" in texts(await telegram.check(), "warning")


async def test_a_wrong_token_and_no_telegram_are_problems() -> None:
    async with serving(refusal("401 Unauthorized", "Unauthorized")) as server, using(server.url) as telegram:
        assert "TELEGRAM_BOT_TOKEN" in texts(await telegram.check(), "problem")
    async with using(f"http://127.0.0.1:{unused_port()}") as telegram:
        found = texts(await telegram.check(), "problem")
    assert "no connection" in found
    assert SECRET not in found


async def test_the_log_never_holds_the_token(fake: Fake, clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with capture_logs() as lines:
        async with connected(fake) as telegram:
            for kind in ("reset", "html", "server_error", "lost_answer", "forbidden"):
                for method in ("sendMessage", "sendChatAction", "sendMessageDraft", "deleteMessage"):
                    await fake.fault(method, kind)
                await telegram.send(part(fake.linh.id))
                clock.now += 2
                turn = turn_in(fake.linh.id)
                await telegram.show_typing(turn)
                await telegram.show_partial(turn, "a", None)
                await telegram.show_end(turn, TurnOutcome.ERROR, None, "7")
    assert len(lines) >= 10
    assert SECRET not in str(lines) + caplog.text


# The Bot API


def strangers(given: Any, known: Any, path: str) -> Iterator[str]:
    """The fields that the Bot API does not have."""
    if isinstance(given, dict):
        for name, value in given.items():
            if name in known:
                yield from strangers(value, known[name], f"{path}.{name}")
            else:
                yield f"{path}.{name}"
    if isinstance(given, list):
        for value in given:
            yield from strangers(value, known[0], path)


async def test_every_field_is_one_of_the_bot_api(fake: Fake, clock: Clock) -> None:
    schema = bot_api_schema()
    asked = await ask_in_topic(fake)
    thread = str(asked.body["message_thread_id"])
    turn = turn_in(asked.chat.id, thread, asked=str(asked.id))
    content = Rendered("ab", [Span("link", 0, 1, "https://example.com"), Span("pre", 1, 1, "python")])
    pressed = InboundEvent(
        at(1), "callback:1", User("1"), "a", EventKind.BUTTON, platform_message_id="7", reply_handle="1"
    )
    async with connected(fake, webhook_url="http://127.0.0.1:1"):
        pass
    async with connected(fake, polling=True) as telegram, polling(telegram, inbox := Inbox()):
        await inbox.texts(1)
        await until(fake, "getUpdates", count=2)
        first = await telegram.send(part(asked.chat.id, thread=thread, reply_to=str(asked.id)))
        assert isinstance(first, Sent)
        whole = part(asked.chat.id, content, replaces=first.platform_message_id, buttons=[Button("Yes", "/yes")])
        assert isinstance(await telegram.send(whole), Sent)
        await telegram.show_typing(turn)
        await telegram.show_partial(turn_in(fake.linh.id), "**half**", None)
        clock.now += 4
        shown = await telegram.show_partial(turn, "**half**", None)
        await telegram.show_end(turn, TurnOutcome.ERROR, None, shown.preview)
        await telegram.acknowledge(pressed)
    made = await fake.calls()
    assert {call["method"] for call in made} == {
        *("getMe", "getMyCommands", "setMyCommands", "getWebhookInfo", "setWebhook", "deleteWebhook", "getUpdates"),
        *("sendMessage", "editMessageText", "sendMessageDraft", "sendChatAction", "deleteMessage"),
        *("answerCallbackQuery", "editMessageReplyMarkup"),
    }
    for call in made:
        assert list(strangers(call["parameters"], schema[call["method"]], call["method"])) == []
