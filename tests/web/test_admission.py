"""Admission: what is too much at once hears 503 and when to come again, and those who are in don't notice."""

import asyncio
import json
import resource
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import aiohttp
import pytest
from fastapi import FastAPI, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from chat_bridge.errors import OverloadedError, StorageError
from chat_bridge.web.admission import ALWAYS, MOST_REQUESTS, Admission, BodyLimit
from chat_bridge.web.problems import Problem, handle_problems
from tests.bridge import BridgeProcess
from tests.needs import unavailable


class Answer:
    """One request to an ASGI application, and what it answered."""

    def __init__(self) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self.body = b""

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.headers = {name.decode(): text.decode() for name, text in message["headers"]}
        self.body += message.get("body", b"")

    @property
    def refused(self) -> bool:
        """Whether this is a 503 as it must be."""
        if self.status != 503:
            return False
        assert self.headers["content-type"] == "application/problem+json"
        assert int(self.headers["retry-after"]) > 0
        assert json.loads(self.body)["status"] == 503
        return True


async def ask(app: ASGIApp, path: str = "/", body: Sequence[bytes] = (b"",)) -> Answer:
    chunks = list(body)

    async def receive() -> Message:
        return {"type": "http.request", "body": chunks.pop(0), "more_body": bool(chunks)}

    scope: dict[str, Any] = {"type": "http", "method": "POST", "path": path, "headers": [], "query_string": b""}
    answer = Answer()
    await app(scope, receive, answer.send)
    return answer


class Slow:
    """An application that reads the body and answers when the test lets it."""

    def __init__(self) -> None:
        self.inside = 0
        self.gate = asyncio.Event()

    async def __call__(self, _scope: Scope, receive: Receive, send: Send) -> None:
        while (await receive())["more_body"]:
            pass
        self.inside += 1
        await self.gate.wait()
        self.inside -= 1
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body"})

    @asynccontextmanager
    async def busy_with(self, *requests: Any) -> AsyncGenerator[None]:
        """Meanwhile these requests are in; each ends with 200."""
        tasks = [asyncio.create_task(request) for request in requests]
        while self.inside < len(tasks):
            await asyncio.sleep(0)
        yield
        self.gate.set()
        assert [answer.status for answer in await asyncio.gather(*tasks)] == [200] * len(tasks)


async def test_more_requests_than_there_is_room_for_are_refused_until_one_ends() -> None:
    slow = Slow()
    app = Admission(slow, most_requests=2)
    async with slow.busy_with(ask(app), ask(app)):
        assert (await ask(app)).refused
        assert (await ask(app)).refused
    assert (await ask(app)).status == 200


async def test_a_request_that_crashes_leaves_room() -> None:
    async def crashing(_scope: Scope, _receive: Receive, _send: Send) -> None:
        raise RuntimeError("a bug")

    app = Admission(crashing, most_requests=1)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="a bug"):
            await ask(app)


async def test_event_streams_take_no_room_of_requests_and_have_their_own() -> None:
    slow = Slow()
    app = Admission(slow, most_requests=1, most_streams=2)
    streams = (ask(app, f"/api/v1/chat/{name}/events") for name in "ab")
    async with slow.busy_with(ask(app), *streams):
        assert (await ask(app)).refused
        assert (await ask(app, "/api/v1/chat/c/events")).refused


@pytest.mark.parametrize("path", sorted(ALWAYS))
async def test_the_watchers_always_come_in(path: str) -> None:
    slow = Slow()
    app = Admission(slow, most_requests=1)
    async with slow.busy_with(ask(app), ask(app, path), ask(app, path)):
        assert (await ask(app)).refused


# Bodies


def reading() -> tuple[FastAPI, asyncio.Event]:
    """An application that keeps what it was sent until the event is set."""
    app, gate = FastAPI(), asyncio.Event()
    handle_problems(app)

    @app.post("/")
    async def read(request: Request) -> int:
        size = len(await request.body())
        app.state.inside = getattr(app.state, "inside", 0) + 1
        await gate.wait()
        return size

    return app, gate


async def test_bodies_together_have_a_bound_and_give_their_room_back() -> None:
    inner, gate = reading()
    app = BodyLimit(inner, max_bytes=60, upload_bytes=600, held_bytes=100)
    held = asyncio.create_task(ask(app, body=[b"x" * 30, b"x" * 30]))
    while not getattr(inner.state, "inside", 0):
        await asyncio.sleep(0)
    assert (await ask(app, body=[b"x" * 20, b"x" * 30])).refused
    gate.set()
    assert (await ask(app, body=[b"x" * 40])).body == b"40", "what fits comes in"
    assert (await held).body == b"60"
    assert (await ask(app, body=[b"x" * 50])).body == b"50"


async def test_one_body_has_its_own_limit_also_without_a_length() -> None:
    inner, gate = reading()
    gate.set()
    app = BodyLimit(inner, max_bytes=60, upload_bytes=600, held_bytes=10)
    assert (await ask(app, body=[b"x" * 60])).body == b"60", "the largest one allowed always has room"
    assert (await ask(app, body=[b"x" * 60, b"x"])).status == 413


async def test_a_body_that_does_not_come_is_not_waited_for() -> None:
    inner, _ = reading()
    asked = asyncio.Semaphore(1)

    async def receive() -> Message:
        await asked.acquire()
        return {"type": "http.request", "body": b"x", "more_body": True}

    answer = Answer()
    scope: dict[str, Any] = {"type": "http", "method": "POST", "path": "/", "headers": [], "query_string": b""}
    await BodyLimit(inner, max_bytes=60, upload_bytes=600, seconds=0.05)(scope, receive, answer.send)
    assert answer.status == 408


async def test_a_sender_may_listen_for_long_after_its_body() -> None:
    heard: list[str] = []

    async def listening(_scope: Scope, receive: Receive, _send: Send) -> None:
        heard.extend([(await receive())["type"] for _ in range(2)])

    messages = iter([(0, "http.request"), (0.1, "http.disconnect")])
    scope: dict[str, Any] = {"type": "http", "path": "/", "headers": []}

    async def receive() -> Message:
        wait, kind = next(messages)
        await asyncio.sleep(wait)
        return {"type": kind}

    await BodyLimit(listening, max_bytes=60, upload_bytes=600, seconds=0.05)(scope, receive, Answer().send)
    assert heard == ["http.request", "http.disconnect"]


UPLOADS = "/api/v1/chat/here/uploads"


async def slowly(pieces: int, wait: float, path: str) -> int:
    """The status of a request whose body comes in so many pieces, with a wait before each."""
    sent = 0

    async def taking(_scope: Scope, receive: Receive, send: Send) -> None:
        while (await receive())["more_body"]:
            pass
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body"})

    async def receive() -> Message:
        nonlocal sent
        await asyncio.sleep(wait)
        sent += 1
        return {"type": "http.request", "body": b"x" * 1000, "more_body": sent < pieces}

    app = FastAPI()
    handle_problems(app)
    app.mount("/", taking)
    answer = Answer()
    scope: dict[str, Any] = {
        "type": "http", "method": "POST", "path": path, "root_path": "", "headers": [], "query_string": b""
    }  # fmt: skip
    await BodyLimit(app, max_bytes=10_000, upload_bytes=100_000, seconds=0.2)(scope, receive, answer.send)
    return answer.status


async def test_an_upload_has_more_time_the_more_it_has_brought() -> None:
    assert await slowly(8, 0.04, UPLOADS) == 200  # 25 KB a second, and longer than 0.2 s in all
    assert await slowly(8, 0.04, "/else") == 408
    assert await slowly(2, 0.3, UPLOADS) == 408, "silence"
    assert await slowly(40, 0.15, UPLOADS) == 408, "7 KB a second"


async def test_an_upload_has_its_own_limit_and_is_not_held() -> None:
    slow = Slow()
    app = BodyLimit(slow, max_bytes=60, upload_bytes=600, held_bytes=60)
    with pytest.raises(Problem, match="at most 600 bytes"):
        await ask(app, UPLOADS, [b"x" * 600, b"x"])
    async with slow.busy_with(
        ask(app, UPLOADS, [b"x" * 600]), ask(app, UPLOADS, [b"x" * 600]), ask(app, "/", [b"x" * 60])
    ):
        pass


async def test_files_take_no_room_of_requests() -> None:
    slow = Slow()
    app = Admission(slow, most_requests=1)
    async with slow.busy_with(ask(app), ask(app, UPLOADS), ask(app, "/api/v1/attachments/1")):
        assert (await ask(app)).refused


# The whole bridge


async def test_a_bridge_full_of_requests_refuses_more_and_says_that_it_lives(bridge: BridgeProcess) -> None:
    if resource.getrlimit(resource.RLIMIT_NOFILE)[0] < MOST_REQUESTS + 500:
        unavailable("a process may not open enough files here (ulimit -n)")
    port = int(bridge.url.rpartition(":")[2])
    head = b"POST /api/v1/chat/here/messages HTTP/1.1\r\nHost: bridge\r\nContent-Length: 9\r\n\r\n"
    async with AsyncExitStack() as waiting, aiohttp.ClientSession(bridge.url) as http:
        for _ in range(MOST_REQUESTS):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            waiting.callback(writer.close)
            writer.write(head)
        while await status(http, "/chat") != 503:
            await asyncio.sleep(0.02)
        assert await status(http, "/health") == 200
        assert await status(http, "/readyz") == 200
        await waiting.aclose()
        while await status(http, "/chat") != 200:
            await asyncio.sleep(0.02)
    assert len(bridge.events("requests.refused")) == 1


async def status(http: aiohttp.ClientSession, path: str) -> int:
    async with http.get(path) as response:
        return response.status


# What the store says


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OverloadedError("full"), "Too much waits to be stored; nothing was stored."),
        (StorageError("away"), "The message store can't be reached; nothing was stored."),
    ],
)
async def test_the_store_s_trouble_is_a_503_with_a_time(error: StorageError, words: str) -> None:
    app = FastAPI()
    handle_problems(app)

    @app.post("/")
    async def fail() -> None:
        raise error

    answer = await ask(app)
    assert answer.refused
    assert json.loads(answer.body)["detail"].startswith(words)


async def test_a_sender_who_hangs_up_is_no_crash(capsys: pytest.CaptureFixture[str]) -> None:
    app = FastAPI()
    handle_problems(app)

    @app.post("/")
    async def take(request: Request) -> None:
        await request.body()

    async def receive() -> Message:
        return {"type": "http.disconnect"}

    scope: dict[str, Any] = {"type": "http", "method": "POST", "path": "/", "headers": [], "query_string": b""}
    answer = Answer()
    await app(scope, receive, answer.send)
    assert answer.status == 400
    assert "request.crashed" not in capsys.readouterr().err
