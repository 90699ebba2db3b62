"""The Bot API client against a server that says the bytes it is told to, since a real one never fails on command."""

import asyncio
import json
import logging
import socket
import traceback
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest

from chat_bridge.platforms.telegram import api as api_module
from chat_bridge.platforms.telegram.api import BotApi, BotApiError, CallFailedError, CallRefusedError

SECRET = "AAF-a_secret_of_thirty_five_letters"
TOKEN = f"7000000001:{SECRET}"
CLOSE = b""  # a server that closes instead of answering


@dataclass
class Server:
    """Answers each request with the same bytes; keeps what it was sent, and counts connections."""

    answer: bytes | None = b""
    closes: bool = True
    connections: int = 0
    requests: list[tuple[str, dict[str, str], Any]] = field(default_factory=list[tuple[str, dict[str, str], Any]])
    port: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                first, *lines = head.decode().split("\r\n")
                headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines if line)}
                body = await reader.readexactly(int(headers.get("content-length", "0")))
                self.requests.append((first, headers, json.loads(body or b"null")))
                if self.answer is None:
                    await reader.read()  # until the client gives up
                    break
                writer.write(self.answer)
                await writer.drain()
                if self.closes:
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


@asynccontextmanager
async def serving(answer: bytes | None, *, closes: bool = True) -> AsyncGenerator[Server]:
    server = Server(answer, closes)
    listener = await asyncio.start_server(server.talk, "127.0.0.1", 0)
    server.port = listener.sockets[0].getsockname()[1]
    async with listener:
        yield server


@asynccontextmanager
async def calling(base_url: str) -> AsyncGenerator[BotApi]:
    api = BotApi(TOKEN, base_url)
    try:
        yield api
    finally:
        await api.aclose()


def http(body: bytes, status: str = "200 OK", kind: str = "application/json", *more: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Type: {kind}", f"Content-Length: {len(body)}", *more]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def refusal(status: str, description: str, **parameters: int) -> bytes:
    body: dict[str, Any] = {"ok": False, "error_code": int(status[:3]), "description": description}
    return http(json.dumps(body | ({"parameters": parameters} if parameters else {})).encode(), status)


RIGHT = http(b'{"ok":true,"result":{"id":5}}')


def unused_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


async def failure(base_url: str, seconds: float = 10) -> BotApiError:
    """The error of a call, after a look that nothing of it gives the token away."""
    async with calling(base_url) as api:
        with pytest.raises(BotApiError) as caught:
            await api.call("sendMessage", {"text": "hello"}, seconds=seconds)
        shown = repr(api)
    error = caught.value
    told = [shown, str(error), repr(error), repr(vars(error)), *traceback.format_exception(error)]
    assert not [line for line in told if SECRET in line]
    assert error.__cause__ is None
    return error


async def test_a_call_is_a_post_of_json_and_gives_the_result() -> None:
    async with serving(RIGHT) as server, calling(f"{server.url}/proxy/") as api:
        assert await api.call("getMe", {"text": "xin chào 👋"}, seconds=10) == {"id": 5}
    ((line, headers, body),) = server.requests
    assert line == f"POST /proxy/bot{TOKEN}/getMe HTTP/1.1"
    assert headers["content-type"] == "application/json"
    assert body == {"text": "xin chào 👋"}


async def test_calls_share_a_connection_and_keep_no_cookies() -> None:
    answer = http(b'{"ok":true,"result":1}', "200 OK", "application/json", "Set-Cookie: a=b")
    async with serving(answer, closes=False) as server, calling(server.url) as api:
        for _ in range(3):
            await api.call("getMe", {}, seconds=10)
    assert server.connections == 1
    assert not [headers for _, headers, _ in server.requests if "cookie" in headers]


async def test_a_refusal_tells_all() -> None:
    async with serving(
        refusal("400 Bad Request", "Bad Request: upgraded", migrate_to_chat_id=-1002234567890)
    ) as server:
        error = await failure(server.url)
    assert isinstance(error, CallRefusedError)
    assert (error.status, error.description, error.maybe_done) == (400, "Bad Request: upgraded", False)
    assert error.migrate_to_chat_id == -1002234567890
    assert error.retry_after is None
    assert error.says("nothing", "bad request: up")
    assert not error.says("nothing")


@pytest.mark.parametrize(
    ("parameters", "seconds"),
    [({"retry_after": 14}, 14.0), ({}, 5.0), ({"retry_after": -1}, 5.0), ({"retry_after": "14"}, 5.0)],
)
async def test_too_many_requests_says_how_long_to_wait(parameters: dict[str, Any], seconds: float) -> None:
    answer = refusal("429 Too Many Requests", "Too Many Requests: retry after 14", **parameters)
    async with serving(answer) as server:
        error = await failure(server.url)
    assert isinstance(error, CallRefusedError)
    assert error.retry_after == seconds


@pytest.mark.parametrize(
    ("answer", "maybe_done"),
    [
        (refusal("500 Internal Server Error", "Internal Server Error"), True),
        (http(b"<html>", "502 Bad Gateway", "text/html"), True),
        (http(b"<html>", "200 OK", "text/html"), True),
        (http(b'{"ok":true,"resu'), True),
        (http(b'{"ok":true}'), True),
        (http(b"[]"), True),
        (http(b"[" * 100_000), True),
        (http(b'{"ok":true,"result":1}').replace(b"Length: 22", b"Length: 99"), True),
        (CLOSE, True),
        (b"this is no HTTP\r\n\r\n", True),
        (http(b"<html>", "404 Not Found", "text/html"), False),
        (http(b"", "302 Found", "text/html", "Location: /elsewhere"), False),
        (http(b'{"ok":true,"result":1}', "302 Found"), False),
    ],
)
async def test_what_is_no_answer_may_hide_that_it_was_done(answer: bytes, maybe_done: bool) -> None:
    async with serving(answer) as server:
        error = await failure(server.url)
    assert isinstance(error, CallFailedError)
    assert error.maybe_done is maybe_done
    assert len(server.requests) == 1


async def test_silence_ends_and_may_hide_that_it_was_done() -> None:
    async with serving(None) as server:
        error = await failure(server.url, seconds=0.2)
    assert isinstance(error, CallFailedError)
    assert error.maybe_done


async def test_a_redirection_is_not_followed() -> None:
    async with serving(RIGHT) as elsewhere:
        location = f"Location: {elsewhere.url}/bot{TOKEN}/sendMessage"
        async with serving(http(b"", "307 Temporary Redirect", "text/html", location)) as server:
            await failure(server.url)
    assert elsewhere.connections == 0


async def test_without_a_connection_nothing_was_done() -> None:
    async with serving(RIGHT) as plain:
        addresses = [
            f"http://127.0.0.1:{unused_port()}",
            "http://telegram.invalid",
            plain.url.replace("http:", "https:"),
            "http://[::1",
        ]
        errors = [await failure(address, seconds=1) for address in addresses]
    assert plain.requests == []
    assert [error.maybe_done for error in errors] == [False] * len(addresses)


async def test_a_large_answer_is_not_read_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api_module, "MOST_BYTES", 1000)
    async with serving(http(b'{"ok":true,"result":"' + b"a" * 100_000 + b'"}')) as server:
        error = await failure(server.url)
    assert "too large" in str(error)
    assert error.maybe_done


@pytest.mark.parametrize("leak", [TOKEN, SECRET])
@pytest.mark.parametrize("status", ["400 Bad Request", "500 Internal Server Error"])
async def test_a_description_is_told_without_the_token(leak: str, status: str) -> None:
    async with serving(refusal(status, f"no https://api.telegram.org/bot{leak}/x here {'a' * 9999}")) as server:
        error = await failure(server.url)
    assert "[token]/x here" in str(error)
    assert len(str(error)) < 400


@pytest.mark.parametrize("answer", [RIGHT, CLOSE, http(b"<html>", "502 Bad Gateway"), b"no HTTP\r\n\r\n", None])
async def test_the_log_never_holds_the_token(answer: bytes | None, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    asyncio.get_running_loop().set_debug(True)  # now asyncio has much to say
    async with serving(answer) as server, calling(server.url) as api:
        with suppress(BotApiError):
            await api.call("getMe", {}, seconds=0.5)
    assert server.requests
    assert SECRET not in caplog.text


async def clock_ahead(date: str) -> float | None:
    answer = http(b'{"ok":true,"result":1}', "200 OK", "application/json", f"Date: {date}")
    async with serving(answer) as server, calling(server.url) as api:
        assert api.clock_ahead is None
        await api.call("getMe", {}, seconds=10)
        return api.clock_ahead


async def test_the_clock_is_compared() -> None:
    in_five_minutes = format_datetime(datetime.now(UTC) + timedelta(minutes=5), usegmt=True)
    assert await clock_ahead(in_five_minutes) == pytest.approx(300, abs=60)


@pytest.mark.parametrize("date", ["", "no date", "Fri, 31 Dec 9999 23:59:59 -2359"])
async def test_an_odd_date_is_no_clock(date: str) -> None:
    assert await clock_ahead(date) is None
