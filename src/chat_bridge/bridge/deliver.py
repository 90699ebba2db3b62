"""Deliver: send the parts of stored replies in order, and record what the platform answered."""

import asyncio
import time
from collections.abc import AsyncGenerator, Coroutine, Mapping, Sequence
from contextlib import AbstractContextManager, asynccontextmanager, suppress
from dataclasses import replace

from chat_bridge import tracing
from chat_bridge.backoff import backoff
from chat_bridge.bridge.load import Loader, NotLoadedError
from chat_bridge.errors import StorageError
from chat_bridge.model import Attachment, ConversationId
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
from chat_bridge.storage.redis import Hot
from chat_bridge.storage.store import Store
from chat_bridge.telemetry import DELIVERIES, SEND_SECONDS, log

FIRST_RETRY_SECONDS = 1.0
LONGEST_RETRY_SECONDS = 900.0
LONGEST_WAIT_SECONDS = 86400.0
REFUSED_US_SECONDS = 60.0
RETRY_FACTOR = 4.0  # eight tries then take about half an hour
LONGEST_SEND_SECONDS = 20.0
LONGEST_FILE_SECONDS = 120.0
RENEW_SECONDS = outbox.TAKEN_SECONDS / 3
FILES_AT_ONCE = 8  # of a platform; each may take as much room on the disk as a file may have
SOON_SECONDS = 10.0  # a retry within this time need not wait for the sweep
MOVED_SECONDS = 1.0
STOP_SECONDS = 5.0  # what a send may still take when the process stops
RECORD_RETRY_SECONDS = 0.5
MOST_AT_ONCE = 100
LONG_TEXT = 20_000  # characters; a longer one is rendered beside the event loop

Accounts = Sequence[tuple[str, str]]
"""(platform, account) of each."""


class Deliverer:
    """Sends what is in the outbox. `resend_unknown`: a part that may have been sent is sent again, though the platform
    would show it twice."""

    def __init__(
        self, store: Store, hot: Hot, platforms: Mapping[str, Platform], loader: Loader, *, resend_unknown: bool
    ) -> None:
        self._store = store
        self._hot = hot
        self._loader = loader
        self._places = {name: asyncio.Semaphore(FILES_AT_ONCE) for name in platforms}
        self._platforms = platforms
        self._accounts = [(name, each.account) for name, each in platforms.items()]
        self._repeatable = [
            name for name, each in platforms.items() if resend_unknown or each.capabilities.idempotent_send
        ]
        self._held_until: dict[tuple[str, str], float] = {}  # accounts that the platform wants to be quiet
        self._sending: set[asyncio.Task[None]] = set()
        self._waiting: set[asyncio.Task[None]] = set()
        self._closing = False

    async def deliver(self, delivery: Delivery, *, nobody_waits: bool = False) -> None:
        """Send the first part of a reply that was just stored, and what follows it in its conversation. What has to
        wait is tried again later. Files take their time, and are sent beside the caller unless nobody waits for it."""
        following: Delivery | None = delivery
        parts: Sequence[Rendered] = ()
        message = None
        while following is not None:
            delivery = following
            if self._closing:
                await self._store.finish_delivery(DeliveryResult(delivery, "pending", error="the sender stopped"))
                return
            if delivery.file is not None and not nobody_waits:
                self._start(self._sending, self._deliver_all(delivery))
                return
            if delivery.message_id != message:
                message = delivery.message_id
                parts = await rendered(self._platforms[delivery.address.platform], delivery.text)
                parts = parts or (Rendered(""),)  # of files alone, which are read with it
            with self._span(delivery):
                answer = await self._try(delivery, parts)
                result = self._result(delivery, answer)
                following = await self._record(result)
                self._tell(result)
            if isinstance(answer, Moved):
                await self._move(delivery, answer.conversation)
            elif result.status == "pending" and result.retry_seconds <= SOON_SECONDS:
                self.send_soon(delivery.conversation_id, result.retry_seconds)

    async def redeliver(self, accounts: Accounts) -> int:
        """Take what is due of these accounts and begin to send it; how many there were. Raises StorageError."""
        return await self._take(accounts, MOST_AT_ONCE - len(self._sending))

    def send_soon(self, conversation: ConversationId, seconds: float = 0.0) -> None:
        """Begin to send what is due in a conversation after so many seconds, beside the caller."""

        async def send() -> None:
            await asyncio.sleep(seconds)
            await self._take(self._accounts, MOST_AT_ONCE, conversation)

        if not self._closing:
            self._start(self._waiting, send())

    def hold(self, platform: str, account: str, seconds: float) -> None:
        """The platform wants this account to wait: send nothing for it meanwhile."""
        until = max(time.monotonic() + seconds, self._held_until.get((platform, account), 0.0))
        self._held_until[platform, account] = until

    async def aclose(self) -> None:
        """Stop: what is being sent may end, the rest stays in the outbox."""
        self._closing = True
        for task in list(self._waiting):
            task.cancel()
        if self._sending:
            _, late = await asyncio.wait(list(self._sending), timeout=STOP_SECONDS)
            for task in late:
                task.cancel()
        await asyncio.gather(*self._waiting, *self._sending, return_exceptions=True)

    async def _take(self, accounts: Accounts, most: int, conversation: ConversationId | None = None) -> int:
        if most <= 0 or self._closing:
            return 0
        due = await self._due(accounts, most, conversation)
        for delivery in due:
            self._start(self._sending, self._deliver_all(delivery))
        return len(due)

    async def _deliver_all(self, delivery: Delivery) -> None:
        """Send what is due in a conversation, one after another."""
        await self.deliver(delivery, nobody_waits=True)
        while not self._closing and (more := await self._due(self._accounts, 1, delivery.conversation_id)):
            await self.deliver(more[0], nobody_waits=True)

    async def _due(self, accounts: Accounts, most: int, conversation: ConversationId | None) -> Sequence[Delivery]:
        return await outbox.due_deliveries(self._store.database, accounts, self._repeatable, most, conversation)

    def _start(self, tasks: set[asyncio.Task[None]], work: Coroutine[None, None, None]) -> None:
        def ended(task: asyncio.Task[None]) -> None:
            tasks.discard(task)
            if not task.cancelled() and (error := task.exception()) is not None:
                # The row says what is left to do, and the sweep does it.
                log.warning("delivery.interrupted", reason=str(error) or type(error).__name__)

        task = asyncio.create_task(work, name="deliver")
        tasks.add(task)
        task.add_done_callback(ended)

    def _span(self, delivery: Delivery) -> AbstractContextManager[None]:
        return tracing.span(
            f"deliver {delivery.address.platform}",
            "producer",
            after=[delivery.metadata],
            message=delivery.message_id,
            conversation=delivery.conversation_id,
            part=delivery.part,
            attempt=delivery.attempt,
        )

    async def _try(self, delivery: Delivery, parts: Sequence[Rendered]) -> SendResult:
        file = delivery.file
        if file is None and delivery.part > len(parts):
            return Refused("the reply now splits into fewer parts")
        account = (delivery.address.platform, delivery.address.account)
        if time.monotonic() + LONGEST_SEND_SECONDS > delivery.taken_at + outbox.TAKEN_SECONDS:
            # We were paused, or the database was slow: another process may be about to take it.
            return RetryAfter(0.0, "it was taken too long ago")
        if (wait := self._held_until.get(account, 0.0) - time.monotonic()) > 0:
            return RetryAfter(wait, "the platform wants this account to wait")
        if file is None:
            answer = await self._send(_text_part(delivery, parts), LONGEST_SEND_SECONDS)
        else:
            answer = await self._send_file(delivery, file)
        if isinstance(answer, RetryAfter):
            # The platform's number may be anything, NaN too (which max() passes over in this order).
            answer = replace(answer, seconds=min(max(0.0, answer.seconds), LONGEST_WAIT_SECONDS))
            if answer.scope == "account":
                self.hold(*account, answer.seconds)
                await self._hot.control({"type": "hold", "account": account, "seconds": answer.seconds})
        return answer

    async def _send_file(self, delivery: Delivery, file: Attachment) -> SendResult:
        name = delivery.address.platform
        if self._platforms[name].capabilities.files != "part":
            return Refused("this platform takes no files")
        try:
            async with (
                self._kept(delivery),
                self._places[name],
                self._loader.loaded(delivery.conversation_id, file) as loaded,
            ):
                return await self._send(replace(_part(delivery), file=loaded), LONGEST_FILE_SECONDS)
        except NotLoadedError as error:
            return Refused(str(error)) if error.for_good else RetryLater(str(error))
        except StorageError as error:
            return RetryLater(f"the file was not found: {error}")

    async def _send(self, part: OutboundPart, seconds: float) -> SendResult:
        name = part.address.platform
        try:
            with SEND_SECONDS.labels(name).time():
                async with asyncio.timeout(seconds):
                    return await self._platforms[name].send(part)
        except TimeoutError:
            return RetryLater(f"no answer within {seconds:g} s", maybe_sent=True)
        except Exception as error:  # noqa: BLE001 - whatever an adapter does, its delivery gets a result
            log.exception("platform.crashed", platform=name)
            return RetryLater(f"the adapter failed: {type(error).__name__}", maybe_sent=True)

    @asynccontextmanager
    async def _kept(self, delivery: Delivery) -> AsyncGenerator[None]:
        """Keep others from taking a delivery that takes its time; they do soon after this process has died."""

        async def renew() -> None:
            ours = True
            while ours:
                await asyncio.sleep(RENEW_SECONDS)
                with suppress(StorageError):
                    ours = await outbox.renew(self._store.database, delivery)

        renewing = asyncio.create_task(renew(), name="deliver.renew")
        try:
            yield
        finally:
            renewing.cancel()
            await asyncio.wait([renewing])

    async def _record(self, result: DeliveryResult) -> Delivery | None:
        """Store what the platform said, trying for as long as nobody else takes the delivery: what was sent must not
        count as unknown."""
        while True:
            try:
                return await self._store.finish_delivery(result)
            except StorageError as error:
                delivery = result.delivery
                longest = LONGEST_FILE_SECONDS if delivery.file is not None else 0.0  # for which it was renewed
                if time.monotonic() > delivery.taken_at + outbox.TAKEN_SECONDS + longest:
                    raise
                log.warning("delivery.not_stored_yet", message=str(delivery.message_id), reason=str(error))
                await asyncio.sleep(RECORD_RETRY_SECONDS)

    def _result(self, delivery: Delivery, answer: SendResult) -> DeliveryResult:
        result = self._meaning(delivery, answer)
        failures = delivery.failures + result.failure
        if result.status != "pending" or not (delivery.last_try or failures >= outbox.MOST_FAILURES):
            return result
        why = "a day of trying" if delivery.last_try else f"{failures} tries"
        return replace(result, status="failed", error=f"given up after {why}: {result.error}", retry_seconds=0.0)

    def _meaning(self, delivery: Delivery, answer: SendResult) -> DeliveryResult:
        match answer:
            case Sent():
                return DeliveryResult(delivery, "sent", answer.platform_message_id)
            case RetryAfter():
                return DeliveryResult(delivery, "pending", error=answer.error, retry_seconds=answer.seconds)
            case RetryLater(maybe_sent=True) if delivery.address.platform not in self._repeatable:
                return DeliveryResult(delivery, "unknown", error=answer.error)
            case RetryLater():
                seconds = backoff(delivery.failures + 1, FIRST_RETRY_SECONDS, LONGEST_RETRY_SECONDS, RETRY_FACTOR)
                return DeliveryResult(delivery, "pending", error=answer.error, retry_seconds=seconds, failure=True)
            case Moved():
                error = "the conversation has a new id"
                return DeliveryResult(delivery, "pending", error=error, retry_seconds=MOVED_SECONDS)
            case Refused():
                ends = answer.scope == "conversation"
                return DeliveryResult(delivery, "failed", error=answer.error, ends=ends)
            case RefusedUs():
                log.error("platform.refuses_us", platform=delivery.address.platform, reason=answer.error)
                return DeliveryResult(delivery, "pending", error=answer.error, retry_seconds=REFUSED_US_SECONDS)

    async def _move(self, delivery: Delivery, conversation: str) -> None:
        new = replace(delivery.address, conversation=conversation)
        await sessions.move(self._store.database, delivery.address, new)
        for where in (delivery.conversation_id, new.id):
            await self._hot.forget_session(where)
        log.info("conversation.moved", conversation=str(delivery.conversation_id), to=str(new.id))
        # Where the new id was in use already, the delivery stayed, but goes to the new id as well.
        for where in (new.id, delivery.conversation_id):
            self.send_soon(where, MOVED_SECONDS)

    def _tell(self, result: DeliveryResult) -> None:
        delivery = result.delivery
        DELIVERIES.labels(delivery.address.platform, result.status).inc()
        tracing.note(status=result.status)
        if result.status != "sent":
            tracing.fail(result.error or result.status)
        log.info(
            "reply.delivered" if result.status == "sent" else "reply.not_delivered",
            status=result.status,
            message=str(delivery.message_id),
            conversation=str(delivery.conversation_id),
            part=delivery.part,
            attempt=delivery.attempt,
            **({"reason": result.error} if result.error else {}),
        )


async def rendered(platform: Platform, text: str) -> Sequence[Rendered]:
    """A reply as its parts."""
    if not text.strip():
        return ()
    return platform.render(text) if len(text) <= LONG_TEXT else await asyncio.to_thread(platform.render, text)


def _text_part(delivery: Delivery, parts: Sequence[Rendered]) -> OutboundPart:
    buttons: Sequence[Mapping[str, str]] = delivery.metadata.get("buttons", ())
    return replace(
        _part(delivery),
        content=parts[delivery.part - 1],
        buttons=tuple(Button(**button) for button in buttons) if delivery.part == len(parts) else (),
    )


def _part(delivery: Delivery) -> OutboundPart:
    return OutboundPart(
        conversation_id=delivery.conversation_id,
        address=delivery.address,
        message_id=delivery.message_id,
        seq=delivery.seq,
        part=delivery.part,
        content=Rendered(""),
        idempotency_key=str(delivery.idempotency_key),
        reply_to=delivery.metadata.get("reply_to") if delivery.part == 1 else None,
        replaces=delivery.replaces,
        unasked=delivery.metadata.get("unasked", False),
    )
