"""Uploads: files that come in before the message that will have them."""

import re
from collections.abc import Sequence
from contextlib import suppress
from typing import Annotated, Any, Literal
from uuid import UUID

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel

from chat_bridge.bridge.keep import NotKeptError, TypeNotTakenError, plain_name
from chat_bridge.errors import PlaceError, StorageError
from chat_bridge.model import Address, Attachment, AttachmentId, ConversationId, Seq, kind_of
from chat_bridge.platforms import webchat
from chat_bridge.storage import attachments, messages
from chat_bridge.storage.attachments import Content
from chat_bridge.telemetry import ATTACHMENT_BYTES, ATTACHMENTS, log
from chat_bridge.web.admission import Shares
from chat_bridge.web.auth import Caller, ConversationPath, Used, Visitor, caller_address, limit_sending
from chat_bridge.web.problems import RETRY_SECONDS, Problem, problem_responses

# What may lie in a conversation without a message: more than one message may have. It expires after a day.
MOST_FILES = 20
MOST_BYTES = 10  # times ATTACHMENT_MAX_BYTES
AWAY = {"Retry-After": str(RETRY_SECONDS)}
_MIME_TYPE = re.compile(r"[a-z0-9][a-z0-9!#$&^_.+-]{0,63}/[a-z0-9][a-z0-9!#$&^_.+-]{0,126}")
BODY: dict[str, Any] = {
    "required": True,
    "content": {"*/*": {"schema": {"type": "string", "format": "binary", "minLength": 1}}},
}
NameQuery = Annotated[str, Query(description="The file's name, percent-encoded UTF-8.")]

router = APIRouter(tags=["chat"])


class Upload(BaseModel):
    """A file that a message may name now, once: its type and size are what its bytes say."""

    id: UUID
    kind: Literal["image", "audio", "video", "file"]
    mime_type: str
    name: str | None
    size: int
    width: int | None
    height: int | None


@router.post(
    "/chat/{conversation}/uploads",
    status_code=201,
    responses=problem_responses(400, 401, 403, 408, 413, 415, 422, 429, 503),
    openapi_extra={"requestBody": BODY},
    summary="Upload a file",
)
async def upload(
    conversation: ConversationPath,
    caller: Caller,
    used: Used,
    request: Request,
    name: NameQuery = "",
) -> Upload:
    """Keep a file for a message that will be sent within a day. The body is the file itself, as it is. When too many
    wait for a message, the oldest are forgotten."""
    await limit_sending(used, request, caller, "uploads", conversation)
    address = caller_address(request) if isinstance(caller, Visitor) else None
    return await take_in(used, request, webchat.address(conversation), name, address)


async def take_in(used: Used, request: Request, where: Address, name: str, caller: str | None) -> Upload:
    """Keep the body of a request as an upload of a conversation. `caller` is the address that it counts for, if it
    does. Raises Problem."""
    length = request.headers.get("content-length", "")
    told = Attachment(
        kind=kind_of(said := _said(request)),
        mime_type=said,
        ref="",
        name=plain_name(name),
        size=int(length) if length.isdecimal() else None,
    )
    of_address: Shares = request.app.state.uploads
    of_conversation: Shares = request.app.state.uploads_here
    with of_address.place(caller), of_conversation.place(str(where.id)):
        upload, content = await _keep(used, where.id, told, request)
    ATTACHMENTS.labels(where.platform, "stored").inc()
    ATTACHMENT_BYTES.labels(where.platform).inc(content.size)
    log.info(
        "attachment.stored",
        size=content.size,
        mime_type=content.mime_type,
        attachment=str(upload),
        conversation=str(where.id),
    )
    return Upload(
        id=upload,
        kind=kind_of(content.mime_type),
        mime_type=content.mime_type,
        name=told.name,
        size=content.size,
        width=content.width,
        height=content.height,
    )


@router.delete(
    "/chat/{conversation}/uploads/{upload_id}",
    status_code=204,
    responses=problem_responses(401, 403, 404, 422, 503),
    summary="Take back an upload",
)
async def take_back(conversation: ConversationPath, upload_id: UUID, _caller: Caller, used: Used) -> None:
    """Forget a file that no message will have."""
    where = webchat.address(conversation).id
    if not await attachments.forget_upload(used.store.database, where, AttachmentId(upload_id)):
        raise Problem(404, "This conversation has no such upload, or a message has it.")


async def of_message(
    used: Used, conversation: ConversationId, ids: Sequence[AttachmentId], event_key: str
) -> Sequence[Attachment]:
    """The uploads that a message (by its stored key) names, as its files. Raises Problem for those that it can't have.
    Two messages of users that name one upload in the same moment may both show it; it stays the first one's."""
    if not ids:
        return ()
    named = [Attachment("file", "", attachments.upload_ref(each)) for each in ids]
    found = await attachments.of(used.store.database, conversation, named)
    files: list[Attachment] = []
    for number, each in enumerate(named):
        upload = found.get(attachments.key(each))
        if upload is None:
            raise Problem(404, f"attachments.{number}: this conversation has no such upload; it may have expired.")
        if upload.content is None:
            raise Problem(409, f"attachments.{number}: the upload is not complete.")
        if upload.seq is not None and not await _is_of(used, conversation, upload.seq, event_key):
            raise Problem(409, f"attachments.{number}: another message has this upload; upload the file again.")
        content = upload.content
        files.append(
            Attachment(
                kind=kind_of(content.mime_type),
                mime_type=content.mime_type,
                ref=each.ref,
                name=upload.attachment.name,
                size=content.size,
            )
        )
    return files


async def are_of(used: Used, conversation: ConversationId, seq: Seq, ids: Sequence[AttachmentId]) -> bool:
    """Whether a message has these files, and no others."""
    found = await messages.history(used.store.database, conversation, before=Seq(seq + 1), limit=1)
    refs = [file.ref for message in found for file in message.attachments]
    return refs == [attachments.upload_ref(each) for each in ids]


async def _is_of(used: Used, conversation: ConversationId, seq: Seq, event_key: str) -> bool:
    """Whether this is that message: then it is sent once more."""
    found = await messages.history(used.store.database, conversation, before=Seq(seq + 1), limit=1)
    return bool(found) and found[0].seq == seq and found[0].event_key == event_key


async def _keep(used: Used, where: ConversationId, told: Attachment, request: Request) -> tuple[AttachmentId, Content]:
    database = used.store.database
    # A row first: what it names can't be forgotten.
    upload = await attachments.add_upload(database, where, told)
    try:
        content = await used.keeper.keep(request.stream(), told.mime_type)
        if not await attachments.stored(database, where, upload, content):
            raise Problem(503, "The file could not be kept. Please try again.", AWAY)
    except BaseException as error:
        with suppress(StorageError):  # then it expires
            await attachments.drop_upload(database, where, upload)
        if isinstance(error, NotKeptError):
            log.info("upload.refused", reason=str(error), conversation=str(where))
            raise _not_kept(error) from None
        if isinstance(error, PlaceError):
            log.error("attachment.not_stored", reason=str(error), conversation=str(where))
            raise Problem(503, "The file can't be stored at the moment. Please try again.", AWAY) from None
        raise
    largest = used.settings.attachment_max_bytes
    if forgotten := await attachments.forget_old_uploads(database, where, MOST_FILES, MOST_BYTES * largest, largest):
        log.info("uploads.forgotten", files=forgotten, conversation=str(where))
    return upload, content


def _not_kept(error: NotKeptError) -> Problem:
    if not error.for_good:
        return Problem(503, f"The file was not kept: {error}. Please try again.", AWAY)
    status = 415 if isinstance(error, TypeNotTakenError) else 422
    return Problem(status, f"The file was not kept: {error}.")


def _said(request: Request) -> str:
    """The type that the sender tells, if it is one."""
    said = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    return said if _MIME_TYPE.fullmatch(said) else "application/octet-stream"
