"""The fake Telegram itself: whether it does what the real one is known to do, and whether bots made with the usual
libraries can tell no difference."""

import asyncio
import base64
import hashlib
import io
import random
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from tests.fake_telegram.client import Chat, FakeTelegram, Person, running_telegram
from tests.fake_telegram.media import picture
from tests.telegram_clients import bot_api_schema, run_client
from tests.web.browser import complaints_of, open_browser


@pytest.fixture
async def telegram() -> AsyncGenerator[FakeTelegram]:
    async with running_telegram() as telegram:
        yield telegram


@pytest.fixture
async def linh(telegram: FakeTelegram) -> Person:
    return await telegram.user("Linh", last_name="Trần", username="linh_tr", language="vi")


@pytest.fixture
async def chat(telegram: FakeTelegram, linh: Person) -> Chat:
    return await telegram.private(linh)


async def send(chat: Chat, text: str = "hi", **more: Any) -> dict[str, Any]:
    return await chat.telegram.call("sendMessage", chat_id=chat.id, text=text, **more)


async def refusal(chat: Chat, text: str = "hi", **more: Any) -> str:
    """Why a message is refused."""
    answer = await send(chat, text, **more)
    assert not answer["ok"], answer
    assert answer["error_code"] == 400
    return answer["description"].removeprefix("Bad Request: ")


def said(updates: list[dict[str, Any]]) -> list[str]:
    return [update["message"]["text"] for update in updates]


async def poll(telegram: FakeTelegram, **parameters: Any) -> list[dict[str, Any]]:
    answer = await telegram.call("getUpdates", **parameters)
    assert answer["ok"], answer
    return answer["result"]


# Polling


async def test_updates_come_again_until_they_are_confirmed(telegram: FakeTelegram, chat: Chat) -> None:
    for text in ("one", "two", "three"):
        await chat.say(text)
    first = await poll(telegram, limit=2)
    assert said(first) == ["one", "two"]
    assert said(await poll(telegram)) == ["one", "two", "three"]
    assert said(await poll(telegram, offset=first[0]["update_id"] + 1)) == ["two", "three"]
    assert said(await poll(telegram)) == ["two", "three"]
    assert said(await poll(telegram, offset=-1)) == ["three"]
    assert said(await poll(telegram)) == ["three"]


async def test_a_long_poll_is_answered_by_what_comes(telegram: FakeTelegram, chat: Chat) -> None:
    waiting = asyncio.create_task(poll(telegram, timeout=50))
    await telegram.until_calls("getUpdates", 1)
    await chat.say("at last")
    assert said(await waiting) == ["at last"]


async def test_the_older_of_two_polls_is_ended(telegram: FakeTelegram, chat: Chat) -> None:
    older = asyncio.create_task(telegram.call("getUpdates", timeout=50))
    await telegram.until_calls("getUpdates", 1)
    newer = asyncio.create_task(telegram.call("getUpdates", timeout=50))
    assert await older == {
        "ok": False,
        "error_code": 409,
        "description": "Conflict: terminated by other getUpdates request; "
        "make sure that only one bot instance is running",
    }
    await chat.say("to the newer")
    assert said((await newer)["result"]) == ["to the newer"]


async def test_no_poll_beside_a_webhook(telegram: FakeTelegram) -> None:
    waiting = asyncio.create_task(telegram.call("getUpdates", timeout=50))
    await telegram.until_calls("getUpdates", 1)
    assert (await telegram.call("setWebhook", url="http://127.0.0.1:1/"))["result"] is True
    assert (await waiting)["description"] == "Conflict: terminated by setWebhook request"
    answer = await telegram.call("getUpdates")
    assert answer["error_code"] == 409
    assert answer["description"] == (
        "Conflict: can't use getUpdates method while webhook is active; use deleteWebhook to delete the webhook first"
    )
    assert (await telegram.call("deleteWebhook"))["result"] is True
    assert await poll(telegram) == []


async def test_only_wanted_kinds_come_and_the_wish_is_kept(telegram: FakeTelegram, chat: Chat) -> None:
    message = await chat.say("one")
    await message.react("👍")
    assert [set(update) for update in await poll(telegram)] == [{"update_id", "message"}]
    await poll(telegram, allowed_updates=["message_reaction"])
    await message.react("❤")
    await chat.say("not wanted")
    await poll(telegram)
    await message.react(None)
    updates = await poll(telegram)
    assert [list(update)[1] for update in updates] == ["message", "message_reaction", "message_reaction"]


async def test_updates_can_be_odd(telegram: FakeTelegram, chat: Chat) -> None:
    await telegram.odd("duplicate", "swap")
    for text in ("one", "two", "three"):
        await chat.say(text)
    await telegram.update({"update_id": 2**60, "brand_new": {"id": 2**60}})
    *texts, strange = await poll(telegram)
    assert said(texts) == ["one", "one", "three", "two"]
    assert strange == {"update_id": 2**60, "brand_new": {"id": 2**60}}
    assert len({update["update_id"] for update in texts}) == 3


# Webhook


class Receiver:
    """A webhook. It answers what `answers` says for a text, in order, and then 200."""

    def __init__(self) -> None:
        self.answers: dict[str, list[web.Response]] = {}
        self.seen: list[tuple[str, str | None]] = []
        self.open: asyncio.Event = asyncio.Event()
        self.now = 0
        self.most = 0
        self.url = ""
        self._more = asyncio.Condition()

    async def answer(self, request: web.Request) -> web.Response:
        text = (await request.json())["message"]["text"]
        async with self._more:
            self.seen.append((text, request.headers.get("X-Telegram-Bot-Api-Secret-Token")))
            self._more.notify_all()
        self.now += 1
        self.most = max(self.most, self.now)
        await self.open.wait()
        self.now -= 1
        answers = self.answers.get(text)
        return answers.pop(0) if answers else web.Response()

    async def until(self, count: int) -> list[str]:
        """Wait for so many requests; gives their texts."""
        async with self._more:
            await self._more.wait_for(lambda: len(self.seen) >= count)
        return [text for text, _ in self.seen]


@asynccontextmanager
async def receiving(telegram: FakeTelegram, **options: Any) -> AsyncGenerator[Receiver]:
    receiver = Receiver()
    receiver.open.set()
    app = web.Application()
    app.router.add_post("/hook", receiver.answer)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    receiver.url = f"http://127.0.0.1:{runner.addresses[0][1]}/hook"
    try:
        assert (await telegram.call("setWebhook", url=receiver.url, **options))["ok"]
        yield receiver
    finally:
        receiver.open.set()
        await telegram.call("deleteWebhook")
        await runner.cleanup()


async def test_a_chats_updates_queue_and_chats_run_side_by_side(telegram: FakeTelegram, chat: Chat) -> None:
    other = await telegram.private(await telegram.user("An"))
    async with receiving(telegram, secret_token="s3cret") as receiver:
        receiver.open.clear()
        for text in ("one", "two", "three"):
            await chat.say(text)
        await receiver.until(1)
        await other.say("elsewhere")
        assert await receiver.until(2) == ["one", "elsewhere"]
        receiver.open.set()
        await telegram.until_confirmed()
        assert await receiver.until(4) == ["one", "elsewhere", "two", "three"]
    assert {secret for _, secret in receiver.seen} == {"s3cret"}
    assert receiver.most == 2


async def test_there_are_no_more_requests_at_once_than_wanted(telegram: FakeTelegram) -> None:
    chats = [await telegram.private(await telegram.user(f"Person {number}")) for number in range(6)]
    async with receiving(telegram, max_connections=2) as receiver:
        receiver.open.clear()
        for chat in chats:
            await chat.say("hello")
        await receiver.until(2)
        receiver.open.set()
        await telegram.until_confirmed()
    assert receiver.most == 2


async def test_a_refused_update_comes_again_before_the_next(telegram: FakeTelegram, chat: Chat) -> None:
    await telegram.settings(retry_scale=0.001)
    async with receiving(telegram) as receiver:
        busy = web.Response(status=503, headers={"Retry-After": "7"})
        receiver.answers["one"] = [web.Response(status=500), busy, web.Response(status=500)]
        await chat.say("one")
        await chat.say("two")
        assert await receiver.until(5) == ["one", "one", "one", "one", "two"]
        await telegram.until_confirmed()
        info = (await telegram.call("getWebhookInfo"))["result"]
        assert info["last_error_message"] == "Wrong response from the webhook: 500 Internal Server Error"
        assert info["pending_update_count"] == 0
        assert (info["url"], info["max_connections"]) == (receiver.url, 40)
    assert [delivery["status"] for delivery in await telegram.deliveries()] == [500, 503, 500, 200, 200]


async def test_an_update_that_nobody_takes_expires(telegram: FakeTelegram, chat: Chat) -> None:
    await telegram.settings(update_lifetime=0.5, retry_scale=0.01)
    await telegram.call("setWebhook", url="http://127.0.0.1:1/hook")
    await chat.say("to nobody")
    await telegram.until_confirmed()
    info = (await telegram.call("getWebhookInfo"))["result"]
    assert info["last_error_message"] == "Connection refused"
    assert len(await telegram.deliveries()) >= 2


async def test_the_answer_of_a_webhook_is_executed(telegram: FakeTelegram, chat: Chat) -> None:
    async with receiving(telegram) as receiver:
        evil = {"method": "sendMessage", "chat_id": chat.id, "text": "said by the webhook"}
        receiver.answers["go"] = [web.json_response(evil)]
        receiver.answers["no"] = [web.json_response({"method": "deleteWebhook"})]
        await chat.say("go")
        await chat.until_texts(["> go", "said by the webhook"])
        await chat.say("no")
        await chat.until_texts(["> go", "said by the webhook", "> no"])
        await telegram.until_confirmed()
        assert (await telegram.call("getWebhookInfo"))["result"]["url"] == receiver.url
    assert [call["way"] for call in await telegram.calls("sendMessage")] == ["webhook"]


async def test_secrets_can_be_wrong_and_updates_come_twice_at_once(telegram: FakeTelegram, chat: Chat) -> None:
    async with receiving(telegram, secret_token="s3cret") as receiver:
        await telegram.fault("webhook", "wrong_secret")
        await telegram.fault("webhook", "no_secret")
        await telegram.odd("twice_at_once")
        receiver.open.clear()
        await chat.say("one")
        assert await receiver.until(2) == ["one", "one"]
        receiver.open.set()
        await telegram.until_confirmed()
    assert {secret for _, secret in receiver.seen} == {"not-the-secret", None}
    assert receiver.most == 2


@pytest.mark.parametrize(
    ("options", "description"),
    [
        ({"url": "http://example.com/"}, "bad webhook: An HTTPS URL must be provided for webhook"),
        ({"url": "https://example.com:444/"}, "bad webhook: Webhook can be set up only on ports 80, 88, 443 or 8443"),
        ({"url": "https://example.com/", "secret_token": "a b"}, "secret token contains unallowed characters"),
    ],
)
async def test_bad_webhooks_are_refused(telegram: FakeTelegram, options: dict[str, Any], description: str) -> None:
    answer = await telegram.call("setWebhook", **options)
    assert (answer["error_code"], answer["description"]) == (400, f"Bad Request: {description}")


# Methods


async def test_who_has_no_token_hears_nothing(telegram: FakeTelegram) -> None:
    async with aiohttp.ClientSession() as http:
        for path, status in (("bot7000000001:wrong/getMe", 401), ("botnonsense/getMe", 404)):
            async with http.get(f"{telegram.base_url}/{path}") as response:
                assert response.status == status
        async with http.get(f"{telegram.base_url}/bot{telegram.token}/GETME") as response:
            assert (await response.json())["result"]["username"] == "bridge_bot"
    assert (await telegram.call("findNothing")) == {"ok": False, "error_code": 404, "description": "Not Found"}
    assert (await telegram.call("_record"))["error_code"] == 404


@pytest.mark.parametrize(
    ("text", "more", "description"),
    [
        (" \n ", {}, "message text is empty"),
        ("😀" * 2049, {}, "message is too long"),
        (
            *("hi", {"entities": [{"type": "bold", "offset": 0, "length": 3}]}),
            "entity beginning at UTF-16 offset 0 ends after the end of the text at UTF-16 offset 3",
        ),
        (
            *("a😀", {"entities": [{"type": "bold", "offset": 0, "length": 2}]}),
            "entity beginning at UTF-16 offset 0 ends in a middle of a UTF-16 symbol at byte offset 1",
        ),
        (
            *("😀a", {"entities": [{"type": "bold", "offset": 1, "length": 2}]}),
            "entity begins in a middle of a UTF-16 symbol at byte offset 0",
        ),
        (
            *("a.", {"parse_mode": "MarkdownV2"}),
            "can't parse entities: Character '.' is reserved and must be escaped with the preceding '\\'",
        ),
        ("*a", {"parse_mode": "MarkdownV2"}, "can't parse entities: Can't find end of Bold entity at byte offset 0"),
        ("<x>a</x>", {"parse_mode": "HTML"}, 'can\'t parse entities: Unsupported start tag "x" at byte offset 0'),
        ("hi", {"reply_parameters": {"message_id": 99}}, "message to be replied not found"),
        ("hi", {"message_thread_id": 99}, "message thread not found"),
        (
            *("hi", {"reply_markup": {"inline_keyboard": [[{"text": "Go", "callback_data": "é" * 33}]]}}),
            "BUTTON_DATA_INVALID",
        ),
    ],
)
async def test_what_is_wrong_is_refused(chat: Chat, text: str, more: dict[str, Any], description: str) -> None:
    assert await refusal(chat, text, **more) == description
    assert await chat.texts() == []


async def test_what_is_right_is_kept(telegram: FakeTelegram, chat: Chat) -> None:
    await chat.say("quote me")
    assert (await send(chat, "😀" * 2048))["ok"]
    await send(chat, " *a _b_*\\. `x` ", parse_mode="MarkdownV2", reply_parameters={"message_id": 1})
    optional = {"message_id": 99, "allow_sending_without_reply": True}
    await send(chat, "<b>a</b> &lt;", parse_mode="HTML", reply_parameters=optional)
    _, _, markdown, html = await chat.messages()
    assert markdown.text == "a b. x"
    assert [(entity["type"], entity["offset"], entity["length"]) for entity in markdown.entities] == [
        ("bold", 0, 3),
        ("italic", 2, 1),
        ("code", 5, 1),
    ]
    assert markdown.reply_to == 1
    assert (html.text, html.reply_to) == ("a <", None)


async def test_messages_can_be_edited_but_not_to_the_same(telegram: FakeTelegram, chat: Chat) -> None:
    theirs = await chat.say("mine")
    await send(chat, "first")

    async def edit(number: int, text: str) -> str:
        answer = await telegram.call("editMessageText", chat_id=chat.id, message_id=number, text=text)
        return answer.get("description", "ok")

    assert (await edit(2, "first")).startswith("Bad Request: message is not modified: specified new message content")
    assert await edit(2, "second") == "ok"
    assert await edit(theirs.id, "yours") == "Bad Request: message can't be edited"
    ours = (await chat.messages())[1]
    assert (ours.text, ours.former_texts) == ("second", ["first"])
    await ours.delete()
    assert await edit(2, "third") == "Bad Request: message to edit not found"


async def test_drafts_and_typing_are_shown_in_private_chats(telegram: FakeTelegram, linh: Person, chat: Chat) -> None:
    group = await telegram.group("Ops", linh)

    async def draft(where: Chat, number: int) -> dict[str, Any]:
        return await telegram.call("sendMessageDraft", chat_id=where.id, draft_id=number, text="so far")

    assert (await draft(chat, 0))["error_code"] == 400
    assert (await draft(group, 7))["error_code"] == 400
    assert (await draft(chat, 7))["ok"]
    await telegram.call("sendChatAction", chat_id=chat.id, action="typing")
    shown = await chat.show()
    assert [one["text"] for one in shown["drafts"]] == ["so far"]
    assert shown["actions"] == {"0": "typing"}
    await send(chat, "all")
    shown = await chat.show()
    assert (shown["drafts"], shown["actions"]) == ([], {})


async def test_a_press_waits_for_its_answer(telegram: FakeTelegram, chat: Chat) -> None:
    await send(chat, "Sure?", reply_markup={"inline_keyboard": [[{"text": "Yes", "callback_data": "y"}]]})
    (message,) = await chat.messages()
    press = await message.press("Yes")
    (query,) = [update["callback_query"] for update in await poll(telegram)]
    assert (query["data"], query["message"]["message_id"]) == ("y", message.id)
    assert (await telegram.call("answerCallbackQuery", callback_query_id="1"))["error_code"] == 400
    assert (await telegram.call("answerCallbackQuery", callback_query_id=query["id"], text="ok"))["ok"]
    assert (await press.until_answered())["text"] == "ok"


# The world


async def test_privacy_mode_hides_ordinary_talk(telegram: FakeTelegram, linh: Person) -> None:
    group = await telegram.group("Ops", linh)
    ours = (await send(group, "I am here"))["result"]["message_id"]
    texts = ["talk", "/go", "/go@other_bot", "/go@Bridge_Bot", "hi @bridge_bot"]
    for text in texts:
        await group.say(text)
    await group.say("about that", reply_to=ours)
    assert said(await poll(telegram)) == ["/go", "/go@Bridge_Bot", "hi @bridge_bot", "about that"]
    await telegram.settings(sees_all=True)
    await group.say("all of it")
    assert said(await poll(telegram))[-1] == "all of it"


async def test_who_is_blocked_or_removed_hears_403(telegram: FakeTelegram, linh: Person, chat: Chat) -> None:
    group = await telegram.group("Ops", linh)
    stranger = await telegram.user("Stranger")
    await chat.block()
    await group.set_bot("kicked")
    for number, description in (
        (chat.id, "bot was blocked by the user"),
        (group.id, "bot was kicked from the group chat"),
        (stranger.id, "bot can't initiate conversation with a user"),
    ):
        answer = await telegram.call("sendMessage", chat_id=number, text="hi")
        assert answer == {"ok": False, "error_code": 403, "description": f"Forbidden: {description}"}
    await chat.unblock()
    assert (await send(chat))["ok"]
    changes = [update["my_chat_member"] for update in await poll(telegram)]
    assert [change["new_chat_member"]["status"] for change in changes] == ["kicked", "kicked", "member"]


async def test_a_group_becomes_a_supergroup(telegram: FakeTelegram, linh: Person) -> None:
    group = await telegram.group("Ops", linh)
    new = await group.upgrade()
    answer = await send(group)
    assert answer["parameters"] == {"migrate_to_chat_id": new.id}
    assert answer["description"] == "Bad Request: group chat was upgraded to a supergroup chat"
    assert (await send(new))["ok"]
    old, moved = [update["message"] for update in await poll(telegram)]
    assert (old["chat"]["id"], old["migrate_to_chat_id"]) == (group.id, new.id)
    assert (moved["chat"]["id"], moved["migrate_from_chat_id"]) == (new.id, group.id)


async def test_topics_are_closed_and_deleted(telegram: FakeTelegram, linh: Person) -> None:
    forum = await telegram.supergroup("Ops", linh, forum=True)
    topic = await forum.topic("Deploys")
    await forum.say("@bridge_bot status?", topic=topic)
    assert (await send(forum, message_thread_id=topic))["result"]["is_topic_message"] is True
    assert await forum.texts(topic) == ["> @bridge_bot status?", "hi"]
    await forum.close_topic(topic)
    assert await refusal(forum, message_thread_id=topic) == "TOPIC_CLOSED"
    await forum.delete_topic(topic)
    assert await refusal(forum, message_thread_id=topic) == "message thread not found"


async def test_files_are_fetched_by_the_path_that_was_asked_for(telegram: FakeTelegram, chat: Chat) -> None:
    message = await chat.say("look", media="document", content=b"bytes", name="a.txt", mime_type="text/plain")
    document = message.body["document"]
    file = (await telegram.call("getFile", file_id=document["file_id"]))["result"]
    url = f"{telegram.base_url}/file/bot{telegram.token}/{file['file_path']}"
    await telegram.fault("file", "larger")
    await telegram.fault("file", "redirect", to="http://127.0.0.2:1/elsewhere")
    await telegram.fault("file", "expired")
    await telegram.fault("file", "wrong_type")
    async with aiohttp.ClientSession() as http:
        results = []
        for _ in range(5):
            async with http.get(url, allow_redirects=False) as response:
                results.append((response.status, response.content_type, len(await response.read())))
        await telegram.fault("file", "truncated")
        with pytest.raises(aiohttp.ClientPayloadError):
            async with http.get(url) as response:
                await response.read()
    assert [status for status, _, _ in results] == [200, 302, 404, 200, 200]
    assert results[0][2] > document["file_size"]
    assert results[3:] == [(200, "text/html", 5), (200, "application/octet-stream", 5)]
    large = await chat.say(media="document", content=b"x", size=21 * 2**20)
    refused = await telegram.call("getFile", file_id=large.body["document"]["file_id"])
    assert refused["description"] == "Bad Request: file is too big"


# Faults


async def test_faults_happen_before_or_after_the_deed(telegram: FakeTelegram, chat: Chat) -> None:
    address = f"{telegram.base_url}/bot{telegram.token}/sendMessage"
    kinds = ["server_error", "lost_answer", "reset", "reset_after", "html", "html_after", "truncated"]
    for kind in kinds:
        await telegram.fault("sendMessage", kind, chat=chat)
    outcomes = []
    async with aiohttp.ClientSession() as http:
        for kind in kinds:
            try:
                async with http.post(address, json={"chat_id": chat.id, "text": kind}) as response:
                    status = response.status
                    await response.json()
            except (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError):
                outcomes.append("reset")
            except (ValueError, aiohttp.ContentTypeError):
                outcomes.append(f"{status} not JSON")
            else:
                outcomes.append(str(status))
    assert outcomes == ["500", "500", "reset", "reset", "200 not JSON", "200 not JSON", "200 not JSON"]
    assert await chat.texts() == ["lost_answer", "reset_after", "html_after", "truncated"]
    calls = await telegram.calls("sendMessage")
    assert [call["fault"] for call in calls] == kinds
    assert [call["outcome"] == "ok" for call in calls] == [False, True, False, True, False, True, True]
    assert (await send(chat))["ok"]


async def test_a_hanging_call_is_seen_to_be_given_up(telegram: FakeTelegram, chat: Chat) -> None:
    await telegram.fault("sendMessage", "hang")
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(send(chat), 0.1)
    assert await chat.texts() == []


async def test_errors_can_be_ordered(telegram: FakeTelegram, chat: Chat) -> None:
    await telegram.fault("sendMessage", "too_many_requests", retry_after=14, chat=chat)
    await telegram.fault("sendMessage", "forbidden", chat=chat.id + 1)
    await telegram.fault("*", "migrate", to=-1009)
    answer = await send(chat)
    assert answer["description"] == "Too Many Requests: retry after 14"
    assert answer["parameters"] == {"retry_after": 14}
    assert (await send(chat))["parameters"] == {"migrate_to_chat_id": -1009}
    assert (await send(chat))["ok"]


async def test_a_rate_limit_can_be_set(telegram: FakeTelegram, linh: Person, chat: Chat) -> None:
    group = await telegram.group("Ops", linh)
    await telegram.settings(per_chat=0.001)
    assert (await send(chat))["ok"]
    refused = await send(chat)
    assert refused["error_code"] == 429
    assert refused["parameters"]["retry_after"] > 0
    assert (await send(group))["ok"]


# The page


async def test_the_page_plays_the_people(telegram: FakeTelegram, linh: Person, chat: Chat) -> None:
    sam = await telegram.user("Sam")
    group = await telegram.group("Ops", linh, sam)
    async with open_browser() as browser:
        page = await browser.new_page(viewport={"width": 1000, "height": 700})
        complaints = complaints_of(page)
        await page.goto(telegram.base_url)
        await page.get_by_role("button", name="Linh").click()
        await page.get_by_label("Message", exact=True).fill("hello from the page")
        await page.get_by_label("Message", exact=True).press("Enter")
        await chat.until_texts(["> hello from the page"])

        await telegram.call("sendMessageDraft", chat_id=chat.id, draft_id=1, text="so f")
        await page.locator(".draft", has_text="so f").wait_for()
        keyboard = {"inline_keyboard": [[{"text": "Yes", "callback_data": "y"}]]}
        html = '<b>so far</b> 😀 <i>it</i> <a href="javascript:alert(1)">a</a> &lt;img src=x onerror=alert(2)&gt;'
        await send(chat, html, parse_mode="HTML", reply_markup=keyboard, reply_parameters={"message_id": 1})
        bubble = page.locator("#m2")
        await bubble.wait_for()
        assert await bubble.locator("b").all_text_contents() == ["Linh Trần", "so far"]
        assert await bubble.locator("i").all_text_contents() == ["it"]
        assert await bubble.locator("a, img").count() == 0
        assert await page.locator(".draft").count() == 0

        await bubble.get_by_role("button", name="Yes").click()
        (message,) = await poll(telegram, limit=1)
        (update,) = await poll(telegram, offset=message["update_id"] + 1, timeout=50)
        await telegram.call("answerCallbackQuery", callback_query_id=update["callback_query"]["id"], text="noted")
        await page.get_by_role("status").get_by_text("noted").wait_for()
        await telegram.call("editMessageText", chat_id=chat.id, message_id=2, text="changed")
        await page.locator("#m2 .meta", has_text="edited").wait_for()

        await page.get_by_role("button", name="Ops").click()
        await page.get_by_label("Who writes").select_option("Sam")
        await page.get_by_label("Send a picture or a file").set_input_files(
            {"name": "a.png", "mimeType": "image/png", "buffer": picture(8, 8)}
        )
        await page.locator("#messages img").wait_for()
        (sent,) = await group.messages()
        assert (sent.body["from"]["id"], "photo" in sent.body) == (sam.id, True)
        await page.set_viewport_size({"width": 390, "height": 700})
        await page.get_by_role("button", name="Back to the chats").click()
        assert await page.get_by_role("button", name="Linh").is_visible()
        assert complaints == []


# Bots that others wrote the libraries of


@pytest.mark.parametrize("script", ["aiogram_bot.py", "ptb_bot.py"])
async def test_libraries_fetch_every_kind_of_file(telegram: FakeTelegram, chat: Chat, script: str) -> None:
    bot = asyncio.create_task(run_client(script, telegram.base_url, telegram.token))
    try:
        expected: list[str] = []
        for number, kind in enumerate(["photo", "voice", "audio", "video", "video_note", "sticker"]):
            content = random.Random(number).randbytes(300_000)
            await chat.say(media=kind, content=content)
            expected.append(f"{len(content)} {hashlib.sha256(content).hexdigest()}")
        for fault, outcome in (("expired", "HTTP 404"), ("truncated", "cut off")):
            replies = await chat.until_replies(len(expected))
            await telegram.fault("file", fault)
            await chat.say(media="photo", content=b"x" * 1000)
            expected.append(outcome)
        await chat.until_replies(len(expected))
        await chat.say(media="video", content=b"x", size=21 * 2**20)
        expected.append("Bad Request: file is too big")
        replies = await chat.until_replies(len(expected))
        assert sorted(reply.text for reply in replies[:6]) == sorted(expected[:6])
        assert [reply.text for reply in replies[6:]] == expected[6:]
        await chat.say("stop")
        await bot
    finally:
        bot.cancel()
        await asyncio.wait([bot])


@pytest.mark.parametrize("script", ["aiogram_bot.py", "ptb_bot.py"])
async def test_libraries_send_every_kind_of_file(telegram: FakeTelegram, chat: Chat, script: str) -> None:
    bot = asyncio.create_task(run_client(script, telegram.base_url, telegram.token))
    try:
        small, oblong = picture(64, 48), picture(2101, 100)
        for content in (small, oblong, b"no picture"):
            await chat.say(f"media {base64.b64encode(content).decode()}")
        replies = await chat.until_replies(12)
        await chat.say("stop")
        await bot
    finally:
        bot.cancel()
        await asyncio.wait([bot])
    by_kind = {kind: [one for one in replies if kind in one.body] for kind in ("photo", "voice", "audio", "video")}
    (photo,) = by_kind.pop("photo")
    assert (photo.body["photo"][0]["width"], photo.body["photo"][0]["height"]) == (64, 48)
    assert await photo.content() == small
    for messages in by_kind.values():
        assert [await message.content() for message in messages] == [small, oblong, b"no picture"]
    assert by_kind["audio"][0].body["audio"]["file_name"] == "a.mp3"
    assert by_kind["video"][0].body["video"]["file_name"] == "é b.mp4"
    refused = [reply.text.upper() for reply in replies if "text" in reply.body]  # one library changes the case
    assert refused == ["BAD REQUEST: PHOTO_INVALID_DIMENSIONS", "BAD REQUEST: IMAGE_PROCESS_FAILED"]


async def test_files_have_limits(telegram: FakeTelegram, chat: Chat) -> None:
    async def refusal(method: str, field: str, content: bytes) -> tuple[int, str]:
        form = aiohttp.FormData({"chat_id": str(chat.id)})
        form.add_field(field, io.BytesIO(content), filename="a")
        url = f"{telegram.base_url}/bot{telegram.token}/{method}"
        async with aiohttp.ClientSession() as http, http.post(url, data=form) as response:
            return response.status, (await response.json())["description"]

    status, reason = await refusal("sendPhoto", "photo", picture(8, 8) + bytes(10 * 2**20))
    assert status == 400
    assert "too big for a photo" in reason
    assert await refusal("sendDocument", "document", bytes(50 * 2**20 + 1)) == (413, "Request Entity Too Large")
    assert await refusal("sendDocument", "document", b"") == (400, "Bad Request: file must be non-empty")
    assert await chat.replies() == []


@pytest.mark.parametrize("script", ["aiogram_bot.py", "ptb_bot.py"])
async def test_libraries_can_tell_no_difference(telegram: FakeTelegram, linh: Person, chat: Chat, script: str) -> None:
    group = await telegram.group("Ops", linh)
    blocked = await telegram.private(await telegram.user("An"))
    await blocked.block()
    bot = asyncio.create_task(run_client(script, telegram.base_url, telegram.token))
    try:
        await chat.say("hello")
        (reply,) = await chat.until_replies(1)
        assert (reply.text, reply.reply_to, reply.buttons) == ("bold answer", 1, ["Yes"])
        press = await reply.press("Yes")
        assert (await press.until_answered())["text"] == "noted"
        assert (await chat.messages())[-1].text == "you chose yes:1"
        await chat.say("a file", media="document", content="nội dung".encode(), name="a.txt")
        (_, copy) = await chat.until_replies(2)
        assert (copy.text, copy.body["document"]["file_name"]) == ("nội dung", "a.txt")

        new = await group.upgrade()
        await telegram.fault("sendMessage", "too_many_requests", chat=new, retry_after=14)
        results = []
        for number in (blocked.id, group.id, new.id, 99, chat.id):
            await chat.say(f"send {number}")
            replies = await chat.until_replies(len(results) + 3 + (number == chat.id))
            results.append(replies[-1].text)
        assert results == [
            "TelegramForbiddenError",
            f"TelegramMigrateToChat {new.id}",
            "TelegramRetryAfter 14",
            "TelegramBadRequest",
            "sent",
        ]
        await chat.say("stop")
        assert await bot == {"username": "bridge_bot"}
    finally:
        bot.cancel()
        await asyncio.wait([bot])


async def test_a_library_takes_the_webhook(telegram: FakeTelegram, chat: Chat) -> None:
    await telegram.settings(retry_scale=0.001)
    bot = asyncio.create_task(run_client("aiogram_bot.py", telegram.base_url, telegram.token, "webhook"))
    try:
        await telegram.until_calls("setWebhook", 1)
        await telegram.fault("webhook", "wrong_secret")
        await chat.say("send 99")
        await chat.until_texts(["> send 99", "TelegramBadRequest"])
        await chat.say("stop")
        assert await bot == {"username": "bridge_bot"}
    finally:
        bot.cancel()
        await asyncio.wait([bot])
    assert [delivery["status"] for delivery in await telegram.deliveries()][:2] == [401, 200]


async def test_the_methods_are_those_of_the_bot_api(telegram: FakeTelegram) -> None:
    schema = await asyncio.to_thread(bot_api_schema)
    assert schema["sendMessage"]["reply_parameters"]["message_id"] == "int"
    assert schema["sendMessage"]["entities"][0]["offset"] == "int"
    for method in ("getMe", "getWebhookInfo", "setMessageReaction", "sendMessageDraft", "getChatMember"):
        assert method in schema
