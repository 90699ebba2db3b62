"""The contract that every adapter has to keep: web chat, the example of the documentation, and Telegram."""

import asyncio
import hashlib
import hmac
import itertools
import json
import sys
import time
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from chat_bridge.model import Address, Attachment, ConversationId, TurnId
from chat_bridge.platforms import webchat
from chat_bridge.platforms.contract import (
    OutboundPart,
    Platform,
    Refused,
    RefusedUs,
    RetryAfter,
    RetryLater,
    SendResult,
    Sent,
    WebhookRequest,
)
from chat_bridge.platforms.telegram import api
from chat_bridge.platforms.telegram.adapter import PROOF_HEADER, Telegram
from chat_bridge.platforms.webchat import WebChat
from tests.fake_telegram.client import Chat, Message, running_telegram
from tests.platforms.contract import (
    AdapterContract,
    Change,
    Fault,
    FileContract,
    FileFault,
    Harness,
    PeerContract,
    Place,
    PollContract,
    Seen,
    WebhookContract,
    part,
    spoiled,
    unused_port,
)

EXAMPLE = Path(__file__).parent.parent.parent / "docs" / "platforms" / "example_adapter"
PAGER_SECRET = "the-secret-of-the-pager"
PAGER_USER = 7001


# Web chat


class Page:
    """A page of web chat: it hears of messages by their seq and reads them from the store, each once."""

    def __init__(self) -> None:
        self.stored: dict[int, str] = {}
        self.shown: list[int] = []

    async def publish(self, conversation: ConversationId, event: Mapping[str, Any]) -> None:
        if event["type"] == "message" and event["seq"] not in self.shown:
            self.shown.append(event["seq"])

    async def publish_partial(self, conversation: ConversationId, turn: TurnId, text: str, shown: int) -> None: ...

    async def end_partial(self, conversation: ConversationId, *events: Mapping[str, Any]) -> None:
        for event in events:
            await self.publish(conversation, event)


class WebChatHarness(Harness):
    """Web chat as its adapter sees it; how pages behave is for the tests in `tests/web`."""

    async def begin(self, stack: AsyncExitStack) -> None:
        self.page = Page()

    def make(self) -> Platform:
        return WebChat(self.page)

    async def address(self, place: Place) -> Address:
        return webchat.address("visitor-1")

    def store(self, part: OutboundPart) -> None:
        self.page.stored[part.seq] = part.content.text

    async def seen(self, place: Place) -> Sequence[Seen]:
        return [Seen(self.page.stored[seq]) for seq in self.page.shown]


class TestWebChat(AdapterContract):
    harness = WebChatHarness


# The example


@dataclass
class Receiver:
    """The pager system's end: takes messages once for each key, and fails as it is told to."""

    messages: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    requests: list[Mapping[str, str]] = field(default_factory=list[Mapping[str, str]])
    next_answers: list[int | None] = field(default_factory=list[int | None])
    url: str = ""
    port: int = 0
    _ids: dict[str, str] = field(default_factory=dict[str, str])
    _arrived: asyncio.Event = field(default_factory=asyncio.Event)

    async def take(self, request: web.Request) -> web.Response:
        """A request of the adapter. An answer of None is one that gets lost."""
        body = await request.read()
        self.requests.append(request.headers)
        if request.headers["X-Pager-Signature"] != signature(request.headers["X-Pager-Timestamp"], body):
            return web.Response(status=401)
        answer = self.next_answers.pop(0) if self.next_answers else 200
        if answer not in (None, 200):
            return web.Response(status=answer or 0, headers={"Retry-After": "1"} if answer == 429 else {})
        content, key = json.loads(body), request.headers["Idempotency-Key"]
        known = key in self._ids
        if not known and "ping" not in content:
            self._ids[key] = f"p{len(self._ids)}"
            self.messages.append(content)
            self._arrived.set()
        if answer is None:
            assert request.transport is not None
            request.transport.abort()
        return web.json_response({"id": self._ids.get(key)}, status=409 if known else 200)

    async def until(self, count: int) -> list[str]:
        """Wait until there are so many messages, and give their texts."""
        while len(self.messages) < count:
            self._arrived.clear()
            await self._arrived.wait()
        return [message["text"] for message in self.messages]


@asynccontextmanager
async def receiving() -> AsyncGenerator[Receiver]:
    """A receiver of its own."""
    receiver = Receiver()
    async with serving("/in", receiver.take) as receiver.port:
        receiver.url = f"http://127.0.0.1:{receiver.port}/in"
        yield receiver


@asynccontextmanager
async def serving(path: str, handler: Any) -> AsyncGenerator[int]:
    """An HTTP server that takes POST requests at one path; gives its port."""
    app = web.Application()
    app.router.add_post(path, handler)
    runner = web.AppRunner(app, shutdown_timeout=1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


def signature(stamp: str, body: bytes, secret: str = PAGER_SECRET) -> str:
    """As the pager system makes it."""
    return hmac.new(secret.encode(), f"{stamp}.".encode() + body, hashlib.sha256).hexdigest()


def signed(body: bytes, *, stamp: str | None = None, secret: str = PAGER_SECRET) -> dict[str, str]:
    """The headers of a request with this body."""
    stamp = stamp or str(int(time.time()))
    return {"x-pager-timestamp": stamp, "x-pager-signature": signature(stamp, body, secret)}


def entry(number: int, text: str, conversation: int = 501, **more: Any) -> dict[str, Any]:
    """A message that a user writes."""
    who = {"id": PAGER_USER, "name": "Linh"}
    return {"type": "message", "id": number, "conversation": conversation, "user": who, "text": text, **more}


def events_body(*entries: Mapping[str, Any]) -> bytes:
    """The body of a request with these events."""
    return json.dumps({"events": entries}).encode()


class PagerHarness(Harness):
    """The pager system."""

    places = ("private", "group")
    changes = ("edit", "delete")
    faults = (
        *(Fault.REFUSED, Fault.GONE, Fault.WAIT, Fault.CREDENTIALS),
        *(Fault.SERVER_ERROR, Fault.LOST_ANSWER),
    )
    secrets = (PAGER_SECRET,)
    answers: Mapping[Fault, int | None] = {
        Fault.REFUSED: 422,
        Fault.GONE: 410,
        Fault.WAIT: 429,
        Fault.CREDENTIALS: 401,
        Fault.SERVER_ERROR: 503,
        Fault.LOST_ANSWER: None,
    }
    conversations: Mapping[Place, int] = {"private": 501, "group": 502}

    async def begin(self, stack: AsyncExitStack) -> None:
        self.receiver = await stack.enter_async_context(receiving())
        self.port = self.receiver.port
        self.ids = itertools.count(1)

    def make(self) -> Platform:
        return make_pager(self.receiver.url)

    def make_unreachable(self) -> Platform:
        return make_pager(f"http://127.0.0.1:{unused_port()}/in")

    async def address(self, place: Place) -> Address:
        return Address("pager", "default", str(self.conversations[place]))

    async def seen(self, place: Place) -> Sequence[Seen]:
        mine = [each for each in self.receiver.messages if each["conversation"] == str(self.conversations[place])]
        return [Seen(each["text"], each["reply_to"]) for each in mine]

    async def break_next(self, fault: Fault) -> None:
        self.receiver.next_answers.append(self.answers[fault])

    async def write(self, text: str, place: Place = "private", *, addressed: bool = True) -> WebhookRequest:
        group = {"group": True, "mentioned": addressed} if place == "group" else {}
        self.last = next(self.ids)
        return self.authentic(events_body(entry(self.last, text, self.conversations[place], **group)))

    async def change(self, how: Change, text: str) -> WebhookRequest:
        changed = entry(next(self.ids), text) | {"type": how, "message": self.last}
        if how == "delete":
            del changed["text"]
        return self.authentic(events_body(changed))

    def authentic(self, body: bytes) -> WebhookRequest:
        return WebhookRequest(signed(body), {}, body)

    def forged(self, request: WebhookRequest) -> Iterator[WebhookRequest]:
        yield from spoiled(request, "x-pager-signature")
        yield from spoiled(request, "x-pager-timestamp")
        yield replace(request, body=request.body + b" ")
        yield replace(request, body=b"")
        yield replace(request, headers=signed(request.body, secret="another-secret-of-a-pager"))
        for seconds in (-900, 900):
            yield replace(request, headers=signed(request.body, stamp=str(int(time.time()) + seconds)))
        for stamp in ("soon", "-1", "1e9", "9" * 400, "²"):
            yield replace(request, headers=signed(request.body, stamp=stamp))


def make_pager(url: str) -> Platform:
    """The example's adapter, from its source."""
    sys.path.insert(0, str(EXAMPLE / "src"))
    try:
        from pager_adapter import make
    finally:
        sys.path.remove(str(EXAMPLE / "src"))
    return make({"PAGER_URL": url, "PAGER_SECRET": PAGER_SECRET})


class TestPager(PeerContract, WebhookContract):
    harness = PagerHarness

    @pytest.mark.parametrize(
        ("status", "expected"),
        [
            (204, Sent("the-key")),
            (302, RefusedUs("HTTP 302: look at PAGER_URL and PAGER_SECRET")),
            (403, RefusedUs("HTTP 403: look at PAGER_URL and PAGER_SECRET")),
            (404, Refused("HTTP 404")),
            (429, RetryAfter(1.0, "HTTP 429", scope="account")),
            (500, RetryLater("HTTP 500", maybe_sent=True)),
        ],
    )
    async def test_each_answer_has_its_meaning(self, world: PagerHarness, status: int, expected: SendResult) -> None:
        world.receiver.next_answers.append(status)
        message = replace(part(await world.address("private"), "hello"), idempotency_key="the-key")
        assert await world.platform.send(message) == expected

    async def test_silence_may_be_a_message(self, world: PagerHarness, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(f"{type(world.platform).__module__}.TIMEOUT", aiohttp.ClientTimeout(total=0.2))
        silence = asyncio.Event()

        async def say_nothing(request: web.Request) -> web.Response:
            await silence.wait()
            return web.Response()

        async with serving("/in", say_nothing) as port:
            platform = make_pager(f"http://127.0.0.1:{port}/in")
            result = await platform.send(part(await world.address("private"), "hello"))
            await platform.aclose()
            silence.set()
        assert isinstance(result, RetryLater)
        assert result.maybe_sent


# Telegram

BOT_SECRET = "AAF-a_secret_of_thirty_five_letters"
TOKEN = f"7000000001:{BOT_SECRET}"
WEBHOOK_SECRET = "the-secret-of-the-webhook"


class TelegramHarness(Harness):
    """The fake Telegram, which calls a server of ours."""

    places = ("private", "group", "thread")
    changes = ("edit",)
    faults = (Fault.REFUSED, Fault.GONE, Fault.WAIT, Fault.MOVED, Fault.SERVER_ERROR, Fault.LOST_ANSWER)
    file_faults = tuple(FileFault)
    secrets = (BOT_SECRET, WEBHOOK_SECRET)
    file_kinds: Mapping[FileFault, tuple[str, Mapping[str, Any]]] = {
        FileFault.GONE: ("getFile", {"kind": "bad_request", "description": "invalid file_id"}),
        FileFault.SERVER_ERROR: ("getFile", {"kind": "server_error"}),
        FileFault.CUT: ("file", {"kind": "truncated"}),
        FileFault.REDIRECTION: ("file", {"kind": "redirect", "to": "http://127.0.0.2:1/elsewhere"}),
        FileFault.WEB_PAGE: ("file", {"kind": "html"}),
        FileFault.SILENCE: ("file", {"kind": "stall"}),
    }
    kinds: Mapping[Fault, Mapping[str, Any]] = {
        Fault.REFUSED: {"kind": "bad_request", "description": "message is too long"},
        Fault.GONE: {"kind": "forbidden", "description": "bot was blocked by the user"},
        Fault.WAIT: {"kind": "too_many_requests", "retry_after": 1},
        Fault.MOVED: {"kind": "migrate", "to": -1009999999999},
        Fault.SERVER_ERROR: {"kind": "server_error"},
        Fault.LOST_ANSWER: {"kind": "reset_after"},
    }
    polling = False

    async def begin(self, stack: AsyncExitStack) -> None:
        self.telegram = await stack.enter_async_context(running_telegram(token=TOKEN))
        await self.telegram.settings(sees_all=True)
        self.port = int(self.telegram.base_url.rpartition(":")[2])
        self.requests: list[WebhookRequest] = []
        self.called = asyncio.Event()
        self.webhook_port = await stack.enter_async_context(serving("/webhooks/telegram", self._take))
        person = await self.telegram.user("Linh", username="linh")
        forum = await self.telegram.supergroup("Ops", person, forum=True)
        await forum.say("hello", by=person)  # or the topic would get the id of the General one
        self.topic = await forum.topic("Alerts", by=person)
        group = await self.telegram.supergroup("Friends", person)
        self.chats: Mapping[Place, Chat] = {
            "private": await self.telegram.private(person),
            "group": group,
            "thread": forum,
        }

    def make(self, url: str | None = None) -> Platform:
        return Telegram(
            token=TOKEN,
            api_base_url=url or self.telegram.base_url,
            webhook_url=None if self.polling else f"http://127.0.0.1:{self.webhook_port}",
            webhook_secret=WEBHOOK_SECRET,
            polling=None,
        )

    def make_unreachable(self) -> Platform:
        return self.make(f"http://127.0.0.1:{unused_port()}")

    async def address(self, place: Place) -> Address:
        return Address("telegram", TOKEN.partition(":")[0], str(self.chats[place].id), str(self._topic(place) or ""))

    def _topic(self, place: Place) -> int | None:
        return self.topic if place == "thread" else None

    async def seen(self, place: Place) -> Sequence[Seen]:
        return [
            Seen(
                each.text,
                str(each.reply_to) if each.reply_to else None,
                tuple(each.buttons),
                None if "text" in each.body else await each.content(),
            )
            for each in await self.chats[place].messages(self._topic(place))
            if each.from_bot
        ]

    async def break_next(self, fault: Fault) -> None:
        await self.telegram.fault("sendMessage", **self.kinds[fault])

    async def break_next_upload(self, fault: Fault) -> None:
        await self.telegram.fault("sendDocument", **self.kinds[fault])

    async def write(self, text: str, place: Place = "private", *, addressed: bool = True) -> Any:
        said = text if place == "private" or not addressed else f"@bridge_bot {text}"
        self.last = await self.chats[place].say(said, topic=self._topic(place))
        return None if self.polling else await self._request("message", self.last)

    async def send_file(self, content: bytes) -> Attachment:
        self.last = await self.chats["private"].say(media="document", content=content)
        (event,) = self.platform.events(await self._request("message", self.last))
        (attachment,) = event.attachments
        return attachment

    async def break_next_file(self, fault: FileFault) -> None:
        method, kind = self.file_kinds[fault]
        await self.telegram.fault(method, **kind)

    async def change(self, how: Change, text: str) -> WebhookRequest:
        await self.last.edit(text)
        return await self._request("edited_message", self.last)

    def authentic(self, body: bytes) -> WebhookRequest:
        return WebhookRequest({PROOF_HEADER: WEBHOOK_SECRET}, {}, body)

    def forged(self, request: WebhookRequest) -> Iterator[WebhookRequest]:
        return spoiled(request, PROOF_HEADER)

    async def _take(self, request: web.Request) -> web.Response:
        headers = {name.lower(): value for name, value in request.headers.items()}
        self.requests.append(WebhookRequest(headers, {}, await request.read()))
        self.called.set()
        return web.Response()

    async def _request(self, kind: str, message: Message) -> WebhookRequest:
        """Wait for the request that tells of a message."""
        while True:
            self.called.clear()
            for request in self.requests:
                told = json.loads(request.body).get(kind, {})
                if (told.get("message_id"), told.get("chat", {}).get("id")) == (message.id, message.chat.id):
                    return request
            await self.called.wait()


class PolledTelegramHarness(TelegramHarness):
    """The same without a webhook."""

    polling = True


class TestTelegram(FileContract, WebhookContract):
    harness = TelegramHarness

    @pytest.fixture(autouse=True)
    def _little_patience(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(api, "SILENCE_SECONDS", 0.5)


class TestPolledTelegram(PollContract):
    harness = PolledTelegramHarness
