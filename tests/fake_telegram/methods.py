"""The methods of the Bot API, with the checks of the real server."""

import io
import re
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, Protocol
from urllib.parse import urlsplit

from PIL import Image

from tests.fake_telegram.errors import ApiError, bad_request, conflict, forbidden, too_many_requests
from tests.fake_telegram.parameters import Parameters
from tests.fake_telegram.text import Entity, checked, parsed, trimmed, units
from tests.fake_telegram.updates import Updates
from tests.fake_telegram.world import DRAFT_SECONDS, Chat, Draft, Json, Message, StoredFile, World, text_body

LONGEST_TEXT = 4096
LONGEST_CAPTION = 1024
LARGEST_DOWNLOAD = 20 * 2**20
LARGEST_PHOTO = 10 * 2**20
LARGEST_UPLOAD = 50 * 2**20
LONGEST_SIDES = 10_000
MOST_OBLONG = 20
WEBHOOK_PORTS = (443, 80, 88, 8443)
ACTIONS = {
    *("typing", "upload_photo", "record_video", "upload_video", "record_voice", "upload_voice", "upload_document"),
    *("choose_sticker", "find_location", "record_video_note", "upload_video_note"),
}
NOT_MODIFIED = (
    "message is not modified: specified new message content and reply markup are exactly the same as a current "
    "content and reply markup of the message"
)


class Webhook(Protocol):
    """What the methods need of the webhook sender."""

    url: str

    async def start(self, url: str, secret: str, max_connections: int) -> None: ...

    async def stop(self) -> None: ...

    def info(self) -> Json: ...


class RateLimit:
    """At most so many messages a second, for each chat and for all. Zero is no limit."""

    def __init__(self) -> None:
        self.per_chat = 0.0
        self.overall = 0.0
        self._sent: dict[int, deque[float]] = {}

    def check(self, chat: int) -> None:
        """Count a message, or refuse it."""
        for key, limit in ((chat, self.per_chat), (0, self.overall)):
            if limit:
                self._count(self._sent.setdefault(key, deque()), limit)

    @staticmethod
    def _count(sent: deque[float], limit: float) -> None:
        most, window = max(1, int(limit)), max(1.0, 1 / limit)
        now = time.monotonic()
        while sent and sent[0] <= now - window:
            sent.popleft()
        if len(sent) >= most:
            raise too_many_requests(int(sent[0] + window - now) + 1)
        sent.append(now)


class Methods:
    """Each method of the Bot API is one here, its name in lower case. Results with a description are pairs."""

    def __init__(self, world: World, updates: Updates, webhook: Webhook) -> None:
        self._world = world
        self._updates = updates
        self._webhook = webhook
        self._commands: list[Json] = []
        self._served: set[str] = set()
        self.rate_limit = RateLimit()

    def find(self, name: str) -> Callable[[Parameters], Awaitable[Any]] | None:
        """The method of this name."""
        name = name.lower()
        return (
            None if name.startswith("_") or name == "find" else getattr(type(self), name, None) and getattr(self, name)
        )

    # Updates

    async def getme(self, parameters: Parameters) -> Json:
        rights = {"can_join_groups": True, "can_read_all_group_messages": self._world.sees_all}
        others = ("supports_inline_queries", "can_connect_to_business", "has_main_web_app", "has_topics_enabled")
        return {**self._world.bot, **rights, **dict.fromkeys(others, False)}

    async def getupdates(self, parameters: Parameters) -> list[Json]:
        if self._webhook.url:
            raise conflict(
                "can't use getUpdates method while webhook is active; use deleteWebhook to delete the webhook first"
            )
        self._updates.allow(parameters.nested("allowed_updates"))
        offset, limit = parameters.integer("offset"), parameters.integer("limit", 100)
        return await self._updates.get(offset, limit, parameters.integer("timeout"))

    async def setwebhook(self, parameters: Parameters) -> tuple[bool, str]:
        url = parameters.text("url").strip()
        if not url:
            return await self.deletewebhook(parameters)
        _check_webhook(url)
        secret = parameters.text("secret_token")
        if len(secret) > 256:
            raise bad_request("secret token is too long")
        if not re.fullmatch(r"[A-Za-z0-9_-]*", secret):
            raise bad_request("secret token contains unallowed characters")
        self._updates.allow(parameters.nested("allowed_updates"))
        if parameters.flag("drop_pending_updates"):
            self._updates.drop()
        self._updates.end_poll("terminated by setWebhook request")
        await self._webhook.start(url, secret, min(max(parameters.integer("max_connections", 40), 1), 100))
        return True, "Webhook was set"

    async def deletewebhook(self, parameters: Parameters) -> tuple[bool, str]:
        if parameters.flag("drop_pending_updates"):
            self._updates.drop()
        if not self._webhook.url:
            return True, "Webhook is already deleted"
        await self._webhook.stop()
        return True, "Webhook was deleted"

    async def getwebhookinfo(self, parameters: Parameters) -> Json:
        self._updates.expire()
        info = {"url": "", "has_custom_certificate": False, "pending_update_count": len(self._updates.pending)}
        info |= self._webhook.info()
        return info | ({"allowed_updates": self._updates.allowed} if self._updates.allowed else {})

    # Sending

    async def sendmessage(self, parameters: Parameters) -> Json:
        text, entities = self._formatted(parameters, "text", "entities")
        if not text:
            raise bad_request("message text is empty")
        if units(text) > LONGEST_TEXT:
            raise bad_request("message is too long")
        return self._send(parameters, text_body(text, entities))

    async def sendphoto(self, parameters: Parameters) -> Json:
        file = self._file(parameters, "photo", "photos")
        width, height = _size_of_photo(file)
        return self._send_media(parameters, {"photo": [{**file.json(), "width": width, "height": height}]})

    async def senddocument(self, parameters: Parameters) -> Json:
        file = self._file(parameters, "document", "documents")
        upload = parameters.upload("document")
        names = {"file_name": upload.name if upload else "file", "mime_type": file.mime_type}
        return self._send_media(parameters, {"document": {**file.json(), **names}})

    async def sendvoice(self, parameters: Parameters) -> Json:
        file = self._file(parameters, "voice", "voice")
        about = {"duration": parameters.integer("duration"), "mime_type": file.mime_type}
        return self._send_media(parameters, {"voice": {**file.json(), **about}})

    async def sendaudio(self, parameters: Parameters) -> Json:
        file = self._file(parameters, "audio", "music")
        upload = parameters.upload("audio")
        about = {"duration": parameters.integer("duration"), "mime_type": file.mime_type}
        return self._send_media(
            parameters, {"audio": {**file.json(), **about, "file_name": upload.name if upload else "audio"}}
        )

    async def sendvideo(self, parameters: Parameters) -> Json:
        file = self._file(parameters, "video", "videos")
        upload = parameters.upload("video")
        about = {name: parameters.integer(name) for name in ("duration", "width", "height")}
        names = {"file_name": upload.name if upload else "video", "mime_type": file.mime_type}
        return self._send_media(parameters, {"video": {**file.json(), **about, **names}})

    def _send_media(self, parameters: Parameters, media: Json) -> Json:
        caption, entities = self._formatted(parameters, "caption", "caption_entities")
        if units(caption) > LONGEST_CAPTION:
            raise bad_request("message caption is too long")
        return self._send(parameters, media | (text_body(caption, entities, "caption") if caption else {}))

    def _send(self, parameters: Parameters, body: Json) -> Json:
        chat = self._chat(parameters)
        self._check_writable(chat)
        topic = self._topic(chat, parameters)
        reply_to = self._reply(chat, parameters)
        body |= self._markup(parameters)
        self.rate_limit.check(chat.id)
        message = self._world.store(chat, self._world.bot, body, reply_to=reply_to, topic=topic)
        reply = parameters.nested("reply_parameters")
        if reply_to is not None and isinstance(reply, dict) and reply.get("quote"):
            message.body["quote"] = {"text": reply["quote"], "position": 0, "is_manual": True}
        chat.actions.pop(topic or 0, None)
        chat.drafts.clear()
        return message.json()

    async def sendchataction(self, parameters: Parameters) -> bool:
        chat = self._chat(parameters)
        self._check_writable(chat)
        topic = self._topic(chat, parameters)
        action = parameters.text("action")
        if action not in ACTIONS:
            raise bad_request("wrong parameter action in request")
        self._world.show_action(chat, topic, action)
        return True

    async def sendmessagedraft(self, parameters: Parameters) -> bool:
        text, entities = self._formatted(parameters, "text", "entities")
        if units(text) > LONGEST_TEXT:
            raise bad_request("message is too long")
        if not (number := parameters.integer("draft_id")):
            raise bad_request("RANDOM_ID_INVALID")
        chat = self._chat(parameters)
        self._check_writable(chat)
        if chat.type != "private":
            raise bad_request("TEXTDRAFT_PEER_INVALID")
        topic = self._topic(chat, parameters)
        self.rate_limit.check(chat.id)
        body = text_body(text, entities)
        until = time.time() + DRAFT_SECONDS
        self._world.show_draft(chat, Draft(number, text, body.get("entities", []), topic, until))
        return True

    # What was sent

    async def editmessagetext(self, parameters: Parameters) -> Json:
        text, entities = self._formatted(parameters, "text", "entities")
        if not text:
            raise bad_request("message text is empty")
        if units(text) > LONGEST_TEXT:
            raise bad_request("message is too long")
        message = self._own_message(parameters)
        if "text" not in message.body:
            raise bad_request("there is no text in the message to edit")
        return self._edit(message, text_body(text, entities) | self._markup(parameters))

    async def editmessagereplymarkup(self, parameters: Parameters) -> Json:
        message = self._own_message(parameters)
        names = ("text", "entities", "caption", "caption_entities")
        body = {name: message.body[name] for name in names if name in message.body}
        return self._edit(message, body | self._markup(parameters))

    def _edit(self, message: Message, body: Json) -> Json:
        names = ("text", "entities", "caption", "caption_entities", "reply_markup")
        if all(message.body.get(name) == body.get(name) for name in names):
            raise bad_request(NOT_MODIFIED)
        self.rate_limit.check(message.chat.id)
        self._world.change(message, body)
        message.body["edit_date"] = int(time.time())
        return message.json()

    def _own_message(self, parameters: Parameters) -> Message:
        chat = self._chat(parameters)
        self._check_writable(chat)
        message = chat.messages.get(parameters.integer("message_id"))
        if message is None:
            raise bad_request("message to edit not found")
        if message.body.get("from") != self._world.bot and chat.type != "channel":
            raise bad_request("message can't be edited")
        return message

    async def deletemessage(self, parameters: Parameters) -> bool:
        chat = self._chat(parameters)
        self._check_writable(chat)
        message = chat.messages.get(parameters.integer("message_id"))
        if message is None:
            raise bad_request("message to delete not found")
        own = message.body.get("from") == self._world.bot
        if not own and chat.type != "private" and chat.bot != "administrator":
            raise bad_request("message can't be deleted")
        self._world.delete(message)
        return True

    async def setmessagereaction(self, parameters: Parameters) -> bool:
        chat = self._chat(parameters)
        self._check_writable(chat)
        message = chat.messages.get(parameters.integer("message_id"))
        if message is None:
            raise bad_request("message to react not found")
        reactions = parameters.nested("reaction") or []
        self._world.react(message, self._world.bot, reactions[0]["emoji"] if reactions else None)
        return True

    async def answercallbackquery(self, parameters: Parameters) -> bool:
        press = self._world.presses.get(parameters.text("callback_query_id"))
        if press is None or press.answered:
            raise bad_request("query is too old and response timeout expired or query ID is invalid")
        press.answered, press.text = True, parameters.text("text") or None
        press.show_alert = parameters.flag("show_alert")
        self._world.changes.happened()
        return True

    # The rest

    async def getfile(self, parameters: Parameters) -> Json:
        file = self._world.files.get(parameters.text("file_id"))
        if file is None:
            raise bad_request("wrong file_id or the file is temporarily unavailable")
        if file.size > LARGEST_DOWNLOAD:
            raise bad_request("file is too big")
        self._served.add(file.path)
        return {**file.json(), "file_path": file.path}

    def served(self, path: str) -> StoredFile | None:
        """The file at this path, if the bot has asked `getFile` for it."""
        return next((f for f in self._world.files.values() if f.path == path and path in self._served), None)

    async def setmycommands(self, parameters: Parameters) -> bool:
        self._commands = parameters.nested("commands") or []
        for command in self._commands:
            if not re.fullmatch(r"[a-z0-9_]{1,32}", command["command"]):
                raise bad_request("BOT_COMMAND_INVALID")
            if not 1 <= len(command["description"]) <= 256:
                raise bad_request("BOT_COMMAND_DESCRIPTION_INVALID")
        return True

    async def getmycommands(self, parameters: Parameters) -> list[Json]:
        return self._commands

    async def getchat(self, parameters: Parameters) -> Json:
        chat = self._chat(parameters)
        gifts = ("unlimited_gifts", "limited_gifts", "unique_gifts", "premium_subscription", "gifts_from_channels")
        full = {"accent_color_id": 0, "max_reaction_count": 11, "accepted_gift_types": dict.fromkeys(gifts, False)}
        return chat.json() | full

    async def getchatmember(self, parameters: Parameters) -> Json:
        chat = self._chat(parameters)
        user = self._world.users.get(parameters.integer("user_id"))
        if user is None:
            raise bad_request("PARTICIPANT_ID_INVALID")
        status = chat.bot if user is self._world.bot else chat.members.get(user["id"], "left")
        return self._world.member(user, "member" if chat.type == "private" else status)

    # Checks

    def _chat(self, parameters: Parameters) -> Chat:
        name = parameters.text("chat_id")
        if not name:
            raise bad_request("chat_id is empty")
        if name.startswith("@"):
            named = [chat for chat in self._world.chats.values() if chat.username and f"@{chat.username}" == name]
            chat = named[0] if named else None
        else:
            chat = self._world.chats.get(parameters.integer("chat_id"))
            if chat is None and parameters.integer("chat_id") in self._world.users:
                raise forbidden("bot can't initiate conversation with a user")
        if chat is None:
            raise bad_request("chat not found")
        return chat

    def _check_writable(self, chat: Chat) -> None:
        if chat.migrated_to is not None:
            text = "group chat was upgraded to a supergroup chat"
            raise bad_request(text, migrate_to_chat_id=chat.migrated_to)
        if chat.bot == "kicked" and chat.type == "private":
            raise forbidden("bot was blocked by the user")
        name = {"group": "group chat", "supergroup": "supergroup chat", "channel": "channel chat"}.get(chat.type, "")
        if chat.bot == "kicked":
            raise forbidden(f"bot was kicked from the {name}")
        if chat.bot == "left":
            raise forbidden(f"bot is not a member of the {name}")
        if chat.type == "channel" and chat.bot != "administrator":
            raise bad_request("need administrator rights in the channel chat")

    def _topic(self, chat: Chat, parameters: Parameters) -> int | None:
        number = parameters.integer("message_thread_id")
        if not number:
            return None
        if chat.type == "supergroup" and not chat.is_forum and number in chat.messages:
            return None  # a chain of replies
        topic = chat.topics.get(number)
        if topic is None:
            raise bad_request("message thread not found")
        if topic.closed and chat.bot != "administrator":
            raise bad_request("TOPIC_CLOSED")
        return number

    @staticmethod
    def _reply(chat: Chat, parameters: Parameters) -> int | None:
        reply = parameters.nested("reply_parameters")
        if isinstance(reply, dict):
            number, optional = int(reply.get("message_id", 0)), bool(reply.get("allow_sending_without_reply"))
        else:
            number, optional = parameters.integer("reply_to_message_id"), parameters.flag("allow_sending_without_reply")
        if not number or number in chat.messages:
            return number or None
        if optional:
            return None
        raise bad_request("message to be replied not found")

    @staticmethod
    def _formatted(parameters: Parameters, name: str, entities: str) -> tuple[str, list[Entity]]:
        text = parameters.text(name).replace("\r", "")
        if mode := parameters.text("parse_mode"):
            return trimmed(*parsed(text, mode))
        given = parameters.nested(entities)
        return trimmed(text, [] if given is None else checked(text, given))

    @staticmethod
    def _markup(parameters: Parameters) -> Json:
        markup = parameters.nested("reply_markup")
        if markup is None:
            return {}
        if not isinstance(markup, dict):
            raise bad_request("object expected as reply markup")
        rows = markup.get("inline_keyboard")
        if rows is None:
            return {}
        if not isinstance(rows, list) or not all(isinstance(row, list) for row in rows):
            raise bad_request('can\'t parse InlineKeyboardMarkup: Field "inline_keyboard" must be an Array of Arrays')
        rows = [row for row in rows if row]
        for button in (button for row in rows for button in row):
            _check_button(button)
        return {"reply_markup": {"inline_keyboard": rows}} if rows else {}

    def _file(self, parameters: Parameters, name: str, folder: str) -> StoredFile:
        upload = parameters.upload(name)
        if upload is not None:
            if not upload.content:
                raise bad_request("file must be non-empty")
            if len(upload.content) > LARGEST_UPLOAD:
                raise ApiError(413, "Request Entity Too Large")
            return self._world.add_file(folder, upload.name, upload.content, upload.content_type)
        given = parameters.text(name)
        if not given:
            raise bad_request(f"there is no {name} in the request")
        if given.startswith(("http://", "https://")):
            raise bad_request("failed to get HTTP URL content")
        if given not in self._world.files:
            raise bad_request("wrong remote file identifier specified: Wrong string length")
        return self._world.files[given]


def _size_of_photo(file: StoredFile) -> tuple[int, int]:
    """Width and height, within the limits of photos."""
    if file.size > LARGEST_PHOTO:
        told = f"file of size {file.size} bytes is too big for a photo; the maximum size is {LARGEST_PHOTO} bytes"
        raise bad_request(told)
    try:
        with Image.open(io.BytesIO(file.content)) as image:
            width, height = image.size
    except (OSError, Image.DecompressionBombError):
        raise bad_request("IMAGE_PROCESS_FAILED") from None
    if width + height > LONGEST_SIDES or max(width, height) > MOST_OBLONG * min(width, height):
        raise bad_request("PHOTO_INVALID_DIMENSIONS")
    return width, height


def _check_button(button: Any) -> None:
    if not isinstance(button, dict) or not isinstance(button.get("text"), str):
        raise bad_request('can\'t parse inline keyboard button: Field "text" must be of type String')
    data = button.get("callback_data")
    if data is None and not button.get("url"):
        raise bad_request("can't parse inline keyboard button: Text buttons are unallowed in the inline keyboard")
    if not button["text"].strip() or (data is not None and not 1 <= len(data.encode()) <= 64):
        raise bad_request("BUTTON_DATA_INVALID")


def _check_webhook(url: str) -> None:
    """HTTPS on one of four ports; HTTP only to this machine, which the real server would refuse."""
    parts = urlsplit(url if "://" in url else f"https://{url}")
    local = parts.hostname in ("127.0.0.1", "localhost", "::1")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise bad_request("bad webhook: An HTTPS URL must be provided for webhook")
    if local:
        return
    if parts.scheme == "http":
        raise bad_request("bad webhook: An HTTPS URL must be provided for webhook")
    if (parts.port or 443) not in WEBHOOK_PORTS:
        raise bad_request("bad webhook: Webhook can be set up only on ports 80, 88, 443 or 8443")
