"""Files of Telegram: their bytes, and what the adapter makes of everything that may come instead."""

import asyncio
import gzip
import logging
import random
from collections.abc import AsyncGenerator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import pytest_asyncio
from aiohttp import web

from chat_bridge.model import Attachment
from chat_bridge.platforms.contract import NoFileError
from chat_bridge.platforms.telegram import api, files
from chat_bridge.platforms.telegram.adapter import Telegram
from chat_bridge.platforms.telegram.parse import Bot, parse
from tests.fake_telegram.client import Chat, FakeTelegram, running_telegram
from tests.platforms.contract import connections_to, unused_port

SECRET = "AAF-a_secret_of_thirty_five_letters"
TOKEN = f"7000000001:{SECRET}"
CONTENT = random.Random(1).randbytes(300_000)

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture(autouse=True)
def _little_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "SILENCE_SECONDS", 0.3)
    monkeypatch.setattr(files, "ASK_SECONDS", 0.3)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def fake() -> AsyncGenerator[FakeTelegram]:
    async with running_telegram(token=TOKEN) as telegram:
        yield telegram


@pytest_asyncio.fixture(loop_scope="module")
async def chat(fake: FakeTelegram) -> Chat:
    return await fake.private(await fake.user("Linh"))


@asynccontextmanager
async def using(url: str, token: str = TOKEN) -> AsyncGenerator[Telegram]:
    telegram = Telegram(token=token, api_base_url=url, webhook_url=None, webhook_secret=None, polling=None)
    try:
        yield telegram
    finally:
        await telegram.aclose()


async def sent(chat: Chat, kind: str = "document", content: bytes = CONTENT, **more: Any) -> Attachment:
    """What the adapter learns of a file that somebody sends."""
    message = await chat.say(media=kind, content=content, **more)
    (attachment,) = parse({"update_id": 1, "message": message.body}, Bot("7000000001", "bridge_bot")).attachments
    return attachment


async def downloaded(url: str, attachment: Attachment, token: str = TOKEN) -> bytes:
    async with using(url, token) as telegram, aclosing(telegram.download(attachment)) as pieces:
        return b"".join([piece async for piece in pieces])


async def failure(url: str, attachment: Attachment, token: str = TOKEN) -> NoFileError:
    with pytest.raises(NoFileError) as caught:
        await downloaded(url, attachment, token)
    assert caught.value.__cause__ is None
    return caught.value


@pytest.mark.parametrize("kind", ["photo", "document", "voice", "audio", "video", "video_note", "animation", "sticker"])
async def test_the_bytes_come_in_pieces(fake: FakeTelegram, chat: Chat, kind: str) -> None:
    attachment = await sent(chat, kind)
    async with using(fake.base_url) as telegram:
        pieces = [piece async for piece in telegram.download(attachment)]
    assert b"".join(pieces) == CONTENT
    assert max(map(len, pieces)) <= api.PIECE_BYTES


async def test_a_slow_file_comes_all_the_same(fake: FakeTelegram, chat: Chat) -> None:
    await fake.fault("file", "slow", seconds=0.1)
    assert await downloaded(fake.base_url, await sent(chat)) == CONTENT


@pytest.mark.parametrize(
    ("method", "fault", "more", "reason"),
    [
        ("getFile", "too_many_requests", {"retry_after": 14}, "Too Many Requests: retry after 14"),
        ("getFile", "server_error", {}, "Internal Server Error"),
        ("getFile", "hang", {}, "did not answer in time"),
        ("getFile", "reset", {}, "broke"),
        ("getFile", "html", {}, "no answer of the Bot API"),
        ("getFile", "truncated", {}, "no answer of the Bot API"),
        ("getFile", "forbidden", {"description": "for now"}, "for now"),
        (
            *("getFile", "bad_request", {"description": "wrong file_id or the file is temporarily unavailable"}),
            "temporarily unavailable",
        ),
        ("getFile", "bad_request", {"description": "Logged out"}, "Logged out"),
        ("file", "expired", {}, "HTTP 404"),
        ("file", "truncated", {}, "broke"),
        ("file", "shorter", {}, "more or less"),
        ("file", "larger", {}, "more or less"),
        ("file", "redirect", {"to": "http://127.0.0.2:1/elsewhere"}, "HTTP 302"),
        ("file", "html", {}, "a web page"),
        ("file", "wrong_type", {}, "a web page"),
        ("file", "server_error", {}, "HTTP 500"),
        ("file", "too_many_requests", {"retry_after": 14}, "Too Many Requests"),
        ("file", "hang", {}, "did not answer in time"),
        ("file", "stall", {}, "did not answer in time"),
        ("file", "reset", {}, "broke"),
    ],
)
async def test_what_may_pass(
    fake: FakeTelegram,
    chat: Chat,
    caplog: pytest.LogCaptureFixture,
    method: str,
    fault: str,
    more: dict[str, Any],
    reason: str,
) -> None:
    caplog.set_level(logging.DEBUG)
    attachment = await sent(chat)
    # A connection that is reset when it was kept for a next call is tried anew at once, by the HTTP client.
    await fake.fault(method, fault, times=2 if (method, fault) == ("file", "reset") else 1, **more)
    error = await failure(fake.base_url, attachment)
    assert str(error) == files.NOT_NOW
    assert reason in error.detail
    assert not error.for_good
    assert error.retry_after == more.get("retry_after")
    assert SECRET not in f"{error!r} {error.detail} {caplog.text}"
    assert await downloaded(fake.base_url, attachment) == CONTENT


@pytest.mark.parametrize(
    ("description", "reason"),
    [
        ("file is too big", "Telegram gives bots no file as large as this"),
        ("invalid file_id", "Telegram does not know the file any more"),
        (
            "wrong remote file identifier specified: Wrong string length",
            "Telegram does not know the file any more",
        ),
    ],
)
async def test_what_is_for_good(fake: FakeTelegram, chat: Chat, description: str, reason: str) -> None:
    attachment = await sent(chat)
    await fake.fault("getFile", "bad_request", description=description)
    error = await failure(fake.base_url, attachment)
    assert error.for_good
    assert str(error) == reason


async def test_a_file_of_more_than_20_mb_is_too_large(fake: FakeTelegram, chat: Chat) -> None:
    assert (await failure(fake.base_url, await sent(chat, size=20 * 2**20 + 1))).for_good


async def test_a_refused_token_may_be_mended(fake: FakeTelegram, chat: Chat) -> None:
    attachment = await sent(chat)
    for token in ("7000000001:another", "no-token"):
        error = await failure(fake.base_url, attachment, token)
        assert (str(error), error.for_good) == (files.NOT_NOW, False), "a visitor need not know"
        assert "HTTP 4" in error.detail


async def test_without_a_connection_it_may_come_later(chat: Chat) -> None:
    error = await failure(f"http://127.0.0.1:{unused_port()}", await sent(chat))
    assert not error.for_good
    assert "no connection" in error.detail


async def test_a_download_that_is_left_leaves_no_connection(fake: FakeTelegram, chat: Chat) -> None:
    port, attachment = int(fake.base_url.rpartition(":")[2]), await sent(chat, content=CONTENT * 2)
    before = connections_to(port)
    async with using(fake.base_url) as telegram:
        async with aclosing(telegram.download(attachment)) as pieces:
            assert await anext(pieces)
        await fake.fault("file", "stall")
        pieces = telegram.download(attachment)

        async def read() -> None:
            async with aclosing(pieces):
                async for _ in pieces:
                    started.set()

        started = asyncio.Event()
        reading = asyncio.create_task(read())
        await started.wait()
        reading.cancel()
        await asyncio.wait([reading])
        assert reading.cancelled()
        # Only that of `getFile` may be kept for the next call.
        assert connections_to(port) <= before + 1
    assert connections_to(port) == before


# A server that says what a real one never would


@dataclass
class Odd:
    """Tells `file_path` and serves `answer` everywhere; keeps the paths that it was asked for, as they came."""

    told: dict[str, Any] = field(default_factory=dict[str, Any])
    answer: web.Response | None = None
    asked: list[str] = field(default_factory=list[str])
    url: str = ""

    async def get_file(self, request: web.Request) -> web.Response:
        return web.json_response({"ok": True, "result": self.told})

    async def serve(self, request: web.Request) -> web.StreamResponse:
        self.asked.append(request.raw_path)
        return self.answer or web.Response(body=b"bytes")


@pytest_asyncio.fixture(loop_scope="module")
async def odd() -> AsyncGenerator[Odd]:
    odd = Odd()
    app = web.Application()
    app.router.add_post("/bot{token}/getFile", odd.get_file)
    app.router.add_get("/{path:.*}", odd.serve)
    runner = web.AppRunner(app, shutdown_timeout=1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    odd.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield odd
    await runner.cleanup()


FILE = Attachment("file", "application/pdf", "ref", needs_auth=True)


@pytest.mark.parametrize(
    "path",
    [
        *(
            "../secret",
            "photos/../../../etc/passwd",
            "photos/./a.jpg",
            "photos//a.jpg",
            "photos/",
            "..",
            "a\\..\\..\\b",
        ),
        *("http://evil.invalid/a.jpg", "//evil.invalid/a.jpg", "photos/a\n.jpg", "photos/\x00", "photos/\ud800.jpg"),
        *("/var/lib/telegram-bot-api/1/photos/a.jpg", "C:\\telegram\\a.jpg", "c:/telegram/a.jpg"),
    ],
)
async def test_a_path_that_leads_elsewhere_is_not_followed(odd: Odd, path: str) -> None:
    odd.told = {"file_path": path}
    assert (await failure(odd.url, FILE)).for_good
    assert odd.asked == []


async def test_no_local_file_is_read(odd: Odd) -> None:
    odd.told = {"file_path": "/etc/passwd", "file_size": 5}
    error = await failure(odd.url, FILE)
    assert (str(error), error.for_good) == (files.NEVER, True)
    assert "--local" in error.detail


@pytest.mark.parametrize("told", [{}, {"file_path": None}, {"file_path": ""}, {"file_path": 5}, {"file_path": ["a"]}])
async def test_without_a_path_it_may_come_later(odd: Odd, told: dict[str, Any]) -> None:
    odd.told = told
    assert not (await failure(odd.url, FILE)).for_good
    assert odd.asked == []


async def test_a_path_stays_a_path(odd: Odd) -> None:
    odd.told = {"file_path": "documents/ả b?c#d%2e%2e@e.pdf", "file_size": 5}
    assert await downloaded(odd.url, FILE) == b"bytes"
    assert odd.asked == [f"/file/bot{TOKEN}/documents/%E1%BA%A3%20b%3Fc%23d%252e%252e@e.pdf"]


async def test_what_comes_packed_is_not_unpacked(odd: Odd) -> None:
    packed = gzip.compress(bytes(10_000_000))
    odd.told = {"file_path": "a.pdf"}
    odd.answer = web.Response(body=packed, headers={"Content-Encoding": "gzip"})
    assert await downloaded(odd.url, FILE) == packed


async def test_a_web_page_may_be_the_file(odd: Odd) -> None:
    odd.told = {"file_path": "a.html"}
    odd.answer = web.Response(text="<p>", content_type="text/html")
    page = Attachment("file", "text/html; charset=utf-8", "ref")
    assert await downloaded(odd.url, page) == b"<p>"


@pytest.mark.parametrize("size", [None, "5", 5])
async def test_a_size_that_is_not_told_is_not_compared(odd: Odd, size: object) -> None:
    odd.told = {"file_path": "a.pdf", "file_size": size}
    assert await downloaded(odd.url, FILE) == b"bytes"
