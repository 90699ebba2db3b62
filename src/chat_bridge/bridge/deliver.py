"""Deliver: send the parts of a stored reply in order, and record what the platform answered."""

import random
from collections.abc import Mapping, Sequence
from uuid import UUID

from chat_bridge.model import Address, ConversationId, MessageId, Seq
from chat_bridge.platforms.contract import OutboundPart, Platform, Refused, RetryLater, Sent
from chat_bridge.storage.outbox import Delivery, DeliveryResult
from chat_bridge.storage.store import Store
from chat_bridge.telemetry import DELIVERIES, log

FIRST_RETRY_SECONDS = 1.0
LONGEST_RETRY_SECONDS = 900.0


class Deliverer:
    """Sends what is in the outbox."""

    def __init__(self, store: Store, platforms: Mapping[str, Platform]) -> None:
        self._store = store
        self._platforms = platforms

    async def deliver(
        self,
        conversation: ConversationId,
        address: Address,
        message: MessageId,
        seq: Seq,
        parts: Sequence[str],
        idempotency_keys: Sequence[UUID],
    ) -> None:
        """Send a reply that was just stored. After a part that was not sent, the later ones wait with it."""
        for number, (text, key) in enumerate(zip(parts, idempotency_keys, strict=True), start=1):
            delivery = Delivery(conversation, seq, number, 1, key, message, address, text)
            if not await self._send(delivery, text):
                return

    async def redeliver(self, deliveries: Sequence[Delivery]) -> None:
        """Send what the sweep found due."""
        for delivery in deliveries:
            if delivery.address.platform not in self._platforms:
                # Another process may have it, or this one after a change of its settings.
                error = f"{delivery.address.platform} is switched off"
                result = DeliveryResult(delivery, "pending", error=error, retry_seconds=LONGEST_RETRY_SECONDS)
                await self._store.finish_delivery(result)
                continue
            parts = self._platforms[delivery.address.platform].split(delivery.text)
            if delivery.part > len(parts):
                result = DeliveryResult(delivery, "failed", error="the reply now splits into fewer parts")
                await self._store.finish_delivery(result)
                continue
            await self._send(delivery, parts[delivery.part - 1])

    async def _send(self, delivery: Delivery, text: str) -> bool:
        platform = self._platforms[delivery.address.platform]
        answer = await platform.send(
            OutboundPart(
                conversation_id=delivery.conversation_id,
                address=delivery.address,
                message_id=delivery.message_id,
                seq=delivery.seq,
                part=delivery.part,
                text=text,
                idempotency_key=str(delivery.idempotency_key),
            )
        )
        match answer:
            case Sent():
                result = DeliveryResult(delivery, "sent", answer.platform_message_id)
            case RetryLater(maybe_sent=True) if not platform.capabilities.idempotent_send:
                result = DeliveryResult(delivery, "unknown", error=answer.error)
            case RetryLater():
                seconds = answer.after_seconds if answer.after_seconds is not None else _backoff(delivery.attempt)
                result = DeliveryResult(delivery, "pending", error=answer.error, retry_seconds=seconds)
            case Refused():
                result = DeliveryResult(delivery, "failed", error=answer.error)
        DELIVERIES.labels(platform.capabilities.name, result.status).inc()
        log.info(
            "reply.delivered" if result.status == "sent" else "reply.not_delivered",
            status=result.status,
            message=str(delivery.message_id),
            conversation=str(delivery.conversation_id),
            part=delivery.part,
            attempt=delivery.attempt,
            **({"reason": result.error} if result.error else {}),
        )
        await self._store.finish_delivery(result)
        return result.status == "sent"


def _backoff(attempt: int) -> float:
    """Exponential with full jitter, in seconds."""
    return random.uniform(0.5, 1.0) * min(LONGEST_RETRY_SECONDS, FIRST_RETRY_SECONDS * 2.0**attempt)  # noqa: S311
