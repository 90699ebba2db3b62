"""Files of web chat: sending, reading, and everything that somebody may try with them."""

import asyncio
import io
import json
import re
import socket
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, nullcontext
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote
from uuid import uuid4

import aiohttp
import jwt
import pytest
import pytest_asyncio
from PIL import Image
from starlette.types import Message

from chat_bridge.bridge.keep import plain_name
from chat_bridge.errors import PlaceError
from chat_bridge.storage.redis import Hot
from chat_bridge.web import attachments
from tests.bridge import API_KEY, SECRET, BridgeProcess, Chat, calling, running_bridge, visiting
from tests.conftest import fresh_database
from tests.observe import call, conversation_id, rows

PDF = b"%PDF-1.4\n1 0 obj\n<< /Type /Catalog >>\nendobj\ntrailer\n<< /Root 1 0 R >>\n%%EOF\n"
HTML = b"<!doctype html><html><body><script>document.title='hacked'</script></body></html>"
SVG = b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"><script>document.title="hacked"</script></svg>'
MOST = 300_000


def picture(width: int = 600, height: int = 400, kind: str = "PNG", color: str = "navy") -> bytes:
    written = io.BytesIO()
    Image.new("RGB", (width, height), color).save(written, kind)
    return written.getvalue()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def dsn() -> AsyncGenerator[str]:
    async with fresh_database("18", template=True) as database:
        yield database


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def bridge(dsn: str) -> AsyncGenerator[BridgeProcess]:
    async with running_bridge(dsn, ATTACHMENT_MAX_BYTES=str(MOST)) as process:
        yield process


@pytest.fixture
async def chat(bridge: BridgeProcess) -> AsyncGenerator[Chat]:
    async with visiting(bridge.url) as visitor:
        yield visitor


async def upload(
    url: str, chat: Chat, data: Any, name: str | None = "file", said: str | None = "application/octet-stream"
) -> tuple[int, dict[str, Any]]:
    """Upload a file: the status and the body of the answer."""
    headers = {"Authorization": f"Bearer {chat.token}"} | ({} if said is None else {"Content-Type": said})
    path = f"/api/v1/chat/{chat.conversation}/uploads" + ("" if name is None else f"?name={quote(name, safe='')}")
    async with (
        aiohttp.ClientSession(url, skip_auto_headers=["Content-Type"]) as http,
        http.post(path, data=io.BytesIO(data) if isinstance(data, bytes) else data, headers=headers) as response,
    ):
        return response.status, await response.json()


async def sent_file(
    url: str, chat: Chat, data: bytes, name: str = "file", said: str = "application/octet-stream"
) -> dict[str, Any]:
    """Upload a file and send it: what the message tells of it."""
    status, uploaded = await upload(url, chat, data, name, said)
    assert status == 201, uploaded
    status, receipt = await chat.post("", attachments=[{"upload_id": uploaded["id"]}])
    assert status == 202, receipt
    (message,) = await chat.messages(after=receipt["seq"] - 1, limit=1)
    (file,) = message["attachments"]
    assert file["id"] == uploaded["id"]
    return file


@asynccontextmanager
async def asked(
    url: str, path: str, method: str = "GET", token: str | None = None, **headers: str
) -> AsyncGenerator[aiohttp.ClientResponse]:
    given = {name.replace("_", "-"): text for name, text in headers.items()}
    if token is not None:
        given["Authorization"] = f"Bearer {token}"
    async with (
        aiohttp.ClientSession(url, auto_decompress=False) as http,
        http.request(method, path, headers=given) as response,
    ):
        yield response


async def status_of(url: str, path: str, method: str = "GET", token: str | None = None, **headers: str) -> int:
    async with asked(url, path, method, token, **headers) as response:
        if response.status >= 400 and method != "HEAD":
            assert response.content_type == "application/problem+json"
        return response.status


# Uploading


async def test_a_picture_is_kept_as_its_bytes_say(bridge: BridgeProcess, chat: Chat) -> None:
    status, uploaded = await upload(bridge.url, chat, picture(), "holiday.gif", "text/html; charset=utf-8")
    assert status == 201
    assert uploaded.pop("id")
    assert uploaded == {
        "kind": "image",
        "mime_type": "image/png",
        "name": "holiday.gif",
        "size": len(picture()),
        "width": 600,
        "height": 400,
    }


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("báo cáo 🙂.pdf", "báo cáo 🙂.pdf"),
        ("../../etc/passwd", "passwd"),
        ("C:\\fakepath\\photo.png", "photo.png"),
        ("a\r\nSet-Cookie: x=1.txt", "aSet-Cookie: x=1.txt"),
        ('say "hi".txt', 'say "hi".txt'),
        ("photo_\u202egpj.exe", "photo_gpj.exe"),
        ("nul\x00.txt", "nul\ufffd.txt"),
        ("..", None),
        ("/", None),
        ("   ", None),
        ("", None),
        (None, None),
        ("x" * 5000 + ".pdf", "x" * 196 + ".pdf"),
    ],
)
async def test_a_name_is_only_a_name(bridge: BridgeProcess, chat: Chat, name: str | None, kept: str | None) -> None:
    status, uploaded = await upload(bridge.url, chat, b"hello", name, "text/plain")
    assert (status, uploaded["name"]) == (201, kept)


def test_a_name_that_is_all_ending_is_cut_too() -> None:
    assert len(plain_name("." + "x" * 1000) or "") == 200
    assert len(plain_name("é" * 1000 + "." + "y" * 1000) or "") == 200


@pytest.mark.parametrize("said", ["", "garbage", "a/b/c", "text/<script>", "x" * 500 + "/y", None])
async def test_a_type_that_is_none_does_not_count(bridge: BridgeProcess, chat: Chat, said: str | None) -> None:
    status, uploaded = await upload(bridge.url, chat, b"\x00\x01\x02\x03", "data", said)
    assert (status, uploaded["mime_type"], uploaded["kind"]) == (201, "application/octet-stream", "file")


async def test_the_same_content_lies_there_once(bridge: BridgeProcess, chat: Chat, dsn: str) -> None:
    data = picture(color="tomato")
    async with visiting(bridge.url) as other:
        first, second, third = [(await upload(bridge.url, who, data, "a.png"))[1]["id"] for who in (chat, chat, other)]
    found = await rows(
        dsn, "select distinct content_id from attachments where id = any($1::uuid[])", [first, second, third]
    )
    assert len({first, second, third}) == 3
    assert len(found) == 1


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_file_is_not_too_large(bridge: BridgeProcess, chat: Chat, dsn: str, chunked: bool) -> None:
    async def pieces(size: int) -> AsyncGenerator[bytes]:
        for start in range(0, size, 10_000):
            yield b"x" * min(10_000, size - start)

    status, told = await upload(bridge.url, chat, pieces(MOST + 1) if chunked else b"x" * (MOST + 1))
    assert status == 413
    assert f"{MOST} bytes" in told["detail"]
    assert await unused(dsn, chat) == []
    status, _ = await upload(bridge.url, chat, pieces(MOST) if chunked else b"y" * MOST)
    assert status == 201, "more than CHAT_BRIDGE_MAX_BODY_BYTES has nothing to do with it"


async def test_a_file_larger_than_a_message_may_be(database: str) -> None:
    async with running_bridge(database, CHAT_BRIDGE_MAX_BODY_BYTES="2000") as bridge, visiting(bridge.url) as chat:
        data = b"z" * 3_000_000
        file = await sent_file(bridge.url, chat, data)
        async with asked(bridge.url, file["url"]) as response:
            assert await response.read() == data


async def test_nothing_is_no_file(bridge: BridgeProcess, chat: Chat, dsn: str) -> None:
    status, told = await upload(bridge.url, chat, b"")
    assert (status, told["detail"]) == (422, "The file was not kept: it is empty.")
    assert await unused(dsn, chat) == []


async def unused(dsn: str, chat: Chat) -> list[dict[str, Any]]:
    """The uploads of a conversation that no message has."""
    return await rows(
        dsn,
        "select a.status from attachments a where a.seq is null and a.conversation_id = $1",
        conversation_id(chat),
    )


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_sender_who_hangs_up_leaves_nothing(bridge: BridgeProcess, chat: Chat, dsn: str, chunked: bool) -> None:
    _, writer = await asyncio.open_connection("127.0.0.1", int(bridge.url.rpartition(":")[2]))
    how = "Transfer-Encoding: chunked" if chunked else "Content-Length: 1000"
    head = f"POST /api/v1/chat/{chat.conversation}/uploads HTTP/1.1\r\nHost: x\r\n{how}\r\n"
    writer.write(f"{head}Authorization: Bearer {chat.token}\r\n\r\n".encode())
    writer.write(b"5\r\nhello\r\n" if chunked else b"hello")
    async with asyncio.timeout(10):
        while [row["status"] for row in await unused(dsn, chat)] != ["waiting"]:
            await asyncio.sleep(0.02)
        writer.close()
        while await unused(dsn, chat):
            await asyncio.sleep(0.02)


async def test_files_without_a_message_have_a_number(bridge: BridgeProcess, chat: Chat, dsn: str) -> None:
    sent = (await upload(bridge.url, chat, b"of a message"))[1]["id"]
    assert (await chat.post("", attachments=[{"upload_id": sent}]))[0] == 202
    taken = [(await upload(bridge.url, chat, f"file {number}".encode()))[1]["id"] for number in range(22)]
    assert len(await unused(dsn, chat)) == 20
    status, told = await chat.post("", attachments=[{"upload_id": taken[1]}])
    assert (status, "it may have expired" in told["detail"]) == (404, True), "the oldest went"
    assert (await chat.post("", attachments=[{"upload_id": each} for each in taken[2:12]]))[0] == 202
    for each in taken[:2]:
        assert await status_of(bridge.url, f"/api/v1/attachments/{each}", token=API_KEY) == 404
    found = await rows(dsn, "select seq from attachments where id = $1::text::uuid", sent)
    assert found[0]["seq"] is not None, "what a message has stays"


async def test_files_without_a_message_have_a_size(bridge: BridgeProcess, chat: Chat, dsn: str) -> None:
    taken = [(await upload(bridge.url, chat, bytes([number]) * MOST))[1]["id"] for number in range(10)]
    assert len(await unused(dsn, chat)) == 10, "the most that one message may have"
    assert (await upload(bridge.url, chat, b"x"))[0] == 201
    left = await rows(
        dsn, "select id::text from attachments where seq is null and conversation_id = $1", conversation_id(chat)
    )
    assert taken[0] not in {row["id"] for row in left}
    assert len(left) == 10


async def test_an_upload_is_taken_back(bridge: BridgeProcess, chat: Chat, dsn: str) -> None:
    path = f"/api/v1/chat/{chat.conversation}/uploads"
    one, two = [(await upload(bridge.url, chat, uuid4().bytes))[1]["id"] for _ in range(2)]
    assert (await chat.post("", attachments=[{"upload_id": two}]))[0] == 202
    async with visiting(bridge.url) as other:
        elsewhere = f"/api/v1/chat/{other.conversation}/uploads/{one}"
        assert await status_of(bridge.url, elsewhere, "DELETE", token=other.token) == 404
        assert await status_of(bridge.url, f"{path}/{one}", "DELETE", token=other.token) == 403
    assert await status_of(bridge.url, f"{path}/{one}", "DELETE") == 401
    assert await status_of(bridge.url, f"{path}/{one}", "DELETE", token=chat.token) == 204
    assert await status_of(bridge.url, f"{path}/{one}", "DELETE", token=chat.token) == 404
    assert await status_of(bridge.url, f"{path}/{two}", "DELETE", token=chat.token) == 404, "a message has it"
    assert await unused(dsn, chat) == []
    assert len(await rows(dsn, "select 1 from contents where unused_since is not null")) >= 1


async def test_one_caller_takes_not_all_places(bridge: BridgeProcess, chat: Chat, dsn: str) -> None:
    go_on = asyncio.Event()

    async def waiting() -> AsyncGenerator[bytes]:
        yield b"begun"
        await go_on.wait()

    async with visiting(bridge.url) as other:
        begun = [asyncio.create_task(upload(bridge.url, chat, waiting())) for _ in range(4)]
        while len(await unused(dsn, chat)) < 4:
            await asyncio.sleep(0.01)
        status, told = await upload(bridge.url, chat, b"one more")
        assert (status, told["detail"]) == (429, "4 uploads of yours are in progress: wait for one to end.")
        assert (await upload(bridge.url, other, b"of another"))[0] == 201
        go_on.set()
        assert [status for status, _ in await asyncio.gather(*begun)] == [201] * 4
        assert (await upload(bridge.url, chat, b"again"))[0] == 201


async def test_types_that_are_not_taken_and_rates(database: str) -> None:
    settings = {"ATTACHMENT_TYPES": "image/*", "WEBCHAT_RATE_CONVERSATION": "4", "ATTACHMENT_SCANNER": "127.0.0.1:9"}
    async with running_bridge(database, **settings) as bridge, visiting(bridge.url) as chat:
        status, told = await upload(bridge.url, chat, PDF, "a.png", "image/png")
        assert (status, told["detail"]) == (
            415,
            "The file was not kept: files of type application/pdf are not taken.",
        )
        async with aiohttp.ClientSession(bridge.url) as http:
            headers = {"Authorization": f"Bearer {chat.token}"}
            async with http.post(
                f"/api/v1/chat/{chat.conversation}/uploads", data=picture(), headers=headers
            ) as response:
                assert response.status == 503
                assert int(response.headers["Retry-After"]) > 0
                assert "it can't be scanned at the moment" in (await response.json())["detail"]
        answers = [await upload(bridge.url, chat, PDF) for _ in range(8)]
        assert {status for status, _ in answers} == {415, 429}
        assert await unused(database, chat) == []


async def test_a_full_disk_is_a_503(database: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    async with (
        running_bridge(database, ATTACHMENT_BUCKET=str(tmp_path / "file")) as bridge,
        visiting(bridge.url) as chat,
    ):
        status, told = await upload(bridge.url, chat, b"hello")
        assert (status, told["detail"]) == (503, "The file can't be stored at the moment. Please try again.")
        assert await unused(database, chat) == []


def token(conversation: str, secret: str = SECRET, seconds: float = 3600, **claims: Any) -> str:
    return jwt.encode({"sub": conversation, "aud": "webchat", "exp": time.time() + seconds} | claims, secret, "HS256")


async def test_who_may_upload(bridge: BridgeProcess, chat: Chat) -> None:
    path = f"/api/v1/chat/{chat.conversation}/uploads"
    for given, status in [
        (None, 401),
        ("garbage", 401),
        (token(chat.conversation, seconds=-1), 401),
        (token(chat.conversation, aud="attachment"), 401),
        (token("another"), 403),
        (chat.token, 201),
        (API_KEY, 201),
    ]:
        headers = {} if given is None else {"Authorization": f"Bearer {given}"}
        async with aiohttp.ClientSession(bridge.url) as http, http.post(path, data=b"x", headers=headers) as response:
            assert response.status == status


# Sending


async def test_a_message_of_files_alone_is_answered(bridge: BridgeProcess, chat: Chat) -> None:
    ids = [(await upload(bridge.url, chat, data, name))[1]["id"] for data, name in ((picture(), "a"), (PDF, "b"))]
    status, receipt = await chat.post("", "one", attachments=[{"upload_id": each} for each in ids])
    assert status == 202
    again = await chat.post("", "one", attachments=[{"upload_id": each} for each in ids])
    assert again == (200, receipt | {"duplicate": True})
    first, *_ = await chat.answered()
    assert first["status"] == "answered"
    assert [file["id"] for file in first["attachments"]] == ids


async def test_the_same_message_with_other_files_is_another(bridge: BridgeProcess, chat: Chat) -> None:
    one, two = [{"upload_id": (await upload(bridge.url, chat, text))[1]["id"]} for text in (b"1", b"2")]
    assert (await chat.post("x", "key", attachments=[one]))[0] == 202
    for files in ([], [two], [one, two]):
        assert (await chat.post("x", "key", attachments=files))[0] == 409
    assert (await chat.post("y", "key", attachments=[one]))[0] == 409
    assert (await chat.post("x", "key", attachments=[one]))[0] == 200
    assert (await chat.post("x", attachments=[two]))[0] == 202, "it is free still"
    await chat.send("text", "text")
    assert (await chat.post("text", "text", attachments=[two]))[0] == 409


async def test_many_senders_of_the_same_files_store_them_once(bridge: BridgeProcess, chat: Chat) -> None:
    file = {"upload_id": (await upload(bridge.url, chat, b"1"))[1]["id"]}
    answers = await asyncio.gather(*(chat.post("", "same", attachments=[file]) for _ in range(10)))
    assert sorted(status for status, _ in answers) == [200] * 9 + [202]


async def test_an_upload_is_of_one_message_and_one_conversation(bridge: BridgeProcess, chat: Chat) -> None:
    file = await sent_file(bridge.url, chat, b"1")
    status, told = await chat.post("again", attachments=[{"upload_id": file["id"]}])
    assert (status, "another message has this upload" in told["detail"]) == (409, True)
    async with visiting(bridge.url) as other:
        free = (await upload(bridge.url, chat, b"2"))[1]["id"]
        for each in (file["id"], free, str(uuid4())):
            assert (await other.post("mine", attachments=[{"upload_id": each}]))[0] == 404
        assert await other.messages() == []


async def test_an_upload_must_be_complete(bridge: BridgeProcess, chat: Chat, dsn: str) -> None:
    _, writer = await asyncio.open_connection("127.0.0.1", int(bridge.url.rpartition(":")[2]))
    head = f"POST /api/v1/chat/{chat.conversation}/uploads HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n"
    writer.write(f"{head}Authorization: Bearer {chat.token}\r\n\r\n".encode())
    query = "select id::text from attachments where conversation_id = $1"
    while not (found := await rows(dsn, query, conversation_id(chat))):
        await asyncio.sleep(0.02)
    status, _ = await chat.post("", attachments=[{"upload_id": found[0]["id"]}])
    assert status == 409
    assert await status_of(bridge.url, f"/api/v1/attachments/{found[0]['id']}", token=chat.token) == 404
    writer.close()


@pytest.mark.parametrize(
    "files", [[{"upload_id": str(uuid4())}] * 2, [{"upload_id": str(uuid4())} for _ in range(11)], [{"upload_id": "x"}]]
)
async def test_files_that_can_not_be_sent(chat: Chat, files: list[dict[str, str]]) -> None:
    status, _ = await chat.post("", attachments=files)
    assert status == 422


async def test_eleven_files_are_too_many(bridge: BridgeProcess, chat: Chat) -> None:
    files = [{"upload_id": (await upload(bridge.url, chat, b"%d" % number))[1]["id"]} for number in range(11)]
    assert (await chat.post("", attachments=files))[0] == 422
    assert (await chat.post("", attachments=files[:10]))[0] == 202


# Reading


async def test_a_reader_is_told_what_the_bytes_say(bridge: BridgeProcess, chat: Chat) -> None:
    data = picture(800, 600, "JPEG")
    file = await sent_file(bridge.url, chat, data, "a.bmp", "image/bmp")
    assert re.fullmatch(rf"/api/v1/attachments/{file['id']}\?key=[\w.-]+", file.pop("url"))
    assert re.fullmatch(rf"/api/v1/attachments/{file['id']}/thumbnail\?key=[\w.-]+", file.pop("thumbnail_url"))
    seen = {"kind": "image", "mime_type": "image/jpeg", "name": "a.bmp", "size": len(data), "width": 800, "height": 600}
    assert file == seen | {"id": file["id"], "status": "stored", "reason": None}
    status, page = await call(bridge.url, "GET", "/api/v1/sessions", params={"conversation": chat.conversation})
    assert status == 200
    _, told = await call(bridge.url, "GET", f"/api/v1/sessions/{page['sessions'][0]['id']}/messages")
    assert told["messages"][0]["attachments"][0]["url"]


async def test_old_messages_tell_of_files_that_are_not_there(bridge: BridgeProcess, chat: Chat, dsn: str) -> None:
    await chat.send("hello")
    old = [{"kind": "image", "mime_type": "image/png", "ref": "https://secret.example/", "name": "a.png", "size": 5}]
    newer = old[0] | {"what a newer program knows": 1}
    await rows(
        dsn,
        "update messages set attachments = $1 where conversation_id = $2 and seq = 1",
        json.dumps([*old, newer]),
        conversation_id(chat),
    )
    first, second = (await chat.messages(before=2))[0]["attachments"]
    told = {"kind": "image", "mime_type": "image/png", "name": "a.png", "size": 5, "width": None, "height": None}
    assert first == told | {
        "id": None, "status": "failed", "reason": "it is not kept", "url": None, "thumbnail_url": None
    }  # fmt: skip
    assert second == first


async def test_links_stay_the_same_for_a_while(bridge: BridgeProcess, chat: Chat) -> None:
    url = (await sent_file(bridge.url, chat, b"1"))["url"]
    claims = jwt.decode(url.partition("key=")[2], SECRET, ["HS256"], audience="attachment")
    assert 3600 <= claims["exp"] - time.time() <= 5400
    assert claims["exp"] % 1800 == 0
    if claims["exp"] - time.time() > 3610:  # else a new stretch may just begin
        assert {(await chat.messages(limit=1, before=2))[0]["attachments"][0]["url"] for _ in range(3)} == {url}


async def test_the_stream_tells_what_became_of_a_file(database: str, redis_url: str) -> None:
    """Files of platforms come in after their message, and the fetcher says so."""
    async with (
        running_bridge(database, REDIS_URL=redis_url) as bridge,
        visiting(bridge.url) as chat,
        Hot.open(redis_url) as hot,
    ):
        file = await sent_file(bridge.url, chat, b"fetched")
        seq, *_ = [message["seq"] for message in await chat.answered() if message["attachments"]]
        async with chat.events() as events:
            await chat.send("heard")
            while (await anext(events))[0] != "message":  # what is published from then on is heard
                pass
            for about in (seq, seq + 98):
                await hot.publish(conversation_id(chat), {"type": "attachment", "seq": about})
            await chat.send("last")
            seen: list[Any] = []
            while not seen or seen[-1].get("text") != "last":
                name, data = await anext(events)
                seen += [data] if name == "attachment" or data.get("text") == "last" else []
        again, _ = seen
        assert again == (await chat.messages(before=seq + 1, limit=1))[0]
        assert again["attachments"] == [file]


# The bytes


async def test_who_may_read(bridge: BridgeProcess, chat: Chat) -> None:
    file = await sent_file(bridge.url, chat, picture())
    key = file["url"].partition("key=")[2]
    head, claims, signature = key.split(".")
    async with visiting(bridge.url) as other:
        others = await sent_file(bridge.url, other, b"theirs")
        for path in (f"/api/v1/attachments/{file['id']}", f"/api/v1/attachments/{file['id']}/thumbnail"):
            assert await status_of(bridge.url, path) == 401
            assert await status_of(bridge.url, path, token=chat.token) == 200
            assert await status_of(bridge.url, path, token=API_KEY) == 200
            assert await status_of(bridge.url, path, token=other.token) == 404
            assert await status_of(bridge.url, path, token=token(chat.conversation, seconds=-1)) == 401
            assert await status_of(bridge.url, path, token=key) == 401, "a key is no token"
            assert await status_of(bridge.url, f"{path}?key={key}") == 200
            assert await status_of(bridge.url, f"{path}?key={key}", token=other.token) == 200
            for wrong in (
                "",
                "x",
                chat.token,
                API_KEY,
                key[:-2],
                f"{head}.{claims}.{signature[::-1]}",
                others["url"].partition("key=")[2],
                token(file["id"], aud="attachment", seconds=-1),
                token(file["id"], "wrong" * 10, aud="attachment"),
                token("", aud="attachment"),
                jwt.encode({"sub": file["id"], "aud": "attachment", "exp": 2**40}, None, "none"),
                jwt.encode({"sub": file["id"], "aud": "attachment"}, SECRET, "HS256"),
            ):
                assert await status_of(bridge.url, f"{path}?key={quote(wrong)}") == 401, wrong
    for unknown in (str(uuid4()), str(uuid4()) + "/thumbnail"):
        assert await status_of(bridge.url, f"/api/v1/attachments/{unknown}", token=API_KEY) == 404
    for wrong in ("x", "..%2f..%2fetc%2fpasswd", "%00"):
        assert await status_of(bridge.url, f"/api/v1/attachments/{wrong}", token=API_KEY) in (404, 422)
    expired = token(file["id"], aud="attachment", seconds=-1)
    async with asked(bridge.url, f"/api/v1/attachments/{file['id']}?key={expired}") as response:
        assert (await response.json())["detail"] == "The link has expired: read the message again."
    log = bridge.log.read_text()
    assert key not in log
    assert expired not in log
    assert "key=" not in log


@pytest.mark.parametrize(
    ("data", "said", "name", "type_", "shown"),
    [
        (picture(), "image/png", "a.png", "image/png", True),
        (picture(kind="GIF"), "image/gif", "a.gif", "image/gif", True),
        (b"ID3\x03\x00\x00\x00\x00\x00\x00" + b"\xff\xfb\x90\x00" * 100, "audio/mpeg", "a.mp3", "audio/mpeg", True),
        (HTML, "image/png", "a.png", "application/octet-stream", False),
        (HTML, "text/html", "a.html", "application/octet-stream", False),
        (SVG, "image/svg+xml", "a.svg", "application/octet-stream", False),
        (SVG, "image/png", "a.png", "application/octet-stream", False),
        (
            b'<?xml version="1.0"?><?xml-stylesheet href="x"?><a/>',
            "text/xml",
            "a.xml",
            "application/octet-stream",
            False,
        ),
        (b"alert(1)", "text/javascript", "a.js", "application/octet-stream", False),
        (PDF, "application/pdf", "a.pdf", "application/octet-stream", False),
        (b"hello", "text/plain", "a.txt", "application/octet-stream", False),
    ],
)
async def test_a_browser_shows_only_what_can_run_nothing(
    bridge: BridgeProcess, chat: Chat, data: bytes, said: str, name: str, type_: str, shown: bool
) -> None:
    file = await sent_file(bridge.url, chat, data, name, said)
    async with asked(bridge.url, file["url"]) as response:
        assert response.headers["Content-Type"] == type_
        how = "inline" if shown else "attachment"
        assert response.headers["Content-Disposition"] == f"{how}; filename=\"{name}\"; filename*=UTF-8''{name}"
        assert response.headers["Content-Security-Policy"] == "default-src 'none'; sandbox"
        assert response.headers["X-Content-Type-Options"] == "nosniff"
        assert response.headers["Cross-Origin-Resource-Policy"] == "same-origin"
        assert response.headers["Cache-Control"] == "private, max-age=3600"
        assert response.headers["Referrer-Policy"] == "no-referrer"
        assert await response.read() == data


@pytest.mark.parametrize(
    "name",
    ['a"b.txt', "a\\b.txt", "a\r\nX-Evil: 1.txt", "tên tệp 🙂.txt", "%22;x=.txt", "x" * 400 + ".txt", "a;b='c'.txt"],
)
async def test_no_name_breaks_a_header(bridge: BridgeProcess, chat: Chat, name: str) -> None:
    file = await sent_file(bridge.url, chat, b"hello", name, "text/plain")
    async with asked(bridge.url, file["url"]) as response:
        assert response.status == 200
        assert "X-Evil" not in response.headers
        told = re.fullmatch(
            r"""attachment; filename="([^"\\%\x00-\x1f\x7f-\uffff]+)"; filename\*=UTF-8''([\w.~%-]+)""",
            response.headers["Content-Disposition"],
            re.ASCII,
        )
        assert told is not None
        assert unquote(told[2]) == file["name"] == plain_name(name)
        assert len(told[1]) == len(file["name"])


async def test_a_file_without_a_name_is_called_by_its_type(bridge: BridgeProcess, chat: Chat) -> None:
    file = await sent_file(bridge.url, chat, PDF, "")
    async with asked(bridge.url, file["url"]) as response:
        assert 'filename="file.pdf"' in response.headers["Content-Disposition"]


BODY = bytes(range(256)) * 1000


@pytest.mark.parametrize(
    ("asked_for", "start", "end"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=0-", 0, 256_000),
        ("bytes=100-199", 100, 200),
        ("bytes= 5-9 ", 5, 10),
        ("bytes=255999-", 255_999, 256_000),
        ("bytes=255990-999999999999", 255_990, 256_000),
        ("bytes=-1", 255_999, 256_000),
        ("bytes=-500", 255_500, 256_000),
        ("bytes=-999999999", 0, 256_000),
    ],
)
async def test_a_part_of_a_file(bridge: BridgeProcess, chat: Chat, asked_for: str, start: int, end: int) -> None:
    file = await sent_file(bridge.url, chat, BODY)
    for method in ("GET", "HEAD"):
        async with asked(bridge.url, file["url"], method, Range=asked_for) as response:
            assert response.status == 206
            assert response.headers["Content-Range"] == f"bytes {start}-{end - 1}/256000"
            assert response.headers["Content-Length"] == str(end - start)
            assert await response.read() == (BODY[start:end] if method == "GET" else b"")


@pytest.mark.parametrize(
    "asked_for",
    [
        "bytes=0-1,5-9",
        "bytes=5-2",
        "bytes=-",
        "bytes=a-b",
        "items=0-1",
        "bytes",
        "bytes=" + "9" * 5000 + "-",
        "bytes=0-1-2",
    ],
)
async def test_what_is_no_range_gives_the_whole(bridge: BridgeProcess, chat: Chat, asked_for: str) -> None:
    file = await sent_file(bridge.url, chat, BODY)
    async with asked(bridge.url, file["url"], Range=asked_for) as response:
        assert response.status == 200
        assert response.headers["Accept-Ranges"] == "bytes"
        assert "Content-Range" not in response.headers
        assert await response.read() == BODY


@pytest.mark.parametrize("asked_for", ["bytes=256000-", "bytes=256000-256001", "bytes=-0", "bytes=999999999999999999-"])
async def test_a_range_beyond_the_end(bridge: BridgeProcess, chat: Chat, asked_for: str) -> None:
    file = await sent_file(bridge.url, chat, BODY)
    async with asked(bridge.url, file["url"], Range=asked_for) as response:
        assert response.status == 416
        assert response.headers["Content-Range"] == "bytes */256000"


async def test_what_a_browser_has_already_is_not_sent(bridge: BridgeProcess, chat: Chat) -> None:
    file = await sent_file(bridge.url, chat, picture())
    for path in (file["url"], file["thumbnail_url"]):
        async with asked(bridge.url, path) as response:
            tag = response.headers["ETag"]
        for known in (tag, f'"x", W/{tag}', "*"):
            async with asked(bridge.url, path, If_None_Match=known) as response:
                assert response.status == 304
                assert response.headers["ETag"] == tag
                assert await response.read() == b""
        assert await status_of(bridge.url, path, If_None_Match='"other"') == 200
    async with asked(bridge.url, file["url"]) as response:
        tag = response.headers["ETag"]
    assert await status_of(bridge.url, file["url"], Range="bytes=0-1", If_Range=tag) == 206
    for changed in ('"other"', f"W/{tag}", "Wed, 21 Oct 2015 07:28:00 GMT"):
        assert await status_of(bridge.url, file["url"], Range="bytes=0-1", If_Range=changed) == 200


async def test_the_head_of_a_file(bridge: BridgeProcess, chat: Chat) -> None:
    file = await sent_file(bridge.url, chat, BODY)
    async with asked(bridge.url, file["url"], "HEAD") as response:
        assert response.status == 200
        assert response.headers["Content-Length"] == "256000"
    assert await status_of(bridge.url, f"/api/v1/attachments/{file['id']}", "HEAD") == 401


async def test_a_thumbnail_is_small_and_new(bridge: BridgeProcess, chat: Chat) -> None:
    file = await sent_file(bridge.url, chat, picture(1000, 500, "JPEG"))
    async with asked(bridge.url, file["thumbnail_url"]) as response:
        assert response.headers["Content-Type"] == "image/jpeg"
        assert Image.open(io.BytesIO(await response.read())).size == (320, 160)
    text = await sent_file(bridge.url, chat, b"text")
    assert text["thumbnail_url"] is None
    assert await status_of(bridge.url, f"/api/v1/attachments/{text['id']}/thumbnail", token=chat.token) == 404


async def test_a_file_that_failed_says_why(bridge: BridgeProcess, chat: Chat, dsn: str) -> None:
    file = await sent_file(bridge.url, chat, b"1")
    update = "update attachments set status = $1, content_id = null, error = $2 where id = $3::text::uuid"
    await rows(dsn, update, "failed", "it is larger than 20 MB", file["id"])
    seen = (await chat.messages(limit=1, before=2))[0]["attachments"][0]
    assert (seen["status"], seen["reason"], seen["url"]) == ("failed", "it is larger than 20 MB", None)
    async with asked(bridge.url, file["url"]) as response:
        assert response.status == 410
        assert (await response.json())["detail"] == "This file can't be had: it is larger than 20 MB."
    await rows(dsn, update, "waiting", None, file["id"])
    assert await status_of(bridge.url, file["url"]) == 404


async def test_a_deleted_message_has_no_files(bridge: BridgeProcess, chat: Chat, dsn: str) -> None:
    file = await sent_file(bridge.url, chat, b"1")
    change = """
        update messages set metadata = jsonb_set(coalesce(metadata, '{}'), '{versions}', $1::text::jsonb)
        where conversation_id = $2
    """
    for versions, left in [
        ([{"text": "new"}], [file["id"]]),
        ([{"text": "", "deleted": True}], []),
        ([{"text": "", "deleted": True}, {"text": "again"}], [file["id"]]),
    ]:
        await rows(dsn, change, json.dumps(versions), conversation_id(chat))
        (message,) = await chat.messages(before=2)
        assert [each["id"] for each in message["attachments"]] == left


async def test_storage_that_is_away_is_a_503(database: str, tmp_path: Path) -> None:
    async with running_bridge(database, ATTACHMENT_BUCKET=str(tmp_path / "a")) as bridge, visiting(bridge.url) as chat:
        file = await sent_file(bridge.url, chat, picture())
        (tmp_path / "a").rename(tmp_path / "b")
        for path in (file["url"], file["thumbnail_url"]):
            async with asked(bridge.url, path) as response:
                assert response.status == 503
                assert int(response.headers["Retry-After"]) > 0
        (tmp_path / "b").rename(tmp_path / "a")
        assert await status_of(bridge.url, file["url"]) == 200


async def test_who_goes_away_in_the_middle_leaves_nothing_open(database: str) -> None:
    limit = str(60_000_000)
    async with running_bridge(database, ATTACHMENT_MAX_BYTES=limit) as large, visiting(large.url) as chat:
        file = await sent_file(large.url, chat, b"x" * 50_000_000)
        for _ in range(3):
            with socket.socket() as reader:
                reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
                reader.connect(("127.0.0.1", int(large.url.rpartition(":")[2])))
                reader.sendall(f"GET {file['url']} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
                assert (await asyncio.to_thread(reader.recv, 1000)).startswith(b"HTTP/1.1 200 ")
                assert open_files(large)
        async with asyncio.timeout(10):
            while open_files(large):
                await asyncio.sleep(0.05)
        assert "Traceback" not in large.log.read_text()


async def downloaded(pieces: AsyncGenerator[bytes], send: Callable[[Message], Awaitable[None]]) -> None:
    """Send a download to a reader."""

    async def receive() -> Message:
        raise AssertionError("a download reads nothing")

    scope = {"type": "http", "asgi": {"spec_version": "2.4"}}
    await attachments._Download(pieces, nullcontext(), 200, {})(scope, receive, send)


@pytest.mark.parametrize("trouble", ["hanging reader", "slow reader", "storage"])
async def test_a_download_that_can_not_go_on_is_cut(monkeypatch: pytest.MonkeyPatch, trouble: str) -> None:
    monkeypatch.setattr(attachments, "SEND_SECONDS", 0.2)
    monkeypatch.setattr(attachments, "FILE_RATE", 1000)
    closed, sent = False, list[bool]()

    async def pieces() -> AsyncGenerator[bytes]:
        nonlocal closed
        try:
            yield b"one"
            if trouble == "storage":
                raise PlaceError("the bucket is away")
            while True:
                yield b"more"
        finally:
            closed = True

    async def send(message: Message) -> None:
        if message["type"] == "http.response.body":
            if trouble == "hanging reader" and len(sent) == 1:
                await asyncio.Event().wait()
            if trouble == "slow reader":
                await asyncio.sleep(0.05)  # 80 bytes a second
            sent.append(message["more_body"])

    await downloaded(pieces(), send)
    assert sent, "it began"
    assert all(sent), "no end is sent, so that the reader knows that something is missing"
    assert closed


async def test_a_download_is_not_cut_while_object_storage_is_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attachments, "SEND_SECONDS", 0.05)
    monkeypatch.setattr(attachments, "FILE_RATE", 1000)
    sent = list[Message]()

    async def pieces() -> AsyncGenerator[bytes]:
        for _ in range(4):
            await asyncio.sleep(0.03)
            yield b"x"

    async def send(message: Message) -> None:
        sent.append(message)

    await downloaded(pieces(), send)
    assert sent[-1]["more_body"] is False


async def test_an_address_has_only_so_many_downloads(database: str) -> None:
    async with running_bridge(database, ATTACHMENT_MAX_BYTES="60000000") as large, visiting(large.url) as chat:
        file = await sent_file(large.url, chat, b"x" * 50_000_000)
        async with AsyncExitStack() as stack:
            for _ in range(20):
                assert (await stack.enter_async_context(asked(large.url, file["url"]))).status == 200
            async with asked(large.url, file["url"]) as response:
                assert response.status == 429
                assert int(response.headers["Retry-After"]) > 0
            assert await status_of(large.url, file["url"].partition("?")[0], token=API_KEY) == 200
            assert len(open_files(large)) <= 21
        async with asyncio.timeout(10):
            while await status_of(large.url, file["url"], Range="bytes=0-1") != 206:
                await asyncio.sleep(0.05)


def open_files(bridge: BridgeProcess) -> list[str]:
    """The stored files that a bridge has open."""
    links = Path(f"/proc/{bridge.pid}/fd")
    found: list[str] = []
    for link in links.iterdir():
        try:
            found.append(str(link.readlink()))
        except FileNotFoundError:
            continue
    return [each for each in found if "/attachments/" in each]


async def test_without_a_secret_only_the_api_key_opens_files(database: str) -> None:
    """Web chat is off, so nothing is signed: an empty secret must not sign either."""
    settings = {"WEBCHAT_ENABLED": "false", "CHAT_BRIDGE_SECRET": ""}
    async with running_bridge(database) as bridge, calling(bridge.url, "room") as chat:
        file = await sent_file(bridge.url, chat, b"hello")
        session = (await call(bridge.url, "GET", "/api/v1/sessions"))[1]["sessions"][0]["id"]
        folder = bridge._folder
        async with running_bridge(
            database, **settings, ATTACHMENT_BUCKET=str(folder / "data" / "attachments"), TELEGRAM_ENABLED="false"
        ) as other:
            _, page = await call(other.url, "GET", f"/api/v1/sessions/{session}/messages")
            path = page["messages"][0]["attachments"][0]["url"]
            assert path == f"/api/v1/attachments/{file['id']}"
            assert await status_of(other.url, path) == 401
            assert await status_of(other.url, file["url"]) == 401
            assert await status_of(other.url, path, token="x") == 401
            assert await status_of(other.url, path, token=API_KEY) == 200
