"""Messages: receiving them in order and once, and reading them back."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from typing import Any, Literal

from chat_bridge.errors import StorageError
from chat_bridge.model import (
    Attachment,
    BusyPolicy,
    ConversationId,
    InboundEvent,
    Receipt,
    ReceiveStatus,
    Seq,
    SessionId,
    StoredMessage,
    new_message_id,
    new_session_id,
)
from chat_bridge.storage.postgres import Database, Record, win
from chat_bridge.storage.text import storable, storable_or_none, to_jsonb

# An entry of an index may have 2704 bytes; no platform comes near.
_LONGEST_ID = 1000


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
    columns = zip(*(_columns(arrival) for _, arrival in order), strict=True)
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
    """The event key as it is stored; of one that is too long for an index, its hash."""
    key = storable(event.event_key)
    return key if len(key.encode()) <= _LONGEST_ID else f"sha256:{sha256(key.encode()).hexdigest()}"


def _lock_order(pair: tuple[int, Arrival]) -> tuple[ConversationId, int]:
    return pair[1].event.address.id, pair[0]


def _columns(arrival: Arrival) -> tuple[object, ...]:
    event = arrival.event
    metadata: dict[str, Any] = dict(event.metadata)
    if event.group:
        metadata["group"] = True
    if arrival.skip_reason is not None:
        metadata["reason"] = arrival.skip_reason
    return (
        event.address.id,
        new_session_id(),
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
        to_jsonb([asdict(attachment) for attachment in event.attachments]),
        storable_or_none(event.platform_message_id),
        stored_key(event),
        event.sent_at,
        "accepted" if arrival.skip_reason is None else "skipped",
        arrival.busy_policy.value,
        arrival.queue_cap,
        to_jsonb(metadata),
    )


def _receipt(conversation: ConversationId, row: Record) -> Receipt:
    return Receipt(
        status=ReceiveStatus(row["status"]),
        conversation_id=conversation,
        session_id=row["session_id"],
        message_id=row["id"],
        seq=row["seq"],
        reason=row["reason"],
        busy_policy=BusyPolicy(row["policy"]) if row["policy"] else None,
    )


async def history(
    database: Database,
    conversation: ConversationId,
    *,
    before: Seq | None = None,
    limit: int = 50,
    session: SessionId | None = None,
) -> Sequence[StoredMessage]:
    """The newest messages (or those before a seq) of a conversation, or of one session of it; oldest first."""
    rows = await database.fetch("history_before", conversation, before or 2**63 - 1, limit, session)
    return [_stored(conversation, row) for row in reversed(rows)]


async def history_after(
    database: Database, conversation: ConversationId, after: Seq, limit: int = 50
) -> Sequence[StoredMessage]:
    """The messages that follow a seq, oldest first."""
    return [_stored(conversation, row) for row in await database.fetch("history_after", conversation, after, limit)]


def attachments(text: str | None) -> Sequence[Attachment]:
    """The attachments of a jsonb column."""
    return () if text is None else tuple(Attachment(**item) for item in json.loads(text))


def _stored(conversation: ConversationId, row: Record) -> StoredMessage:
    (
        seq, id_, session, direction, content_type, text, event_key, sender, created_at, files, metadata, status
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
        attachments(files),
        {} if metadata is None else json.loads(metadata),
    )
