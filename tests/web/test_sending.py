"""What programs send as the bot, in web chat."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Any
from urllib.parse import quote
from uuid import UUID, uuid4

import pytest
import pytest_asyncio

from chat_bridge.model import Seq, new_message_id, new_turn_id
from chat_bridge.platforms import webchat
from chat_bridge.platforms.contract import OutboundPart
from chat_bridge.platforms.rich_text import Rendered
from chat_bridge.platforms.webchat import WebChat
from chat_bridge.storage import attachments
from chat_bridge.storage.redis import Hot
from tests.bridge import BridgeProcess, Chat, running_bridge, visiting
from tests.conftest import fresh_database
from tests.observe import begun, call, conversation_id, messages_in, replies, rows, session_of
from tests.storage.dialogue import assert_consistent, opened

ENDLESS = "word " * 1000  # half a minute of the echo agent
SESSIONS = "/api/v1/sessions"
MOST = 100_000


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def dsn() -> AsyncGenerator[str]:
    async with fresh_database("18", template=True) as database:
        yield database
        await assert_consistent(database)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def bridge(dsn: str) -> AsyncGenerator[BridgeProcess]:
    async with running_bridge(dsn, ATTACHMENT_MAX_BYTES=str(MOST), ATTACHMENT_TYPES="text/*,image/*") as process:
        yield process


@pytest.fixture
async def chat(bridge: BridgeProcess) -> AsyncGenerator[Chat]:
    """A conversation with a message and its answer."""
    async with visiting(bridge.url) as visitor:
        await visitor.send("hello")
        await visitor.answered()
        yield visitor


async def place_of(bridge: BridgeProcess, chat: Chat) -> str:
    return f"{SESSIONS}/{(await session_of(bridge.url, chat))['id']}"


async def send(bridge: BridgeProcess, place: str, text: str = "news", **more: Any) -> tuple[int, dict[str, Any]]:
    body = {"client_msg_id": str(uuid4()), "text": text, **more}
    return await call(bridge.url, "POST", f"{place}/messages", json=body)


async def upload(bridge: BridgeProcess, place: str, data: bytes, name: str = "a.txt") -> tuple[int, dict[str, Any]]:
    headers = {"Content-Type": "text/plain"}
    path = f"{place}/uploads?name={quote(name)}"
    return await call(bridge.url, "POST", path, data=data, headers=headers)


def named(*uploads: tuple[int, dict[str, Any]]) -> list[dict[str, str]]:
    assert {status for status, _ in uploads} <= {201}
    return [{"upload_id": uploaded["id"]} for _, uploaded in uploads]


async def test_the_page_hears_of_a_message_with_files(bridge: BridgeProcess, chat: Chat) -> None:
    place = await place_of(bridge, chat)
    files = [await upload(bridge, place, b"one", "báo cáo.txt"), await upload(bridge, place, b"two", "b.txt")]
    assert {**files[0][1], "id": ""} == {
        "id": "", "kind": "file", "mime_type": "text/plain", "name": "báo cáo.txt", "size": 3, "width": None,
        "height": None,
    }  # fmt: skip
    async with chat.events() as events:
        status, receipt = await send(bridge, place, "**Look**", attachments=named(*files))
        assert (status, receipt["seq"], receipt["duplicate"]) == (202, 3, False)
        assert receipt["conversation_id"] == str(conversation_id(chat))
        (message,) = [message async for message in messages_in(events, 1)]
    assert (message["id"], message["seq"], message["text"]) == (receipt["id"], 3, "**Look**")
    assert (message["direction"], message["status"], message["unasked"]) == ("outbound", "sent", True)
    assert (message["client_msg_id"], message["notice"]) == (None, None)
    assert [(file["name"], file["status"]) for file in message["attachments"]] == [
        ("báo cáo.txt", "stored"),
        ("b.txt", "stored"),
    ]
    status, page = await call(bridge.url, "GET", f"{place}/messages")
    assert [each["unasked"] for each in page["messages"]] == [False, False, True]
    assert (await session_of(bridge.url, chat))["message_count"] == 3


async def test_files_alone_are_a_message(bridge: BridgeProcess, chat: Chat) -> None:
    place = await place_of(bridge, chat)
    assert (await send(bridge, place, "", attachments=named(await upload(bridge, place, b"x"))))[0] == 202
    assert [len(message["attachments"]) for message in await chat.messages()] == [0, 0, 1]


async def test_the_same_again_is_stored_once(bridge: BridgeProcess, chat: Chat) -> None:
    place = await place_of(bridge, chat)
    files = named(await upload(bridge, place, b"x"))
    answers = await asyncio.gather(
        *(send(bridge, place, "once", client_msg_id="it", attachments=files) for _ in range(8))
    )
    assert sorted(status for status, _ in answers) == [200] * 7 + [202]
    assert len({body["id"] for _, body in answers}) == 1
    for other in ({"text": "twice", "attachments": files}, {"text": "once"}):
        status, problem = await call(bridge.url, "POST", f"{place}/messages", json={"client_msg_id": "it", **other})
        assert (status, "was used before" in problem["detail"]) == (409, True)
    # What a user sends under that id is another message.
    assert (await chat.post("mine", "it"))[0] == 202
    assert (await chat.post("mine", "sent:it"))[0] == 202
    assert (await send(bridge, place, "once", client_msg_id="it", attachments=files))[0] == 200


async def test_two_processes_store_it_once(bridge: BridgeProcess, chat: Chat, dsn: str) -> None:
    place = await place_of(bridge, chat)
    async with running_bridge(dsn) as other:
        answers = await asyncio.gather(
            *(send(each, place, "once", client_msg_id="it") for each in (bridge, other) for _ in range(4))
        )
    assert sorted(status for status, _ in answers) == [200] * 7 + [202]
    assert replies(await chat.messages()) == ["hello", "once"]


async def test_while_an_answer_grows(bridge: BridgeProcess, chat: Chat, dsn: str) -> None:
    place = await place_of(bridge, chat)
    await chat.send(ENDLESS)
    await begun(chat)
    assert (await send(bridge, place))[0] == 202
    assert (await session_of(bridge.url, chat))["pending_since"] is not None
    query = "select status from deliveries d where conversation_id = $1 order by seq desc limit 1"
    while (await rows(dsn, query, conversation_id(chat)))[0]["status"] != "sent":
        await asyncio.sleep(0.02)
    await chat.send("/stop")
    messages = await chat.answered()
    assert replies(messages)[:2] == ["hello", "news"], "it did not wait for the answer"
    partial, _stopped = replies(messages)[2:]
    assert ENDLESS.startswith(partial)
    assert [message["status"] for message in messages if message["text"] == ENDLESS] == ["cancelled"]


async def test_only_an_answer_ends_what_is_shown_of_it() -> None:
    def part(**more: Any) -> OutboundPart:
        return OutboundPart(here.id, here, new_message_id(), Seq(3), 1, Rendered(""), "key", **more)

    here = webchat.address("here")
    async with Hot.open(None) as hot:
        turn = new_turn_id()
        await hot.publish_partial(here.id, turn, "so far", 0)
        await WebChat(hot).send(part(unasked=True))
        assert await hot.partial(here.id) == {"turn_id": str(turn), "text": "so far"}
        await WebChat(hot).send(part())
        assert await hot.partial(here.id) is None


async def test_what_has_no_place_is_refused(bridge: BridgeProcess, chat: Chat) -> None:
    place = await place_of(bridge, chat)
    nowhere = f"{SESSIONS}/01234567-89ab-7def-8123-456789abcdef"
    for answer in (await send(bridge, nowhere), await upload(bridge, nowhere, b"x")):
        assert (answer[0], answer[1]["detail"]) == (404, "There is no session with this id.")
    files = named(await upload(bridge, place, b"x"))
    _, receipt = await send(bridge, place, "before", client_msg_id="it")
    await call(bridge.url, "POST", f"{place}/close")
    ended = "The session is closed: name the conversation's active one."
    for answer in (await send(bridge, place, attachments=files), await upload(bridge, place, b"x")):
        assert (answer[0], answer[1]["detail"]) == (409, ended)
    again = await send(bridge, place, "before", client_msg_id="it")
    assert again == (200, receipt | {"duplicate": True}), "whose answer was lost"


async def test_who_has_no_key_sends_nothing(bridge: BridgeProcess, chat: Chat) -> None:
    place = await place_of(bridge, chat)
    for path in (f"{place}/messages", f"{place}/uploads"):
        for token in (chat.token, "wrong"):
            headers = {"Authorization": f"Bearer {token}"}
            body = {"client_msg_id": "1", "text": "x"}
            assert (await call(bridge.url, "POST", path, json=body, headers=headers))[0] == 401
    assert len(await chat.messages()) == 2


async def test_what_can_not_be_sent_is_refused(bridge: BridgeProcess, chat: Chat) -> None:
    place = await place_of(bridge, chat)
    one, used = await upload(bridge, place, b"x"), await upload(bridge, place, b"y")
    assert (await send(bridge, place, "", attachments=named(used)))[0] == 202
    async with visiting(bridge.url) as elsewhere:
        await elsewhere.send("hello")
        other = await upload(bridge, await place_of(bridge, elsewhere), b"z")
    for status, more in (
        (422, {"text": ""}),
        (422, {"text": " \n "}),
        (422, {"text": "x" * 1_000_001}),
        (422, {"client_msg_id": " "}),
        (422, {"attachments": named(one, one)}),
        (422, {"attachments": [{"upload_id": str(uuid4())} for _ in range(11)]}),
        (404, {"attachments": named(other)}),
        (404, {"attachments": [{"upload_id": str(uuid4())}]}),
        (409, {"attachments": named(used)}),
    ):
        answer = await send(bridge, place, **{"text": "text", **more})
        assert answer[0] == status, more
    assert len(await chat.messages()) == 3
    assert (await chat.post("", attachments=named(used)))[0] == 409, "nor by a user"
    assert (await upload(bridge, place, b""))[0] == 422
    assert (await upload(bridge, place, b"%PDF-1.4 x"))[0] == 415
    assert (await upload(bridge, place, b"x" * (MOST + 1)))[0] == 413


async def test_the_longest_text_is_taken(bridge: BridgeProcess, chat: Chat) -> None:
    text = "word " * 200_000
    assert (await send(bridge, await place_of(bridge, chat), text))[0] == 202
    assert (await chat.messages())[-1]["text"] == text


async def test_an_upload_that_nobody_sends_expires(bridge: BridgeProcess, chat: Chat, dsn: str) -> None:
    place = await place_of(bridge, chat)
    files = named(await upload(bridge, place, b"x"))
    query = "update attachments set created_at = created_at - interval '25 hours' where id = $1"
    await rows(dsn, query, UUID(files[0]["upload_id"]))
    async with opened(dsn) as store:
        assert await attachments.expire_uploads(store.database, 100) == 1
    status, problem = await send(bridge, place, attachments=files)
    assert (status, "it may have expired" in problem["detail"]) == (404, True)


async def test_too_many_are_refused(dsn: str) -> None:
    async with running_bridge(dsn, WEBCHAT_RATE_CONVERSATION="3") as slow, visiting(slow.url) as chat:
        await chat.send("hello")
        await chat.answered()
        place = await place_of(slow, chat)
        for call_ in (lambda: send(slow, place), lambda: upload(slow, place, b"x")):
            # A minute may end in between.
            assert 429 in [(await call_())[0] for _ in range(8)]


async def test_a_platform_that_is_not_served_here(bridge: BridgeProcess, chat: Chat, dsn: str) -> None:
    place = await place_of(bridge, chat)
    query = "update sessions set platform = $2 where conversation_id = $1"
    await rows(dsn, query, conversation_id(chat), "elsewhere")
    try:
        status, problem = await send(bridge, place)
    finally:
        await rows(dsn, query, conversation_id(chat), "webchat")
    assert status == 409
    assert problem["detail"] == "The platform elsewhere is not served by this process: ask one that serves it."


async def test_an_account_that_is_not_served_here_is_left_to_others(
    bridge: BridgeProcess, chat: Chat, dsn: str
) -> None:
    place = await place_of(bridge, chat)
    query = "update sessions set account = $2 where conversation_id = $1"
    await rows(dsn, query, conversation_id(chat), "another")
    try:
        status, receipt = await send(bridge, place)
        assert status == 202
        await send(bridge, place)  # has looked by then, too
        found = await rows(
            dsn, "select status, attempts from deliveries where conversation_id = $1 and seq >= $2",
            conversation_id(chat), receipt["seq"],
        )  # fmt: skip
        assert {(row["status"], row["attempts"]) for row in found} == {("pending", 0)}
    finally:
        await rows(dsn, query, conversation_id(chat), "default")
    while await rows(dsn, "select from deliveries where status <> 'sent'"):
        await asyncio.sleep(0.05)
