"""Attachments: which files are to be fetched, what became of them, and which contents lie in object storage.

A content is stored once, under the hash of its bytes, and the object's name is never used again: see
`migrations/versions/0004_attachments.sql`.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from hashlib import sha256
from typing import Literal
from uuid import UUID, uuid4

from uuid_utils.compat import uuid7

from chat_bridge.model import (
    Address,
    Attachment,
    AttachmentId,
    ConversationId,
    Seq,
    kind_of,
)
from chat_bridge.storage.messages import as_json, attachment
from chat_bridge.storage.postgres import Database, Record
from chat_bridge.storage.text import storable, to_jsonb

TAKEN_SECONDS = 12.0  # that long nobody else fetches a file that somebody has taken, or renewed


@dataclass(frozen=True, slots=True)
class Facts:
    """What the bytes of a file say: `size` in bytes, `width` and `height` of an image in pixels. `mime_type` is found
    in them, whatever the sender says."""

    sha256: bytes
    size: int
    mime_type: str
    width: int | None = None
    height: int | None = None
    has_thumbnail: bool = False


@dataclass(frozen=True, slots=True)
class Content:
    """A file in object storage, `name`d there. `written`: all of it is there."""

    id: UUID
    written: bool
    size: int
    mime_type: str
    width: int | None
    height: int | None
    has_thumbnail: bool

    @property
    def name(self) -> str:
        return object_name(self.id)

    @property
    def thumbnail_name(self) -> str:
        return thumbnail_name(self.id)


@dataclass(frozen=True, slots=True)
class Wanted:
    """A file that this process may fetch now. `attempt` fences what came of it; `lost` of those before have told of no
    result; `since` is when it became known."""

    conversation_id: ConversationId
    seq: Seq | None
    attachment: Attachment
    address: Address
    attempt: int
    lost: int
    since: datetime
    id: AttachmentId


@dataclass(frozen=True, slots=True)
class StoredAttachment:
    """A file of a message and what became of it: `error` says why it can't be had, or not before `due`."""

    id: AttachmentId
    conversation_id: ConversationId
    seq: Seq | None
    status: Literal["waiting", "stored", "failed"]
    attachment: Attachment
    error: str | None
    due: datetime | None
    content: Content | None


def object_name(content: UUID) -> str:
    """Where a content lies in object storage. Spread over 4096 folders, by the random part of its id."""
    return f"attachments/{content.hex[-3:]}/{content.hex}"


def thumbnail_name(content: UUID) -> str:
    """Where the small picture of a content lies."""
    return f"{object_name(content)}.thumbnail"


def key(attachment: Attachment) -> bytes:
    """What a file of a conversation is known by: a hash of its reference, which its messages have."""
    return sha256(storable(attachment.ref).encode()).digest()


async def take(database: Database, accounts: Sequence[tuple[str, str]], limit: int) -> Sequence[Wanted]:
    """Take files of these accounts (platform, account) that are due to be fetched."""
    platforms, names = [platform for platform, _ in accounts], [account for _, account in accounts]
    rows = await database.fetch("take_attachments", limit, platforms, names, timedelta(seconds=TAKEN_SECONDS))
    return [_wanted(row) for row in rows]


async def take_in(database: Database, conversation: ConversationId, limit: int) -> Sequence[Wanted]:
    """Take files of a conversation that are due to be fetched."""
    rows = await database.fetch("take_attachments_in", limit, conversation, timedelta(seconds=TAKEN_SECONDS))
    return [_wanted(row) for row in rows]


async def renew(database: Database, wanted: Wanted) -> bool:
    """Keep a file that was taken for another while. False: it is not ours to fetch any more."""
    arguments = wanted.conversation_id, wanted.id, wanted.attempt, timedelta(seconds=TAKEN_SECONDS)
    return await database.fetch_one("renew_attachment", *arguments) is not None


async def failed(database: Database, wanted: Wanted, error: str, retry_seconds: float | None) -> bool:
    """A file could not be had; it is due again after so many seconds, or never (None). False: another process has it
    by now."""
    arguments = wanted.conversation_id, wanted.id, wanted.attempt, storable(error), retry_seconds
    return await database.fetch_one("attachment_failed", *arguments) is not None


async def find_content(database: Database, sha256: bytes) -> Content | None:
    """What has these bytes already. It will not be deleted within the next hour."""
    row = await database.fetch_one("find_content", sha256)
    return None if row is None else _content(row)


async def begin_content(database: Database, facts: Facts) -> Content:
    """Give a name to what is about to be written, or find what has the same bytes."""
    row = await database.fetch_one(
        "begin_content",
        uuid7(),
        facts.sha256,
        facts.size,
        facts.mime_type,
        facts.width,
        facts.height,
        facts.has_thumbnail,
    )
    assert row is not None
    return _content(row)


async def stored(
    database: Database, conversation: ConversationId, attachment_id: AttachmentId, content: Content
) -> bool:
    """A content is written, and is that of this file. False: the file has become something else, or is gone, or the
    content is being deleted."""
    return await database.fetch_one("attachment_stored", conversation, attachment_id, content.id) is not None


def upload_ref(upload: AttachmentId) -> str:
    """What a message has as the reference of an upload."""
    return f"upload:{upload}"


def reply_file(content: Content, name: str | None) -> Attachment:
    """A file of a reply of ours, under a reference of its own."""
    return Attachment(kind_of(content.mime_type), content.mime_type, f"sent:{uuid4()}", name, content.size)


async def add_upload(database: Database, conversation: ConversationId, told: Attachment) -> AttachmentId:
    """Note a file that is about to come in, before the message that will have it; its id, and the message's reference
    to it is `upload_ref` of that."""
    upload = AttachmentId(uuid4())
    told = replace(told, ref=upload_ref(upload))
    await database.fetch("add_upload", conversation, upload, key(told), to_jsonb(as_json(told)))
    return upload


async def drop_upload(database: Database, conversation: ConversationId, attachment_id: AttachmentId) -> None:
    """An upload did not come in whole."""
    await database.fetch("drop_upload", conversation, attachment_id)


async def forget_old_uploads(
    database: Database, conversation: ConversationId, most_files: int, most_bytes: int, largest: int
) -> int:
    """Forget the oldest uploads that no message has and that are too many, or too large together; how many those were.
    `largest` is what one counts that is coming in without its size."""
    row = await database.fetch_one("forget_old_uploads", conversation, largest, most_files, most_bytes)
    assert row is not None
    return row["forgotten"]


async def forget_upload(database: Database, conversation: ConversationId, upload: AttachmentId) -> bool:
    """Forget an upload. False: there is none, or a message has it."""
    return await database.fetch_one("forget_upload", conversation, upload) is not None


async def of(
    database: Database, conversation: ConversationId, files: Iterable[Attachment]
) -> Mapping[bytes, StoredAttachment]:
    """What became of these files of a conversation, by their `key`; those that there are no more are left out."""
    rows = await database.fetch("attachments_of", conversation, list({key(file) for file in files}))
    return {row["key"]: _stored(conversation, row) for row in rows}


async def find(database: Database, attachment_id: AttachmentId) -> StoredAttachment | None:
    """One file, by its id."""
    row = await database.fetch_one("find_attachment", attachment_id)
    return None if row is None else _stored(row["conversation_id"], row)


async def expire_uploads(database: Database, limit: int) -> int:
    """Forget uploads that no message took within a day; how many those were."""
    row = await database.fetch_one("expire_uploads", limit)
    assert row is not None
    return row["expired"]


async def abandon(database: Database, limit: int) -> int:
    """Give up files whose account nobody serves any more; how many those were."""
    return len(await database.fetch("abandon_attachments", limit))


async def doom(database: Database, limit: int) -> Sequence[UUID]:
    """Contents that nothing has used for an hour: their objects are to be deleted, and then they themselves by
    `forget`."""
    return [row["id"] for row in await database.fetch("doom_contents", limit) if row["status"] == "deleting"]


async def forget(database: Database, contents: Sequence[UUID]) -> None:
    """The objects of these contents are deleted."""
    await database.fetch("content_deleted", contents)


def _wanted(row: Record) -> Wanted:
    return Wanted(
        conversation_id=row["conversation_id"],
        seq=row["seq"],
        attachment=attachment(json.loads(row["told"])),
        address=Address(row["platform"], row["account"], row["platform_conversation_id"], row["thread"]),
        attempt=row["attempts"],
        lost=row["lost"] - 1,  # without this one
        since=row["created_at"],
        id=row["id"],
    )


def _content(row: Record, name: str = "id") -> Content:
    return Content(
        id=row[name],
        written=row["status"] == "stored",
        size=row["size"],
        mime_type=row["mime_type"],
        width=row["width"],
        height=row["height"],
        has_thumbnail=row["has_thumbnail"],
    )


def _stored(conversation: ConversationId, row: Record) -> StoredAttachment:
    return StoredAttachment(
        id=row["id"],
        conversation_id=conversation,
        seq=row["seq"],
        status=row["status"],
        attachment=attachment(json.loads(row["told"])),
        error=row["error"],
        due=row["next_attempt_at"] if row["status"] == "waiting" else None,
        content=None if row["content_id"] is None else _content(row, "content_id"),
    )
