"""Dead letters: replies that were given up or may not have arrived, and messages that got no answer. They can be looked
at, tried again, and laid aside; each has the id of its message."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal
from uuid import UUID

from chat_bridge.model import Address, ConversationId, InboundEvent, MessageId, User
from chat_bridge.storage.messages import Arrival, pending_message
from chat_bridge.storage.postgres import Database, Record
from chat_bridge.storage.store import Store
from chat_bridge.storage.text import to_jsonb

_MOST_WAITING = 2**31 - 1  # a replay is never refused because many wait
_OF_THE_FIRST = ("reason", "versions", "raw_text", "parts", "group")  # what a replay does not take over as it is


@dataclass(frozen=True, slots=True)
class Place:
    """Where a page of dead letters ends."""

    died_at: datetime
    message_id: MessageId
    part: int


NEWEST = Place(datetime(9999, 1, 1, tzinfo=UTC), MessageId(UUID(int=2**128 - 1)), 0)


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """`kind`: a part of a reply of ours, or a message of a user. `reason` says why it died."""

    kind: Literal["reply", "message"]
    message_id: MessageId
    part: int  # of a reply; 0 of a message
    status: Literal["unknown", "failed"]
    died_at: datetime
    attempts: int
    reason: str | None
    conversation_id: ConversationId
    address: Address

    @property
    def place(self) -> Place:
        return Place(self.died_at, self.message_id, self.part)


async def list_dead_letters(
    database: Database, *, platform: str | None = None, after: Place = NEWEST, limit: int = 50
) -> Sequence[DeadLetter]:
    """A page of dead letters, newest first; the next one is `after` the last one's place."""
    rows = await database.fetch("list_dead_letters", after.died_at, after.message_id, after.part, platform, limit)
    return [_dead_letter(row) for row in rows]


async def retry(store: Store, message: MessageId) -> bool:
    """Send the dead parts of a reply again, or receive a failed message once more, as a new message at the end of its
    conversation. The sweep of the bridge that serves the platform takes it up. False: it is no dead letter. Raises
    StorageError."""
    if await store.database.fetch("retry_deliveries", message):
        return True
    row = await store.database.fetch_one("failed_message", message)
    if row is None:
        return False
    # The event key makes a second call find the replay of the first.
    receipt = await store.receive(_again(row))
    await store.database.fetch("note_on_failed", message, to_jsonb({"replayed_as": str(receipt.message_id)}))
    return True


async def purge(database: Database, message: MessageId) -> bool:
    """Lay a dead letter aside for good; False: it is none. Its story can still be told."""
    if await database.fetch("purge_deliveries", message):
        return True
    return await database.fetch_one("note_on_failed", message, to_jsonb({"purged": True})) is not None


def _again(row: Record) -> Arrival:
    message = pending_message(row)
    kept = {name: value for name, value in message.metadata.items() if name not in _OF_THE_FIRST}
    event = InboundEvent(
        address=Address(row["platform"], row["account"], row["platform_conversation_id"], row["thread"]),
        event_key=f"replay:{message.id}",
        user=User(message.sender_id),
        text=message.text,
        raw_text=message.metadata.get("raw_text"),
        platform_message_id=message.platform_message_id,
        sent_at=row["sent_at"],
        attachments=message.attachments,
        group=bool(message.metadata.get("group")),
        metadata={**kept, "replay_of": str(message.id)},
    )
    return Arrival(event, row["content_type"], queue_cap=_MOST_WAITING)


def _dead_letter(row: Record) -> DeadLetter:
    return DeadLetter(
        kind=row["kind"],
        message_id=row["id"],
        part=row["part"],
        status=row["status"],
        died_at=row["died_at"],
        attempts=row["attempts"],
        reason=row["reason"],
        conversation_id=row["conversation_id"],
        address=Address(row["platform"], row["account"], row["platform_conversation_id"], row["thread"]),
    )
