"""The fake Telegram for tests: the process, and a client that plays its people."""

import asyncio
import base64
import os
import re
import tempfile
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import aiohttp

from tests import forked
from tests.fake_telegram.__main__ import TOKEN

Json = dict[str, Any]
Value = TypeVar("Value")
_ROOT = Path(__file__).parent.parent.parent
FILES = ("photo", "document", "voice", "audio", "video")


@dataclass(frozen=True)
class Person:
    """Somebody who uses Telegram."""

    id: int
    name: str
    username: str | None
    body: Json


class Message:
    """A message in a chat, as it was when it was read."""

    def __init__(self, chat: "Chat", body: Json) -> None:
        self.chat = chat
        self.body = body

    @property
    def id(self) -> int:
        """`message_id`."""
        return self.body["message_id"]

    @property
    def text(self) -> str:
        """The text, or the caption."""
        return self.body.get("text", self.body.get("caption", ""))

    @property
    def entities(self) -> list[Json]:
        """Of the text, or of the caption."""
        return self.body.get("entities", self.body.get("caption_entities", []))

    @property
    def from_bot(self) -> bool:
        """Whether our bot wrote it."""
        return self.body.get("from", {}).get("id") == self.chat.telegram.bot_id

    @property
    def reply_to(self) -> int | None:
        """The id of the message that it quotes."""
        return self.body.get("reply_to_message", {}).get("message_id")

    @property
    def buttons(self) -> list[str]:
        """The labels of its buttons."""
        rows = self.body.get("reply_markup", {}).get("inline_keyboard", [])
        return [button["text"] for row in rows for button in row]

    @property
    def former_texts(self) -> list[str]:
        """What it said before it was edited, oldest first."""
        return [edit.get("text", edit.get("caption", "")) for edit in self.body["edits"]]

    async def content(self) -> bytes:
        """The bytes of its file; of a photo, those of the largest size."""
        found = next(self.body[kind] for kind in FILES if kind in self.body)
        file = found[-1] if isinstance(found, list) else found
        return await self.chat.telegram.file(file["file_id"])

    async def press(self, label: str, *, by: Person | None = None, data: str | None = None) -> "Press":
        """Press a button; `data` is for one that is not there any more."""
        body = {"from": self.chat.speaker(by).id} | ({"label": label} if data is None else {"data": data})
        return Press(self.chat.telegram, await self.chat.telegram.post(f"{self._path}/press", body))

    async def edit(
        self, text: str, entities: list[Json] | None = None, *, media: str | None = None, content: bytes | None = None
    ) -> None:
        """Its writer changes it, with `media` also its file."""
        body: Json = {"text": text, "entities": entities}
        if media is not None:
            body["media"] = _given({"kind": media, "content": None if content is None else _base64(content)})
        await self.chat.telegram.request("PATCH", self._path, body)

    async def delete(self) -> None:
        """Somebody deletes it."""
        await self.chat.telegram.request("DELETE", self._path)

    async def react(self, emoji: str | None, *, by: Person | None = None) -> None:
        """Somebody reacts to it."""
        await self.chat.telegram.post(f"{self._path}/reaction", {"from": self.chat.speaker(by).id, "emoji": emoji})

    @property
    def _path(self) -> str:
        return f"chats/{self.chat.id}/messages/{self.id}"


@dataclass
class Press:
    """A press of a button."""

    telegram: "FakeTelegram"
    body: Json

    async def until_answered(self) -> Json:
        """Wait until the bot has answered it; gives `text` and `show_alert`."""

        async def answer() -> Json | None:
            press = await self.telegram.get(f"presses/{self.body['id']}")
            return press if press["answered"] else None

        return await self.telegram.until(answer)


class Chat:
    """A chat. In a private one the person needs no naming."""

    def __init__(self, telegram: "FakeTelegram", body: Json, person: Person | None = None) -> None:
        self.telegram = telegram
        self.id: int = body["id"]
        self.body = body
        self.person = person

    def speaker(self, by: Person | None) -> Person:
        """Who does something here."""
        person = by or self.person
        assert person is not None, "in a group, say who"
        return person

    async def say(
        self,
        text: str = "",
        *,
        by: Person | None = None,
        entities: list[Json] | None = None,
        reply_to: "Message | int | None" = None,
        topic: int | None = None,
        media: str | None = None,
        content: bytes | None = None,
        name: str | None = None,
        mime_type: str | None = None,
        size: int | None = None,
        album: str | None = None,
        anonymous: bool = False,
        forward_from: Person | None = None,
        media_fields: Json | None = None,
        fields: Json | None = None,
    ) -> Message:
        """Somebody writes. `media` is photo, document, voice, audio, video, video_note, animation, sticker, location,
        venue, contact, poll or dice; `content` its bytes, and `size` what Telegram claims they are. `fields` are added
        to the message as they are."""
        about: Json = {"kind": media, "name": name, "mime_type": mime_type, "size": size, "fields": media_fields}
        about["content"] = None if content is None else _base64(content)
        body = {
            "from": self.speaker(by).id,
            "text": text,
            "entities": entities,
            "reply_to": reply_to.id if isinstance(reply_to, Message) else reply_to,
            "topic": topic,
            "media": _given(about) if media else None,
            "album": album,
            "anonymous": anonymous,
            "forward_from": forward_from.id if forward_from else None,
            "fields": fields,
        }
        return Message(self, await self.telegram.post(f"chats/{self.id}/messages", _given(body)))

    async def show(self) -> Json:
        """The chat as its people see it; see control.py."""
        return await self.telegram.get(f"chats/{self.id}")

    async def messages(self, topic: int | None = None) -> list[Message]:
        """All messages, oldest first; maybe only those of one topic."""
        messages = (await self.show())["messages"]
        return [Message(self, one) for one in messages if topic is None or one.get("message_thread_id") == topic]

    async def texts(self, topic: int | None = None) -> list[str]:
        """`> text` from people, `text` from the bot; service messages are left out."""
        shown = [message for message in await self.messages(topic) if message.text]
        return [message.text if message.from_bot else f"> {message.text}" for message in shown]

    async def until_texts(self, texts: list[str], topic: int | None = None) -> list[Message]:
        """Wait until exactly these texts are there, and give the messages."""

        async def there() -> bool:
            return await self.texts(topic) == texts

        await self.telegram.until(there)
        return [message for message in await self.messages(topic) if message.text]

    async def replies(self) -> list[Message]:
        """The bot's messages, oldest first."""
        return [message for message in await self.messages() if message.from_bot]

    async def until_replies(self, count: int) -> list[Message]:
        """Wait until the bot has written so many messages, and give them."""

        async def enough() -> list[Message] | None:
            replies = await self.replies()
            return replies if len(replies) >= count else None

        return await self.telegram.until(enough)

    async def until_said(self, count: int) -> list[Message]:
        """Wait until the bot has written so many texts, and give them; files are passed over."""

        async def enough() -> list[Message] | None:
            texts = [reply for reply in await self.replies() if "text" in reply.body]
            return texts if len(texts) >= count else None

        return await self.telegram.until(enough)

    async def until_typing(self, topic: int = 0) -> str:
        """Wait until the bot shows what it does; gives the action."""

        async def action() -> str | None:
            return (await self.show())["actions"].get(str(topic))

        return await self.telegram.until(action)

    async def until_draft(self, text: str) -> None:
        """Wait until the bot has shown this draft."""

        async def shown() -> bool:
            return text in (await self.show())["draft_texts"]

        await self.telegram.until(shown)

    async def set_bot(self, status: str, *, by: Person | None = None) -> None:
        """The bot becomes member, administrator, left or kicked."""
        await self.telegram.post(f"chats/{self.id}/bot", {"by": self.speaker(by).id, "status": status})

    async def block(self) -> None:
        """The person blocks the bot."""
        await self.set_bot("kicked")

    async def unblock(self) -> None:
        """The person wants to hear the bot again."""
        await self.set_bot("member")

    async def join(self, person: Person) -> None:
        """A person joins."""
        await self.telegram.post(f"chats/{self.id}/members", {"user": person.id, "status": "member"})

    async def leave(self, person: Person) -> None:
        """A person leaves."""
        await self.telegram.post(f"chats/{self.id}/members", {"user": person.id, "status": "left"})

    async def upgrade(self, *, by: Person | None = None) -> "Chat":
        """The group becomes a supergroup, which is given."""
        body = await self.telegram.post(f"chats/{self.id}/upgrade", {"by": self.speaker(by).id})
        return Chat(self.telegram, body, self.person)

    async def topic(self, name: str, *, by: Person | None = None) -> int:
        """A new topic; gives its id."""
        return (await self.telegram.post(f"chats/{self.id}/topics", {"by": self.speaker(by).id, "name": name}))["id"]

    async def close_topic(self, topic: int, *, by: Person | None = None) -> None:
        """Nobody but administrators may write in it any more."""
        body = {"by": self.speaker(by).id, "closed": True}
        await self.telegram.request("PATCH", f"chats/{self.id}/topics/{topic}", body)

    async def delete_topic(self, topic: int) -> None:
        """With all its messages."""
        await self.telegram.request("DELETE", f"chats/{self.id}/topics/{topic}")


class FakeTelegram:
    """A running fake. `base_url` and `token` are what a bot needs."""

    def __init__(self, http: aiohttp.ClientSession, base_url: str, token: str) -> None:
        self._http = http
        self.base_url = base_url
        self.token = token
        self.bot_id = int(token.partition(":")[0])

    async def user(
        self,
        name: str,
        *,
        last_name: str | None = None,
        username: str | None = None,
        language: str | None = None,
        number: int | None = None,
    ) -> Person:
        """A new person."""
        body = {
            "first_name": name,
            "last_name": last_name,
            "username": username,
            "language_code": language,
            "id": number,
        }
        made = await self.post("users", _given(body))
        return Person(made["id"], name, username, made)

    async def private(self, person: Person) -> Chat:
        """The person's private chat with the bot."""
        return Chat(self, await self.post("chats", {"type": "private", "user": person.id}), person)

    async def group(self, title: str, *members: Person, bot: str = "member", number: int | None = None) -> Chat:
        """A basic group."""
        return await self._chat("group", title, members, {"bot": bot, "id": number})

    async def supergroup(self, title: str, *members: Person, forum: bool = False, bot: str = "member") -> Chat:
        """A supergroup, with topics if it is a `forum`."""
        return await self._chat("supergroup", title, members, {"bot": bot, "forum": forum})

    async def channel(self, title: str, *members: Person) -> Chat:
        """A channel, of which the bot is an administrator."""
        return await self._chat("channel", title, members, {})

    async def _chat(self, kind: str, title: str, members: tuple[Person, ...], more: Json) -> Chat:
        body = {"type": kind, "title": title, "members": [person.id for person in members]}
        made = await self.post("chats", _given(body | more))
        return Chat(self, made, members[0] if members else None)

    async def fault(
        self, method: str, kind: str, *, times: int = 1, chat: "Chat | int | None" = None, **more: Any
    ) -> None:
        """Make the next calls of a method fail; faults.py lists the kinds."""
        number = chat.id if isinstance(chat, Chat) else chat
        await self.post("faults", {"method": method, "kind": kind, "times": times, "chat": number, "more": more})

    async def odd(self, *kinds: str) -> None:
        """What shall be wrong with the next updates: duplicate, twice_at_once, swap."""
        await self.post("odd", {"kinds": kinds})

    async def mend(self) -> None:
        """Forget all faults that are still to come."""
        await self.request("DELETE", "faults")

    async def update(self, body: Json, lane: int = 0) -> int:
        """Send the bot an update as it is; gives its id."""
        return await self.post("updates", {"body": body, "lane": lane})

    async def pending(self) -> list[Json]:
        """The updates that the bot has not confirmed."""
        return await self.get("updates")

    async def until_confirmed(self) -> None:
        """Wait until the bot has taken every update."""

        async def none() -> bool:
            return not await self.pending()

        await self.until(none)

    async def calls(self, method: str = "") -> list[Json]:
        """The bot's calls, oldest first: method, parameters, at, finished, way, fault, outcome."""
        return await self.get(f"calls?method={method}")

    async def until_calls(self, method: str, count: int) -> list[Json]:
        """Wait until there are so many calls of a method, and give them."""

        async def enough() -> list[Json] | None:
            calls = await self.calls(method)
            return calls if len(calls) >= count else None

        return await self.until(enough)

    async def deliveries(self) -> list[Json]:
        """Each try to send an update to the webhook: update_id, at, status, error."""
        return await self.get("deliveries")

    async def settings(self, **settings: Any) -> None:
        """retry_scale, webhook_timeout, update_lifetime, sees_all, per_chat, overall; see control.py."""
        await self.post("settings", settings)

    async def call(self, method: str, **parameters: Any) -> Json:
        """Call the Bot API as the bot would; gives the whole answer."""
        address = f"{self.base_url}/bot{self.token}/{method}"
        async with self._http.post(address, json=parameters) as response:
            return await response.json()

    async def until(self, condition: Callable[[], Awaitable[Value | None]]) -> Value:
        """Wait until a condition holds, looking again whenever something has changed; gives what it gave."""
        changes = -1
        while True:
            changes = await self.get(f"changes?after={changes}&timeout=1")
            if found := await condition():
                return found

    async def file(self, file_id: str) -> bytes:
        """The bytes of a file."""
        async with self._http.get(f"{self.base_url}/control/files/{file_id}") as response:
            assert response.status == 200, await response.text()
            return await response.read()

    async def get(self, path: str) -> Any:
        """Ask the control API."""
        return await self.request("GET", path)

    async def post(self, path: str, body: Json) -> Any:
        """Tell the control API."""
        return await self.request("POST", path, body)

    async def request(self, method: str, path: str, body: Json | None = None) -> Any:
        """Use the control API; what it refuses is an assertion that fails."""
        async with self._http.request(method, f"{self.base_url}/control/{path}", json=body) as response:
            assert response.status == 200, await response.text()
            return await response.json()


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()


def _given(body: Json) -> Json:
    return {name: value for name, value in body.items() if value is not None}


@asynccontextmanager
async def running_telegram(*options: str, token: str = TOKEN, port: int = 0) -> AsyncGenerator[FakeTelegram]:
    """A fake of its own, on a free port; `options` are those of the command line."""
    with tempfile.TemporaryDirectory(prefix="telegram-") as folder:
        log = Path(folder) / "log"
        arguments = ["--port", str(port), "--token", token, *options]
        process = forked.start(
            "tests.fake_telegram", arguments, environment={"PATH": os.environ["PATH"]}, folder=_ROOT, log=log
        )
        try:
            while (told := re.search(r"http://127\.0\.0\.1:\d+", log.read_text())) is None:
                assert process.exitcode is None, log.read_text()
                await asyncio.sleep(0.02)
            async with aiohttp.ClientSession() as http:
                yield FakeTelegram(http, told[0], token)
            complaints = log.read_text().partition("\n")[2]
            assert not complaints, f"the fake itself has failed:\n{complaints}"
        finally:
            process.terminate()
            await forked.ended(process)
