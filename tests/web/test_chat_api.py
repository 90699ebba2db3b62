"""The protocol of web chat, as pages and other clients speak it."""

import asyncio
import json
import random
import re
import socket
import sys
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any
from uuid import uuid4

import aiohttp
import jwt
import pytest
import pytest_asyncio

from tests.bridge import API_KEY, SECRET, BridgeProcess, Chat, calling, running_bridge, visiting
from tests.conftest import fresh_database
from tests.observe import begun, messages_in, replies

LONG = "word " * 30 + "end"
CONVERSATIONS = "/api/v1/chat/conversations"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def bridge() -> AsyncGenerator[BridgeProcess]:
    async with fresh_database("18", template=True) as database, running_bridge(database) as process:
        yield process


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def strict_bridge() -> AsyncGenerator[BridgeProcess]:
    """A bridge with narrow limits."""
    limits = {
        "WEBCHAT_RATE_CONVERSATION": "3",
        "WEBCHAT_RATE_ADDRESS": "5",
        "WEBCHAT_MAX_TEXT": "10",
        "CHAT_BRIDGE_MAX_BODY_BYTES": "2000",
    }
    async with fresh_database("18", template=True) as database, running_bridge(database, **limits) as process:
        yield process


@pytest.fixture
async def chat(bridge: BridgeProcess) -> AsyncGenerator[Chat]:
    async with visiting(bridge.url) as visitor:
        yield visitor


def token(conversation: str, *, secret: str = SECRET, seconds: float = 86400, **claims: Any) -> str:
    return jwt.encode({"sub": conversation, "aud": "webchat", "exp": time.time() + seconds} | claims, secret, "HS256")


async def problem(url: str, method: str, path: str, **request: Any) -> tuple[dict[str, Any], dict[str, str]]:
    """A request that must fail: the problem details, and the headers."""
    async with aiohttp.ClientSession(url) as http, http.request(method, path, **request) as response:
        assert response.content_type == "application/problem+json", await response.text()
        body = await response.json()
        assert body["status"] == response.status
        assert body["title"]
        return body, dict(response.headers)


async def refused(chat: Chat, text: str, client_msg_id: str | None = None, **more: Any) -> int:
    """The status of a message that must not be taken."""
    status, body = await chat.post(text, client_msg_id, **more)
    assert body["status"] == status
    return status


# Conversations and messages


async def test_a_visitor_begins_a_conversation(bridge: BridgeProcess) -> None:
    async with aiohttp.ClientSession(bridge.url) as http, http.post(CONVERSATIONS) as response:
        assert response.status == 201
        body = await response.json()
    assert body.keys() == {"conversation", "token"}
    assert jwt.decode(body["token"], SECRET, ["HS256"], audience="webchat")["sub"] == body["conversation"]


async def test_a_message_is_accepted_once(chat: Chat) -> None:
    status, first = await chat.post("hello", "one")
    assert status == 202
    assert (first["seq"], first["duplicate"]) == (1, False)
    assert await chat.post("hello", "one") == (200, first | {"duplicate": True})
    assert await refused(chat, "something else", "one") == 409
    messages = await chat.answered()
    assert [message["text"] for message in messages] == ["hello", "hello"]
    assert messages[0]["id"] == first["id"]


async def test_many_senders_of_the_same_message_store_it_once(chat: Chat) -> None:
    answers = await asyncio.gather(*(chat.post("hello", "same") for _ in range(20)))
    assert sorted(status for status, _ in answers) == [200] * 19 + [202]
    assert len({body["id"] for _, body in answers}) == 1
    assert replies(await chat.answered()) == ["hello"]


@pytest.mark.parametrize("client_msg_id", ["turn:1", "k" * 200, "🙂", "a\u0000b", "' or 1=1 --"])
async def test_any_short_client_msg_id_will_do(chat: Chat, client_msg_id: str) -> None:
    assert (await chat.post("hello", client_msg_id))[0] == 202
    assert (await chat.post("hello", client_msg_id))[0] == 200
    assert (await chat.messages())[0]["client_msg_id"] == client_msg_id.replace("\u0000", "\ufffd")


@pytest.mark.parametrize("client_msg_id", [" ", "k" * 201])
async def test_a_client_msg_id_has_limits(chat: Chat, client_msg_id: str) -> None:
    assert await refused(chat, "hello", client_msg_id) == 422


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        ('"<script>alert(1)</script>&amp;"', "<script>alert(1)</script>&amp;"),
        (r'"a\u0000b"', "a\ufffdb"),
        (r'"a\ud83db"', "a\ufffdb"),
        (r'"a\udc00\ud800"', "a\ufffd\ufffd"),
        (r'"\ud83d\ude00"', "😀"),
        ('"\u202eright to left\u202c مرحبا שלום"', "\u202eright to left\u202c مرحبا שלום"),
        (json.dumps("😀" * 8000), "😀" * 8000),
        (r'"line\r\n\r\nid: 7\nevent: error\ndata: x"', "line\r\n\r\nid: 7\nevent: error\ndata: x"),
    ],
    ids=["html", "nul", "half-pair", "two-halves", "escaped-pair", "rtl", "8000-emoji", "event-stream"],
)
async def test_hostile_texts_come_back_as_they_are(chat: Chat, bridge: BridgeProcess, sent: str, kept: str) -> None:
    async with chat.events() as events:
        async with aiohttp.ClientSession(bridge.url, headers={"Authorization": f"Bearer {chat.token}"}) as http:
            body = f'{{"client_msg_id": "1", "text": {sent}}}'
            headers = {"Content-Type": "application/json"}
            path = f"/api/v1/chat/{chat.conversation}/messages"
            async with http.post(path, data=body, headers=headers) as response:
                assert response.status == 202, await response.text()
        seen = [data["text"] async for data in messages_in(events, 2)]
    assert seen == [kept, kept]
    assert [message["text"] for message in await chat.messages()] == [kept, kept]


async def test_pages_of_messages(chat: Chat) -> None:
    for number in range(1, 4):
        await chat.send(f"{number}")
        await chat.answered()

    def seqs(messages: list[dict[str, Any]]) -> list[int]:
        return [message["seq"] for message in messages]

    assert seqs(await chat.messages()) == [1, 2, 3, 4, 5, 6]
    assert seqs(await chat.messages(limit=2)) == [5, 6]
    assert seqs(await chat.messages(before=5, limit=2)) == [3, 4]
    assert seqs(await chat.messages(after=2, limit=2)) == [3, 4]
    assert seqs(await chat.messages(after=6)) == []
    assert seqs(await chat.messages(before=1)) == []
    assert seqs(await chat.messages(after=0)) == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize(
    "query", ["limit=0", "limit=201", "after=-1", "before=x", "after=1&before=5", f"after={2**63}", "limit=1e3"]
)
async def test_a_wrong_page_is_refused(chat: Chat, bridge: BridgeProcess, query: str) -> None:
    path = f"/api/v1/chat/{chat.conversation}/messages?{query}"
    body, _ = await problem(bridge.url, "GET", path, headers={"Authorization": f"Bearer {chat.token}"})
    assert body["status"] == 422


async def test_whether_there_are_more_messages(chat: Chat, bridge: BridgeProcess) -> None:
    await chat.send("hello")
    await chat.answered()
    headers = {"Authorization": f"Bearer {chat.token}"}
    path = f"/api/v1/chat/{chat.conversation}/messages"
    async with aiohttp.ClientSession(bridge.url, headers=headers) as http:
        for query, more in (("limit=1", True), ("limit=2", False), ("after=0&limit=1", True), ("after=1", False)):
            async with http.get(f"{path}?{query}") as response:
                assert (await response.json())["has_more"] is more


# Who may


@pytest.mark.parametrize(
    ("authorization", "status"),
    [
        (None, 401),
        ("Bearer", 401),
        ("Bearer garbage", 401),
        ("Bearer a.b.c", 401),
        (f"Basic {API_KEY}", 401),
        (f"Bearer {API_KEY}x", 401),
        (f"Bearer {token('room', seconds=-1)}", 401),
        (f"Bearer {token('room', secret='a' * 40)}", 401),
        (f"Bearer {token('room', aud='console')}", 401),
        (f"Bearer {jwt.encode({'sub': 'room', 'aud': 'webchat'}, SECRET, 'HS256')}", 401),
        (f"Bearer {jwt.encode({'sub': 'room', 'aud': 'webchat', 'exp': 2**40}, None, 'none')}", 401),
        (f"Bearer {token('another')}", 403),
        (f"Bearer {token('room')}", 200),
        (f"Bearer {API_KEY}", 200),
    ],
    ids=[
        *("nothing", "empty", "garbage", "like-a-token", "basic", "wrong-key", "expired", "forged", "other-audience"),
        *("no-expiry", "alg-none", "another-conversation", "token", "api-key"),
    ],
)
@pytest.mark.parametrize("action", ["read", "write", "listen"])
async def test_who_may_read_write_and_listen(
    bridge: BridgeProcess, authorization: str | None, status: int, action: str
) -> None:
    headers = {"Authorization": authorization} if authorization else {}
    path = "/api/v1/chat/room/events" if action == "listen" else "/api/v1/chat/room/messages"
    body = {"client_msg_id": str(uuid4()), "text": "hello"} if action == "write" else None
    method = "POST" if action == "write" else "GET"
    if status == 200:
        async with (
            aiohttp.ClientSession(bridge.url, headers=headers) as http,
            http.request(method, path, json=body) as response,
        ):
            assert response.status == (202 if action == "write" else 200)
        return
    told, answered = await problem(bridge.url, method, path, headers=headers, json=body)
    assert told["status"] == status
    assert answered.get("WWW-Authenticate") == ("Bearer" if status == 401 else None)


async def test_a_program_speaks_for_its_users(bridge: BridgeProcess) -> None:
    async with calling(bridge.url, f"support:{uuid4()}") as program:
        await program.post("hello", user={"id": "ann", "name": "Ann"})
        await program.post("hello", user={"id": "bob"})
        await program.post("hello")
        senders = [message["sender"] for message in await program.answered() if message["direction"] == "inbound"]
    assert senders == [
        {"id": "ann", "name": "Ann"},
        {"id": "bob", "name": None},
        {"id": program.conversation, "name": None},
    ]


async def test_a_visitor_is_nobody_else(chat: Chat) -> None:
    assert (await chat.post("hello", user={"id": "admin", "name": "Ann"}))[0] == 202
    assert (await chat.answered())[0]["sender"] == {"id": chat.conversation, "name": "Ann"}


@pytest.mark.parametrize("conversation", ["a" * 201, "a%20b", "a%00b", "%C3%BC"])
async def test_the_id_of_a_conversation_is_plain(bridge: BridgeProcess, conversation: str) -> None:
    async with calling(bridge.url, conversation) as program:
        status, _ = await program.post("hello")
    assert status == 422


# Limits


async def test_a_text_is_not_empty_and_not_too_long(strict_bridge: BridgeProcess) -> None:
    async with calling(strict_bridge.url, str(uuid4())) as program:
        assert await refused(program, " \n\t") == 422
        assert (await program.post("0123456789"))[0] == 202
        assert await refused(program, "0123456789x") == 422


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_body_is_not_too_long(strict_bridge: BridgeProcess, chunked: bool) -> None:
    async def pieces() -> AsyncGenerator[bytes]:
        for _ in range(40):
            yield b" " * 100

    headers = {"Authorization": f"Bearer {API_KEY}", "Content-Type": "application/json"}
    body, _ = await problem(
        strict_bridge.url,
        "POST",
        "/api/v1/chat/room/messages",
        headers=headers,
        data=pieces() if chunked else b" " * 4000,
    )
    assert body["status"] == 413
    assert "2000 bytes" in body["detail"]


@pytest.mark.parametrize("body", ["", "{", "[]", '{"text": "hello"}', '{"client_msg_id": 1, "text": "x"}', "\xff"])
async def test_a_body_that_is_no_message(bridge: BridgeProcess, body: str) -> None:
    headers = {"Authorization": f"Bearer {API_KEY}", "Content-Type": "application/json"}
    told, _ = await problem(
        bridge.url, "POST", "/api/v1/chat/room/messages", headers=headers, data=body.encode("latin-1")
    )
    assert told["status"] == (400 if body == "\xff" else 422)


async def test_the_rate_of_a_conversation(strict_bridge: BridgeProcess) -> None:
    async with calling(strict_bridge.url, str(uuid4())) as program:
        # The minute may end once on the way: then there are three more.
        taken = [await program.post("hello") for _ in range(7)]
        assert 3 <= [status for status, _ in taken].count(202) <= 6
        limited = next(body for status, body in taken if status != 202)
    assert limited["status"] == 429
    assert re.fullmatch(r"Too many requests: try again in ([1-9]|[1-5]\d|60) s\.", limited["detail"])


async def begin(url: str, times: int, forwarded_for: str, local: str = "127.0.0.1") -> list[tuple[int, str | None]]:
    """Begin so many conversations: status and Retry-After of each."""
    found: list[tuple[int, str | None]] = []
    connector = aiohttp.TCPConnector(local_addr=(local, 0))
    async with aiohttp.ClientSession(url, connector=connector) as http:
        for _ in range(times):
            async with http.post(CONVERSATIONS, headers={"X-Forwarded-For": forwarded_for}) as response:
                found.append((response.status, response.headers.get("Retry-After")))
    return found


async def test_the_rate_of_an_address_behind_a_proxy(strict_bridge: BridgeProcess) -> None:
    # 127.0.0.1 is a trusted proxy: what it says about addresses is believed.
    answers = await begin(strict_bridge.url, 11, "192.0.2.1")
    assert 5 <= answers.count((201, None)) <= 10
    status, wait = next(answer for answer in answers if answer != (201, None))
    assert status == 429
    assert wait is not None
    assert 1 <= int(wait) <= 60
    assert await begin(strict_bridge.url, 2, "192.0.2.2") == [(201, None)] * 2


@pytest.mark.skipif(sys.platform != "linux", reason="skipped, because only Linux listens on all of 127.0.0.0/8")
async def test_a_stranger_is_not_believed_about_its_address(strict_bridge: BridgeProcess) -> None:
    answers = [
        answer
        for number in range(11)
        for answer in await begin(strict_bridge.url, 1, f"198.51.100.{number}", local="127.0.0.2")
    ]
    assert 429 in [status for status, _ in answers]


# The event stream


async def raw_lines(chat: Chat, url: str, last_event_id: str | None = None) -> AsyncGenerator[str]:
    headers = {"Authorization": f"Bearer {chat.token}"}
    if last_event_id is not None:
        headers["Last-Event-ID"] = last_event_id
    async with (
        aiohttp.ClientSession(url, headers=headers) as http,
        http.get(f"/api/v1/chat/{chat.conversation}/events") as response,
    ):
        assert response.content_type == "text/event-stream"
        assert "no-store" in response.headers["Cache-Control"]
        assert response.headers["X-Accel-Buffering"] == "no"
        async for line in response.content:
            yield line.decode().rstrip("\r\n")


async def test_messages_carry_their_seq_as_id(chat: Chat, bridge: BridgeProcess) -> None:
    await chat.send("hello")
    await chat.answered()
    block: list[str] = []
    async with aclosing(raw_lines(chat, bridge.url, "0")) as lines:
        async for line in lines:
            block.append(line)
            if block.count("") == 2:
                break
    assert [line for line in block if line.startswith("id: ")] == ["id: 1", "id: 2"]
    assert [line for line in block if line.startswith("event: ")] == ["event: message"] * 2


async def test_a_stream_begins_with_what_comes_next(chat: Chat) -> None:
    await chat.send("before")
    await chat.answered()
    async with chat.events() as events:
        await chat.send("after")
        seen = [data["text"] async for data in messages_in(events, 2)]
    assert seen == ["after", "after"]


async def test_a_stream_resumes_without_loss_or_doubles(chat: Chat) -> None:
    often = random.Random(7)
    sending = asyncio.create_task(send_slowly(chat))
    after, connections = 0, 0
    seqs: list[int] = []
    while len(seqs) < 12:
        connections += 1
        async with chat.events(after) as events:
            for _ in range(often.randint(1, 4)):
                name, data = await anext(events)
                if name == "message":
                    after = data["seq"]
                    seqs.append(after)
                    if len(seqs) == 12:
                        break
    await sending
    assert seqs == [message["seq"] for message in await chat.messages(limit=200)]
    assert connections > 3


async def send_slowly(chat: Chat) -> None:
    """Six messages, each when the one before is being answered or was."""
    for number in range(6):
        await chat.send(f"{number} one two three four five")
        await chat.until(2 * number + 2)


async def test_who_comes_late_gets_the_answer_from_its_beginning(chat: Chat) -> None:
    await chat.send(LONG)
    async with chat.events() as early:
        async for name, data in early:
            if name == "delta" and data["offset"] > 20:
                break
        assert LONG.startswith(await begun(chat))
        async with chat.events() as late:
            name, first = await anext(late)
            assert (name, first["offset"]) == ("delta", 0)
            assert LONG.startswith(first["text"])
            assert len(first["text"]) >= data["offset"]
            assert first["turn_id"] == data["turn_id"]


async def test_two_tabs_see_the_same(chat: Chat) -> None:
    async def watch() -> list[Any]:
        async with chat.events() as events:
            listening.release()
            seen: list[Any] = []
            async for name, data in events:
                seen.append((name, data))
                if name == "message" and data["direction"] == "outbound":
                    return seen
        raise AssertionError("the event stream ended")

    listening = asyncio.Semaphore(0)
    tabs = [asyncio.create_task(watch()) for _ in range(2)]
    for _ in tabs:
        await listening.acquire()
    await chat.send("one two three four five six")
    first, second = ([event for event in seen if event[0] == "message"] for seen in await asyncio.gather(*tabs))
    assert first == second  # how much of the answer each saw grow may differ
    assert len(first) == 2


@pytest.mark.parametrize("last_event_id", ["x", "", "-1", "1.5", "٣", "9" * 30, "0" * 20 + "9" * 20, str(2**63)])
async def test_a_wrong_last_event_id_is_refused(chat: Chat, bridge: BridgeProcess, last_event_id: str) -> None:
    path = f"/api/v1/chat/{chat.conversation}/events"
    headers = {"Authorization": f"Bearer {chat.token}", "Last-Event-ID": last_event_id}
    body, _ = await problem(bridge.url, "GET", path, headers=headers)
    assert body["status"] == 422


async def test_a_stream_ends_with_its_token(bridge: BridgeProcess) -> None:
    conversation = str(uuid4())
    soon = token(conversation, seconds=3)

    async def keep_sending() -> None:
        async with calling(bridge.url, conversation) as program:
            while True:
                await program.send("hello")
                await asyncio.sleep(0.2)

    async with calling(bridge.url, conversation, soon) as visitor, visitor.events() as events:
        sending = asyncio.create_task(keep_sending())
        seen = [event async for event in events]
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)
    assert seen[-1][0] == "error"
    assert seen[-1][1]["code"] == "expired"


async def test_a_silent_stream_has_a_heartbeat(chat: Chat, bridge: BridgeProcess) -> None:
    async with aclosing(raw_lines(chat, bridge.url)) as lines, asyncio.timeout(25):
        assert (await anext(lines)).startswith(": ")


async def test_who_reads_nothing_is_cut_off(chat: Chat, bridge: BridgeProcess) -> None:
    with socket.socket() as reader:
        # A size of our own: else the system lets the buffer grow to all that is sent here.
        reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
        reader.connect(("127.0.0.1", int(bridge.url.rpartition(":")[2])))
        request = f"GET /api/v1/chat/{chat.conversation}/events HTTP/1.1\r\nHost: localhost\r\n"
        reader.sendall(f"{request}Authorization: Bearer {chat.token}\r\n\r\n".encode())
        reader.settimeout(5)
        assert reader.recv(1000).startswith(b"HTTP/1.1 200 ")
        assert await streams(bridge) == 1
        # More than the system's buffers for a connection take.
        for number in range(80):
            await chat.send("😀" * 8000, str(number))
        await chat.answered()
        while await streams(bridge) > 0:
            await asyncio.sleep(0.2)
        # What had been sent before may still be read, then the connection is closed.
        reader.settimeout(30)
        taken = b""
        while piece := await asyncio.to_thread(receive, reader):
            taken += piece
    assert 0 < taken.count(b"event: message\r\n") < len(await chat.messages(limit=200))
    assert len(bridge.events("stream.cut_off")) == 1
    assert "Traceback" not in bridge.log.read_text()


def receive(reader: socket.socket) -> bytes:
    try:
        return reader.recv(1 << 20)
    except ConnectionResetError:
        return b""


async def streams(bridge: BridgeProcess) -> float:
    """How many event streams are open."""
    async with aiohttp.ClientSession(bridge.url) as http, http.get("/metrics") as response:
        found = re.search(r"^chat_bridge_event_streams (\S+)$", await response.text(), re.MULTILINE)
    assert found is not None
    return float(found[1])
