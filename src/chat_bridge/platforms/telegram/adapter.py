"""Telegram as a platform: a bot that fetches its updates by long polling, or is called by a webhook.

Formatting goes as entities beside the text, never as markup inside it, so that no answer can break a message.
Telegram has no key against sending twice: a send whose answer was lost says so.
"""

import asyncio
import hmac
import time
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Any, NoReturn
from urllib.parse import urlsplit, urlunsplit

from chat_bridge.model import Address, Attachment, EventKind, InboundEvent, Turn, TurnId, TurnOutcome
from chat_bridge.platforms.contract import (
    Capabilities,
    Deliver,
    Finding,
    MisconfiguredError,
    Moved,
    NotAuthenticError,
    NotReadyError,
    OutboundFile,
    OutboundPart,
    Platform,
    Refused,
    RefusedUs,
    RetryAfter,
    RetryLater,
    SendResult,
    Sent,
    Shown,
    UnreachableError,
    WebhookRequest,
)
from chat_bridge.platforms.rich_text import Rendered, Span, SpanKind, rich_parts, utf16_ranges
from chat_bridge.platforms.telegram.api import REFUSED, BotApi, BotApiError, CallRefusedError, fields, refuses_token
from chat_bridge.platforms.telegram.checks import check, host_of
from chat_bridge.platforms.telegram.files import DOCUMENT, LARGEST_FILE, download, form_of
from chat_bridge.platforms.telegram.parse import ALLOWED_UPDATES, Bot, parse_body
from chat_bridge.platforms.telegram.poll import poll
from chat_bridge.telemetry import log

NAME = "telegram"
WEBHOOK_PATH = "/webhooks/telegram"
PROOF_HEADER = "x-telegram-bot-api-secret-token"
COMMANDS: Mapping[str | None, Mapping[str, str]] = {
    None: {
        "new": "Start a new conversation",
        "stop": "Stop the answer I am writing",
        "status": "About this conversation",
        "help": "What I understand",
    },
    "vi": {
        "new": "Bắt đầu cuộc trò chuyện mới",
        "stop": "Dừng câu trả lời đang viết",
        "status": "Về cuộc trò chuyện này",
        "help": "Tôi hiểu những lệnh nào",
    },
}

MAX_TEXT = 4096
MOST_ENTITIES = 100
MOST_CALLBACK_BYTES = 64
MOST_CONNECTIONS = 100  # chats that Telegram tells of at once; within a chat it waits for each answer

CALL_SECONDS = 15.0
EXTRA_SECONDS = 5.0  # for calls that nothing depends on
UPLOAD_SECONDS = 100.0
TRY_SECONDS = (25.0, 6.0, 6.0, 6.0)  # a send and its simpler forms: under 45 s in all, for a refusal comes quickly
PRIVATE_PAUSE = 1.1
GROUP_PAUSE = 3.1  # 20 messages a minute are allowed
FAILED_PREVIEW_PAUSE = 10.0
NO_PREVIEW_PAUSE = 3600.0
DRAFT_SECONDS = 20.0  # Telegram forgets a draft after about 30
MOST_SHOWN = 10_000  # turns, and chats, of which something is remembered

_ENTITY_TYPES: Mapping[SpanKind, str] = {
    "bold": "bold",
    "italic": "italic",
    "underline": "underline",
    "strike": "strikethrough",
    "spoiler": "spoiler",
    "code": "code",
    "pre": "pre",
    "link": "text_link",
    "quote": "blockquote",
}


@dataclass(slots=True)
class _Showing:
    """What the user sees of a turn's answer. `lost`: whether a first message is there is not known."""

    content: Rendered | None = None
    shown_at: float = 0.0
    lost: bool = False


@dataclass(frozen=True, slots=True)
class _Form:
    """How a part is sent: `edit` as a change of the message that showed it, else as a new one."""

    edit: bool
    formatted: bool
    quote: bool


class Telegram(Platform):
    """The adapter for one bot. `polling` None: by webhook if `webhook_url` is set, else by polling. `wants_all`: it is
    to answer everything in groups, which the doctor looks at."""

    capabilities = Capabilities(
        name=NAME,
        max_text=MAX_TEXT,
        text_unit="utf16",
        coalesce_seconds=1.5,
        edits=True,
        min_edit_interval=PRIVATE_PAUSE,
        typing_seconds=4.0,
        buttons=True,
        files="part",
        groups=True,
        threads=True,
        webhook=True,
    )

    def __init__(
        self,
        *,
        token: str,
        api_base_url: str,
        webhook_url: str | None,
        webhook_secret: str | None,
        polling: bool | None,
        wants_all: bool = False,
    ) -> None:
        self.account = token.partition(":")[0]
        self.polls = webhook_url is None if polling is None else polling
        self._may_remove_webhook = polling is True
        self._wants_all = wants_all
        self._webhook_url = None if webhook_url is None else _with_path(webhook_url)
        self._secret = webhook_secret or _secret_of(token)
        self._api = BotApi(token, api_base_url)
        self._bot: Bot | None = None
        self._drafts = True
        self._showing: dict[TurnId, _Showing] = {}
        # By chat, on our clock: when it may hear from us at all again, of typing, and of another unfinished answer.
        self._quiet_until: dict[str, float] = {}
        self._hushed_until: dict[str, float] = {}
        self._paced_until: dict[str, float] = {}

    async def connect(self) -> None:
        """Learn who we are, and say how updates shall come."""
        try:
            self._bot = _bot(await self._api.call("getMe", {}, seconds=CALL_SECONDS))
            if self.polls:
                await self._leave_webhook()
            else:
                await self._set_webhook()
        except BotApiError as error:
            _raise_for(error)
        await self._set_commands()

    def events(self, request: WebhookRequest) -> Sequence[InboundEvent]:
        """The one update that Telegram sends in a request."""
        secret = request.headers.get(PROOF_HEADER, "").encode("utf-8", "surrogateescape")
        if not hmac.compare_digest(secret, self._secret.encode()):
            raise NotAuthenticError(f"the header {PROOF_HEADER} is not our secret")
        return [parse_body(request.body, self._known_bot())]

    async def poll(self, deliver: Deliver) -> None:
        """Fetch updates by long polling."""
        await poll(self._api, self._known_bot(), deliver)

    async def acknowledge(self, event: InboundEvent) -> None:
        """Stop the clock on a pressed button; in a private chat take the buttons away."""
        if event.kind is not EventKind.BUTTON:
            return
        if event.reply_handle is not None:
            await self._try("answerCallbackQuery", {"callback_query_id": event.reply_handle})
        if event.platform_message_id is not None and _is_private(event.address):
            chat = int(event.address.conversation)
            message = int(event.platform_message_id)
            await self._try("editMessageReplyMarkup", {"chat_id": chat, "message_id": message})

    def render(self, text: str) -> Sequence[Rendered]:
        """Parts of at most 4096 UTF-16 units and 100 spans."""
        return rich_parts(text, MAX_TEXT, "utf16", most_spans=MOST_ENTITIES)

    def download(self, attachment: Attachment) -> AsyncGenerator[bytes]:
        """The bytes of a file that somebody sent."""
        return download(self._api, attachment)

    async def send(self, part: OutboundPart) -> SendResult:
        """Send a part, or make a preview into it; in a simpler form if Telegram refuses the form only."""
        if wait := self._quiet_seconds(part.address):
            return RetryAfter(wait, "Telegram wants us to wait with this chat")
        self._pace(part.address)
        if part.file is not None:
            return await self._send_file(part, part.file)
        form = _Form(edit=part.replaces is not None, formatted=True, quote=True)
        for seconds in TRY_SECONDS:
            try:
                return await self._send(part, form, seconds)
            except BotApiError as error:
                simpler = _simpler(form, error)
                if simpler is None:
                    return self._result(part.address, error, edit=form.edit)
                form = simpler
        raise AssertionError("each simpler form gives one of three things up")

    async def show_typing(self, turn: Turn) -> None:
        """Typing, which Telegram shows for five seconds."""
        if self._quiet_seconds(turn.address) or _left(self._hushed_until, turn.address):
            return
        try:
            parameters = {**_place(turn.address), "action": "typing"}
            await self._api.call("sendChatAction", parameters, seconds=EXTRA_SECONDS)
        except BotApiError as error:
            log.debug("telegram.call_failed", method="sendChatAction", reason=str(error))
            if isinstance(error, CallRefusedError) and error.retry_after is not None:
                _until(self._hushed_until, turn.address, error.retry_after)

    async def show_partial(self, turn: Turn, text: str, preview: str | None) -> Shown:
        """The answer so far: in private chats as a draft, in groups as a message that changes. All turns of a chat
        share its pace."""
        pause = _pause_of(turn.address)
        if wait := self._quiet_seconds(turn.address):
            return Shown(preview, max(wait, pause), again=True)
        showing = self._showing_of(turn.id)
        if showing.lost:
            return Shown(preview, NO_PREVIEW_PAUSE)
        draws = preview is None and self._draws(turn.address)
        content = _beginning(text, last=draws)
        # A draft goes away by itself if it is not shown again.
        stale = draws and time.monotonic() - showing.shown_at > DRAFT_SECONDS
        if content is None or (content == showing.content and not stale):
            return Shown(preview, pause, again=draws)
        if wait := _left(self._paced_until, turn.address):
            return Shown(preview, wait, again=True)
        self._pace(turn.address)
        try:
            preview = await self._show(turn, content, preview)
        except BotApiError as error:
            return self._not_shown(turn, error, preview, pause)
        showing.content, showing.shown_at = content, time.monotonic()
        return Shown(preview, pause, again=draws)

    async def show_end(self, turn: Turn, outcome: TurnOutcome, text: str | None, preview: str | None) -> None:
        """Delete a preview that became no reply."""
        self._showing.pop(turn.id, None)
        if preview is not None:
            chat = int(turn.address.conversation)
            await self._try("deleteMessage", {"chat_id": chat, "message_id": int(preview)})

    async def check(self) -> Sequence[Finding]:
        """The token, how updates come, groups, and the clock. Changes nothing."""
        return await check(
            self._api,
            self._webhook_url,
            polls=self.polls,
            may_remove_webhook=self._may_remove_webhook,
            wants_all=self._wants_all,
        )

    def describe(self) -> str | None:
        """The link that opens a chat with the bot."""
        return f"https://t.me/{self._bot.username}" if self._bot is not None else None

    async def aclose(self) -> None:
        """Close the connections to Telegram."""
        await self._api.aclose()

    async def _leave_webhook(self) -> None:
        """Make sure that polling can work: Telegram refuses it while a webhook is set."""
        info = fields(await self._api.call("getWebhookInfo", {}, seconds=CALL_SECONDS))
        if not (url := str(info.get("url") or "")):
            return
        if not self._may_remove_webhook:
            raise MisconfiguredError(
                f"a webhook is set for this bot ({host_of(url)}): set TELEGRAM_POLLING=true to fetch by polling "
                "instead (this removes the webhook), or TELEGRAM_WEBHOOK_URL to take it over"
            )
        await self._api.call("deleteWebhook", {"drop_pending_updates": False}, seconds=CALL_SECONDS)
        log.info("telegram.webhook_removed", host=host_of(url))

    async def _set_webhook(self) -> None:
        if self._webhook_url is None:
            raise MisconfiguredError("TELEGRAM_POLLING is false, so set TELEGRAM_WEBHOOK_URL")
        parameters = {
            "url": self._webhook_url,
            "secret_token": self._secret,
            "allowed_updates": ALLOWED_UPDATES,
            "max_connections": MOST_CONNECTIONS,
        }
        try:
            await self._api.call("setWebhook", parameters, seconds=CALL_SECONDS)
        except CallRefusedError as error:
            if error.status != 400:
                raise
            raise MisconfiguredError(
                f"Telegram does not take TELEGRAM_WEBHOOK_URL: {error.description}. It must be an https URL that "
                "Telegram can reach, on port 443, 80, 88 or 8443"
            ) from None

    async def _set_commands(self) -> None:
        """The menu of commands; what the operator has set at @BotFather stays."""
        with suppress(BotApiError):
            if not await self._api.call("getMyCommands", {}, seconds=EXTRA_SECONDS):
                await asyncio.gather(*(self._try("setMyCommands", parameters) for parameters in _command_lists()))

    async def _send_file(self, part: OutboundPart, file: OutboundFile) -> SendResult:
        """Send a file as what it is, or as a document if Telegram does not take it as that."""
        if file.size > LARGEST_FILE:
            return Refused(f"the file has {file.size} bytes, and Telegram takes {LARGEST_FILE} from a bot")
        parameters = _place(part.address)
        if part.reply_to is not None:
            parameters["reply_parameters"] = _quote(part.reply_to)
        form = form_of(file)
        while True:
            try:
                sent = await self._api.upload(form.method, parameters, form.field, file, seconds=UPLOAD_SECONDS)
                return Sent(_message_id(sent))
            except BotApiError as error:
                if form == DOCUMENT or not _refuses_form(error):
                    return self._result(part.address, error)
                log.info("telegram.file_as_document", method=form.method, reason=str(error))
                form = DOCUMENT

    async def _send(self, part: OutboundPart, form: _Form, seconds: float) -> Sent:
        parameters = _body(part.content if form.formatted else Rendered(part.content.text))
        if keyboard := _keyboard(part):
            parameters["reply_markup"] = keyboard
        if form.edit:
            parameters |= {"chat_id": int(part.address.conversation), "message_id": int(part.replaces or "")}
            try:
                await self._api.call("editMessageText", parameters, seconds=seconds)
            except CallRefusedError as error:
                if not error.says("not modified"):
                    raise
                return Sent(part.replaces or "", duplicate=True)
            return Sent(part.replaces or "")
        parameters |= _place(part.address)
        if form.quote and part.reply_to is not None:
            parameters["reply_parameters"] = _quote(part.reply_to)
        return Sent(_message_id(await self._api.call("sendMessage", parameters, seconds=seconds)))

    def _result(self, address: Address, error: BotApiError, *, edit: bool = False) -> SendResult:
        """What a failed send means for the delivery."""
        if not isinstance(error, CallRefusedError):
            return RetryLater(str(error), maybe_sent=error.maybe_done and not edit)
        if error.migrate_to_chat_id is not None:
            return Moved(str(error.migrate_to_chat_id))
        if error.retry_after is not None:
            self._keep_quiet(address, error.retry_after)
            return RetryAfter(error.retry_after, str(error))
        if refuses_token(error):
            return RefusedUs(REFUSED)
        # Blocked, removed, deleted: no message can arrive any more. A missing right or a closed topic is only this
        # part's end, because an admin may give it back without the chat noticing.
        gone = error.says("chat not found", "thread not found", "topic_deleted", "peer_id_invalid", "was deactivated")
        return Refused(str(error), scope="conversation" if gone or _is_barred(error) else "part")

    async def _show(self, turn: Turn, content: Rendered, preview: str | None) -> str | None:
        """Show a text by one call; gives the id of the message that shows it, if one does."""
        if preview is not None:
            parameters = {**_body(content), "chat_id": int(turn.address.conversation), "message_id": int(preview)}
            await self._api.call("editMessageText", parameters, seconds=CALL_SECONDS)
            return preview
        if self._draws(turn.address):
            # Non-zero, below 2^31, and the same for the whole turn: one draft that changes.
            draft = {**_place(turn.address), **_text(content), "draft_id": turn.id.int & 0x7FFF_FFFF or 1}
            await self._api.call("sendMessageDraft", draft, seconds=CALL_SECONDS)
            return None
        parameters = {**_place(turn.address), **_body(content)}
        asked = turn.messages[-1].platform_message_id
        if asked is not None and not _is_private(turn.address):
            parameters["reply_parameters"] = _quote(asked)
        return _message_id(await self._api.call("sendMessage", parameters, seconds=CALL_SECONDS))

    def _not_shown(self, turn: Turn, error: BotApiError, preview: str | None, pause: float) -> Shown:
        """A preview failed: nothing is lost, the reply will come as a whole. What may pass is tried `again`."""
        log.debug("telegram.not_shown", turn=str(turn.id), reason=str(error))
        drafted = preview is None and self._draws(turn.address)
        if not isinstance(error, CallRefusedError):
            if error.maybe_done and preview is None and not drafted:
                # Another message might be a second one, and nobody would take the first away.
                self._showing_of(turn.id).lost = True
                return Shown(None, NO_PREVIEW_PAUSE)
            return Shown(preview, FAILED_PREVIEW_PAUSE, again=True)
        if error.retry_after is not None:
            self._keep_quiet(turn.address, error.retry_after)
            return Shown(preview, error.retry_after, again=True)
        if drafted and (error.status == 404 or (error.status == 400 and error.says("draft", "method"))):
            log.info("telegram.no_drafts", reason=str(error))
            self._drafts = False
            return Shown(preview, pause, again=True)
        if error.says("message is not modified"):
            return Shown(preview, pause)
        if _is_not_editable(error):
            self._showing_of(turn.id).content = None
            return Shown(None, pause, again=True)
        return Shown(preview, FAILED_PREVIEW_PAUSE)

    def _draws(self, address: Address) -> bool:
        """Whether unfinished answers are drafts here, which need no message."""
        return self._drafts and _is_private(address)

    def _showing_of(self, turn: TurnId) -> _Showing:
        if turn not in self._showing:
            _make_room(self._showing)
            self._showing[turn] = _Showing()
        return self._showing[turn]

    def _keep_quiet(self, address: Address, seconds: float) -> None:
        _until(self._quiet_until, address, seconds)

    def _quiet_seconds(self, address: Address) -> float:
        """How long Telegram wants no call for this chat, 0 if it takes them."""
        return _left(self._quiet_until, address)

    def _pace(self, address: Address) -> None:
        """Something is sent: the next unfinished answer in this chat has to wait."""
        _until(self._paced_until, address, _pause_of(address))

    async def _try(self, method: str, parameters: Mapping[str, Any]) -> None:
        """A call that nothing depends on."""
        try:
            await self._api.call(method, parameters, seconds=EXTRA_SECONDS)
        except BotApiError as error:
            log.debug("telegram.call_failed", method=method, reason=str(error))

    def _known_bot(self) -> Bot:
        if self._bot is None:
            raise NotReadyError("Telegram has not been reached since the start")
        return self._bot


def _raise_for(error: BotApiError) -> NoReturn:
    if refuses_token(error):
        raise MisconfiguredError(REFUSED) from None
    raise UnreachableError(str(error)) from None


def _is_barred(error: CallRefusedError) -> bool:
    """Blocked, kicked, left, deactivated; but not a mere lack of rights."""
    return error.status == 403 and not error.says("rights")


def _is_not_editable(error: CallRefusedError) -> bool:
    return error.says("message to edit not found", "message can't be edited", "message_id_invalid")


def _refuses_form(error: BotApiError) -> bool:
    """Whether another form of the same file may be taken. If it was not about the form, the same answer comes again."""
    return isinstance(error, CallRefusedError) and error.status in (400, 413) and error.migrate_to_chat_id is None


def _simpler(form: _Form, error: BotApiError) -> _Form | None:
    """The form to try next, if Telegram's no was about the form. Each gives something up, so there are few."""
    if not isinstance(error, CallRefusedError) or error.status != 400:
        return None
    if form.edit and _is_not_editable(error):
        return replace(form, edit=False)
    if form.formatted and error.says("can't parse entities", "entity", "entities"):
        return replace(form, formatted=False)
    if not form.edit and form.quote and error.says("replied not found", "reply message not found"):
        return replace(form, quote=False)
    return None


def _body(content: Rendered) -> dict[str, Any]:
    """What a message says. An answer full of links must not become one of pictures."""
    return {**_text(content), "link_preview_options": {"is_disabled": True}}


def _text(content: Rendered) -> dict[str, Any]:
    spans = zip(content.spans, utf16_ranges(content), strict=True)
    entities = [_entity(span, offset, length) for span, (offset, length) in spans]
    return {"text": content.text, **({"entities": entities} if entities else {})}


def _entity(span: Span, offset: int, length: int) -> dict[str, Any]:
    entity: dict[str, Any] = {"type": _ENTITY_TYPES[span.kind], "offset": offset, "length": length}
    if span.argument is not None and span.kind in ("link", "pre"):
        entity["url" if span.kind == "link" else "language"] = span.argument
    return entity


def _place(address: Address) -> dict[str, Any]:
    """Where a new message goes: a chat, or a topic in it. A forum's General topic is the chat itself."""
    topic = {"message_thread_id": int(address.thread)} if address.thread else {}
    return {"chat_id": int(address.conversation), **topic}


def _quote(message: str) -> dict[str, Any]:
    return {"message_id": int(message), "allow_sending_without_reply": True}


def _keyboard(part: OutboundPart) -> dict[str, Any] | None:
    """One button a row, as their labels may be long. One that Telegram would refuse is left out: the text matters."""
    fitting = [button for button in part.buttons if 0 < len(button.value.encode()) <= MOST_CALLBACK_BYTES]
    if len(fitting) < len(part.buttons):
        log.warning("telegram.button_left_out", message=str(part.message_id), reason="its value is over 64 bytes")
    if not fitting:
        return None
    return {"inline_keyboard": [[{"text": button.label, "callback_data": button.value}] for button in fitting]}


def _message_id(result: object) -> str:
    found = fields(result).get("message_id")
    if not isinstance(found, int):
        raise BotApiError("Telegram took a message and did not name it", maybe_done=True)
    return str(found)


def _bot(me: object) -> Bot:
    found, username = fields(me).get("id"), fields(me).get("username")
    if not isinstance(found, int) or not isinstance(username, str):
        raise MisconfiguredError("what answers is not the Bot API: correct TELEGRAM_API_BASE_URL")
    return Bot(str(found), username)


def _command_lists() -> Iterator[Mapping[str, Any]]:
    """The menu of commands, for everybody and in other languages."""
    for language, commands in COMMANDS.items():
        listed = [{"command": name, "description": text} for name, text in commands.items()]
        yield {"commands": listed} if language is None else {"commands": listed, "language_code": language}


def _is_private(address: Address) -> bool:
    """Groups and channels have negative ids."""
    return not address.conversation.startswith("-")


def _pause_of(address: Address) -> float:
    return PRIVATE_PAUSE if _is_private(address) else GROUP_PAUSE


def _until(times: dict[str, float], address: Address, seconds: float) -> None:
    _make_room(times)
    times[address.conversation] = time.monotonic() + seconds


def _left(times: dict[str, float], address: Address) -> float:
    """The seconds until the time that is noted for this chat; 0 if it is over."""
    left = times.get(address.conversation, 0.0) - time.monotonic()
    if left > 0:
        return left
    times.pop(address.conversation, None)
    return 0.0


def _beginning(text: str, *, last: bool) -> Rendered | None:
    """What one message can show of an unfinished answer: its first part, or the `last` one of what is looked at. A
    little more than a part's worth of source is enough, and a long answer is rendered again and again."""
    if last and len(text) > MAX_TEXT:
        tail = text[-MAX_TEXT:]
        # From the beginning of a line, if there is one soon enough that much is left.
        text = tail[tail.find("\n", 0, MAX_TEXT // 2) + 1 :]
    parts = rich_parts(text[: 2 * MAX_TEXT], MAX_TEXT, "utf16", most_spans=MOST_ENTITIES)
    return parts[-1 if last else 0] if parts else None


def _make_room(remembered: dict[Any, Any]) -> None:
    while len(remembered) >= MOST_SHOWN:
        del remembered[next(iter(remembered))]


def _secret_of(token: str) -> str:
    """The same for all processes with this token, and nothing of the token can be learnt from it."""
    return hmac.digest(token.encode(), b"chat-bridge webhook secret", sha256).hex()


def _with_path(url: str) -> str:
    parts = urlsplit(url)
    return urlunsplit(parts._replace(path=WEBHOOK_PATH)) if parts.path in ("", "/") else url
