"""Telegram as a platform: a bot that fetches its updates by long polling, or is called by a webhook.

Formatting goes as entities beside the text, never as markup inside it, so that no answer can break a message.
Telegram has no key against sending twice: a send whose answer was lost says so.
"""

import asyncio
import hmac
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Any, NoReturn, cast
from urllib.parse import urlsplit, urlunsplit

from chat_bridge.errors import StorageError
from chat_bridge.model import Address, EventKind, InboundEvent, Turn, TurnId, TurnOutcome
from chat_bridge.platforms.contract import (
    Capabilities,
    Deliver,
    Finding,
    Misconfigured,
    Moved,
    NotAuthentic,
    NotReady,
    OutboundPart,
    Platform,
    Refused,
    RefusedUs,
    RetryAfter,
    RetryLater,
    SendResult,
    Sent,
    Shown,
    Unreachable,
    WebhookRequest,
)
from chat_bridge.platforms.rich_text import Rendered, Span, SpanKind, rich_parts, utf16_ranges
from chat_bridge.platforms.telegram.api import BotApi, BotApiError, CallRefused
from chat_bridge.platforms.telegram.parse import Bot, parse, parse_body
from chat_bridge.telemetry import log

NAME = "telegram"
WEBHOOK_PATH = "/webhooks/telegram"
SECRET_HEADER = "x-telegram-bot-api-secret-token"  # noqa: S105 - the header's name
ALLOWED_UPDATES = [
    "message",
    "edited_message",
    "callback_query",
    "my_chat_member",
    "message_reaction",
    "channel_post",
]
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
TRY_SECONDS = (25.0, 6.0, 6.0, 6.0)  # a send and its simpler forms: under 45 s in all, for a refusal comes quickly
POLL_SECONDS = 50  # how long Telegram holds a call when there is nothing new; it allows no more
POLL_ANSWER_SECONDS = 10.0

# The first and the longest pause of the poll after a failure
UNREACHABLE_PAUSES = (1.0, 30.0)
CONFLICT_PAUSES = (3.0, 30.0)
NOT_STORED_PAUSES = (1.0, 30.0)
REFUSED_TOKEN_PAUSES = (60.0, 60.0)

PRIVATE_PAUSE = 1.1
GROUP_PAUSE = 3.1  # 20 messages a minute are allowed
FAILED_PREVIEW_PAUSE = 10.0
NO_PREVIEW_PAUSE = 3600.0
MOST_SHOWN = 10_000  # turns, and chats, of which something is remembered

REFUSED_TOKEN = "Telegram refuses TELEGRAM_BOT_TOKEN: copy it again from @BotFather"  # noqa: S105 - a text
CLOCK_SECONDS = 30.0
RECENT_SECONDS = 3600.0

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
    lost: bool = False


@dataclass(frozen=True, slots=True)
class _Form:
    """How a part is sent: `edit` as a change of the message that showed it, else as a new one."""

    edit: bool
    formatted: bool
    quote: bool


class Telegram(Platform):
    """The adapter for one bot. `polling` None: by webhook if `webhook_url` is set, else by polling."""

    capabilities = Capabilities(
        name=NAME,
        max_text=MAX_TEXT,
        text_unit="utf16",
        coalesce_seconds=1.5,
        edits=True,
        min_edit_interval=PRIVATE_PAUSE,
        typing_seconds=4.0,
        buttons=True,
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
    ) -> None:
        self.account = token.partition(":")[0]
        self.polls = webhook_url is None if polling is None else polling
        self._may_remove_webhook = polling is True
        self._webhook_url = None if webhook_url is None else _with_path(webhook_url)
        self._secret = webhook_secret or _secret_of(token)
        self._api = BotApi(token, api_base_url)
        self._bot: Bot | None = None
        self._drafts = True
        self._showing: dict[TurnId, _Showing] = {}
        self._quiet_until: dict[str, float] = {}

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
        secret = request.headers.get(SECRET_HEADER, "").encode("utf-8", "surrogateescape")
        if not hmac.compare_digest(secret, self._secret.encode()):
            raise NotAuthentic(f"the header {SECRET_HEADER} is not our secret")
        return [parse_body(request.body, self._known_bot())]

    async def poll(self, deliver: Deliver) -> None:
        """Fetch updates by long polling. Asking for the next ones is what makes Telegram forget the ones before."""
        bot = self._known_bot()
        pauses = _Pauses()
        offset: int | None = None
        while True:
            try:
                updates = await self._updates(offset)
            except BotApiError as error:
                if isinstance(error, CallRefused) and error.status == 400:
                    offset = None  # it is not one of Telegram's: begin with whatever waits
                await asyncio.sleep(pauses.after(error))
                continue
            pauses.reached()
            try:
                if updates:
                    await deliver([parse(update, bot) for update in updates])
            except StorageError:
                await asyncio.sleep(pauses.not_stored(len(updates)))
                continue
            pauses.stored()
            # After nothing, all before is confirmed; and ids begin anew after a quiet week, so the old end must go.
            offset = _after(updates)
            if updates and offset is None:
                await asyncio.sleep(pauses.unnumbered())

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

    async def send(self, part: OutboundPart) -> SendResult:
        """Send a part, or make a preview into it; in a simpler form if Telegram refuses the form only."""
        if wait := self._quiet_seconds(part.address):
            return RetryAfter(wait, "Telegram wants us to wait with this chat")
        form = _Form(edit=part.replaces is not None, formatted=True, quote=True)
        for seconds in TRY_SECONDS:
            try:
                return await self._send(part, form, seconds)
            except BotApiError as error:
                simpler = _simpler(form, error)
                if simpler is None:
                    return self._result(part.address, error)
                form = simpler
        raise AssertionError("each simpler form gives one of three things up")

    async def show_typing(self, turn: Turn) -> None:
        """Typing, which Telegram shows for five seconds."""
        if not self._quiet_seconds(turn.address):
            await self._try("sendChatAction", {**_place(turn.address), "action": "typing"})

    async def show_partial(self, turn: Turn, text: str, preview: str | None) -> Shown:
        """The first part of the answer so far: in private chats as a draft, in groups as a message that changes."""
        pause = PRIVATE_PAUSE if _is_private(turn.address) else GROUP_PAUSE
        if wait := self._quiet_seconds(turn.address):
            return Shown(preview, max(wait, pause))
        showing = self._showing_of(turn.id)
        if showing.lost:
            return Shown(preview, NO_PREVIEW_PAUSE)
        content = next(iter(self.render(text)), None)
        if content is None or not content.text.strip() or content == showing.content:
            return Shown(preview, pause)
        try:
            preview = await self._show(turn, content, preview)
        except BotApiError as error:
            return self._not_shown(turn, error, preview, pause)
        showing.content = content
        return Shown(preview, pause)

    async def show_end(self, turn: Turn, outcome: TurnOutcome, text: str | None, preview: str | None) -> None:
        """Delete a preview that became no reply."""
        self._showing.pop(turn.id, None)
        if preview is not None:
            chat = int(turn.address.conversation)
            await self._try("deleteMessage", {"chat_id": chat, "message_id": int(preview)})

    async def check(self) -> Sequence[Finding]:
        """The token, how updates come, groups, and the clock. Changes nothing."""
        try:
            me = _fields(await self._api.call("getMe", {}, seconds=CALL_SECONDS))
            webhook = _fields(await self._api.call("getWebhookInfo", {}, seconds=CALL_SECONDS))
        except BotApiError as error:
            if _refuses_token(error):
                return [Finding("telegram token", "problem", REFUSED_TOKEN)]
            return [
                Finding(
                    "telegram connection", "problem", f"{error}. Look at the network, and at TELEGRAM_API_BASE_URL."
                )
            ]
        return [
            Finding("telegram token", "ok", f"It belongs to the bot @{me.get('username')} (id {me.get('id')})."),
            self._check_webhook(str(webhook.get("url") or "")),
            *self._check_flow(webhook),
            _check_groups(me),
            *_check_clock(self._api.clock_ahead),
        ]

    def describe(self) -> str | None:
        """The link that opens a chat with the bot."""
        return f"https://t.me/{self._bot.username}" if self._bot is not None else None

    async def aclose(self) -> None:
        """Close the connections to Telegram."""
        await self._api.aclose()

    async def _leave_webhook(self) -> None:
        """Make sure that polling can work: Telegram refuses it while a webhook is set."""
        info = _fields(await self._api.call("getWebhookInfo", {}, seconds=CALL_SECONDS))
        if not (url := str(info.get("url") or "")):
            return
        if not self._may_remove_webhook:
            raise Misconfigured(
                f"a webhook is set for this bot ({_host(url)}): set TELEGRAM_POLLING=true to fetch by polling instead "
                "(this removes the webhook), or TELEGRAM_WEBHOOK_URL to take it over"
            )
        await self._api.call("deleteWebhook", {"drop_pending_updates": False}, seconds=CALL_SECONDS)
        log.info("telegram.webhook_removed", host=_host(url))

    async def _set_webhook(self) -> None:
        if self._webhook_url is None:
            raise Misconfigured("TELEGRAM_POLLING is false, so set TELEGRAM_WEBHOOK_URL")
        parameters = {
            "url": self._webhook_url,
            "secret_token": self._secret,
            "allowed_updates": ALLOWED_UPDATES,
            "max_connections": MOST_CONNECTIONS,
        }
        try:
            await self._api.call("setWebhook", parameters, seconds=CALL_SECONDS)
        except CallRefused as error:
            if error.status != 400:
                raise
            raise Misconfigured(
                f"Telegram does not take TELEGRAM_WEBHOOK_URL: {error.description}. It must be an https URL that "
                "Telegram can reach, on port 443, 80, 88 or 8443"
            ) from None

    async def _set_commands(self) -> None:
        await asyncio.gather(*(self._try("setMyCommands", parameters) for parameters in _command_lists()))

    async def _updates(self, offset: int | None) -> list[Any]:
        parameters: dict[str, Any] = {"timeout": POLL_SECONDS, "limit": 100, "allowed_updates": ALLOWED_UPDATES}
        if offset is not None:
            parameters["offset"] = offset
        found = await self._api.call("getUpdates", parameters, seconds=POLL_SECONDS + POLL_ANSWER_SECONDS)
        return cast("list[Any]", found) if isinstance(found, list) else []

    async def _send(self, part: OutboundPart, form: _Form, seconds: float) -> Sent:
        parameters = _body(part.content if form.formatted else Rendered(part.content.text))
        if keyboard := _keyboard(part):
            parameters["reply_markup"] = keyboard
        if form.edit:
            parameters |= {"chat_id": int(part.address.conversation), "message_id": int(part.replaces or "")}
            try:
                await self._api.call("editMessageText", parameters, seconds=seconds)
            except CallRefused as error:
                if not error.says("not modified"):
                    raise
                return Sent(part.replaces or "", duplicate=True)
            return Sent(part.replaces or "")
        parameters |= _place(part.address)
        if form.quote and part.reply_to is not None:
            parameters["reply_parameters"] = _quote(part.reply_to)
        return Sent(_message_id(await self._api.call("sendMessage", parameters, seconds=seconds)))

    def _result(self, address: Address, error: BotApiError) -> SendResult:
        """What a failed send means for the delivery."""
        if not isinstance(error, CallRefused):
            return RetryLater(str(error), maybe_sent=error.maybe_done)
        if error.migrate_to_chat_id is not None:
            return Moved(str(error.migrate_to_chat_id))
        if error.retry_after is not None:
            self._keep_quiet(address, error.retry_after)
            return RetryAfter(error.retry_after, str(error))
        if _refuses_token(error):
            return RefusedUs(REFUSED_TOKEN)
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
        """A preview failed: nothing is lost, the reply will come as a whole."""
        log.debug("telegram.not_shown", turn=str(turn.id), reason=str(error))
        drafted = preview is None and self._draws(turn.address)
        if not isinstance(error, CallRefused):
            if error.maybe_done and preview is None and not drafted:
                # Another message might be a second one, and nobody would take the first away.
                self._showing_of(turn.id).lost = True
                return Shown(None, NO_PREVIEW_PAUSE)
            return Shown(preview, FAILED_PREVIEW_PAUSE)
        if error.retry_after is not None:
            self._keep_quiet(turn.address, error.retry_after)
            return Shown(preview, error.retry_after)
        if drafted and (error.status == 404 or (error.status == 400 and error.says("draft", "method"))):
            log.info("telegram.no_drafts", reason=str(error))
            self._drafts = False
            return Shown(preview, pause)
        if error.says("message is not modified"):
            return Shown(preview, pause)
        if _is_not_editable(error):
            self._showing_of(turn.id).content = None
            return Shown(None, pause)
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
        _make_room(self._quiet_until)
        self._quiet_until[address.conversation] = time.monotonic() + seconds

    def _quiet_seconds(self, address: Address) -> float:
        """How long Telegram wants no call for this chat, 0 if it takes them."""
        until = self._quiet_until.get(address.conversation, 0.0)
        left = until - time.monotonic()
        if left > 0:
            return left
        self._quiet_until.pop(address.conversation, None)
        return 0.0

    async def _try(self, method: str, parameters: Mapping[str, Any]) -> None:
        """A call that nothing depends on."""
        try:
            await self._api.call(method, parameters, seconds=EXTRA_SECONDS)
        except BotApiError as error:
            log.debug("telegram.call_failed", method=method, reason=str(error))

    def _known_bot(self) -> Bot:
        if self._bot is None:
            raise NotReady("Telegram has not been reached since the start")
        return self._bot

    def _check_webhook(self, url: str) -> Finding:
        if self.polls:
            if not url:
                return Finding("telegram updates", "ok", "They are fetched by polling.")
            if self._may_remove_webhook:
                return Finding(
                    "telegram updates",
                    "warning",
                    f"A webhook is set ({_host(url)}); the bridge removes it at its start.",
                )
            return Finding(
                "telegram updates",
                "problem",
                f"A webhook is set ({_host(url)}), so polling can't work. Set TELEGRAM_POLLING=true to remove it, or "
                "TELEGRAM_WEBHOOK_URL to take it over.",
            )
        if url and url == self._webhook_url:
            return Finding("telegram updates", "ok", f"They are sent to our webhook at {_host(url)}.")
        where = f"They go elsewhere ({_host(url)})" if url else "No webhook is set"
        return Finding("telegram updates", "problem", f"{where}. Start the bridge: it sets TELEGRAM_WEBHOOK_URL.")

    def _check_flow(self, webhook: Mapping[str, Any]) -> Sequence[Finding]:
        """What waits at Telegram, what failed lately, and which kinds of updates come."""
        findings: list[Finding] = []
        waiting = webhook.get("pending_update_count")
        if waiting:
            findings.append(Finding("telegram updates", "ok", f"{waiting} wait at Telegram; it keeps them for a day."))
        if self.polls:
            return findings
        age = time.time() - float(webhook.get("last_error_date") or 0)
        if age < RECENT_SECONDS:
            said = f"{_ago(age)}, Telegram could not deliver: {webhook.get('last_error_message')}."
            hint = "See that TELEGRAM_WEBHOOK_URL leads to the bridge."
            findings.append(Finding("telegram updates", "warning", f"{said} {hint}"))
        missing = sorted(set(ALLOWED_UPDATES) - set(webhook.get("allowed_updates") or ()))
        if webhook.get("url") == self._webhook_url and missing:
            text = f"Telegram does not send {', '.join(missing)}. Restart the bridge: it asks for them."
            findings.append(Finding("telegram updates", "warning", text))
        return findings


class _Pauses:
    """How long the poll waits after each failure, and one line of log for each streak of a kind."""

    def __init__(self) -> None:
        self._kind = ""
        self._failures = 0
        self._not_stored = 0

    def reached(self) -> None:
        """Telegram has answered."""
        if self._kind:
            log.info("telegram.reached")
        self._kind, self._failures = "", 0

    def stored(self) -> None:
        """The updates are stored."""
        self._not_stored = 0

    def unnumbered(self) -> float:
        """The seconds to wait after updates without ids, which can't be confirmed and come again."""
        return UNREACHABLE_PAUSES[0]

    def not_stored(self, updates: int) -> float:
        """The seconds to wait when updates could not be stored."""
        self._not_stored += 1
        seconds = _pause(NOT_STORED_PAUSES, self._not_stored)
        log.warning("telegram.not_stored", updates=updates, wait_seconds=round(seconds, 1))
        return seconds

    def after(self, error: BotApiError) -> float:
        """The seconds to wait when a call failed."""
        kind, bounds = _kind_of(error)
        began = kind != self._kind
        self._kind, self._failures = kind, 1 if began else self._failures + 1
        if began:
            tell = log.error if kind == "telegram.refused_token" else log.warning
            tell(kind, reason=_explained(error))
        seconds = _pause(bounds, self._failures)
        retry_after = error.retry_after if isinstance(error, CallRefused) else None
        return seconds if retry_after is None else max(seconds, retry_after)


def _kind_of(error: BotApiError) -> tuple[str, tuple[float, float]]:
    """The name of a failure in the log, and how long to wait after it."""
    if isinstance(error, CallRefused) and error.status == 409:
        return "telegram.conflict", CONFLICT_PAUSES
    if _refuses_token(error):
        return "telegram.refused_token", REFUSED_TOKEN_PAUSES
    return "telegram.unreachable", UNREACHABLE_PAUSES


def _explained(error: BotApiError) -> str:
    if _refuses_token(error):
        return REFUSED_TOKEN
    if not isinstance(error, CallRefused) or error.status != 409:
        return str(error)
    if error.says("webhook"):
        return (
            "somebody has set a webhook for this bot, so Telegram refuses polling: remove it by starting the bridge "
            "with TELEGRAM_POLLING=true, or set TELEGRAM_WEBHOOK_URL to use one"
        )
    return (
        "another program fetches the updates of this bot with the same token: stop it, or give each program a bot of "
        "its own"
    )


def _pause(bounds: tuple[float, float], failures: int) -> float:
    """Twice as long each time, within bounds, and spread so that many don't come back at once."""
    first, most = bounds
    wanted = min(most, first * 2.0 ** min(failures - 1, 20))
    return max(first, random.uniform(0.5, 1.0) * wanted)  # noqa: S311 - only spreads


def _after(updates: Sequence[Any]) -> int | None:
    """The offset that confirms these."""
    ids = [_fields(update).get("update_id") for update in updates]
    return max((found + 1 for found in ids if isinstance(found, int)), default=None)


def _raise_for(error: BotApiError) -> NoReturn:
    if _refuses_token(error):
        raise Misconfigured(REFUSED_TOKEN) from None
    raise Unreachable(str(error)) from None


def _refuses_token(error: BotApiError) -> bool:
    """Telegram answers 404 for what is no token at all."""
    return isinstance(error, CallRefused) and error.status in (401, 404)


def _is_barred(error: CallRefused) -> bool:
    """Blocked, kicked, left, deactivated; but not a mere lack of rights."""
    return error.status == 403 and not error.says("rights")


def _is_not_editable(error: CallRefused) -> bool:
    return error.says("message to edit not found", "message can't be edited", "message_id_invalid")


def _simpler(form: _Form, error: BotApiError) -> _Form | None:
    """The form to try next, if Telegram's no was about the form. Each gives something up, so there are few."""
    if not isinstance(error, CallRefused) or error.status != 400:
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
    found = _fields(result).get("message_id")
    if not isinstance(found, int):
        raise BotApiError("Telegram took a message and did not name it", maybe_done=True)
    return str(found)


def _bot(me: object) -> Bot:
    fields = _fields(me)
    found, username = fields.get("id"), fields.get("username")
    if not isinstance(found, int) or not isinstance(username, str):
        raise Misconfigured("what answers is not the Bot API: correct TELEGRAM_API_BASE_URL")
    return Bot(str(found), username)


def _command_lists() -> Iterator[Mapping[str, Any]]:
    """The menu of commands, for everybody and in other languages."""
    for language, commands in COMMANDS.items():
        listed = [{"command": name, "description": text} for name, text in commands.items()]
        yield {"commands": listed} if language is None else {"commands": listed, "language_code": language}


def _fields(value: object) -> dict[str, Any]:
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def _is_private(address: Address) -> bool:
    """Groups and channels have negative ids."""
    return not address.conversation.startswith("-")


def _make_room(remembered: dict[Any, Any]) -> None:
    while len(remembered) >= MOST_SHOWN:
        del remembered[next(iter(remembered))]


def _secret_of(token: str) -> str:
    """The same for all processes with this token, and nothing of the token can be learnt from it."""
    return hmac.digest(token.encode(), b"chat-bridge webhook secret", sha256).hex()


def _with_path(url: str) -> str:
    parts = urlsplit(url)
    return urlunsplit(parts._replace(path=WEBHOOK_PATH)) if parts.path in ("", "/") else url


def _host(url: str) -> str:
    """Paths and queries of webhooks often hold secrets."""
    return urlsplit(url).hostname or "an unreadable address"


def _check_groups(me: Mapping[str, Any]) -> Finding:
    if me.get("can_join_groups") is False:
        text = "It can't be added to groups. To change that: /setjoingroups in @BotFather."
    elif me.get("can_read_all_group_messages"):
        text = "It sees every message; it answers those that address it. To change that: /setprivacy in @BotFather."
    else:
        text = (
            "It sees only what Telegram takes as meant for it, such as commands and replies to it (privacy mode). To "
            "let it see all: /setprivacy in @BotFather, then remove it from each group and add it again."
        )
    return Finding("telegram groups", "ok", text)


def _check_clock(ahead: float | None) -> Sequence[Finding]:
    if ahead is None:
        return ()
    if abs(ahead) <= CLOCK_SECONDS:
        return (Finding("telegram clock", "ok", "It agrees with Telegram's."),)
    behind = "behind" if ahead > 0 else "ahead of"
    text = f"It is {abs(round(ahead))} s {behind} Telegram's. Switch on time synchronisation (NTP) on this machine."
    return (Finding("telegram clock", "warning", text),)


def _ago(seconds: float) -> str:
    return f"{round(seconds / 60)} minutes ago" if seconds >= 90 else "A moment ago"
