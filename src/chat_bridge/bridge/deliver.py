"""Deliver: send the parts of stored replies in order, and record what the platform answered."""

import asyncio
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from chat_bridge.model import ConversationId
from chat_bridge.platforms.contract import (
    Button,
    Moved,
    OutboundPart,
    Platform,
    Refused,
    RefusedUs,
    RetryAfter,
    RetryLater,
    SendResult,
    Sent,
)
from chat_bridge.platforms.rich_text import Rendered
from chat_bridge.storage import outbox, sessions
from chat_bridge.storage.outbox import Delivery, DeliveryResult
from chat_bridge.storage.store import Store
from chat_bridge.telemetry import DELIVERIES, log

FIRST_RETRY_SECONDS = 1.0
LONGEST_RETRY_SECONDS = 900.0
LONGEST_WAIT_SECONDS = 86400.0
REFUSED_US_SECONDS = 60.0
SEND_SECONDS = 50.0  # less than the minute after which others take the sender for dead
SOON_SECONDS = 60.0  # a retry within this time is ours; the sweep finds the others
MOST_AT_ONCE = 100


class Deliverer:
    """Sends what is in the outbox. `resend_unknown`: a part that may have been sent is sent again, though the platform
    would show it twice."""

    def __init__(self, store: Store, platforms: Mapping[str, Platform], *, resend_unknown: bool) -> None:
        self._store = store
        self._platforms = platforms
        self._repeatable = [
            name for name, each in platforms.items() if resend_unknown or each.capabilities.idempotent_send
        ]
        self._held_until: dict[tuple[str, str], float] = {}  # accounts that the platform wants to be quiet
        self._tasks: set[asyncio.Task[None]] = set()

    async def deliver(self, delivery: Delivery) -> None:
        """Send the first part of a reply that was just stored, and what follows it in its conversation. What has to
        wait is tried again later."""
        retry = await self._send_on(delivery)
        if retry is not None:
            self._start(self._retry(*retry))

    async def redeliver(self) -> int:
        """Take what is due and begin to send it; how many there were. Raises StorageError."""
        room = MOST_AT_ONCE - len(self._tasks)
        if room <= 0:
            return 0
        due = await outbox.due_deliveries(self._store.database, self._repeatable, room)
        for delivery in due:
            self._start(self.deliver(delivery))
        return len(due)

    async def aclose(self) -> None:
        """Stop trying. What was not sent stays in the outbox."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _start(self, work: Any) -> None:
        task = asyncio.create_task(work, name="deliver")
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            # The row says what is left to do, and the sweep does it.
            log.warning("delivery.interrupted", reason=str(error) or type(error).__name__)

    async def _retry(self, conversation: ConversationId, seconds: float) -> None:
        await asyncio.sleep(seconds)
        for delivery in await outbox.due_deliveries(self._store.database, self._repeatable, conversation=conversation):
            await self.deliver(delivery)

    async def _send_on(self, delivery: Delivery) -> tuple[ConversationId, float] | None:
        """Send this and what follows, until something has to wait: which conversation to try again soon, and when."""
        following: Delivery | None = delivery
        parts: Sequence[Rendered] = ()
        message = None
        while following is not None:
            delivery = following
            platform = self._platforms.get(delivery.address.platform)
            if platform is not None and delivery.message_id != message:
                message, parts = delivery.message_id, platform.render(delivery.text)
            answer = await self._try(platform, delivery, parts)
            result = self._result(delivery, answer)
            following = await self._store.finish_delivery(result)
            self._tell(result)
            if isinstance(answer, Moved):
                return await self._move(delivery, answer.conversation)
            if result.status == "pending" and result.retry_seconds <= SOON_SECONDS:
                return delivery.conversation_id, result.retry_seconds
        return None

    async def _try(self, platform: Platform | None, delivery: Delivery, parts: Sequence[Rendered]) -> SendResult:
        if platform is None:
            # Another process may have it, or this one after a change of its settings.
            return RetryAfter(LONGEST_RETRY_SECONDS, f"{delivery.address.platform} is switched off")
        if delivery.part > len(parts):
            return Refused("the reply now splits into fewer parts")
        account = (delivery.address.platform, delivery.address.account)
        if (wait := self._held_until.get(account, 0.0) - time.monotonic()) > 0:
            return RetryAfter(wait, "the platform wants this account to wait")
        try:
            async with asyncio.timeout(SEND_SECONDS):
                answer = await platform.send(_part(delivery, parts))
        except TimeoutError:
            answer = RetryLater(f"no answer within {SEND_SECONDS:g} s", maybe_sent=True)
        except Exception as error:  # noqa: BLE001 - whatever an adapter does, its delivery gets a result
            log.exception("platform.crashed", platform=delivery.address.platform)
            answer = RetryLater(f"the adapter failed: {type(error).__name__}", maybe_sent=True)
        if isinstance(answer, RetryAfter):
            # The platform's number may be anything, NaN too (which max() passes over in this order).
            answer = replace(answer, seconds=min(max(0.0, answer.seconds), LONGEST_WAIT_SECONDS))
            if answer.scope == "account":
                self._held_until[account] = time.monotonic() + answer.seconds
        return answer

    def _result(self, delivery: Delivery, answer: SendResult) -> DeliveryResult:
        match answer:
            case Sent():
                return DeliveryResult(delivery, "sent", answer.platform_message_id)
            case RetryAfter():
                return DeliveryResult(delivery, "pending", error=answer.error, retry_seconds=answer.seconds)
            case RetryLater(maybe_sent=True) if not (
                delivery.address.platform in self._repeatable or delivery.replaces is not None
            ):
                return DeliveryResult(delivery, "unknown", error=answer.error)
            case RetryLater():
                return DeliveryResult(delivery, "pending", error=answer.error, retry_seconds=_backoff(delivery.attempt))
            case Moved():
                return DeliveryResult(delivery, "pending", error="the conversation has a new id", retry_seconds=1.0)
            case Refused():
                ends = answer.scope == "conversation"
                return DeliveryResult(delivery, "failed", error=answer.error, ends=ends)
            case RefusedUs():
                log.error("platform.refuses_us", platform=delivery.address.platform, reason=answer.error)
                return DeliveryResult(delivery, "pending", error=answer.error, retry_seconds=REFUSED_US_SECONDS)

    async def _move(self, delivery: Delivery, conversation: str) -> tuple[ConversationId, float]:
        new = replace(delivery.address, conversation=conversation)
        await sessions.move(self._store.database, delivery.address, new)
        log.info("conversation.moved", conversation=str(delivery.conversation_id), to=str(new.id))
        # Where the new id was in use already, the delivery stayed, but goes to the new id as well.
        for where in (new.id, delivery.conversation_id):
            self._start(self._retry(where, 1.0))
        return new.id, 2.0

    def _tell(self, result: DeliveryResult) -> None:
        delivery = result.delivery
        DELIVERIES.labels(delivery.address.platform, result.status).inc()
        log.info(
            "reply.delivered" if result.status == "sent" else "reply.not_delivered",
            status=result.status,
            message=str(delivery.message_id),
            conversation=str(delivery.conversation_id),
            part=delivery.part,
            attempt=delivery.attempt,
            **({"reason": result.error} if result.error else {}),
        )


def _part(delivery: Delivery, parts: Sequence[Rendered]) -> OutboundPart:
    buttons: Sequence[Mapping[str, str]] = delivery.metadata.get("buttons", ())
    return OutboundPart(
        conversation_id=delivery.conversation_id,
        address=delivery.address,
        message_id=delivery.message_id,
        seq=delivery.seq,
        part=delivery.part,
        content=parts[delivery.part - 1],
        idempotency_key=str(delivery.idempotency_key),
        reply_to=delivery.metadata.get("reply_to") if delivery.part == 1 else None,
        buttons=tuple(Button(**button) for button in buttons) if delivery.part == len(parts) else (),
        replaces=delivery.replaces,
    )


def _backoff(attempt: int) -> float:
    """Exponential with jitter, in seconds."""
    return random.uniform(0.5, 1.0) * min(LONGEST_RETRY_SECONDS, FIRST_RETRY_SECONDS * 2.0 ** min(attempt, 20))  # noqa: S311
