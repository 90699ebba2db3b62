"""The people, chats and messages that a bot meets, and what it may see of them.

Every change gives the updates that Telegram would send; who waits for changes is told by `changes`.
"""

import asyncio
import hashlib
import itertools
import random
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tests.fake_telegram.text import Entity, cut, found

Json = dict[str, Any]

ANONYMOUS_ADMIN = {"id": 1087968824, "is_bot": True, "first_name": "Group", "username": "GroupAnonymousBot"}
TYPING_SECONDS = 5
DRAFT_SECONDS = 30
SERVICE = {
    *("new_chat_members", "left_chat_member", "migrate_to_chat_id", "migrate_from_chat_id"),
    *("forum_topic_created", "forum_topic_closed", "forum_topic_reopened", "group_chat_created"),
}
MEDIA = {"photo", "document", "voice", "audio", "video", "video_note", "animation", "sticker"}


class Changes:
    """A count that grows with each change, which can be awaited."""

    def __init__(self) -> None:
        self.count = 0
        self._changed = asyncio.Event()

    def happened(self) -> None:
        """Wake up everybody who waits."""
        self.count += 1
        self._changed.set()
        self._changed = asyncio.Event()

    async def after(self, count: int, seconds: float) -> int:
        """Wait until there are more changes than `count`; gives their number, also when the time is up."""
        try:
            async with asyncio.timeout(seconds):
                while self.count <= count:
                    await self._changed.wait()
        except TimeoutError:
            pass
        return self.count


@dataclass
class Message:
    """A message: `body` is the Bot API's, without chat and without the message it replies to."""

    chat: "Chat"
    body: Json
    reply_to: int | None = None
    seen_by_bot: bool = True
    edits: list[Json] = field(default_factory=list)
    reactions: dict[int, list[Json]] = field(default_factory=dict)

    @property
    def id(self) -> int:
        return self.body["message_id"]

    @property
    def text(self) -> str:
        return self.body.get("text", self.body.get("caption", ""))

    def json(self, *, nested: bool = False) -> Json:
        """As the Bot API tells it. A quoted message does not tell what it replies to itself."""
        json = {**self.body, "chat": self.chat.json()}
        if not nested and self.reply_to is not None and (quoted := self.chat.messages.get(self.reply_to)):
            json["reply_to_message"] = quoted.json(nested=True)
        return json


@dataclass
class Topic:
    """A topic of a forum."""

    id: int
    name: str
    closed: bool = False


@dataclass
class Draft:
    """A text that a bot shows while it writes."""

    id: int
    text: str
    entities: list[Entity]
    topic: int | None
    until: float


@dataclass
class Chat:
    """A chat. `bot` is what the bot is in it: member, administrator, left, kicked."""

    id: int
    type: str
    title: str | None = None
    user: Json | None = None
    username: str | None = None
    is_forum: bool = False
    bot: str = "member"
    members: dict[int, str] = field(default_factory=dict)
    messages: dict[int, Message] = field(default_factory=dict)
    deleted: list[Message] = field(default_factory=list)
    topics: dict[int, Topic] = field(default_factory=dict)
    drafts: dict[int, Draft] = field(default_factory=dict)
    draft_texts: list[str] = field(default_factory=list)
    actions: dict[int, tuple[str, float]] = field(default_factory=dict)
    action_count: int = 0
    migrated_to: int | None = None
    next_id: int = 1

    def json(self) -> Json:
        """The Chat object."""
        if self.user is not None:
            names = ("id", "first_name", "last_name", "username")
            return {name: self.user[name] for name in names if name in self.user} | {"type": "private"}
        json: Json = {"id": self.id, "title": self.title, "type": self.type}
        if self.type == "group":
            json["all_members_are_administrators"] = False
        if self.username is not None:
            json["username"] = self.username
        return json | ({"is_forum": True} if self.is_forum else {})

    def new_id(self) -> int:
        """An id for a message or a topic."""
        self.next_id += 1
        return self.next_id - 1


@dataclass
class StoredFile:
    """A file as the bot can fetch it. `size` is what is told of it, which may be a lie."""

    id: str
    unique_id: str
    path: str
    content: bytes
    size: int
    mime_type: str

    def json(self) -> Json:
        """What every media object begins with."""
        return {"file_id": self.id, "file_unique_id": self.unique_id, "file_size": self.size}


@dataclass
class Press:
    """A press of a button, and what the bot answered."""

    id: str
    data: str
    answered: bool = False
    text: str | None = None
    show_alert: bool = False


class World:
    """All that exists beside the bot. `emit` is given the kind of an update, its content and its chat."""

    def __init__(self, token: str, username: str, name: str, *, sees_all: bool) -> None:
        self.token = token
        self.bot: Json = {"id": int(token.partition(":")[0]), "is_bot": True, "first_name": name, "username": username}
        self.sees_all = sees_all
        self.users: dict[int, Json] = {self.bot["id"]: self.bot}
        self.chats: dict[int, Chat] = {}
        self.files: dict[str, StoredFile] = {}
        self.presses: dict[str, Press] = {}
        self.changes = Changes()
        self.emit: Callable[[str, Json, int], None] = lambda kind, body, chat: None
        self._user_ids = itertools.count(5512340001)
        self._group_ids = itertools.count(4123456)
        self._supergroup_ids = itertools.count(2234567890)
        self._file_numbers = itertools.count()

    # People and chats

    def add_user(self, fields: Json) -> Json:
        """A person. Missing fields are made up."""
        user = {"id": next(self._user_ids), "is_bot": False, "first_name": "Somebody"}
        user |= {name: value for name, value in fields.items() if value is not None}
        self.users[user["id"]] = user
        self.changes.happened()
        return user

    def add_chat(self, kind: str, title: str | None = None, **fields: Any) -> Chat:
        """A group, supergroup or channel; nothing is told of it."""
        number = -next(self._group_ids) if kind == "group" else -1_000_000_000_000 - next(self._supergroup_ids)
        chat = Chat(id=fields.pop("id", None) or number, type=kind, title=title or "A chat", **fields)
        chat.next_id = 2  # 1 told of the chat itself; as a topic it is General
        self.chats[chat.id] = chat
        self.changes.happened()
        return chat

    def private(self, user: Json) -> Chat:
        """The private chat of a person with the bot."""
        if user["id"] not in self.chats:
            self.chats[user["id"]] = Chat(id=user["id"], type="private", user=user)
            self.changes.happened()
        return self.chats[user["id"]]

    # Messages

    def post(self, chat: Chat, sender: Json, body: Json, **options: Any) -> Message:
        """A message of a person, a service message or a channel's post; the bot hears of it if it may."""
        message = self.store(chat, sender, body, **options)
        message.seen_by_bot = self._bot_sees(message)
        self.tell("channel_post" if chat.type == "channel" else "message", message)
        return message

    def store(
        self,
        chat: Chat,
        sender: Json,
        body: Json,
        *,
        reply_to: int | None = None,
        topic: int | None = None,
        sender_chat: Json | None = None,
    ) -> Message:
        """Put a message into a chat and tell nobody."""
        head: Json = {"message_id": chat.new_id(), "date": int(time.time())}
        if chat.type == "channel":
            head["sender_chat"] = chat.json()
        else:
            head["from"] = sender
        if sender_chat is not None:
            head |= {"from": ANONYMOUS_ADMIN, "sender_chat": sender_chat}
        if topic is not None:
            head |= {"message_thread_id": topic, "is_topic_message": True}
        elif reply_to is not None and chat.type == "supergroup" and not chat.is_forum:
            head["message_thread_id"] = self._thread(chat, reply_to)
        message = Message(chat, head | body, reply_to)
        chat.messages[message.id] = message
        self.changes.happened()
        return message

    @staticmethod
    def _thread(chat: Chat, reply_to: int) -> int:
        """In a plain supergroup, a chain of replies is named by its first message."""
        quoted = chat.messages.get(reply_to)
        return quoted.body.get("message_thread_id", reply_to) if quoted else reply_to

    def tell(self, kind: str, message: Message) -> None:
        """Send an update of a message, if the bot sees it."""
        if message.seen_by_bot:
            self.emit(kind, message.json(), message.chat.id)

    def _bot_sees(self, message: Message) -> bool:
        """Privacy mode: of ordinary talk in groups the bot sees only what is for it. That a mention is enough is what
        bots meet in practice; the documentation does not say so."""
        chat, body = message.chat, message.body
        if chat.bot not in ("member", "administrator"):
            return False
        if chat.type in ("private", "channel") or chat.bot == "administrator" or self.sees_all or SERVICE & set(body):
            return True
        quoted = chat.messages.get(message.reply_to or 0)
        if quoted is not None and quoted.body.get("from", {}).get("id") == self.bot["id"]:
            return True
        return any(self._for_bot(message.text, entity) for entity in _entities(body))

    def _for_bot(self, text: str, entity: Entity) -> bool:
        said = cut(text, entity["offset"], entity["length"]).lower()
        name = f"@{self.bot['username']}".lower()
        match entity["type"]:
            case "mention":
                return said == name
            case "bot_command":
                return "@" not in said or said.endswith(name)
            case "text_mention":
                return entity["user"]["id"] == self.bot["id"]
            case _:
                return False

    def edit(self, message: Message, body: Json) -> None:
        """A person changes a message of theirs."""
        self.change(message, body)
        message.body["edit_date"] = int(time.time())
        self.tell("edited_channel_post" if message.chat.type == "channel" else "edited_message", message)

    def change(self, message: Message, body: Json) -> None:
        """Replace the content of a message; what it was is kept for the tests."""
        message.edits.append(dict(message.body))
        other_media = MEDIA if MEDIA & set(body) else set()
        for name in ("text", "entities", "caption", "caption_entities", "reply_markup", *other_media):
            message.body.pop(name, None)
        message.body.update(body)
        self.changes.happened()

    def delete(self, message: Message) -> None:
        """Bots are not told of deleted messages."""
        message.chat.deleted.append(message.chat.messages.pop(message.id))
        self.changes.happened()

    def react(self, message: Message, user: Json, emoji: str | None) -> None:
        """Set or take back the reaction of a person, or of the bot."""
        new = [{"type": "emoji", "emoji": emoji}] if emoji else []
        old = message.reactions.get(user["id"], [])
        message.reactions[user["id"]] = new
        self.changes.happened()
        told = message.chat.type == "private" or message.chat.bot == "administrator"
        if user is not self.bot and told:
            about = {"chat": message.chat.json(), "message_id": message.id, "date": int(time.time())}
            body = about | {"user": user, "old_reaction": old, "new_reaction": new}
            self.emit("message_reaction", body, message.chat.id)

    def press(self, message: Message, user: Json, data: str) -> Press:
        """A person presses a button."""
        press = Press(str(random.getrandbits(62)), data)
        self.presses[press.id] = press
        body = {"id": press.id, "from": user, "chat_instance": str(random.getrandbits(62)), "data": data}
        self.emit("callback_query", body | {"message": message.json()}, message.chat.id)
        self.changes.happened()
        return press

    # Membership

    def set_bot(self, chat: Chat, status: str, by: Json) -> None:
        """The bot is added, promoted, removed; in a private chat: blocked (kicked) and unblocked (member)."""
        old, chat.bot = chat.bot, status
        self.changes.happened()
        self._member_update("my_chat_member", chat, by, self.bot, old, status)
        inside = ("member", "administrator")
        if chat.type in ("group", "supergroup") and (old in inside) != (status in inside):
            gone = {"left_chat_member": self.bot}
            self.post(chat, by, {"new_chat_members": [self.bot]} if status in inside else gone)

    def set_member(self, chat: Chat, user: Json, status: str) -> None:
        """A person joins (member) or leaves (left)."""
        old = chat.members.get(user["id"], "left")
        chat.members[user["id"]] = status
        if chat.bot == "administrator":
            self._member_update("chat_member", chat, user, user, old, status)
        if chat.type != "channel":
            self.post(chat, user, {"new_chat_members": [user]} if status == "member" else {"left_chat_member": user})

    def _member_update(self, kind: str, chat: Chat, by: Json, who: Json, old: str, new: str) -> None:
        body = {"chat": chat.json(), "from": by, "date": int(time.time())}
        both = {"old_chat_member": self.member(who, old), "new_chat_member": self.member(who, new)}
        self.emit(kind, body | both, chat.id)

    @staticmethod
    def member(user: Json, status: str) -> Json:
        """The ChatMember object."""
        member: Json = {"user": user, "status": status}
        if status == "kicked":
            member["until_date"] = 0
        if status == "administrator":
            rights = ("can_manage_chat", "can_delete_messages", "can_manage_video_chats", "can_restrict_members")
            rights += ("can_promote_members", "can_change_info", "can_invite_users", "can_post_stories")
            rights += ("can_edit_stories", "can_delete_stories", "can_be_edited", "is_anonymous", "can_manage_topics")
            member |= dict.fromkeys(rights, False)
        return member

    def upgrade(self, chat: Chat, by: Json) -> Chat:
        """A group becomes a supergroup, which is another chat with another id."""
        new = self.add_chat("supergroup", chat.title, bot=chat.bot, members=dict(chat.members))
        self.post(chat, by, {"migrate_to_chat_id": new.id})
        chat.migrated_to = new.id
        self.post(new, by, {"migrate_from_chat_id": chat.id})
        return new

    def add_topic(self, chat: Chat, by: Json, name: str) -> Topic:
        """A new topic of a forum; its id is that of the message which tells of it."""
        topic = Topic(chat.next_id, name)
        chat.topics[topic.id] = topic
        self.post(chat, by, {"forum_topic_created": {"name": name, "icon_color": 7322096}}, topic=topic.id)
        return topic

    # What the bot shows for a while

    def show_action(self, chat: Chat, topic: int | None, action: str) -> None:
        """Typing and its like."""
        chat.actions[topic or 0] = (action, time.time() + TYPING_SECONDS)
        chat.action_count += 1
        self.changes.happened()

    def show_draft(self, chat: Chat, draft: Draft) -> None:
        """A draft; the same id changes it."""
        chat.drafts[draft.id] = draft
        chat.draft_texts.append(draft.text)
        self.changes.happened()

    # Files

    def add_file(self, folder: str, name: str, content: bytes, mime_type: str, size: int | None = None) -> StoredFile:
        """Keep a file. The same bytes have the same unique id."""
        number = next(self._file_numbers)
        ending = re.search(r"\.\w+$", name)
        file = StoredFile(
            id=f"Ag{random.getrandbits(160):040x}{number}",
            unique_id=hashlib.sha256(content).hexdigest()[:16],
            path=f"{folder}/file_{number}{ending[0] if ending else ''}",
            content=content,
            size=len(content) if size is None else size,
            mime_type=mime_type,
        )
        self.files[file.id] = file
        return file


def _entities(body: Json) -> list[Entity]:
    return body.get("entities", body.get("caption_entities", []))


def text_body(text: str, entities: list[Entity] | None = None, name: str = "text") -> Json:
    """A text with its entities, as fields of a message; those that the server finds by itself are added."""
    body: Json = {name: text}
    if all_of_them := found(text, entities or []):
        body["entities" if name == "text" else "caption_entities"] = all_of_them
    return body
