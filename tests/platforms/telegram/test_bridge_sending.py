"""What programs send to people through a Telegram bot."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import pytest
import pytest_asyncio

from tests.bridge import BridgeProcess
from tests.conftest import fresh_database
from tests.fake_telegram.client import Chat, FakeTelegram, Message, running_telegram
from tests.fake_telegram.media import picture
from tests.observe import call, rows
from tests.platforms.telegram.test_bridge import answering
from tests.storage.dialogue import assert_consistent

FILES = ("document", "photo")


@pytest.fixture
async def telegram() -> AsyncGenerator[FakeTelegram]:
    async with running_telegram() as fake:
        yield fake


@pytest.fixture
async def dsn() -> AsyncGenerator[str]:
    async with fresh_database("18", template=True) as database:
        yield database
        await assert_consistent(database)


@pytest_asyncio.fixture
async def bridge(telegram: FakeTelegram, dsn: str) -> AsyncGenerator[BridgeProcess]:
    async with answering(dsn, telegram) as process:
        yield process


@pytest.fixture
async def chat(telegram: FakeTelegram, bridge: BridgeProcess) -> Chat:
    """A private chat that has begun."""
    chat = await telegram.private(await telegram.user("Linh"))
    await chat.say("hello")
    await chat.until_replies(1)
    return chat


async def send(bridge: BridgeProcess, chat: Chat, key: str, text: str, *files: tuple[str, bytes]) -> dict[str, Any]:
    query = {"platform": "telegram", "conversation": str(chat.id)}
    _, session = await call(bridge.url, "GET", "/api/v1/sessions/active", params=query)
    place, attachments = f"/api/v1/sessions/{session['id']}", list[dict[str, str]]()
    for name, data in files:
        status, uploaded = await call(bridge.url, "POST", f"{place}/uploads?name={name}", data=data)
        assert status == 201, uploaded
        attachments.append({"upload_id": uploaded["id"]})
    body = {"client_msg_id": key, "text": text, "attachments": attachments}
    status, receipt = await call(bridge.url, "POST", f"{place}/messages", json=body)
    assert status == 202, receipt
    return receipt


async def seen(message: Message) -> str | bytes:
    return await message.content() if any(kind in message.body for kind in FILES) else message.text


async def until_seen(chat: Chat, count: int) -> list[str | bytes]:
    return [await seen(message) for message in await chat.until_replies(count)]


async def until_states(dsn: str, *states: str) -> None:
    """Wait until the parts that are sent are so."""
    while [row["status"] for row in await rows(dsn, "select status from deliveries order by seq, part")] != [*states]:
        await asyncio.sleep(0.02)


async def test_text_then_files_in_order(telegram: FakeTelegram, chat: Chat, bridge: BridgeProcess, dsn: str) -> None:
    image = picture(64, 48)
    asked = await telegram.calls("sendMessage")
    long = "word " * 1500
    await send(bridge, chat, "1", f"**News**\n\n{long}", ("a.txt", b"the bytes"), ("b.png", image))
    await send(bridge, chat, "2", "more")
    found = await until_seen(chat, 6)
    assert found[0] == "hello"
    text = " ".join(str(part) for part in found[1:3]).split()
    assert text == f"News {long}".split()
    assert found[3:] == [b"the bytes", image, "more"]
    (_, _, _, document, photo, _) = await chat.replies()
    assert document.body["document"]["file_name"] == "a.txt"
    assert "photo" in photo.body
    assert len(await telegram.calls("sendMessage")) == len(asked) + 3
    await until_states(dsn, *["sent"] * 6)
    # The conversation goes on as ever.
    await chat.say("and you?")
    assert (await until_seen(chat, 7))[-1] == "and you?"


async def test_files_alone(chat: Chat, bridge: BridgeProcess, dsn: str) -> None:
    await send(bridge, chat, "1", "", ("a.txt", b"one"), ("b.txt", b"two"))
    assert await until_seen(chat, 3) == ["hello", b"one", b"two"]
    await until_states(dsn, "sent", "sent", "sent")


async def test_a_platform_that_wants_us_to_wait_gets_it_later(
    telegram: FakeTelegram, chat: Chat, bridge: BridgeProcess, dsn: str
) -> None:
    await telegram.fault("sendMessage", "too_many_requests", retry_after=1)
    await send(bridge, chat, "1", "first", ("a.txt", b"one"))
    await send(bridge, chat, "2", "second")
    assert await until_seen(chat, 4) == ["hello", "first", b"one", "second"]


async def test_another_process_sends_what_a_killed_one_has_left(
    telegram: FakeTelegram, chat: Chat, bridge: BridgeProcess, dsn: str
) -> None:
    await telegram.fault("sendDocument", "hang")
    await send(bridge, chat, "1", "look", ("a.txt", b"one"), ("b.txt", b"two"))
    await telegram.until_calls("sendDocument", 1)
    await send(bridge, chat, "2", "more")
    await bridge.kill()
    await rows(dsn, "update deliveries set next_attempt_at = now() where status in ('sending', 'pending')")
    await bridge.start()
    await until_states(dsn, "sent", "sent", "unknown", "sent", "sent")
    assert await until_seen(chat, 4) == ["hello", "look", b"two", "more"]
