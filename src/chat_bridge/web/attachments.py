"""Files of messages: what a reader is told of them, and the way to their bytes.

Whoever sends a file decides what is in it, so none may run anything in our origin: only images, sounds and films are
shown by the browser, under a policy that allows nothing; all others are downloads without a type.
"""

import asyncio
import re
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, aclosing
from typing import Annotated, Any, Literal
from urllib.parse import quote
from uuid import UUID

from fastapi import APIRouter, Depends, Header, Path, Query, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, Field
from starlette.types import Message, Receive, Scope, Send

from chat_bridge.bridge.keep import file_name
from chat_bridge.errors import PlaceError
from chat_bridge.model import Attachment, AttachmentId, ConversationId, StoredMessage, kind_of
from chat_bridge.platforms import webchat
from chat_bridge.storage import attachments, messages
from chat_bridge.storage.attachments import Content, StoredAttachment
from chat_bridge.telemetry import log
from chat_bridge.web.admission import FILE_RATE, Shares
from chat_bridge.web.auth import (
    CHALLENGE,
    ApiClient,
    Used,
    Visitor,
    any_caller,
    caller_address,
    file_key,
    require_file_key,
)
from chat_bridge.web.problems import RETRY_SECONDS, Problem, problem_responses

# What every browser shows without running anything.
SHOWN = frozenset(
    {
        *(f"image/{name}" for name in ("png", "jpeg", "gif", "webp")),
        *(f"audio/{name}" for name in ("mpeg", "mp4", "x-m4a", "aac", "ogg", "opus", "flac", "webm")),
        *(f"audio/{name}" for name in ("wav", "wave", "x-wav")),
        *(f"video/{name}" for name in ("mp4", "x-m4v", "webm", "ogg", "quicktime")),
    }
)
POLICY = "default-src 'none'; sandbox"
SEND_SECONDS = 30.0  # that long a reader may be behind FILE_RATE

Caller = Annotated[Visitor | ApiClient | None, Depends(any_caller)]

router = APIRouter(prefix="/attachments", tags=["attachments"])


class AttachmentView(BaseModel):
    """A file of a message: what its sender told, until it is stored; then what its bytes say. The links are paths on
    this bridge, and good for a while: read the message again for new ones."""

    id: UUID | None
    kind: Literal["image", "audio", "video", "file"]
    mime_type: str
    name: str | None
    size: int | None = Field(description="In bytes.")
    width: int | None = Field(default=None, description="Of an image, in pixels.")
    height: int | None = None
    status: Literal["waiting", "stored", "failed"]
    reason: str | None = Field(None, description="Why it can't be had, or not yet.")
    url: str | None = None
    thumbnail_url: str | None = None


def files_of(message: StoredMessage) -> Sequence[Attachment]:
    """The files of a message as its newest version has them; of a deleted one, none."""
    versions: list[dict[str, Any]] = message.metadata.get("versions", [])
    if versions and "deleted" in versions[-1]:
        return ()
    for version in reversed(versions):
        if "attachments" in version:
            return [messages.attachment(file) for file in version["attachments"]]
    return message.attachments


async def known_files(
    used: Used, conversation: ConversationId, found: Iterable[StoredMessage]
) -> Mapping[bytes, StoredAttachment]:
    """What became of the files of these messages of a conversation; PostgreSQL is asked only if there are any."""
    files = [file for message in found for file in files_of(message)]
    return await attachments.of(used.store.database, conversation, files) if files else {}


def view(used: Used, told: Attachment, known: Mapping[bytes, StoredAttachment]) -> AttachmentView:
    """What a reader may know: not the reference, which is between the platform and us."""
    found = known.get(attachments.key(told))
    content = found.content if found is not None and found.status == "stored" else None
    # Without a row it is of a time when files were not kept, or was not kept for longer.
    status, reason = (found.status, found.error) if found is not None else ("failed", "it is not kept")
    shown = AttachmentView(
        id=None if found is None else found.id,
        kind=told.kind,
        mime_type=told.mime_type,
        name=told.name,
        size=told.size,
        status=status,
        reason=reason,
    )
    if found is None or content is None:
        return shown
    key = f"?key={file_key(used.secret, found.id, used.settings.attachment_link_seconds)}" if used.secret else ""
    place = f"/api/v1/attachments/{found.id}"
    return shown.model_copy(
        update={
            "kind": kind_of(content.mime_type),
            "mime_type": content.mime_type,
            "size": content.size,
            "width": content.width,
            "height": content.height,
            "url": f"{place}{key}",
            "thumbnail_url": f"{place}/thumbnail{key}" if content.has_thumbnail else None,
        }
    )


async def _file(
    attachment_id: Annotated[UUID, Path(description="The file's id.")],
    used: Used,
    caller: Caller,
    key: Annotated[str | None, Query(max_length=1000, description="As links have it, instead of a token.")] = None,
) -> StoredAttachment:
    """The file that a request is for, if whoever sent it may have it."""
    if key is not None:
        require_file_key(used, key, AttachmentId(attachment_id))
    elif caller is None:
        detail = "Use the link that the message has, or send the visitor's token or an API key as a Bearer."
        raise Problem(401, detail, CHALLENGE)
    found = await attachments.find(used.store.database, AttachmentId(attachment_id))
    only = webchat.address(caller.conversation).id if key is None and isinstance(caller, Visitor) else None
    if found is None or only not in (None, found.conversation_id):
        raise Problem(404, "There is no such file.")
    if found.status == "failed":
        raise Problem(410, f"This file can't be had: {found.error}.")
    if found.status == "waiting" or found.content is None:
        raise Problem(404, "This file is not here yet.", {"Retry-After": str(RETRY_SECONDS)})
    return found


File = Annotated[StoredAttachment, Depends(_file)]
Known = Annotated[str | None, Header(alias="If-None-Match")]
_BYTES: dict[str, Any] = {"content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}}
_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {"description": "The bytes; images, sounds and films with their own type", **_BYTES},
    304: {"description": "Not changed"},
    **problem_responses(401, 404, 410, 422, 503),
}


@router.head("/{attachment_id}", include_in_schema=False)
@router.get(
    "/{attachment_id}",
    response_class=Response,
    responses={
        206: {"description": "The part that was asked for", **_BYTES},
        **_RESPONSES,
        **problem_responses(416, 429),
    },
    summary="Read a file",
)
async def read(
    file: File,
    used: Used,
    caller: Caller,
    request: Request,
    known: Known = None,
    asked: Annotated[str | None, Header(alias="Range", description="One range of bytes.")] = None,
    unless_changed: Annotated[str | None, Header(alias="If-Range")] = None,
) -> Response:
    """The bytes of a file. Of the types that browsers show without running anything it says the type; all others are
    a download."""
    content = _content(file)
    shown = content.mime_type in SHOWN
    tag = f'"{content.id.hex}"'
    headers = _headers(used, tag) | {
        "Content-Type": content.mime_type if shown else "application/octet-stream",
        "Content-Disposition": _disposition(file, "inline" if shown else "attachment"),
        "Accept-Ranges": "bytes",
    }
    if _is_known(known, tag):
        return Response(status_code=304, headers=headers)
    part = None if unless_changed not in (None, tag) else _part(asked, content.size)
    start, end = part or (0, content.size - 1)
    headers["Content-Length"] = str(end - start + 1)
    if part is not None:
        headers["Content-Range"] = f"bytes {start}-{end}/{content.size}"
    status = 200 if part is None else 206
    if request.method == "HEAD":
        return Response(status_code=status, headers=headers)
    downloads: Shares = request.app.state.downloads
    place = downloads.place(None if isinstance(caller, ApiClient) else caller_address(request))
    return _Download(used.blobs.stream(content.name, start, end - start + 1), place, status, headers)


@router.head("/{attachment_id}/thumbnail", include_in_schema=False)
@router.get(
    "/{attachment_id}/thumbnail", response_class=Response, responses=_RESPONSES, summary="Read an image's small picture"
)
async def read_thumbnail(file: File, used: Used, known: Known = None) -> Response:
    """A JPEG or PNG of 320 pixels at most, made by the bridge from an image."""
    content = _content(file)
    if not content.has_thumbnail:
        raise Problem(404, "This file has no small picture.")
    tag = f'"{content.id.hex}-thumbnail"'
    headers = _headers(used, tag)
    if _is_known(known, tag):
        return Response(status_code=304, headers=headers)
    try:
        picture = await used.blobs.read(content.thumbnail_name)
    except PlaceError as error:
        raise _away(error) from None
    headers["Content-Type"] = "image/png" if picture.startswith(b"\x89PNG") else "image/jpeg"
    return Response(picture, headers=headers)


class _Download(StreamingResponse):
    """Ends when its reader takes too little for a while, or when object storage fails; the reader knows by the length
    that something is missing. Nothing is read before its place is taken, and only a block is held."""

    def __init__(
        self,
        blocks: AsyncGenerator[bytes],
        place: AbstractContextManager[None],
        status: int,
        headers: Mapping[str, str],
    ) -> None:
        super().__init__(blocks, status, headers)
        self._blocks = blocks
        self._place = place

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._place:
            async with aclosing(self._blocks) as blocks:
                try:
                    first = await anext(blocks, b"")
                except PlaceError as error:
                    raise _away(error) from None
                self.body_iterator = _with(first, blocks)
                del first
                await super().__call__(scope, receive, send)

    async def stream_response(self, send: Send) -> None:
        now = asyncio.get_running_loop().time
        sent, waited = 0, 0.0  # only what the reader takes counts, not what object storage does

        async def patient(message: Message) -> None:
            nonlocal sent, waited
            began = now()
            behind = max(0.0, waited - sent / FILE_RATE)
            async with asyncio.timeout(SEND_SECONDS - behind):
                await send(message)
            waited += now() - began
            sent += len(message.get("body", b""))

        try:
            await super().stream_response(patient)
        except TimeoutError:
            log.info("download.cut_off")
        except PlaceError as error:
            log.warning("download.failed", reason=str(error))


async def _with(block: bytes, blocks: AsyncGenerator[bytes]) -> AsyncGenerator[bytes]:
    while block:
        yield block
        block = await anext(blocks, b"")


def _content(file: StoredAttachment) -> Content:
    assert file.content is not None
    return file.content


def _headers(used: Used, tag: str) -> dict[str, str]:
    return {
        "ETag": tag,
        "Cache-Control": f"private, max-age={used.settings.attachment_link_seconds}",
        "Content-Security-Policy": POLICY,
        "X-Content-Type-Options": "nosniff",
    }


def _disposition(file: StoredAttachment, how: str) -> str:
    """RFC 6266: the name in ASCII for the oldest clients, and in full for all others."""
    name = file_name(file.attachment.name, _content(file).mime_type)
    plain = re.sub(r'[^ -~]|["\\%]', "_", name)
    return f"{how}; filename=\"{plain}\"; filename*=UTF-8''{quote(name, safe='')}"


def _is_known(header: str | None, tag: str) -> bool:
    return header is not None and (header.strip() == "*" or tag in re.findall(r'"[^"]*"', header))


def _part(header: str | None, size: int) -> tuple[int, int] | None:
    """First and last byte of the range that is asked for. None for the whole: also if several are asked for, or
    something that is no range, as RFC 9110 has it."""
    asked = re.fullmatch(r"bytes=[ \t]*([0-9]{0,18})-([0-9]{0,18})[ \t]*", header or "")
    if asked is None or asked.group(1, 2) == ("", ""):
        return None
    if asked[1]:
        start, end = int(asked[1]), min(int(asked[2] or size), size - 1)
        if asked[2] and int(asked[2]) < start:
            return None
    else:
        start, end = max(0, size - int(asked[2])), size - 1
    if start >= size:
        raise Problem(416, f"The file has {size} bytes.", {"Content-Range": f"bytes */{size}"})
    return start, end


def _away(error: PlaceError) -> Problem:
    log.error("attachment.not_read", reason=str(error))
    return Problem(503, "The file can't be read at the moment.", {"Retry-After": str(RETRY_SECONDS)})
