"""Deliveries: what the platforms answered, and what is due to be sent again."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal
from uuid import UUID

from chat_bridge.model import Address, ConversationId, MessageId, Seq
from chat_bridge.storage.postgres import Database
from chat_bridge.storage.text import storable_or_none


@dataclass(frozen=True, slots=True)
class Delivery:
    """One part of a reply that this process may send now. `attempt` fences the record of what came of it."""

    conversation_id: ConversationId
    seq: Seq
    part: int
    attempt: int
    idempotency_key: UUID
    message_id: MessageId
    address: Address
    text: str  # of the whole reply


@dataclass(frozen=True, slots=True)
class DeliveryResult:
    """What came of an attempt. `pending` comes back after `retry_seconds`."""

    delivery: Delivery
    status: Literal["sent", "pending", "unknown", "failed"]
    platform_message_id: str | None = None
    error: str | None = None
    retry_seconds: float = 0.0


async def finish_deliveries(database: Database, results: Sequence[DeliveryResult]) -> Sequence[None]:
    """Record results in one statement; those of an attempt that another worker has taken over change nothing."""
    await database.fetch(
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
                )
                for result in results
            ),
            strict=True,
        ),
    )
    return [None] * len(results)


async def due_deliveries(
    database: Database, idempotent_platforms: Sequence[str], limit: int = 100
) -> Sequence[Delivery]:
    """Take deliveries that are due, in the order of their conversation. Those that may have been sent already, on
    platforms that can't tell, become `unknown` and are not returned."""
    rows = await database.fetch("due_deliveries", limit, list(idempotent_platforms))
    return sorted(
        (
            Delivery(
                conversation_id=row["conversation_id"],
                seq=row["seq"],
                part=row["part"],
                attempt=row["attempts"],
                idempotency_key=row["idempotency_key"],
                message_id=row["id"],
                address=Address(row["platform"], row["account"], row["platform_conversation_id"], row["thread"]),
                text=row["content_text"],
            )
            for row in rows
            if row["status"] == "sending"
        ),
        key=lambda delivery: (delivery.conversation_id, delivery.seq, delivery.part),
    )
