"""Deliveries: what the platforms answered, and what is due to be sent again."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple
from uuid import UUID

from chat_bridge.model import (
    Address,
    Attachment,
    ConversationId,
    Json,
    MessageId,
    Seq,
    Session,
    new_message_id,
)
from chat_bridge.storage.attachments import key
from chat_bridge.storage.messages import attachments_of, files_as_json, sent_key
from chat_bridge.storage.postgres import Database, Record
from chat_bridge.storage.text import from_jsonb, storable, storable_or_none, to_jsonb

TAKEN_SECONDS = 30.0  # as outbox.sql has it
MOST_FAILURES = 8  # of one delivery, within the 24 hours that `give_up_at` sets: then it is a dead letter


@dataclass(frozen=True, slots=True)
class Delivery:
    """One part of a reply that this process may send now. `attempt` fences the record of what came of it; `failures`
    counts the tries before it that failed; `last_try`: the time for trying is over.

    `taken_at`, of `time.monotonic`, is before it was taken: TAKEN_SECONDS later others take the sender for dead.
    `replaces` is the platform's id of the message that showed this part as it grew. `text`, `attachments` and
    `metadata` are those of the whole reply.
    """

    conversation_id: ConversationId
    seq: Seq
    part: int
    attempt: int
    idempotency_key: UUID
    message_id: MessageId
    address: Address
    text: str
    metadata: Json = field(default_factory=dict[str, Any])
    replaces: str | None = None
    attachments: Sequence[Attachment] = ()
    failures: int = 0
    last_try: bool = False
    taken_at: float = field(default_factory=time.monotonic, compare=False)

    @property
    def file(self) -> Attachment | None:
        """The file that this part is; None: it is one of the text."""
        return file_of(self.part, self.attachments, self.metadata)


@dataclass(frozen=True, slots=True)
class DeliveryResult:
    """What came of an attempt. `pending` comes back after `retry_seconds`; `failure`: it counts as one. `ends`: nothing
    more of this conversation can be sent, so that what follows fails too."""

    delivery: Delivery
    status: Literal["sent", "pending", "unknown", "failed"]
    platform_message_id: str | None = None
    error: str | None = None
    retry_seconds: float = 0.0
    failure: bool = False
    ends: bool = False


class SentMessage(NamedTuple):
    """A message that a program sent: stored now, or (`duplicate`) before, or (`conflict`) there is another under its
    key, of which this tells."""

    status: Literal["stored", "duplicate", "conflict"]
    message_id: MessageId
    conversation_id: ConversationId
    seq: Seq


async def store_message(
    database: Database,
    session: Session,
    client_msg_id: str,
    text: str,
    uploads: Sequence[Attachment],
    metadata: Json,
    parts: int,
) -> SentMessage | Literal["not_active", "upload_gone"]:
    """Store a message of a program in an active session, outside of any turn, and its parts in the outbox; once for
    each `client_msg_id` in the conversation. `not_active`: the session has ended; `upload_gone`: one of the files is
    another message's by now, or has expired; nothing was stored then. Raises StorageError."""
    text, event_key, message = storable(text), sent_key(client_msg_id), new_message_id()
    async with database.transaction() as transaction:
        held = await transaction.fetch("lock_session", session.id)
        # It may have moved since it was looked up.
        where = held[0]["conversation_id"] if held else session.conversation_id
        for before in await transaction.fetch("sent_before", where, event_key):
            refs = [file.ref for file in attachments_of(before)]
            same = before["content_text"] == text and refs == [file.ref for file in uploads]
            return SentMessage("duplicate" if same else "conflict", before["id"], where, before["seq"])
        if not held:
            return "not_active"
        files, keys = to_jsonb(files_as_json(uploads)), [key(file) for file in uploads]
        place = where, session.id, message
        rows = await transaction.fetch("store_message", *place, text, event_key, files, to_jsonb(metadata), parts, keys)
        return SentMessage("stored", message, where, rows[0]["seq"]) if rows else "upload_gone"


def file_of(part: int, attachments: Sequence[Attachment], metadata: Json) -> Attachment | None:
    """The file of a reply that one of its parts is; None: the part is one of its text. How many of those there are was
    noted when the reply was stored, since another version may cut a text elsewhere."""
    texts: int | None = metadata.get("text_parts")
    return None if texts is None or part <= texts else attachments[part - texts - 1]


async def finish_deliveries(database: Database, results: Sequence[DeliveryResult]) -> Sequence[Delivery | None]:
    """Record results in one statement; those of an attempt that another worker has taken over change nothing. After
    one that is final, the conversation's next delivery is the caller's to send."""
    asked_at = time.monotonic()
    rows = await database.fetch(
        "finish_deliveries",
        *zip(
            *(
                (
                    result.delivery.conversation_id,
                    result.delivery.seq,
                    result.delivery.part,
                    result.status,
                    storable_or_none(result.platform_message_id),
                    storable_or_none(result.error),
                    result.retry_seconds,
                    result.delivery.attempt,
                    result.ends,
                    result.failure,
                )
                for result in results
            ),
            strict=True,
        ),
    )
    following = {row["conversation_id"]: _delivery(row, asked_at) for row in rows}
    return [following.get(result.delivery.conversation_id) for result in results]


async def renew(database: Database, delivery: Delivery) -> bool:
    """Keep a delivery for another TAKEN_SECONDS. False: it is not ours to send any more."""
    arguments = delivery.conversation_id, delivery.seq, delivery.part, delivery.attempt
    return await database.fetch_one("renew_delivery", *arguments) is not None


async def due_deliveries(
    database: Database,
    accounts: Sequence[tuple[str, str]],
    repeatable_platforms: Sequence[str],
    limit: int = 100,
    conversation: ConversationId | None = None,
) -> Sequence[Delivery]:
    """Take deliveries of these accounts (platform, account) that are due, the first of each conversation: of all, or of
    one. Those that may have been sent already, on other than `repeatable_platforms`, become `unknown`, those that ended
    their sender again and again `failed`; they are not returned."""
    platforms, names = [platform for platform, _ in accounts], [account for _, account in accounts]
    arguments = limit, list(repeatable_platforms), conversation, platforms, names, MOST_FAILURES
    asked_at = time.monotonic()
    rows = await database.fetch("due_deliveries", *arguments)
    return [_delivery(row, asked_at) for row in rows if row["status"] == "sending" and row["not_before"] is None]


def _delivery(row: Record, taken_at: float) -> Delivery:
    return Delivery(
        conversation_id=row["conversation_id"],
        seq=row["seq"],
        part=row["part"],
        attempt=row["attempts"],
        idempotency_key=row["idempotency_key"],
        message_id=row["id"],
        address=Address(row["platform"], row["account"], row["platform_conversation_id"], row["thread"]),
        text=row["content_text"],
        metadata=from_jsonb(row["metadata"]) or {},
        replaces=row["platform_message_id"],
        attachments=attachments_of(row),
        failures=row["failures"],
        last_try=row["last_try"],
        taken_at=taken_at,
    )
