"""Web chat: the page, and the protocol of docs/web-chat.md that it and other clients speak."""

import json
import re
import time
from collections.abc import AsyncGenerator, Sequence
from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID, uuid4

from fastapi import APIRouter, Header, Query, Request, Response
from fastapi.responses import HTMLResponse
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints
from sse_starlette import EventSourceResponse, ServerSentEvent
from sse_starlette.sse import SendTimeoutError
from starlette.types import Receive, Scope, Send

from chat_bridge.errors import StorageError
from chat_bridge.model import (
    Attachment,
    AttachmentId,
    ConversationId,
    InboundEvent,
    ReceiveStatus,
    Seq,
    StoredMessage,
    User,
)
from chat_bridge.platforms import webchat
from chat_bridge.storage.messages import inbound_key
from chat_bridge.storage.redis import SlowReaderError
from chat_bridge.storage.text import storable
from chat_bridge.telemetry import STREAMS, log
from chat_bridge.web import uploads
from chat_bridge.web.attachments import AttachmentView, files_of, known_files, view
from chat_bridge.web.auth import (
    ApiClient,
    Caller,
    ConversationPath,
    Used,
    Visitor,
    limit_address,
    limit_sending,
    visitor_token,
)
from chat_bridge.web.page_texts import PAGE_TEXTS
from chat_bridge.web.pages import page
from chat_bridge.web.problems import Problem, problem_responses

MAX_SEQ = 2**63 - 1
HEARTBEAT_SECONDS = 15
MOST_ATTACHMENTS = 10
SEND_SECONDS = 30  # a reader that takes nothing for this long is cut off

USED_BEFORE = "This client_msg_id was used before with another text or other files: give every message its own."

EVENT_STREAM: dict[int | str, dict[str, Any]] = {
    200: {
        "content": {"text/event-stream": {}},
        "description": "Events: message, attachment, delta, typing, erased, error",
    }
}

router = APIRouter(tags=["chat"])
pages = APIRouter(include_in_schema=False)

# JSON can hold half a surrogate pair, which is no text; like U+0000 it is kept as U+FFFD.
Storable = BeforeValidator(lambda value: storable(value) if isinstance(value, str) else value)
NOT_BLANK: dict[str, Any] = {"minLength": 1, "pattern": r"\S"}  # for the OpenAPI document
ShortText = Annotated[
    str,
    StringConstraints(min_length=1, max_length=200, strip_whitespace=True),
    Field(json_schema_extra=NOT_BLANK),
    Storable,
]


class Conversation(BaseModel):
    """A new conversation and the key to it."""

    conversation: str
    token: str


class Sender(BaseModel):
    """Who wrote a message."""

    id: str
    name: str | None = None


class ChatUser(BaseModel):
    """Who writes. Believed as it is from holders of the API key; of a visitor only the name counts."""

    id: ShortText | None = None
    name: ShortText | None = None


class NewAttachment(BaseModel):
    """A file that was uploaded to this conversation, and that no other message has."""

    upload_id: UUID


class MessageToSend(BaseModel):
    """A message to send: a text, files, or both. The same `client_msg_id` again stores nothing."""

    model_config = ConfigDict(
        json_schema_extra={
            "anyOf": [
                {"properties": {"text": NOT_BLANK}, "required": ["text"]},
                {"properties": {"attachments": {"minItems": 1}}, "required": ["attachments"]},
            ]
        }
    )

    client_msg_id: ShortText
    text: Annotated[str, Field(max_length=1_000_000), Storable] = ""
    attachments: Annotated[
        list[NewAttachment], Field(max_length=MOST_ATTACHMENTS, json_schema_extra={"uniqueItems": True})
    ] = []

    def uploads(self) -> Sequence[AttachmentId]:
        """The uploads that it names. Raises Problem for a message that says nothing, or names one twice."""
        if not self.text.strip() and not self.attachments:
            raise Problem(422, "text: is empty")
        ids = [AttachmentId(each.upload_id) for each in self.attachments]
        if len(set(ids)) < len(ids):
            raise Problem(422, "attachments: name each upload once")
        return ids


class NewMessage(MessageToSend):
    """A message to send as a user of web chat."""

    user: ChatUser | None = None


class Accepted(BaseModel):
    """The message is stored."""

    id: UUID
    conversation_id: UUID
    seq: int
    duplicate: bool


class Version(BaseModel):
    """A text that a message had, or has; without one it was deleted."""

    text: str | None
    at: datetime | None = Field(None, description="When it was changed to this, by the platform's clock.")


class Message(BaseModel):
    """One message of a conversation, as its newest version has it."""

    id: UUID
    seq: int
    direction: Literal["inbound", "outbound"]
    text: str
    created_at: datetime
    client_msg_id: str | None = None
    sender: Sender | None = None
    notice: str | None = Field(None, description="Set on texts of the bridge itself: which one it is.")
    unasked: bool = Field(False, description="A program sent it: it is nobody's answer.")
    status: Literal["pending", "answered", "failed", "cancelled", "skipped", "sent"]
    reason: str | None = Field(None, description="Why a message was skipped, failed or cancelled.")
    attachments: list[AttachmentView] = []
    versions: list[Version] = Field([], description="Of an edited or deleted message all its texts, oldest first.")

    @classmethod
    def of(cls, stored: StoredMessage, attachments: Sequence[AttachmentView]) -> "Message":
        written = stored.metadata.get("raw_text", stored.text)
        versions = _versions(stored, written)
        return cls(
            id=stored.id,
            seq=stored.seq,
            direction=stored.direction,
            text=(versions[-1].text or "") if versions else written,
            created_at=stored.created_at,
            client_msg_id=stored.event_key if stored.direction == "inbound" else None,
            sender=Sender(id=stored.sender_id, name=stored.metadata.get("user_name")) if stored.sender_id else None,
            notice=stored.metadata.get("notice"),
            unasked=stored.metadata.get("unasked", False),
            status="sent" if stored.status == "stored" else stored.status,
            reason=stored.metadata.get("reason"),
            attachments=list(attachments),
            versions=versions,
        )


def _versions(stored: StoredMessage, written: str) -> list[Version]:
    later: list[dict[str, Any]] = stored.metadata.get("versions", [])
    if not later:
        return []
    return [
        Version(text=written, at=None),
        *(Version(text=None if "deleted" in one else one["text"], at=one.get("at")) for one in later),
    ]


async def views(used: Used, conversation: ConversationId, found: Sequence[StoredMessage]) -> list[Message]:
    """Messages of a conversation as their readers see them."""
    known = await known_files(used, conversation, found)
    return [Message.of(message, [view(used, file, known) for file in files_of(message)]) for message in found]


class Messages(BaseModel):
    """A page of messages, oldest first."""

    messages: list[Message]
    has_more: bool


@router.post(
    "/chat/conversations",
    status_code=201,
    responses=problem_responses(413, 422, 429, 503),
    summary="Begin a conversation as a visitor",
)
async def begin(request: Request, used: Used) -> Conversation:
    """Give a new conversation, and a signed, expiring token that is good for it alone."""
    await limit_address(used, request)
    conversation = uuid4().hex
    return Conversation(
        conversation=conversation,
        token=visitor_token(used.secret, conversation, used.settings.webchat_token_seconds),
    )


@router.post(
    "/chat/{conversation}/messages",
    status_code=202,
    responses={200: {"model": Accepted, "description": "Stored before"}}
    | problem_responses(400, 401, 403, 404, 409, 413, 422, 429, 503),
    summary="Send a message",
)
async def send(
    conversation: ConversationPath,
    message: NewMessage,
    caller: Caller,
    used: Used,
    request: Request,
    response: Response,
) -> Accepted:
    """Store a message; when this answers, it is kept and will be answered once, in order."""
    await limit_sending(used, request, caller, "conversation", conversation)
    ids = message.uploads()
    most = used.settings.webchat_max_text
    if len(message.text) > most:
        raise Problem(422, f"text: has {len(message.text)} characters, at most {most} are taken")
    key = inbound_key(message.client_msg_id)
    files = await uploads.of_message(used, webchat.address(conversation).id, ids, key)
    receipt = await used.receiver.receive(_event(conversation, message, files, caller))
    duplicate = receipt.status is ReceiveStatus.DUPLICATE
    if receipt.status is ReceiveStatus.CONFLICT or (
        # Looked at here, and not where messages are received: only who sends again pays for it.
        duplicate and not await uploads.are_of(used, receipt.conversation_id, receipt.seq, ids)
    ):
        raise Problem(409, USED_BEFORE)
    if duplicate:
        response.status_code = 200
    return Accepted(
        id=receipt.message_id, conversation_id=receipt.conversation_id, seq=receipt.seq, duplicate=duplicate
    )


def _event(
    conversation: str, message: NewMessage, files: Sequence[Attachment], caller: Visitor | ApiClient
) -> InboundEvent:
    given = message.user or ChatUser()
    metadata: dict[str, Any] = {"user_name": given.name} if given.name else {}
    user_id = given.id if isinstance(caller, ApiClient) and given.id else conversation
    return InboundEvent(
        address=webchat.address(conversation),
        event_key=message.client_msg_id,
        user=User(user_id, given.name),
        text=message.text,
        attachments=files,
        metadata=metadata,
    )


@router.get(
    "/chat/{conversation}/messages",
    responses=problem_responses(401, 403, 422, 503),
    summary="Read messages",
)
async def read(
    conversation: ConversationPath,
    _caller: Caller,
    used: Used,
    after: Annotated[int | None, Query(ge=0, le=MAX_SEQ, description="Those that follow this seq.")] = None,
    before: Annotated[int | None, Query(ge=0, le=MAX_SEQ, description="The newest of those before this seq.")] = None,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
) -> Messages:
    """Messages of a conversation, oldest first: after a seq, before a seq, or (with neither) the newest."""
    if after is not None and before is not None:
        raise Problem(422, "after, before: give one of them")
    where = webchat.address(conversation).id
    if after is not None:
        found = await used.transcripts.history_after(where, Seq(after), limit + 1)
        kept = found[:limit]
    else:
        found = await used.transcripts.history(where, before=None if before is None else Seq(before), limit=limit + 1)
        kept = found[-limit:]
    return Messages(messages=await views(used, where, kept), has_more=len(found) > limit)


@router.get(
    "/chat/{conversation}/events",
    responses=EVENT_STREAM | problem_responses(401, 403, 422, 503),
    response_class=EventSourceResponse,
    summary="Hear what happens",
)
async def events(
    conversation: ConversationPath,
    caller: Caller,
    used: Used,
    last_event_id: Annotated[str | None, Header(description="The last seq seen: what followed comes first.")] = None,
) -> EventSourceResponse:
    """Server-sent events. `message` carries its seq as `id`, so that a reconnect resumes without loss or doubles."""
    if last_event_id is not None and not (
        re.fullmatch(r"[0-9]{1,19}", last_event_id) and int(last_event_id) <= MAX_SEQ
    ):
        raise Problem(422, "Last-Event-ID: must be a seq")
    # Before the response begins: what its reader sends from then on, it also hears.
    found = await used.transcripts.history(webchat.address(conversation).id, limit=1)
    newest = found[-1].seq if found else 0
    after = newest if last_event_id is None else int(last_event_id)
    # What it has seen is gone, and seq begins anew.
    erased = after > newest
    stream = _events(used, conversation, caller, 0 if erased else after, erased=erased)
    return EventStream(stream, ping=HEARTBEAT_SECONDS, send_timeout=SEND_SECONDS)


class EventStream(EventSourceResponse):
    """Cuts off a reader that takes nothing for `send_timeout`, which is no error of ours."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        except SendTimeoutError:
            log.info("stream.cut_off")


async def _events(
    used: Used, conversation: str, caller: Visitor | ApiClient, after: int, *, erased: bool
) -> AsyncGenerator[ServerSentEvent]:
    where = webchat.address(conversation).id
    with STREAMS.track_inprogress():
        async with used.hot.watch(where) as hints:
            try:
                # Listening began before reading, so that nothing falls between.
                cursor = after
                if erased:
                    yield _erased(cursor)
                async for event in _stored(used, conversation, cursor):
                    cursor, sent = event
                    yield sent
                partial = await used.hot.partial(where)
                if partial is not None:
                    yield _sse("delta", {**partial, "offset": 0})
                async for hint in hints:
                    kind = None if hint is None else hint["type"]
                    if kind in (None, "message", "resync"):
                        async for event in _stored(used, conversation, cursor):
                            cursor, sent = event
                            yield sent
                    elif kind == "erased":
                        found = await used.transcripts.history(where, limit=1)
                        cursor = min(cursor, found[-1].seq if found else 0)
                        yield _erased(cursor)
                    elif hint is not None and kind == "attachment":
                        async for event in _again(used, where, hint["seq"], cursor):
                            yield event
                    elif hint is not None:
                        yield _sse(hint["type"], {name: value for name, value in hint.items() if name != "type"})
                    if isinstance(caller, Visitor) and time.time() > caller.expires_at:
                        yield _sse("error", _closing("expired", "The token has expired."))
                        return
            except SlowReaderError:
                yield _sse("error", _closing("slow_reader", "Too far behind: connect again."))
            except StorageError as error:
                # The response has begun, so it can only end; its reader comes again with its Last-Event-ID.
                log.warning("stream.storage_failed", reason=str(error))


def _erased(cursor: int) -> ServerSentEvent:
    """Something of what was told is gone; the id is where a reader begins that comes again."""
    return ServerSentEvent("{}", event="erased", id=str(cursor))


async def _stored(used: Used, conversation: str, cursor: int) -> AsyncGenerator[tuple[int, ServerSentEvent]]:
    where = webchat.address(conversation).id
    while True:
        found = await used.transcripts.history_after(where, Seq(cursor), 100)
        for message in await views(used, where, found):
            cursor = message.seq
            yield cursor, ServerSentEvent(message.model_dump_json(), event="message", id=str(cursor))
        if len(found) < 100:
            return


async def _again(used: Used, where: ConversationId, seq: int, cursor: int) -> AsyncGenerator[ServerSentEvent]:
    """A message that was told of before, as it is now; without an id, since it is no news."""
    if seq <= cursor:
        found = await used.transcripts.history(where, before=Seq(seq + 1), limit=1)
        for message in await views(used, where, found):
            if message.seq == seq:
                yield ServerSentEvent(message.model_dump_json(), event="attachment")


def _sse(event: str, data: dict[str, Any]) -> ServerSentEvent:
    return ServerSentEvent(json.dumps(data, ensure_ascii=False), event=event)


def _closing(code: str, text: str) -> dict[str, Any]:
    return {"turn_id": None, "code": code, "text": text}


@pages.get("/chat", response_class=HTMLResponse)
async def chat_page(used: Used, embed: bool = False) -> HTMLResponse:
    """The chat page; `?embed=1` is what the launcher shows on other sites."""
    language = used.settings.language
    return page(
        "chat.html",
        frame_ancestors=("'self'", *used.settings.webchat_origins) if embed else ("'none'",),
        title=PAGE_TEXTS[language]["title"],
        language=language,
        texts=PAGE_TEXTS[language],
        embedded=embed,
        max_text=used.settings.webchat_max_text,
        max_file=used.settings.attachment_max_bytes,
        max_files=MOST_ATTACHMENTS,
        link_seconds=used.settings.attachment_link_seconds,
    )
