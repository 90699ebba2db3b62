"""Messages: receiving them in order and once, and reading them back."""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from datetime import datetime
from hashlib import sha256
from typing import Any, Literal

from chat_bridge.errors import StorageError
from chat_bridge.model import (
    Attachment,
    BusyPolicy,
    ConversationId,
    EventKind,
    InboundEvent,
    MessageId,
    PendingMessage,
    Receipt,
    ReceiveStatus,
    Seq,
    SessionId,
    StoredMessage,
    new_message_id,
    new_session_id,
)
from chat_bridge.storage.postgres import Database, Record, win
from chat_bridge.storage.text import from_jsonb, storable, storable_or_none, to_jsonb

# An entry of an index may have 2704 bytes; no platform comes near.
_LONGEST_ID = 1000
_SENT = "sent:"
_ATTACHMENT_FIELDS = {each.name for each in fields(Attachment)}


@dataclass(frozen=True, slots=True)
class Arrival:
    """An inbound event on its way into the store.

    `skip_reason` set: stored, not answered. `queue_cap`: most messages that may wait in the conversation.
    """

    event: InboundEvent
    content_type: Literal["text", "command", "event"] = "text"
    skip_reason: str | None = None
    busy_policy: BusyPolicy = BusyPolicy.COLLECT
    queue_cap: int = 50


async def receive(database: Database, arrivals: Sequence[Arrival]) -> Sequence[Receipt]:
    """Store messages in one statement and one commit; a receipt for each, in the same order.

    Two arrivals with one event key must not be in the same call. Raises StorageError: then nothing was stored.
    """
    # Locks are taken in the order of conversation_id by every statement, so that none waits for another in a ring.
    order = sorted(enumerate(arrivals), key=_lock_order)
    session_ids = defaultdict[ConversationId, SessionId](new_session_id)  # should one have no active session
    columns = zip(*(_columns(arrival, session_ids) for _, arrival in order), strict=True)
    arguments = [list(column) for column in columns]
    rows = await win(lambda: database.fetch("receive", *arguments))
    receipts: list[Receipt | None] = [None] * len(order)
    for row in rows:
        number: int = row["ord"]
        place, arrival = order[number - 1]
        receipts[place] = _receipt(arrival.event.address.id, row)
    complete = [receipt for receipt in receipts if receipt is not None]
    if len(complete) != len(order):
        raise StorageError("PostgreSQL told of fewer messages than it was given")
    return complete


def require_storable(arrival: Arrival) -> None:
    """Raise StorageError for ids that PostgreSQL can't index: in a batch they would fail the messages of others."""
    event = arrival.event
    for name, text in (
        ("conversation", event.address.conversation),
        ("thread", event.address.thread),
        ("user", event.user.id),
    ):
        if len(storable(text).encode()) > _LONGEST_ID:
            raise StorageError(f"the id of the {name} is too long: {_LONGEST_ID} bytes are the most")


def stored_key(event: InboundEvent) -> str:
    """The event key as it is stored."""
    return inbound_key(event.event_key)


def inbound_key(key: str) -> str:
    """An event key as it is stored: as PostgreSQL can hold it; its hash if it is too long for an index, or could be a
    `sent_key`."""
    key = storable(key)
    if len(key.encode()) <= _LONGEST_ID and not key.startswith(_SENT):
        return key
    return f"sha256:{sha256(key.encode()).hexdigest()}"


def sent_key(client_msg_id: str) -> str:
    """The key of a message that a program sends; none that comes in has it."""
    return _SENT + storable(client_msg_id)


def _lock_order(pair: tuple[int, Arrival]) -> tuple[ConversationId, int]:
    return pair[1].event.address.id, pair[0]


def _columns(arrival: Arrival, session_ids: Mapping[ConversationId, SessionId]) -> tuple[object, ...]:
    event = arrival.event
    metadata: dict[str, Any] = dict(event.metadata)
    if event.group:
        metadata["group"] = True
    if event.raw_text is not None and event.raw_text != event.text:
        metadata["raw_text"] = event.raw_text
    if event.about is not None:
        metadata["about"] = event.about
    if arrival.skip_reason is not None:
        metadata["reason"] = arrival.skip_reason
    return (
        event.address.id,
        session_ids[event.address.id],
        new_message_id(),
        event.address.platform,
        event.address.account,
        storable(event.address.conversation),
        storable(event.address.thread),
        storable(event.user.id),
        storable_or_none(event.user.name),
        storable_or_none(event.user.username),
        storable_or_none(event.user.locale),
        storable(event.text),
        arrival.content_type,
        to_jsonb(files_as_json(event.attachments)),
        storable_or_none(event.platform_message_id),
        stored_key(event),
        event.sent_at,
        "accepted" if arrival.skip_reason is None else "skipped",
        arrival.busy_policy.value,
        arrival.queue_cap,
        to_jsonb(metadata),
    )


def _receipt(conversation: ConversationId, row: Record) -> Receipt:
    _, status, session, id_, seq, reason, policy = row.values()
    return Receipt(
        ReceiveStatus(status), conversation, session, id_, seq, reason, BusyPolicy(policy) if policy else None
    )


async def history(
    database: Database,
    conversation: ConversationId,
    *,
    before: Seq | None = None,
    limit: int = 50,
    session: SessionId | None = None,
) -> Sequence[StoredMessage]:
    """The newest messages (or those before a seq) of a conversation, or of one session of it; oldest first. Only what
    is in PostgreSQL: `Transcripts` has what is archived, too."""
    rows = await database.fetch("history_before", conversation, before or 2**63 - 1, limit, session)
    return [stored_message(conversation, row) for row in reversed(rows) if row["seq"] is not None]


@dataclass(frozen=True, slots=True)
class Edited:
    """What an edit or deletion met. `changed`: it is a new version; `waiting`: the message has no answer yet."""

    message_id: MessageId
    session_id: SessionId
    seq: Seq
    changed: bool
    waiting: bool


async def edit(database: Database, event: InboundEvent) -> Edited | None:
    """Add a version to the message that an event of kind edit or delete is about; None: it is not there. The message
    itself stays as it was received. Edits of an album that leave its texts alone change nothing."""
    version: dict[str, Any] = {"key": stored_key(event), "text": event.text}
    if event.sent_at is not None:
        version["at"] = event.sent_at.isoformat()
    if event.kind is EventKind.DELETE:
        version["deleted"] = True
    elif event.attachments and event.album is None:
        version["attachments"] = files_as_json(event.attachments)
    keys = [inbound_key(event.about)] if event.about is not None else []
    if event.album and event.text:
        keys.append(inbound_key(_album_key(event.album)))
    for key in keys:
        row = await database.fetch_one("edit", event.address.id, key, stored_key(event), to_jsonb(version))
        if row is not None:
            return Edited(row["id"], row["session_id"], row["seq"], row["changed"], row["waiting"])
    return None


def in_album(arrival: Arrival) -> Arrival:
    """The arrival as the first message of its album, in which the others are collected."""
    event = arrival.event
    metadata = {**event.metadata, "parts": [stored_key(event)]}
    assert event.album is not None
    return replace(arrival, event=replace(event, event_key=_album_key(event.album), metadata=metadata))


async def add_to_album(database: Database, arrival: Arrival) -> Receipt | Literal["first", "late"]:
    """Add a message to the one that holds its album. `first`: there is none yet; `late`: it can't take more."""
    event = arrival.event
    assert event.album is not None
    key = inbound_key(_album_key(event.album))
    async with database.transaction() as transaction:
        rows = await transaction.fetch("lock_album", event.address.id, key, stored_key(event))
        if not rows:
            return "first"
        album = rows[0]
        place = event.address.id, album["seq"], stored_key(event)
        if album["late"]:
            return "late"
        if not album["known"] and not await transaction.fetch(
            "add_to_album",
            *place,
            to_jsonb(files_as_json(event.attachments)) or "[]",
            storable(event.text),
            arrival.skip_reason is None,
        ):
            await transaction.fetch("late_for_album", *place)
            return "late"
        status = ReceiveStatus.DUPLICATE if album["known"] else ReceiveStatus.RECORDED
        return Receipt(status, event.address.id, album["session_id"], album["id"], album["seq"], album["reason"])


async def overheard(
    database: Database, conversation: ConversationId, session: SessionId, before: Seq, limit: int = 50
) -> Sequence[PendingMessage]:
    """What was said in a group since the agent last heard it and not to the bot, before a message: the newest, oldest
    first."""
    rows = await database.fetch("overheard", conversation, session, before, limit)
    return [pending_message(row) for row in reversed(rows)]


def pending_message(row: Record) -> PendingMessage:
    """A message as its newest version has it."""
    metadata: dict[str, Any] = from_jsonb(row["metadata"]) or {}
    versions: list[dict[str, Any]] = metadata.get("versions") or [{}]
    newest = versions[-1]
    files = next((each["attachments"] for each in reversed(versions) if "attachments" in each), None)
    if files is None:
        files = from_jsonb(row["attachments"]) or ()
    # A command stays what it was: its text is a word of ours.
    is_command = row["content_type"] == "command"
    return PendingMessage(
        id=row["id"],
        seq=row["seq"],
        sender_id=row["sender_id"],
        sender_name=row["display_name"],
        text=row["content_text"] if is_command else newest.get("text", row["content_text"]),
        attachments=_attachments(files),
        created_at=row["created_at"],
        metadata=metadata,
        platform_message_id=row["platform_message_id"],
        is_command=is_command,
        deleted="deleted" in newest and not is_command,
    )


def _album_key(album: str) -> str:
    return f"album:{album}"


def files_as_json(attachments: Sequence[Attachment]) -> list[dict[str, Any]]:
    """A message's files as its row has them."""
    return [as_json(attachment) for attachment in attachments]


def as_json(attachment: Attachment) -> dict[str, Any]:
    """An attachment as JSON, without what is not known."""
    return {
        name: value.isoformat() if isinstance(value, datetime) else value
        for name, value in asdict(attachment).items()
        if value is not None and value is not False
    }


def attachments_of(row: Record) -> Sequence[Attachment]:
    """A message's files, of a row with its `attachments`."""
    return _attachments(from_jsonb(row["attachments"]) or ())


def _attachments(files: Sequence[dict[str, Any]]) -> Sequence[Attachment]:
    return tuple(attachment(file) for file in files)


def attachment(file: Mapping[str, Any]) -> Attachment:
    """One of a message's `attachments`, as JSON has it. What a newer program knows of it besides is left out."""
    until = file.get("expires_at")
    known: dict[str, Any] = {name: value for name, value in file.items() if name in _ATTACHMENT_FIELDS}
    known["expires_at"] = datetime.fromisoformat(until) if until else None
    return Attachment(**known)


def stored_message(conversation: ConversationId, row: Record) -> StoredMessage:
    """A row of `history_before` or `history_after`, whose columns it takes in their order."""
    (
        seq, id_, session, direction, content_type, text, event_key, sender, created_at, files, metadata, status, _
    ) = row.values()  # fmt: skip
    return StoredMessage(
        id_,
        conversation,
        seq,
        session,
        direction,
        status,
        content_type,
        text,
        event_key,
        sender,
        created_at,
        () if files is None else _attachments(json.loads(files)),
        {} if metadata is None else json.loads(metadata),
    )
